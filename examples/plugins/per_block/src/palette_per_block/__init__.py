"""Two-dimensional blocks as a granularity of palette_core."""
