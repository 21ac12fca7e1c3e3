"""Second moments of what a layer multiplies its weight with, and the weight as its matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from palette_core.tensors.layout import BlockLayout, Shape


@dataclass(frozen=True)
class InputMoments:
    """Second moments of a layer's input, and how its weight is a matrix.

    The weight is taken as G matrices of R output channels by C input coordinates, such that
    every output is a row times an input vector x: R = out_features and C = in_features of a
    linear layer; of a convolution, R output channels of each of G groups, and C = input channels
    of a group times kernel elements; of an embedding, R = its width and C the vocabulary; of
    experts stacked along axis 0, G experts.

    Attributes:
        hessian: ``[G, C, C]`` float32, Σ x xᵀ / count over calibration inputs, one matrix per
            group of output channels; ``[G, C]`` where only the diagonal is not zero.
        layout: the layout whose `merge` turns points back into the weight.
        count: how many input vectors were summed.
        rows: axes of the weight on which outputs lie: ``(0,)`` of linear layers and
            convolutions, ``(1,)`` of transposed convolutions, embeddings and ``x @ W``. With
            G > 1, axis 0 is cut into G groups first. All other axes are input coordinates.
        share: ``[G * R]`` float32, not negative: how much an output channel counts; None means
            ones.
        target: of the weight's shape: what the palettized weight should come near to in place
            of the weight, because its inputs have changed meanwhile; None means the weight.
    """

    hessian: Tensor
    layout: BlockLayout
    count: int
    rows: tuple[int, ...] = (0,)
    share: Tensor | None = None
    target: Tensor | None = None

    @property
    def is_diagonal(self) -> bool:
        """Return whether ``hessian`` holds diagonals only."""
        return self.hessian.dim() == 2

    @property
    def output_axis(self) -> int:
        """The axis of the weight along which neighbouring rows lie."""
        return self.rows[-1]

    def to_matrices(self, weight: Tensor) -> Tensor:
        """Return anything of the weight's shape as ``[G, R, C]``."""
        cut, order = self._cut(tuple(weight.shape))
        n_rows = math.prod(cut[axis] for axis in order[1 : 1 + len(self.rows)])
        return weight.reshape(cut).permute(order).reshape(cut[0], n_rows, -1)

    def from_matrices(self, matrices: Tensor) -> Tensor:
        """Return ``[G, R, C]`` in the shape of the weight: the inverse of `to_matrices`."""
        cut, order = self._cut(self.layout.shape)
        back = sorted(range(len(order)), key=order.__getitem__)
        ordered = matrices.reshape([cut[axis] for axis in order])
        return ordered.permute(back).reshape(self.layout.shape)

    def _cut(self, shape: Shape) -> tuple[list[int], list[int]]:
        """Return a shape with its groups in front, and the order groups, rows, columns."""
        groups = self.hessian.shape[0]
        cut = [groups, shape[0] // groups, *shape[1:]]
        rows = [axis + 1 for axis in self.rows]
        columns = [axis for axis in range(1, len(cut)) if axis not in rows]
        return cut, [0, *rows, *columns]

    def diagonal(self) -> Tensor:
        """Return ``[G, C]``, the mean square of every input coordinate."""
        if self.is_diagonal:
            return self.hessian
        return self.hessian.diagonal(dim1=1, dim2=2)

    def scales(self) -> Tensor:
        """Return ``[G]`` float64: mean of the diagonal by group, for dead ones nearly 0, not 0."""
        means = self.diagonal().double().mean(dim=1)
        return torch.maximum(means, 1e-6 * means.mean())

    def damping(self) -> float:
        """Return what to add to the diagonal, as a share of its mean, where nobody says.

        The fewer input vectors there are for each coordinate, the less H says about inputs to
        come: 4 C / count, but at least 0.01 and at most 0.3. Both bounds and the slope were
        chosen by the loss of palettized models on data apart from calibration.
        """
        return min(0.3, max(0.01, 4 * self.hessian.shape[-1] / max(1, self.count)))

    def importance(self) -> Tensor:
        """Return ``[B, N, D]`` float32: mean square input of every element of the points.

        What algorithms use that weigh elements one by one; it is the diagonal of the Hessian of
        the layer's squared output error.
        """
        rows = math.prod(self.layout.shape) // self.diagonal().numel()
        wide = self.diagonal()[:, None, :].expand(-1, rows, -1)
        if self.share is not None:
            wide = wide * self.share.reshape(self.hessian.shape[0], rows, 1)
        return self.layout.split(self.from_matrices(wide.to(torch.float32))).contiguous()

    def obstacle(self) -> str | None:
        """Return why these moments cannot be used, or None."""
        if self.count < 1:
            return "no input came to it"
        if not _all_finite(self.hessian):
            return "its inputs were NaN or infinite, or their squares too large"
        if not bool((self.diagonal() > 0).any()):
            return "all its inputs were zero"
        if math.prod(self.layout.shape) % self.diagonal().numel():
            return f"inputs of {self.hessian.shape[-1]} coordinates do not fit its shape"
        return None

    def ridges(self) -> Tensor:
        """Return ``[G, C]`` float64: what a damping of 1 adds to the diagonal."""
        return self.scales()[:, None].expand(-1, self.hessian.shape[-1])


def _all_finite(x: Tensor) -> bool:
    # What is not finite shows in the sum, which is read off sooner; finite ones may overflow there.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())
