"""The two documented granularities, registered; `palette_core.config.granularity` defines them."""
