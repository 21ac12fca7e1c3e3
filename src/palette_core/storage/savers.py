"""Savers of other libraries, kept from writing what nobody can read.

transformers, diffusers and others give their models a method ``save_pretrained``. It writes the
state dictionary as it is; ``from_pretrained`` takes a palettized weight in there for a missing one,
and makes a random one. While weights of a model are palettized, its method raises instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn

from palette_core._common.modules import modules_of
from palette_core.errors import StateError
from palette_core.storage.sites import palette_sites

_SAVER = "save_pretrained"


def guard_savers(model: nn.Module) -> None:
    """Let savers of a model, and of its parts, refuse while weights inside are palettized.

    The guard goes with copies of the model, and lets everything through once the weights are plain
    parameters again.
    """
    for module in modules_of(model):
        # Without nn.Module's own getattr, which is slow where there is nothing.
        saver = vars(module).get(_SAVER, getattr(type(module), _SAVER, None))
        if callable(saver) and not _is_guarded(module):
            names = [name for site in palette_sites(module) for name in site.names]
            if names:
                vars(module)[_SAVER] = _Guard(module, names, vars(module).get(_SAVER))


def release_savers(model: nn.Module) -> None:
    """Give savers back as they were before `guard_savers`."""
    for module in modules_of(model):
        if _is_guarded(module):
            guard: _Guard = vars(module).pop(_SAVER)
            if guard.before is not None:
                vars(module)[_SAVER] = guard.before


def _is_guarded(module: nn.Module) -> bool:
    return isinstance(vars(module).get(_SAVER), _Guard)


@final
class _Guard:
    """Stands for a module's saver.

    Args:
        module: the owner.
        names: of its palettized weights.
        before: a saver that hung in the module itself; None where it is a method of the class.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], before: Any) -> None:
        self._module = module
        self._names = names
        self.before = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save, or refuse to.

        Raises:
            StateError: palettized weights would be written.
        """
        packed = self._written(kwargs.get("state_dict"))
        if packed:
            raise StateError(
                f"{type(self._module).__name__}.{_SAVER}() cannot save palettized weights "
                f"({packed[0]}{f' and {len(packed) - 1} more' if packed[1:] else ''}): "
                "from_pretrained() would find none of them, and make random ones. Call "
                "save_checkpoint(model, path) for a packed checkpoint, which load_checkpoint() "
                "reads, KMeansPalettizer.export() for the file of a runtime, or "
                f"KMeansPalettizer.dequantize() first: then {_SAVER}() writes dense weights with "
                "the values of the palettes"
            )
        if self.before is not None:
            return self.before(*args, **kwargs)
        return getattr(type(self._module), _SAVER)(self._module, *args, **kwargs)

    def _written(self, state_dict: Any) -> list[str]:
        """Return names of the palettized weights that would be written."""
        names = [name for name in self._names if not self._is_plain(name)]
        if isinstance(state_dict, Mapping):
            keys = [str(key) for key in state_dict]
            return [n for n in names if any(_is_part(key, n) for key in keys)]
        adapters = getattr(self._module, "peft_config", None)
        # A model around another one; adapters inside of a model are saved with all the rest.
        if isinstance(adapters, Mapping) and "base_model" in self._module._modules:
            return [n for n in names if not adapters.keys().isdisjoint(n.split("."))]
        return names

    def _is_plain(self, name: str) -> bool:
        prefix, _, state = name.rpartition(".")
        try:
            return state in self._module.get_submodule(prefix)._parameters
        except AttributeError:
            return False


def _is_part(key: str, name: str) -> bool:
    """Return whether a key of a state dictionary belongs to a palettized weight.

    Savers may have put something in front of keys.
    """
    prefix, dot, state = name.rpartition(".")
    return f"{prefix}{dot}parametrizations.{state}." in key
