"""The model and the sentences of ``palette demo``."""
