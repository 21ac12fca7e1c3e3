"""Sensitivities: squared gradients of the loss, summed by weight."""
