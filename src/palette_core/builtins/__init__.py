"""Plug-ins that come along: each registers through the same hooks as anybody's.

Stored forms lie in `palette_core.storage.forms`, since files cannot be read without them.
"""
