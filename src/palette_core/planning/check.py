"""Check a config against what is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from palette_core.config import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    VectorKMeansConfig,
)
from palette_core.config.spec import PalettizationSpec
from palette_core.errors import PaletteError
from palette_core.planning.choose import (
    clusterer_for,
    clusterer_options,
    lut_quantizer_name,
)
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.kinds import GRANULARITY, STORED_FORM
from palette_core.plugins.options import validate_options

ConfigPath = tuple[str, ...]
Locate = Callable[[ConfigPath], str]


def check_names(
    config: KMeansPalettizerConfig, catalog: Catalog, locate: Locate | None = None
) -> None:
    """Resolve every plug-in name in a config, and validate the options given to it.

    Args:
        config: the config.
        catalog: the installed plug-ins.
        locate: turns a path into the config into file and line, such as ``"config.yaml:7: "``.

    Raises:
        PaletteError: the first failure, its message prefixed with the path of the spec.
    """
    seen: set[tuple[object, ...]] = set()  # a config may have thousands of specs, and few kinds
    for path, spec, vectors in _specs(config):
        kind = _what_is_checked(spec, vectors)
        if kind in seen:
            continue
        seen.add(kind)
        for field, check in _checks(spec, vectors, catalog).items():
            try:
                check()
            except PaletteError as error:
                place = "" if locate is None else locate((*path, *field.split(".")))
                raise type(error)(f"{place}{_text(path)}: {error}") from None


def _what_is_checked(
    spec: PalettizationSpec, vectors: VectorKMeansConfig | None
) -> tuple[object, ...]:
    """Return all that `_checks` looks at, equal for specs that it cannot tell apart."""
    options = repr(spec.algorithm_options), repr(spec.training_strategy_options)
    kinds = spec.granularity.type, spec.algorithm, spec.cluster_dim, spec.lut_qspec
    return *kinds, spec.training_strategy, vectors, *options


def _checks(
    spec: PalettizationSpec, vectors: VectorKMeansConfig | None, catalog: Catalog
) -> dict[str, Callable[[], object]]:
    """Return what there is to check about a spec, by the field that it is about."""

    def strategy() -> object:
        return catalog.training_strategies.get(spec.training_strategy)

    return {
        "granularity": lambda: _check_granularity(spec, catalog),
        "algorithm": lambda: clusterer_for(spec, catalog),
        "algorithm_options": lambda: clusterer_options(
            clusterer_for(spec, catalog), spec, vectors, catalog
        ),
        "lut_qspec.quantizer": lambda: lut_quantizer_name(spec.lut_qspec, catalog),
        "stored_form": lambda: catalog[STORED_FORM].get(spec.stored_form),
        "training_strategy": strategy,
        "training_strategy_options": lambda: validate_options(
            catalog.training_strategies.get(spec.training_strategy),
            spec.training_strategy_options,
        ),
    }


def _check_granularity(spec: PalettizationSpec, catalog: Catalog) -> None:
    """Refuse a granularity that is blocked; one that nobody registers is the user's own."""
    registry = catalog[GRANULARITY]
    if registry.is_blocked(spec.granularity.type):
        registry.get(spec.granularity.type)


_Found = tuple[ConfigPath, PalettizationSpec, VectorKMeansConfig | None]


def _specs(config: KMeansPalettizerConfig) -> Iterator[_Found]:
    """Yield every spec with its path and with the settings for vectors of its module."""
    yield from _module_specs(("global_config",), config.global_config)
    for level in ("module_type_configs", "module_name_configs"):
        for key, module in getattr(config, level).items():
            yield from _module_specs((level, key), module)


def _module_specs(path: ConfigPath, module: ModuleKMeansPalettizerConfig) -> Iterator[_Found]:
    for at, states in _states(path, module):
        for key, spec in states.items():
            if spec is not None:
                yield (*at, key), spec, module.vector_kmeans_config


def _states(
    path: ConfigPath, module: ModuleKMeansPalettizerConfig
) -> Iterator[tuple[ConfigPath, Mapping[str, PalettizationSpec | None]]]:
    for name in ("op_state_spec", "module_state_spec"):
        yield (*path, name), getattr(module, name)
    for name in ("op_type_config", "op_name_config"):
        for key, op in getattr(module, name).items():
            yield (*path, name, key, "op_state_spec"), op.op_state_spec


_FIELDS = frozenset(
    {
        "global_config",
        "module_type_configs",
        "module_name_configs",
        "op_state_spec",
        "module_state_spec",
        "op_type_config",
        "op_name_config",
    }
)


def _text(path: ConfigPath) -> str:
    """Return ``global_config.op_state_spec['weight']``: fields and keys take turns in a path."""
    text, key_next = path[0], path[0] != "global_config"
    for part in path[1:]:
        text += f"[{part!r}]" if key_next else f".{part}"
        key_next = not key_next and part in _FIELDS
    return text
