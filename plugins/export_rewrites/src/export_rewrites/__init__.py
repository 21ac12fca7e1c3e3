"""Programs of ``torch.export`` in operations that a converter takes, and takes right.

`rewritten` is one step between ``torch.export.export`` and a converter: what the converter lacks,
or silently gets wrong, is written in other operations that compute the same. `REWRITES` is the
table, with the reason for each.
"""

from export_rewrites import (
    activations,
    axes,
    constants,
    elementwise,
    indexing,
    layers,
    matrices,
    pooling,
    reductions,
    resizing,
    scattering,
)
from export_rewrites._registry import REWRITES, Rewrite, known_rewrites
from export_rewrites.checks import unfit
from export_rewrites.collecting import collecting_later
from export_rewrites.folding import held_constants
from export_rewrites.naming import Feature, Interface, interface_of, named
from export_rewrites.program import (
    Dialect,
    copied,
    decompositions,
    left_over,
    module_of,
    rewritten,
    tidy_outputs,
)
from export_rewrites.tracing import evaluating, of_function, split_inputs, summary, trace

__all__ = [
    "REWRITES",
    "Dialect",
    "Feature",
    "Interface",
    "Rewrite",
    "collecting_later",
    "copied",
    "decompositions",
    "evaluating",
    "held_constants",
    "interface_of",
    "known_rewrites",
    "left_over",
    "module_of",
    "named",
    "of_function",
    "rewritten",
    "split_inputs",
    "summary",
    "tidy_outputs",
    "trace",
    "unfit",
]

# Imported for what they enter into the table.
del activations, axes, constants, elementwise, indexing, layers, matrices, pooling, reductions
del resizing, scattering
