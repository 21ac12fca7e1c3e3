"""Built-in sensitivity metrics."""
