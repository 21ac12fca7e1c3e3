"""Built-in strategies for palettization-aware training."""
