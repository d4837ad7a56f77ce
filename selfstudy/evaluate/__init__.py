"""Frozen encoders: their features, and what these are good for."""
