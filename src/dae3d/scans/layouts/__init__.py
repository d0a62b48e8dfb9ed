"""Public data sets: what lies where in them, and what each file is."""
