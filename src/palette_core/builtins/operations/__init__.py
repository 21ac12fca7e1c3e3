"""Torch's own operations."""
