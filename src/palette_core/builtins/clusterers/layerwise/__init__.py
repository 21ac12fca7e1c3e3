"""Palettes chosen by what a layer computes: gptq and lnq."""
