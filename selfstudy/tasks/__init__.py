"""What is predicted, its loss and its metrics, one file a task."""
