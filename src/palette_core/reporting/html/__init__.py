"""Pages: reports and comparisons of runs as single HTML files with all that they need in them."""
