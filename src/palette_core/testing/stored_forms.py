"""Checks of stored forms."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palette_core.errors import PaletteError
from palette_core.plugins import Refusal, TensorFacts
from palette_core.plugins.checked.stored_forms import SHARED, CheckedForm
from palette_core.plugins.kinds import STORED_FORM
from palette_core.plugins.making import Made
from palette_core.spec import PalettizationSpec
from palette_core.tensors.nonzeros import codes_in_use
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor
from palette_core.testing._kit import Subject, check, demand, fail
from palette_core.testing._probes import bits, draw, global_rng_untouched

_KIND = STORED_FORM


def _form(subject: Subject) -> Any:
    return subject.entry.factory(subject.options[0])


def _checked(subject: Subject) -> CheckedForm:
    try:
        made = Made(_form(subject), str(subject), _KIND.error, is_ours=False)
        return CheckedForm(subject.entry, made)
    except PaletteError as error:
        fail(subject, str(error))


def _weights(subject: Subject, form: Any) -> Iterator[tuple[str, PalettizedTensor]]:
    """Yield palettized weights that the form does not refuse, by what is particular about them."""
    for n_bits in (1, 2, 3, 4, 6, 8):
        for shape, dim in (((7, 5), 1), ((8, 6), 2), ((4, 3, 3, 2), 1), ((1,), 1)):
            for values in ("random", "constant", "runs"):
                what = f"{values} indices of {n_bits} bits for {shape}, vectors of {dim}"
                made = _weight(n_bits, shape, dim, values)
                spec = PalettizationSpec(n_bits=n_bits, cluster_dim=dim)
                facts = TensorFacts("w", made.shape, made.dtype, "linear", made.layout, spec)
                if form.check_support(facts) is None:
                    yield what, made
    if subject.entry.holds_masks:
        for n_bits in (1, 3, 8):
            made = _weight(n_bits, (7, 5), 1, "random")
            mask = made.indices % 2 == 0
            yield "zeros beside a table", replace(made, indices=made.indices * mask, mask=mask)
        spec = PalettizationSpec(cluster_dim=2, sparsity_detection_threshold=0.5)
        made = _weight(3, (8, 6), 2, "random")
        facts = TensorFacts("w", made.shape, made.dtype, "linear", made.layout, spec)
        if form.check_support(facts) is None:
            mask = draw(8, 6, seed=1) > 0
            used = codes_in_use(mask, made.layout).reshape(made.indices.shape)
            yield "vectors of nonzeros", replace(made, indices=made.indices * used, mask=mask)
    made = _weight(4, (8, 6), 1, "random")
    lut = made.lut.mul(20).round().to(torch.int8)
    ones = torch.ones((1, 1, 1, 1))
    yield (
        "a quantized table",
        PalettizedTensor(made.indices, lut, 4, 0, torch.float16, 0.1 * ones, ones.to(torch.int8)),
    )


def _weight(n_bits: int, shape: tuple[int, ...], dim: int, values: str) -> PalettizedTensor:
    size = 1 << n_bits
    index_shape = (shape[0] // dim, *shape[1:])
    generator = torch.Generator().manual_seed(n_bits)
    codes = torch.randint(size, index_shape, generator=generator)
    if values == "constant":
        codes = torch.full(index_shape, size - 1)
    elif values == "runs":
        codes = codes.flatten().sort().values.reshape(index_shape)
    lut = draw(*([1] * len(shape)), size, dim, seed=n_bits)
    return PalettizedTensor(codes.to(torch.uint8), lut, n_bits, 0, lut.dtype)


def _stored(subject: Subject) -> Iterator[tuple[str, CheckedForm, PalettizedTensor, StoredTensor]]:
    form = _checked(subject)
    for what, weight in _weights(subject, form):
        yield what, form, weight, StoredTensor.of(weight, form.encode(weight))


@check(_KIND)
def parts(subject: Subject) -> None:
    """Encode returns the declared parts, integers or booleans, of the dtypes and shapes of expects.

    None is named like a table, and what expects says does not depend on the parts.
    """
    form = _form(subject)
    names = form.parts
    demand(subject, names and set(names).isdisjoint(SHARED), f"parts are named {names!r}")
    for what, checked, weight, stored in _stored(subject):
        expected = checked.expects(StoredTensor.of(weight, {}))
        for name, part in stored.parts.items():
            shape = expected[name].shape
            sizes = zip(part.shape, shape, strict=False)
            fits = len(shape) == part.dim() and all(e in (None, size) for size, e in sizes)
            got = f"{part.dtype} of shape {tuple(part.shape)}"
            right = f"{expected[name].dtype} of shape {shape}"
            held = fits and part.dtype == expected[name].dtype
            demand(subject, held, f"{what}: {name} is {got}, expected {right}")
            device = weight.indices.device
            demand(subject, part.device == device, f"{what}: {name} is on {part.device}")


@check(_KIND)
def exact(subject: Subject) -> None:
    """Decode returns the very indices and tables that were encoded."""
    for what, form, weight, stored in _stored(subject):
        made = form.decode(stored)
        for name, value in vars(weight).items():
            got = getattr(made, name)
            same = (
                bits(got) == bits(value) and got.shape == value.shape and got.dtype == value.dtype
                if isinstance(value, Tensor)
                else got == value
            )
            demand(subject, same, f"{what}: {name} comes back changed")


@check(_KIND)
def operator(subject: Subject) -> None:
    """The operator returns the decoded weight, and tells its shape and dtype without decoding."""
    for what, form, weight, stored in _stored(subject):
        got = form.torch_operator(*stored.arguments())
        demand(subject, bits(got) == bits(weight.decode()), f"{what}: the operator decodes another")
        shape = form.shape(stored)
        demand(subject, tuple(shape) == weight.shape, f"{what}: shape {shape}, not {weight.shape}")
        checks = ("test_schema", "test_faketensor")
        registered: Any = form.torch_operator
        torch.library.opcheck(registered, stored.arguments(), test_utils=checks)


@check(_KIND)
def size(subject: Subject) -> None:
    """size_in_bits is a whole number of at least one bit, and no more than the parts take."""
    for what, form, weight, stored in _stored(subject):
        got: object = form.size_in_bits(stored)
        early = form.size_unencoded(weight)
        demand(subject, early in (None, got), f"{what}: {early} bits before encoding, then {got}")
        most = sum(part.numel() * part.element_size() * 8 for part in stored.parts.values())
        held = type(got) is int and 0 < got <= most
        demand(subject, held, f"{what}: {got!r} bits, and the parts have {most}")


@check(_KIND)
def damaged(subject: Subject) -> None:
    """Parts with other values raise ValueError, or decode to uint8 indices of the right shape."""
    for what, form, _, stored in _stored(subject):
        for fill in (0, 1, 127):
            broken = {
                name: torch.full_like(part, bool(fill) if part.dtype is torch.bool else fill)
                for name, part in stored.parts.items()
            }
            try:
                form.decode(stored._replace(parts=broken))
            except ValueError as error:
                if isinstance(error, PaletteError):
                    fail(subject, f"{what}, all {fill}: {error}")


@check(_KIND)
def stateless(subject: Subject) -> None:
    """Two objects and a pickled one encode alike, and write neither to indices nor to parts."""
    forms = [_form(subject), _form(subject)]
    forms.append(pickle.loads(pickle.dumps(forms[0])))
    for what, weight in _weights(subject, forms[0]):
        before = bits(weight.indices)
        with global_rng_untouched(subject):
            made = [
                {name: bits(part) for name, part in form.encode(weight).items()} for form in forms
            ]
        demand(subject, made[0] == made[1] == made[2], f"{what}: two objects encode it differently")
        demand(
            subject, bits(weight.indices) == before, f"{what}: encode has written to the indices"
        )
        stored = StoredTensor.of(weight, forms[0].encode(weight))
        forms[1].decode(stored)
        after = {name: bits(part) for name, part in stored.parts.items()}
        demand(subject, after == made[0], f"{what}: decode has written to the parts")


@check(_KIND)
def refusal(subject: Subject) -> None:
    """Refuses answers None or a Refusal, and takes at least one of the weights it is tried with."""
    form = _form(subject)
    layout = _weight(4, (8, 6), 1, "random").layout
    facts = TensorFacts("w", (8, 6), torch.float32, "linear", layout, PalettizationSpec())
    answer: object = form.check_support(facts)
    held = answer is None or isinstance(answer, Refusal)
    demand(subject, held, f"check_support returned {answer!r}, expected None or a Refusal")
    some = sum(1 for what, _ in _weights(subject, form) if what != "a quantized table")
    demand(subject, some, "every weight is refused")
