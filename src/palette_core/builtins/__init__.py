"""Plug-ins that come along: each registers through the same hooks as anybody's."""
