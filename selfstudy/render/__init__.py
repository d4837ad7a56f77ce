"""Pictures of synthetic scenes with true labels, in plain NumPy."""
