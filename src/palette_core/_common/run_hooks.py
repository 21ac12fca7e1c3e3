"""Hooks that say which module of a model runs, for the time of one run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, final

from torch import nn
from torch.utils.hooks import RemovableHandle

from palette_core._common.undoing import undone

Called = Callable[[nn.Module], None]


@final
class RunHooks:
    """Calls a function with each module that begins, behind its own hooks, and that ends.

    Args:
        enter: what is called before ``forward``.
        leave: what is called after it, also where it fails.
    """

    def __init__(self, enter: Called, leave: Called) -> None:
        self._enter, self._leave = enter, leave
        # One key for all, of those that torch numbers its own by: a handle each takes its time.
        self._key = RemovableHandle(OrderedDict()).id
        self._hooked: list[nn.Module] = []  # with copies of modules that forward makes

    def put_into(self, modules: Iterable[nn.Module]) -> None:
        """Hook every module, or none."""
        modules = list(modules)
        self._hooked += modules
        try:
            for module in modules:
                module._forward_pre_hooks[self._key] = _Hook(module, self._enter, self._hooked)
                module._forward_hooks_always_called[self._key] = True
                module._forward_hooks[self._key] = _Hook(module, self._leave, self._hooked)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take all hooks out again, those of copies too; none can be put in after that.

        What they call is let go of: it often holds these hooks, and would keep what it has seen in
        memory until garbage is collected.
        """
        self._enter = self._leave = _nothing
        with undone(self._hooked, self._remove_from):
            pass

    def _remove_from(self, module: nn.Module) -> None:
        module._forward_pre_hooks.pop(self._key, None)
        module._forward_hooks.pop(self._key, None)
        module._forward_hooks_always_called.pop(self._key, None)


def _nothing(module: nn.Module) -> None:
    """Stand for what is called no more."""


class _Hook:
    """A hook of one module, which does nothing in copies that ``forward`` makes of the module."""

    def __init__(self, module: nn.Module, call: Called, hooked: list[nn.Module]) -> None:
        self._module = module
        self._call = call
        self._hooked = hooked

    def __call__(self, module: nn.Module, *more: Any) -> None:
        if module is self._module:
            self._call(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        copy = memo.get(id(self._module))
        if copy is None:
            return self
        self._hooked.append(copy)
        return _Hook(copy, _do_nothing, self._hooked)  # which may be copied in its turn


def _do_nothing(module: nn.Module) -> None:
    del module
