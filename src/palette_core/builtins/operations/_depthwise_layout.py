"""Layout of the pieces that inputs of depthwise convolutions are cut into, and of their sums."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.vector_code import LANES
from palette_core.builtins.operations._depthwise_lanes import AHEAD, PLACES, TILE
from palette_core.builtins.operations._window_correlations import kinds_of
from palette_core.builtins.operations._window_shapes import Shape

_PIECE = 1024  # places in a piece, where windows are not larger
_SHARED = 64  # values of a band, by those of its edges, where rows are that short

_Array = NDArray[Any]


class Grid(NamedTuple):
    """Sizes of pieces of an input, and places of what is multiplied in these.

    Rows and columns are those of pieces: columns are the axis along which windows reach less far.

    Attributes:
        stride, across: of the convolution, by row and by column.
        rows, columns: how many windows there are.
        top, aside: padding before the first row and the first column.
        reach, spread: how far windows go, from their first row and from their first column.
        wide: columns of a window.
        apart: values from one of these to the next.
        size, blocks: columns of a window that are multiplied at once, and how often that is.
        below, beside: from one element of a window to that in the next row, and next column.
        bands: into how many a plane is cut, between rows.
        samples: in a piece.
    """

    stride: int
    across: int
    rows: int
    columns: int
    top: int
    aside: int
    reach: int
    spread: int
    wide: int
    apart: int
    size: int
    blocks: int
    below: int
    beside: int
    bands: int
    samples: int


@dataclass(frozen=True)
class Layout:
    """Layout of pieces, and of elements in them.

    Attributes:
        kernel, stride, dilation, padding, windows: of the convolution, by axis of the pieces.
        steps: from one element to the one in the next row, and in the next column.
        bands: into how many a plane is cut, between rows.
        samples: in a piece.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    windows: tuple[int, ...]
    steps: tuple[int, int]
    bands: int
    samples: int

    @classmethod
    def of(
        cls,
        x: Tensor,
        shape: Shape,
        padding: tuple[int, ...],
        windows: tuple[int, ...],
        *,
        turned: bool,
    ) -> Layout:
        """Return that of an input ``[N, channels, rows, columns]``.

        Args:
            x: the input.
            shape: of the convolution, by axis as it was; likewise ``padding`` and ``windows``.
            padding: before.
            windows: how many there are.
            turned: columns were rows.
        """
        across = shape.kernel[1]
        steps = (1, across) if turned else (across, 1)
        axes = slice(None, None, -1) if turned else slice(None)
        every = (shape.kernel, shape.stride, shape.dilation, padding, windows)
        kernel, stride, dilation, before, counts = (each[axes] for each in every)
        whole = cls(kernel, stride, dilation, before, counts, steps, 1, 1)
        rows, columns = whole._sizes()
        if rows * columns <= _PIECE:
            some = min(x.shape[0], _PIECE // (rows * columns))
            return replace(whole, samples=max(1, some))
        # So many windows that all of a band share some rows, or most values.
        fitting = (_PIECE // columns - whole._reach(0) - 1) // stride[0] + 1
        least = (whole._reach(0) // stride[0] + 1) * max(2, _SHARED // columns)
        return replace(whole, bands=-(-counts[0] // max(fitting, least)))

    def _reach(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilation[axis]

    def _sizes(self) -> tuple[int, int]:
        """Return the rows and columns of the largest piece."""
        rows = -(-self.windows[0] // self.bands)
        counts = (rows, self.windows[1])
        first, second = (
            (n - 1) * self.stride[axis] + self._reach(axis) + 1 for axis, n in enumerate(counts)
        )
        return first, second

    def _block(self) -> int:
        """Return how many columns of windows are multiplied with as many others at once."""
        blocks = -(-self.kernel[1] // TILE)
        return -(-self.kernel[1] // blocks)

    def tiles(self) -> int:
        """Return how many sums there are of a row of windows with another one."""
        return (-(-self.kernel[1] // self._block()) * self._block()) ** 2

    def piece(self) -> int:
        """Return how many values there are in a piece, with those that are read beyond it."""
        rows, columns = self._sizes()
        # Windows and elements that do not exist: what is made of them is left alone.
        step = self.stride[0] * columns if self.windows[1] == 1 else self.stride[1]
        beyond = AHEAD * step + TILE * self.dilation[1]
        return (self.samples * rows * columns + beyond) * LANES

    def outputs(self) -> int:
        """Return how many values outputs of a piece take."""
        inner, outer = self.windows[1], -(-self.windows[0] // self.bands)
        if inner == 1:
            inner, outer = outer, inner
        return self.samples * outer * -(-inner // AHEAD) * AHEAD * LANES

    def grid(self) -> Grid:
        """Return what kernels take."""
        size = self._block()
        return Grid(
            stride=self.stride[0],
            across=self.stride[1],
            rows=self.windows[0],
            columns=self.windows[1],
            top=self.padding[0],
            aside=self.padding[1],
            reach=self._reach(0),
            spread=self._reach(1),
            wide=self.kernel[1],
            apart=self.dilation[1] * LANES,
            size=size,
            blocks=-(-self.kernel[1] // size),
            below=self.steps[0],
            beside=self.steps[1],
            bands=self.bands,
            samples=self.samples,
        )

    def rows(self, *, symmetric: bool) -> tuple[_Array, _Array]:
        """Return ``kinds`` and ``members`` of `sum_channels`."""
        return _rows(self.kernel[0], self.stride[0], self.dilation[0], symmetric)

    def places(self) -> _Array:
        """Return where elements lie in a piece, and the last one's again, to fill the last step."""
        columns = self._sizes()[1]
        places = np.empty(math.prod(self.kernel), np.int64)
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                at = row * self.dilation[0] * columns + column * self.dilation[1]
                places[row * self.steps[0] + column * self.steps[1]] = at * LANES
        return np.pad(places, (0, -len(places) % PLACES), mode="edge")


@functools.lru_cache(64)
def _rows(kernel: int, stride: int, dilation: int, symmetric: bool) -> tuple[_Array, _Array]:
    shape = Shape(1, (kernel,), (stride,), (dilation,))
    places = [place for _, (place,) in shape.elements()]
    kinds, members, slots = [], [], 0
    for number, (kind, pairs) in enumerate(kinds_of(shape, symmetric=symmetric).items()):
        firsts = [places[i] for i, _ in pairs]
        foremost, further = min(firsts), max(firsts) - min(firsts)
        left = foremost * stride + kind.left[0]
        right = (foremost + kind.apart[0]) * stride + kind.right[0]
        kinds.append([left, right, further, slots])
        members += [[number, places[i] - foremost, i, j] for i, j in pairs]
        slots += 2 * further + 1
    return np.array(kinds), np.array(members)
