"""Plug-ins at work, by kind: what they return is checked before anything is made of it."""
