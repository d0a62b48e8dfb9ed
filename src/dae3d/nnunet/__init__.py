"""What runs within nnU-Net: networks of dae3d for its trainers."""
