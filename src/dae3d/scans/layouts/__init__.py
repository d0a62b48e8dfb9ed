"""Layouts of public data sets: where their scans are, and what each file is."""
