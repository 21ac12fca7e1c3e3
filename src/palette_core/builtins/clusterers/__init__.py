"""Built-in clustering algorithms, a folder each."""
