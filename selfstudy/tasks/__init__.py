"""Tasks: targets, losses and metrics, one file each."""
