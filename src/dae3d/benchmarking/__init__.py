"""`dae3d bench`: speed and memory, compared with MONAI and nnU-Net."""
