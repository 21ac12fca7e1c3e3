"""Stored forms: how the indices of a palettized weight lie at rest."""
