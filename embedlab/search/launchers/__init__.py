"""Where trials are trained: one class and one file for each kind of place."""
