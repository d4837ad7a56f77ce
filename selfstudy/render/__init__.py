"""Renderer of synthetic scenes with ground truth, in plain NumPy."""
