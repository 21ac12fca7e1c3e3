"""K-means for scalars: the proven optimum."""
