"""Many trials: planned, checked, run, told."""
