"""Built-in clustering algorithms."""
