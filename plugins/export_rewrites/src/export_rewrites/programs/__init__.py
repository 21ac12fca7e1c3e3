"""Small programs, one operation with its arguments each, to try a converter with."""

from export_rewrites.programs._record import Program
from export_rewrites.programs.elementwise import ELEMENTWISE
from export_rewrites.programs.layers import LAYERS
from export_rewrites.programs.reductions import REDUCTIONS
from export_rewrites.programs.shapes import SHAPES

FAMILIES: dict[str, list[Program]] = {
    "element by element": ELEMENTWISE,
    "reductions, sorting, running totals": REDUCTIONS,
    "views, indexing, scattering, matrices": SHAPES,
    "layers": LAYERS,
}
PROGRAMS: list[Program] = [program for family in FAMILIES.values() for program in family]

__all__ = ["FAMILIES", "PROGRAMS", "Program"]
