"""Rules for one weight: :class:`PalettizationSpec`, and the spec of its LUT's entries."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self, final

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializeAsAny,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from palette_core._common.strict import Foreign, FrozenModel, Options
from palette_core.config import foreign
from palette_core.config.granularity import (
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    parse_granularity,
)
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.checked.stored_forms import form_with_mask
from palette_core.plugins.granularities import Granularity
from palette_core.plugins.kinds import LUT_QUANTIZER, STORED_FORM
from palette_core.plugins.stored_forms import DENSE_FORM
from palette_core.tensors.dtypes import dtype_name, parse_dtype

__all__ = [
    "Granularity",
    "PalettizationGranularity",
    "PalettizationSpec",
    "PerGroupedChannelGranularity",
    "PerTensorGranularity",
    "QuantizationScheme",
    "QuantizationSpec",
    "default_weight_palettization_spec",
]

PalettizationGranularity = Granularity


def _check_dtype(value: Any) -> torch.dtype:
    value = parse_dtype(value)
    if not isinstance(value, torch.dtype):
        raise ValueError(f"expected a torch dtype or its name such as 'int8', got {value!r}")
    return value


TorchDtype = Annotated[
    Any,
    BeforeValidator(_check_dtype),
    PlainSerializer(dtype_name, return_type=str, when_used="unless-none"),
    WithJsonSchema({"type": "string", "examples": ["int8", "uint8", "float8_e4m3fn"]}),
]


class QuantizationScheme(StrEnum):
    """Mapping of the entries of a LUT to integers or 8-bit floats.

    * ``symmetric``: the zero point is fixed (0 for signed, 128 for unsigned integers).
    * ``asymmetric``: integers only; scale and zero point cover the range of the entries.
    * ``symmetric_with_clipping``: as symmetric, with the lowest integer code left unused.
    """

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"
    SYMMETRIC_WITH_CLIPPING = "symmetric_with_clipping"


@final
class QuantizationSpec(FrozenModel):
    """Quantization of the entries of each look-up table: one scale per LUT.

    Attributes:
        dtype: a torch dtype or its name. ``PalettizationSpec.lut_qspec`` takes what the installed
            LUT quantizers can make; the built-in ones ``int8``, ``uint8``, ``float8_e4m3fn`` and
            ``float8_e5m2``.
        qscheme: see :class:`QuantizationScheme`. floats are symmetric only.
        granularity: one scale per LUT is ``PerTensorGranularity()``, the only one for LUTs.
        scale_dtype: ``None`` keeps the scale in float32; ``float8_e8m0fnu`` (8-bit float
            entries only) restricts it to powers of two.
        quantizer: name of a registered LUT quantizer; ``None`` picks the default for ``dtype``.
        quantizer_options: options of that quantizer.
    """

    foreign_fields: ClassVar[Mapping[str, Foreign]] = foreign.of_quantization

    dtype: TorchDtype = torch.int8
    qscheme: QuantizationScheme = QuantizationScheme.SYMMETRIC
    granularity: SerializeAsAny[Granularity] = Field(default_factory=PerTensorGranularity)
    scale_dtype: TorchDtype | None = None
    quantizer: str | None = None
    quantizer_options: Options = Field(default_factory=dict)

    @field_validator("granularity", mode="before")
    @classmethod
    def _parse_granularity(cls, value: Any) -> Granularity:
        return parse_granularity(value)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.dtype.is_floating_point and self.qscheme is not QuantizationScheme.SYMMETRIC:
            raise ValueError(
                f"dtype {dtype_name(self.dtype)} requires symmetric quantization, "
                f"got qscheme={self.qscheme.value!r}"
            )
        if self.scale_dtype is not None and (
            self.scale_dtype is not torch.float8_e8m0fnu
            or not self.dtype.is_floating_point
            or self.dtype.itemsize > 1
        ):
            raise ValueError(
                f"scale_dtype {dtype_name(self.scale_dtype)} with dtype {dtype_name(self.dtype)} "
                "is not supported; scale_dtype is None, or float8_e8m0fnu with an 8-bit float dtype"
            )
        return self


@final
class PalettizationSpec(FrozenModel):
    """Palettization of one weight. Frozen, hashable, compared by value.

    Attributes:
        n_bits: bits per index, so a LUT has ``2 ** n_bits`` entries.
        lut_qspec: how the entries themselves are quantized; ``None`` keeps the weight's dtype.
        granularity: which elements share a LUT.
        cluster_dim: length of an entry. Above 1, runs of that many elements along the output
            channel axis share one index.
        enable_per_channel_scale: divide every output channel by a factor of its own before
            clustering, and multiply back when decoding.
        scale_block_size: one factor for every so many inputs of an output channel (of
            convolutions: of the flattened inputs), in place of one for all; implies
            ``enable_per_channel_scale``. It has to divide the inputs.
        scale_fit: ``least_squares`` fits factors together with tables and indices; ``range``
            takes the largest magnitudes, as the reference does.
        algorithm: name of a registered clusterer; ``None`` picks the default for scalars
            (``cluster_dim == 1``) or for vectors: the built-in k-means, unless it is blocked.
        algorithm_options: options of that clusterer.
        preserve_zero: weights that are exactly zero, such as pruned ones, decode to exactly zero
            and stay zero in training: one entry of every LUT is zero. With ``cluster_dim`` above
            1, zeros must come in whole vectors.
        sparsity_detection_threshold: from this share of exact zeros on, 0 to 1, a weight with zeros
            keeps them beside the table: the table's ``2 ** n_bits`` entries all stand for nonzeros,
            and zeros take one bit. Where indices for all weights would be smaller, zeros are kept
            by an entry, as with ``preserve_zero``, but for 1 bit, or where ``stored_form`` is
            ``sparse``. Vectors are of nonzeros that follow each other row by row, unless zeros come
            in whole vectors and indices for all are smaller.
        stored_form: name of the registered form in which indices are stored in finalized models,
            checkpoints and programs; ``indices`` packs every index to ``n_bits``, ``sparse`` those
            of nonzeros where ``sparsity_detection_threshold`` finds enough zeros.
        training_strategy: name of a registered strategy for palettization-aware training.
        training_strategy_options: options of that strategy.
    """

    foreign_fields: ClassVar[Mapping[str, Foreign]] = foreign.of_palettization

    n_bits: Literal[1, 2, 3, 4, 6, 8] = 4
    lut_qspec: QuantizationSpec | None = None
    granularity: SerializeAsAny[Granularity] = Field(default_factory=PerTensorGranularity)
    cluster_dim: int = Field(default=1, gt=0)
    enable_per_channel_scale: bool = False
    scale_block_size: int | None = Field(default=None, gt=1)
    scale_fit: Literal["least_squares", "range"] = "least_squares"
    algorithm: str | None = None
    algorithm_options: Options = Field(default_factory=dict)
    preserve_zero: bool = False
    sparsity_detection_threshold: float | None = Field(default=None, ge=0, le=1)
    stored_form: str = DENSE_FORM
    training_strategy: str = "frozen"
    training_strategy_options: Options = Field(default_factory=dict)

    @field_validator("granularity", mode="before")
    @classmethod
    def _parse_granularity(cls, value: Any) -> Granularity:
        return parse_granularity(value)

    @field_validator("lut_qspec")
    @classmethod
    def _check_lut_qspec(cls, value: QuantizationSpec | None) -> QuantizationSpec | None:
        if value is None:
            return None
        installed = get_catalog()[LUT_QUANTIZER]
        allowed = list(dict.fromkeys(dtype for item in installed for dtype in item.entry.dtypes))
        if dtype_name(value.dtype) not in allowed:
            raise ValueError(
                f"lut_qspec.dtype must be one of {', '.join(allowed) or '(no LUT quantizer)'}, "
                f"got {dtype_name(value.dtype)}{installed.left_out()}"
            )
        if not isinstance(value.granularity, PerTensorGranularity):
            raise ValueError(
                "lut_qspec.granularity must be PerTensorGranularity (one scale per LUT), "
                f"got {type(value.granularity).__name__}"
            )
        return value

    @model_validator(mode="after")
    def _check_sparsity(self) -> Self:
        form, threshold = self.stored_form, self.sparsity_detection_threshold
        if form == DENSE_FORM and threshold is None:
            return self
        catalog = get_catalog()
        if threshold is None and form == form_with_mask(catalog, form):
            raise ValueError(
                f"stored_form {form!r} needs a sparsity_detection_threshold, such as 0.3: "
                "the share of zeros from which on a weight is sparse"
            )
        if threshold is not None and form_with_mask(catalog, form) is None:
            fitting = form_with_mask(catalog, DENSE_FORM)
            told = repr(fitting) if fitting else "a form that holds zeros (none is installed)"
            raise ValueError(
                f"sparsity_detection_threshold stores weights as {told} or {DENSE_FORM!r}, not as "
                f"{form!r}{catalog[STORED_FORM].left_out()}; leave one of the two out"
            )
        return self

    @property
    def stored_forms(self) -> tuple[str, ...]:
        """Names of the forms that a weight may come to be stored in; its zeros decide which."""
        if self.sparsity_detection_threshold is None:
            return (self.stored_form,)
        beside = form_with_mask(get_catalog(), self.stored_form)
        return (DENSE_FORM,) if beside is None else (beside, DENSE_FORM)

    def stored_as(self, form: str) -> PalettizationSpec:
        """Return the spec for one stored form; zeros are kept in tables where they were beside."""
        keeps = self.preserve_zero or self.sparsity_detection_threshold is not None
        changes = {"sparsity_detection_threshold": None, "preserve_zero": keeps}
        return self.model_copy(update={**changes, "stored_form": form})

    @property
    def is_scaled(self) -> bool:
        """Return whether there are factors beside the tables, per channel or per block."""
        return self.enable_per_channel_scale or self.scale_block_size is not None

    @property
    def n_entries(self) -> int:
        """Entries of one LUT: ``2 ** n_bits``."""
        return 1 << self.n_bits

    def model_dump_preserve_objects(self) -> dict[str, Any]:
        """Dump the fields with nested pydantic models kept as the objects they are."""
        dumped = self.model_dump()
        return {
            name: value if isinstance(value := getattr(self, name), BaseModel) else dumped[name]
            for name in type(self).model_fields
        }


def default_weight_palettization_spec() -> PalettizationSpec:
    """Return the documented default: 4 bits, per tensor, scalar entries."""
    return PalettizationSpec()
