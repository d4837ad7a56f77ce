"""Many trials, without Ray: planned, checked, run and summarised."""
