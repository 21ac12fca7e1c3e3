"""A palettized weight as data: layout, bit packing, look-up tables, decoding, distortion."""

from typing import TYPE_CHECKING

from palette_core._common.lazy import lazy_names

if TYPE_CHECKING:
    from palette_core.tensors.assignment import assign_and_sum, metric, tidy_entries
    from palette_core.tensors.codebook import Codebook, QuantizedLut
    from palette_core.tensors.distortion import square_sums
    from palette_core.tensors.dtypes import FP8_DTYPES, dtype_name, parse_dtype
    from palette_core.tensors.input_views import Contraction, Features, InputView, Lookup
    from palette_core.tensors.layout import BlockLayout, Shape
    from palette_core.tensors.moments import InputMoments
    from palette_core.tensors.nearest import (
        assign,
        look_up,
        pieces,
        squared_distances,
        straight_through,
        sums_by_code,
    )
    from palette_core.tensors.operators import (
        OP_NAME,
        SPARSE_OP_NAME,
        SPARSE_PARTS,
        depalettize,
        unpack,
        unpack_sparse,
    )
    from palette_core.tensors.packing import pack_indices, packed_size, unpack_indices
    from palette_core.tensors.palettized import PalettizedTensor
    from palette_core.tensors.quantized_fit import quantize_codebook, tidy_quantized
    from palette_core.tensors.scales import apply_scale, divide_by_scale
    from palette_core.tensors.stored import StoredTensor, define_operator, named_arguments
    from palette_core.tensors.zeros import fill_points, in_order, keep_zeros, with_zeros

__all__ = [
    "FP8_DTYPES",
    "OP_NAME",
    "SPARSE_OP_NAME",
    "SPARSE_PARTS",
    "BlockLayout",
    "Codebook",
    "Contraction",
    "Features",
    "InputMoments",
    "InputView",
    "Lookup",
    "PalettizedTensor",
    "QuantizedLut",
    "Shape",
    "StoredTensor",
    "apply_scale",
    "assign",
    "assign_and_sum",
    "define_operator",
    "depalettize",
    "divide_by_scale",
    "dtype_name",
    "fill_points",
    "in_order",
    "keep_zeros",
    "look_up",
    "metric",
    "named_arguments",
    "pack_indices",
    "packed_size",
    "parse_dtype",
    "pieces",
    "quantize_codebook",
    "square_sums",
    "squared_distances",
    "straight_through",
    "sums_by_code",
    "tidy_entries",
    "tidy_quantized",
    "unpack",
    "unpack_indices",
    "unpack_sparse",
    "with_zeros",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "palette_core.tensors.assignment": ["assign_and_sum", "metric", "tidy_entries"],
        "palette_core.tensors.distortion": ["square_sums"],
        "palette_core.tensors.dtypes": ["FP8_DTYPES", "dtype_name", "parse_dtype"],
        "palette_core.tensors.input_views": ["Contraction", "Features", "InputView", "Lookup"],
        "palette_core.tensors.layout": ["BlockLayout", "Shape"],
        "palette_core.tensors.moments": ["InputMoments"],
        "palette_core.tensors.nearest": [
            "look_up",
            "assign",
            "pieces",
            "squared_distances",
            "straight_through",
            "sums_by_code",
        ],
        "palette_core.tensors.operators": [
            "OP_NAME",
            "SPARSE_OP_NAME",
            "SPARSE_PARTS",
            "depalettize",
            "unpack",
            "unpack_sparse",
        ],
        "palette_core.tensors.packing": ["pack_indices", "packed_size", "unpack_indices"],
        "palette_core.tensors.codebook": ["Codebook", "QuantizedLut"],
        "palette_core.tensors.palettized": ["PalettizedTensor"],
        "palette_core.tensors.quantized_fit": ["quantize_codebook", "tidy_quantized"],
        "palette_core.tensors.scales": ["apply_scale", "divide_by_scale"],
        "palette_core.tensors.stored": ["StoredTensor", "define_operator", "named_arguments"],
        "palette_core.tensors.zeros": ["fill_points", "in_order", "keep_zeros", "with_zeros"],
    },
)
