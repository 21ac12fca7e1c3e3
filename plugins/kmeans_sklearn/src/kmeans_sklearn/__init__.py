"""scikit-learn's k-means, scalar and vector, as clustering algorithms for palette_core."""
