"""Layers with the parameters of PyTorch's, faster or smaller in memory."""
