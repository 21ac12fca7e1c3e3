"""Helpers that know nothing of palettes: files, random states, progress, data models, kernels."""
