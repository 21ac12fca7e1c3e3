"""Palettization of programs that exist already, without the model that they were made of."""

from palette_core.programs.palettize import palettize_program, plan_program

__all__ = ["palettize_program", "plan_program"]
