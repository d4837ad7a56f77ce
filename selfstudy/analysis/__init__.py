"""Results as frames, figures and pages, without torch and Ray."""
