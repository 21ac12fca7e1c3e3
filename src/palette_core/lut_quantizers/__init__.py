"""Built-in LUT quantizers."""
