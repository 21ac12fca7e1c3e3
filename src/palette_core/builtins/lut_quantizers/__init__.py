"""Built-in quantizers of look-up tables."""
