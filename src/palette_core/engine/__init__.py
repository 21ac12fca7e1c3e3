"""From plans and weights to palettes: cluster one weight, many, or a model stage by stage."""
