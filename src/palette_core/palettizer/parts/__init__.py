"""Parts of one model in files of their own: modules that follow each other, or functions."""
