"""Pretraining methods: one file each, from paper to loss."""
