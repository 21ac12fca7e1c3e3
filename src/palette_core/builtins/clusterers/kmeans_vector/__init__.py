"""K-means for vectors."""
