"""Statistics of calibration batches about weights: second moments of inputs, squared gradients."""
