"""Formats of dense checkpoints: a file for each, and a row in the table of ``known.py``."""
