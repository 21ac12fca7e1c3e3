"""Convolutional networks as timm and detectors have them, written out."""

from __future__ import annotations

import torch
from record import Architecture, normal
from torch import Tensor, nn


def _convolution(n: int, m: int, k: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n, m, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(m)
    )


class ConvNeXtBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(n, n, 7, padding=3, groups=n)
        self.norm = nn.LayerNorm(n, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n))
        self.gamma = nn.Parameter(torch.ones(n) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.mlp(y) * self.gamma).permute(0, 3, 1, 2)


class RepVGGBlock(nn.Module):
    """The form that is trained: three branches."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.wide, self.thin = _convolution(n, n, 3), _convolution(n, n, 1)
        self.same = nn.BatchNorm2d(n)

    def forward(self, x: Tensor) -> Tensor:
        return (self.wide(x) + self.thin(x) + self.same(x)).relu()


class InvertedResidual(nn.Module):
    """EfficientNet's block, with squeeze and excitation, and padding as TensorFlow has it."""

    def __init__(self, n: int, stride: int = 1) -> None:
        super().__init__()
        m, self.stride = 4 * n, stride
        self.expand, self.shrink = _convolution(n, m, 1), _convolution(m, n, 1)
        self.depthwise = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1) if stride == 2 else 1),
            nn.Conv2d(m, m, 3, stride, groups=m, bias=False),
            nn.BatchNorm2d(m),
        )
        self.down, self.up = nn.Conv2d(m, 4, 1), nn.Conv2d(4, m, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.depthwise(nn.functional.silu(self.expand(x))))
        gate = self.up(nn.functional.silu(self.down(y.mean((2, 3), keepdim=True)))).sigmoid()
        y = self.shrink(y * gate)
        return x + y if self.stride == 1 else y


class Detector(nn.Module):
    """A pyramid of two levels and a head without anchors, decoded to the best boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 16, 3, 2), nn.ReLU())
        self.deep = nn.Sequential(_convolution(16, 32, 3, 2), nn.ReLU())
        self.lateral = nn.ModuleList([nn.Conv2d(16, 16, 1), nn.Conv2d(32, 16, 1)])
        self.classes, self.boxes = nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(x)
        coarse = self.lateral[1](self.deep(fine))
        shown = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        scores, boxes = [], []
        for level, stride in ((self.lateral[0](fine) + shown, 2), (coarse, 4)):
            n, _, height, width = level.shape
            scores.append(self.classes(level).sigmoid().reshape(n, 4, -1))
            sides = self.boxes(level).exp().reshape(n, 4, -1) * stride
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            centre = (torch.stack([columns, rows]).reshape(1, 2, -1) + 0.5) * stride
            boxes.append(torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1))
        best, at = torch.cat(scores, -1).amax(1).topk(8)
        chosen = torch.cat(boxes, -1).clamp(0, 32).mT.gather(1, at[..., None].expand(-1, -1, 4))
        return best, chosen


def _network(*blocks: nn.Module) -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(1, 16))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 8))
    return nn.Sequential(stem, *blocks, head)


IMAGE = {"input": normal(1, 3, 32, 32)}
OWN = [
    Architecture("timm-like ConvNeXt", lambda: _network(*(ConvNeXtBlock(16) for _ in "ab")), IMAGE),
    Architecture("timm-like RepVGG", lambda: _network(*(RepVGGBlock(16) for _ in "ab")), IMAGE),
    Architecture(
        "timm-like EfficientNet",
        lambda: _network(InvertedResidual(16), InvertedResidual(16, 2)),
        IMAGE,
    ),
    Architecture("detector head", Detector, {"x": IMAGE["input"]}),
]
