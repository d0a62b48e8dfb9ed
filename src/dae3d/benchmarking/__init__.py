"""`dae3d bench`: how fast it is, and against what."""
