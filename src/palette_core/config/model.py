"""The configuration of a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, ClassVar, Self, final

from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import nn

from palette_core.config import yaml_io
from palette_core.config.base import EditableConfig
from palette_core.config.essentials import essentials
from palette_core.config.module import ModuleKMeansPalettizerConfig
from palette_core.config.names import canonical_type_name
from palette_core.config.op import none_is_empty, reject_twins
from palette_core.config.patterns import check_pattern
from palette_core.config.presets import Presets
from palette_core.config.problems import CONFIG_KEY

Target = str | type[nn.Module]


def _none_is_disabled(value: Any) -> Any:
    return ModuleKMeansPalettizerConfig.disabled() if value is None else value


def _type_key(key: Any) -> str:
    try:
        return canonical_type_name(key)
    except TypeError as error:
        raise ValueError(str(error)) from None  # pydantic collects ValueErrors only


ModuleEntry = Annotated[ModuleKMeansPalettizerConfig, BeforeValidator(_none_is_disabled)]
ModuleTypes = Annotated[
    dict[Annotated[str, BeforeValidator(_type_key)], ModuleEntry],
    BeforeValidator(reject_twins(canonical_type_name)),
    BeforeValidator(none_is_empty),
]
ModuleNames = Annotated[
    dict[Annotated[str, BeforeValidator(check_pattern)], ModuleEntry],
    BeforeValidator(none_is_empty),
]


@final
class KMeansPalettizerConfig(EditableConfig):
    """Rules for every module of a model.

    For one module, from the most to the least specific: ``module_name_configs``,
    ``module_type_configs``, ``global_config``. An entry reaches all descendants of the modules
    it matches; within one mapping the entry declared last wins.

    Attributes:
        global_config: for every module; None leaves alone what no other entry matches. Omitted,
            it is None where an entry of ``module_type_configs`` or ``module_name_configs`` asks
            for something, and the default where they only leave modules alone, or nothing is
            given. It cannot have a ``module_state_spec``.
        module_type_configs: by module type, an ``nn.Module`` class or its fully qualified name,
            kept under the name where the class is defined; the type has to match exactly. None
            as a value leaves those modules alone.
        module_name_configs: by regular expression for fully qualified module names, which has to
            match all of the name; None as a value leaves those modules alone.
        seed: from which every random choice derives; an integer of 64 bits.
    """

    presets: ClassVar[Presets[KMeansPalettizerConfig]]

    global_config: ModuleEntry = Field(default_factory=ModuleKMeansPalettizerConfig)
    module_type_configs: ModuleTypes = Field(default_factory=dict)
    module_name_configs: ModuleNames = Field(default_factory=dict)
    seed: int = Field(default=0, ge=-(2**63), lt=2**64)

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            global_config: ModuleKMeansPalettizerConfig | None = ...,
            module_type_configs: Mapping[Any, ModuleKMeansPalettizerConfig | None] | None = ...,
            module_name_configs: Mapping[str, ModuleKMeansPalettizerConfig | None] | None = ...,
            seed: int = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _restrict_to_named(self) -> Self:
        """Leave alone what is not named where an entry asks for something and no global config."""
        if "global_config" not in self.model_fields_set:
            entries = (*self.module_type_configs.values(), *self.module_name_configs.values())
            if not all(entry.is_disabled for entry in entries):
                self.__dict__["global_config"] = ModuleKMeansPalettizerConfig.disabled()
        return self

    @field_validator("global_config")
    @classmethod
    def _check_global(cls, value: ModuleKMeansPalettizerConfig) -> ModuleKMeansPalettizerConfig:
        if value.module_state_spec:
            raise ValueError(
                "global_config cannot have a module_state_spec, which is for the states of "
                "particular modules; put it into module_type_configs or module_name_configs"
            )
        return value

    def set_global(self, config: ModuleKMeansPalettizerConfig | None) -> Self:
        """Set the config for every module; None leaves alone what no other entry matches.

        Raises:
            pydantic.ValidationError: not a valid config; nothing was changed.
        """
        self.global_config = config  # type: ignore[assignment]  # None is read as disabled
        return self

    def set_module_type(
        self, module_type: Target, config: ModuleKMeansPalettizerConfig | None
    ) -> Self:
        """Set the config for modules of exactly this type; None leaves them alone.

        Setting a type anew also makes it the one declared last.

        Raises:
            TypeError: neither an ``nn.Module`` class nor a name.
            ValueError: not a valid name or config; nothing was changed.
        """
        key = canonical_type_name(module_type)
        return self._override([("module_type_configs", key, config)])

    def set_module_name(
        self, module_name: str, config: ModuleKMeansPalettizerConfig | None
    ) -> Self:
        """Set the config for modules whose name matches a regular expression.

        Setting a name anew also makes it the one declared last.

        Raises:
            TypeError: not a string.
            ValueError: not a valid expression or config; nothing was changed.
        """
        if not isinstance(module_name, str):
            raise TypeError(f"module names are strings, got {module_name!r}")
        return self._override([("module_name_configs", check_pattern(module_name), config)])

    def only_for(self, *targets: Any) -> Self:
        """Move the global config to the given modules, and leave all others alone.

        Args:
            *targets: ``nn.Module`` classes and regular expressions for module names, or one list
                of them. What was set for them before is replaced.

        Raises:
            ValueError: no targets, or there is no global config left to move.
            TypeError: a target is neither a class nor a string; nothing was changed.
        """
        flat = _flatten(targets)
        if not flat:
            raise ValueError("only_for needs at least one target")
        if self.global_config.is_disabled:
            raise ValueError(
                "only_for needs a non-disabled global_config to move to the targets; after a "
                "first only_for there is none left, so pass all targets in one call"
            )
        entries = [(*_target(target), self.global_config) for target in flat]
        return self._override(entries, global_config=None)

    def without(self, *targets: Any) -> Self:
        """Leave the given modules alone; with no targets, change nothing.

        Args:
            *targets: ``nn.Module`` classes and regular expressions for module names, or one list
                of them. What was set for them before is replaced.

        Raises:
            TypeError: a target is neither a class nor a string; nothing was changed.
        """
        return self._override([(*_target(target), None) for target in _flatten(targets)])

    def _override(
        self,
        entries: Sequence[tuple[str, str, ModuleKMeansPalettizerConfig | None]],
        **changes: Any,
    ) -> Self:
        for field, key, config in entries:
            mapping = dict(changes.get(field, getattr(self, field)))
            mapping.pop(key, None)  # the entry declared last wins, so it moves to the end
            changes[field] = {**mapping, key: config}
        self._adopt(self._checked(changes), *changes)
        return self

    @classmethod
    def of(cls, config: ConfigLike) -> Self:
        """Return the config that is meant: itself, a dictionary's, a YAML file's, or the default.

        Args:
            config: a config, what `from_dict` takes, the path of what `from_yaml` reads, or None.

        Raises:
            TypeError: none of these.
            ConfigError: see `from_dict` and `from_yaml`.
            FileNotFoundError: there is no such file.
        """
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if isinstance(config, Mapping):
            return cls.from_dict(config)
        if isinstance(config, (str, Path)):
            return cls.from_yaml(config)
        raise TypeError(
            "config must be a KMeansPalettizerConfig, a dictionary as from_dict takes it, or the "
            f"path of a YAML file, got {type(config).__name__}"
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a config from what `to_dict` returns; ``data`` is not changed.

        Args:
            data: with the key ``kmeans_palettization_config``, and possibly ``palettization_spec``
                with named specs, which only a YAML file can refer to, by anchors.

        Raises:
            ConfigError: one line for each problem, naming the place, the value, and what is right.
        """
        return yaml_io.parse(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; `from_dict` makes an equal config of them."""
        return {CONFIG_KEY: self.model_dump(mode="json")}

    @classmethod
    def from_yaml(cls, source: str | Path | IO[Any]) -> Self:
        """Read a YAML file.

        Args:
            source: a path, or an open text or binary stream.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: one line for each problem, naming file and line, place, value, and what
                is right.
        """
        return yaml_io.load(cls, source)

    def to_yaml(self, target: str | Path | IO[Any] | None = None, *, defaults: bool = False) -> str:
        """Return the config as YAML, and write it to ``target``, all of it or nothing.

        Args:
            target: a path, or an open text or binary stream; None writes nowhere.
            defaults: write also what is at its default; else only ``n_bits`` and the type of a
                granularity are written whatever they are.
        """
        return yaml_io.dump(self.to_dict() if defaults else self._short(), target)

    def _short(self) -> dict[str, Any]:
        dumped = self.model_dump(mode="json")
        said = essentials(self, dumped)
        said.pop("global_config", None)
        if self.model_validate(said) != self:  # other entries say what stands in its place
            whole = essentials(self.global_config, dumped["global_config"])
            said = {"global_config": whole, **said}
        return {CONFIG_KEY: said}


ConfigLike = KMeansPalettizerConfig | Mapping[str, Any] | str | Path | None
"""What stands for a config wherever one is taken; `KMeansPalettizerConfig.of` reads it."""


def _flatten(targets: tuple[Any, ...]) -> list[Any]:
    if len(targets) == 1 and isinstance(targets[0], (list, tuple)):
        return list(targets[0])
    return list(targets)


def _target(target: Any) -> tuple[str, str]:
    if isinstance(target, str):
        return "module_name_configs", check_pattern(target)
    if not isinstance(target, type):
        raise TypeError(f"targets must be module types or name strings, got {target!r}")
    if not issubclass(target, nn.Module):
        raise TypeError(
            f"targets must be nn.Module subclasses or name strings, got {target.__name__}"
        )
    return "module_type_configs", canonical_type_name(target)


KMeansPalettizerConfig.presets = Presets(
    lambda states, operations: KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec=states, op_type_config=operations)
    )
)
