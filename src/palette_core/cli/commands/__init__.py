"""The commands of ``palette``, by what they do; the work itself is imported when one runs."""
