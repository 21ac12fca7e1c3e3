"""Put a palettized weight in the place of a dense one in a live module, and take it out again.

Built on ``torch.nn.utils.parametrize``: ``module.weight`` decodes, the dense original stays under
``module.parametrizations.weight.original``. What torch's mechanism leaves out is added here:
modules pickle, copies do not share a class, and recurrent layers, which keep a private list of
their weights, read it through the parametrization.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Iterable
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core.errors import PlanError
from palette_core.model.contents import Contents


def attach(module: nn.Module, name: str, parametrization: nn.Module) -> None:
    """Compute ``module.<name>`` through ``parametrization`` from now on.

    Parameters of the parametrization take gradients where the tensor does.

    Raises:
        PlanError: the module's class cannot be replaced by a class of its own.
    """
    try:
        _attach(module, name, parametrization)
    except TypeError as error:
        raise PlanError(
            f"a palette for {name!r} of {type(module).__name__} needs to replace the class of the "
            f"module, which fails: {error}; leave this module alone by its type or name"
        ) from error


def _attach(module: nn.Module, name: str, parametrization: nn.Module) -> None:
    recurrent = isinstance(module, nn.RNNBase)
    parametrization.requires_grad_(is_trained(module, name))
    if parametrize.is_parametrized(module):
        # Copies that torch made of a parametrized module share its class.
        module.__class__ = _copied_class(type(module))
    parametrize.register_parametrization(module, name, parametrization, unsafe=True)
    _adopt_class(type(module), recurrent)
    vars(module).pop("_flat_weights", None)


def replace_chain(
    module: nn.Module, name: str, parametrization: nn.Module, placeholder: nn.Parameter
) -> None:
    """Make ``parametrization`` the whole chain of ``module.<name>``, and free the original.

    Args:
        module: the owner; what it was computed through before goes, too.
        name: of its weight.
        parametrization: makes the weight, without reading the original.
        placeholder: an empty parameter to stand where the original was.
    """
    if not parametrize.is_parametrized(module, name):
        attach(module, name, parametrization)
    chain = parametrize.ParametrizationList([parametrization], placeholder, unsafe=True)
    chain.train(module.training)
    parametrizations(module)[name] = chain


def detach(module: nn.Module, name: str, value: nn.Parameter) -> None:
    """Make ``module.<name>`` a plain parameter, ahead of the others of the module.

    Undoes `attach`, with another value; the module gets the class it had where nothing else of it
    is computed.
    """
    chains = parametrizations(module)
    recurrent = isinstance(module, nn.RNNBase)
    del chains[name]
    if len(chains):
        module.__class__ = _copied_class(type(module), without=name)
    else:
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    others = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: value} | others)
    if recurrent and not len(chains):
        module._flat_weights = _read_weights(cast("nn.RNNBase", module))  # type: ignore[assignment]


def parametrizations(module: nn.Module) -> nn.ModuleDict:
    """Return the chains of a parametrized module by local name."""
    return cast("nn.ModuleDict", module.parametrizations)


@final
class ModuleSnapshot:
    """Snapshot of modules, to be put back.

    Classes, attributes and registries come back as they were: the same tensors, in the same
    order, the same hooks. The values of tensors are not kept. As a context, it puts everything
    back where the block fails or is interrupted.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        parts: dict[int, nn.Module] = {}
        self._properties: list[tuple[type, dict[str, property]]] = []
        for module in modules:
            parts[id(module)] = module
            if parametrize.is_parametrized(module):
                parts |= {id(part): part for part in parametrizations(module).modules()}
                members = vars(type(module)).items()  # of a class of the module's own
                found = {name: item for name, item in members if isinstance(item, property)}
                self._properties.append((type(module), found))
        self._kept = [
            (part, type(part), dict(vars(part)), Contents(part))
            for part in parts.values()
            if not isinstance(part, torch.jit.ScriptModule)  # has nothing of these of its own
        ]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            self.restore()

    def restore(self) -> None:
        """Put everything back."""
        for cls, properties in self._properties:
            for name, item in properties.items():
                if vars(cls).get(name) is not item:
                    setattr(cls, name, item)
        for module, cls, attributes, contents in self._kept:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(attributes)
            contents.put_back()


def is_trained(module: nn.Module, name: str) -> bool:
    """Return whether ``module.<name>``, or a parameter it is computed from, takes gradients."""
    if parametrize.is_parametrized(module, name):
        return any(p.requires_grad for p in parametrizations(module)[name].parameters())
    return bool(getattr(module, name).requires_grad)


def chain_input(module: nn.Module, name: str, parametrization: nn.Module) -> Tensor:
    """Return what ``parametrization`` receives in the chain of ``module.<name>``.

    The dense original where it is the first of the chain, else what those before it compute.
    """
    chain = cast("parametrize.ParametrizationList", parametrizations(module)[name])
    count = 1 if chain.is_tensor else chain.ntensors
    originals = [
        getattr(chain, "original" if chain.is_tensor else f"original{i}") for i in range(count)
    ]
    value, *rest = originals
    for at, item in enumerate(chain):
        if item is parametrization:
            return cast("Tensor", value)
        value = item(value, *rest) if at == 0 else item(value)
    raise ValueError(f"{name} is not computed through this {type(parametrization).__name__}")


# --- classes ------------------------------------------------------------------------------------


def _copied_class(cls: type, without: str = "") -> type:
    left_out = ("__dict__", "__weakref__", without)
    members = {n: v for n, v in vars(cls).items() if n not in left_out}
    return type(cls.__name__, cls.__bases__, members)


def _adopt_class(cls: type, recurrent: bool) -> None:
    """Make the class that torch has injected for one module picklable."""
    for blocked in ("__getstate__", "__deepcopy__"):
        if blocked in vars(cls):
            delattr(cls, blocked)
    cls.__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]
    for name, member in _computing_members(cls).items():
        setattr(cls, name, member)
    if recurrent:
        for name, member in _recurrent_members(cls.__bases__[0]).items():
            setattr(cls, name, member)


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    del protocol
    base = type(module).__bases__[0]
    names = tuple(module.parametrizations)
    return _rebuild, (base, names), module.__getstate__()


def _rebuild(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Make an empty module of a fresh class on top of ``base`` with ``names`` parametrized."""
    cls = type(f"Parametrized{base.__name__}", (base,), {n: _weight_property(n) for n in names})
    _adopt_class(cls, issubclass(base, nn.RNNBase))
    module: nn.Module = copyreg.__newobj__(cls)  # type: ignore[attr-defined]
    return module


def _weight_property(name: str) -> property:
    def read(module: Any) -> Tensor:
        chain = module.parametrizations[name]
        return chain()  # type: ignore[no-any-return]

    def write(module: Any, value: Tensor) -> None:
        module.parametrizations[name].right_inverse(value)

    return property(read, write)


# --- layers that a parametrization may compute ---------------------------------------------------

_COMPUTED = (nn.Linear.forward, nn.Embedding.forward)


def _computing_members(cls: Any) -> dict[str, Any]:
    """Return a forward that asks the parametrization of the weight for the layer's output first.

    An embedding, whose weight a tied head reads, asks for what stands for the weight, too.

    Args:
        cls: on top of the layer's own class, whose forward reads the weight.
    """
    plain = cls.__bases__[0].forward
    if plain not in _COMPUTED:
        return {}

    @functools.wraps(plain)
    def forward(module: nn.Module, input: Tensor) -> Tensor:
        ask = getattr(_only_part(module), "layer_output", None)
        output: Tensor | None = None if ask is None else ask(module, input)
        if output is None:
            output = plain(module, input)
        return output

    weight = vars(cls).get("weight")
    if plain is not nn.Embedding.forward or not isinstance(weight, property):
        return {"forward": forward}
    return {"forward": forward, "weight": _shown(weight)}


def _shown(weight: Any) -> property:
    """Return a property that reads what the parametrization shows in place of the weight."""
    usual = getattr(weight.fget, _USUAL, weight.fget)

    def read(module: nn.Module) -> Tensor:
        ask = getattr(_only_part(module), "as_weight", None)
        shown: Tensor | None = None if ask is None else ask()
        return usual(module) if shown is None else shown

    setattr(read, _USUAL, usual)
    return property(read, weight.fset)


_USUAL = "_reads_what_the_chain_makes"


def _only_part(module: nn.Module) -> nn.Module | None:
    """Return what alone makes the weight of a layer, where nobody sees or changes what it makes."""
    chain = parametrizations(module)._modules.get("weight")
    if chain is None or len(chain._modules) != 1:
        return None
    only = chain._modules["0"]
    return None if _is_hooked(chain) or _is_hooked(only) else only


def _is_hooked(module: Any) -> bool:
    """Return whether somebody sees, or changes, what a module returns."""
    hooks = (module._forward_pre_hooks, module._forward_hooks)
    more = (module._backward_pre_hooks, module._backward_hooks)
    return any(len(own) > 0 for own in (*hooks, *more))


# --- recurrent layers ---------------------------------------------------------------------------


def _recurrent_members(base: type[nn.RNNBase]) -> dict[str, Any]:
    """Return what makes a recurrent layer read its weights through the parametrization."""

    @functools.wraps(base.forward)
    def forward(module: nn.RNNBase, *args: Any, **kwargs: Any) -> Any:
        # The layer reads its list several times in a call; the weights are decoded once.
        vars(module)[_HELD] = _read_weights(module)
        try:
            return base.forward(module, *args, **kwargs)
        finally:
            vars(module).pop(_HELD, None)

    return {
        "_flat_weights": property(_flat_weights, _keep_nothing),
        "_update_flat_weights": _nothing_to_update,
        "forward": forward,
    }


_HELD = "_held_flat_weights"


def _read_weights(module: nn.RNNBase) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    held: list[Tensor | None] | None = vars(module).get(_HELD)
    return _read_weights(module) if held is None else held


def _keep_nothing(module: nn.RNNBase, value: object) -> None:
    """Take a list and forget it: the true one is derived from the weights."""


def _nothing_to_update(module: nn.RNNBase) -> None:
    """Do nothing: the list is never out of date."""
