"""A codebook of normal quantiles as a clustering algorithm of palette_core."""
