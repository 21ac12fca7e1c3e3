"""What calibration batches say about weights: second moments of inputs, squared gradients."""
