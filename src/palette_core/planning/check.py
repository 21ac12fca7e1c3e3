"""Check a config against what is installed."""

from __future__ import annotations

from palette_core.config import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.errors import PaletteError
from palette_core.planning.choose import clusterer_for, lut_quantizer_name
from palette_core.plugins import Catalog, validate_options
from palette_core.spec import PalettizationSpec


def specs_of(config: KMeansPalettizerConfig) -> dict[str, PalettizationSpec]:
    """Return every spec of a config by its path."""
    found: dict[str, PalettizationSpec] = {}

    def states(path: str, mapping: dict[str, PalettizationSpec | None]) -> None:
        for key, spec in mapping.items():
            if spec is not None:
                found[f"{path}[{key!r}]"] = spec

    def module(path: str, rules: ModuleKMeansPalettizerConfig) -> None:
        states(f"{path}.op_state_spec", rules.op_state_spec)
        states(f"{path}.module_state_spec", rules.module_state_spec)
        for name in ("op_type_config", "op_name_config"):
            for key, op in getattr(rules, name).items():
                states(f"{path}.{name}[{key!r}].op_state_spec", op.op_state_spec)

    module("global_config", config.global_config)
    for level in ("module_type_configs", "module_name_configs"):
        for key, rules in getattr(config, level).items():
            module(f"{level}[{key!r}]", rules)
    return found


def check_names(config: KMeansPalettizerConfig, catalog: Catalog) -> None:
    """Resolve every plug-in name in a config, and validate the options given to it.

    Raises:
        PaletteError: the first failure, its message prefixed with the path of the spec.
    """
    for path, spec in specs_of(config).items():
        try:
            entry = clusterer_for(spec, catalog)
            validate_options(entry, "clusterer", spec.algorithm_options)
            lut_quantizer_name(spec.lut_qspec, catalog)
            strategy = catalog.training_strategies.get(spec.training_strategy)
            validate_options(strategy, "training strategy", spec.training_strategy_options)
        except PaletteError as error:
            raise type(error)(f"{path}: {error}") from None
