"""What these tests need when they run alone, and what is converted once for all of them."""

from __future__ import annotations

import logging

import torch

logging.getLogger("coremltools").addFilter(
    lambda record: not record.getMessage().startswith(("Failed to load", "Torch version", "scikit"))
)
torch.set_num_threads(2)
