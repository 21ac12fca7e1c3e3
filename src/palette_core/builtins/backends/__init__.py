"""Built-in export backends."""
