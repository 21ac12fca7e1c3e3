"""Checkpoints of any size, palettized tensor by tensor, without a model or its memory."""

from palette_core.streaming.palettize import palettize_checkpoint
from palette_core.streaming.planning import CheckpointPlan, plan_checkpoint
from palette_core.streaming.skeleton import Skeleton

__all__ = ["CheckpointPlan", "Skeleton", "palettize_checkpoint", "plan_checkpoint"]
