"""A palettized weight at rest: packed modules, checkpoints, mapped files, sizes."""
