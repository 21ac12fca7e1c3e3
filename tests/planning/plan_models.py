"""Small models, each with one thing about who consumes its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class OwnParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.v = (nn.Parameter(torch.randn(8, 8)) for _ in range(2))
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(F.linear(self.lin(x), self.u), self.v)


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return F.linear(F.linear(x, self.w), self.w)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class TiedUnderAnotherName(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.w2 = self.a.weight

    def forward(self, x):
        return F.linear(self.a(x), self.w2)


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.o.weight = self.e.weight

    def forward(self, x):
        return self.o(self.e(torch.tensor([[1, 2]])) + x)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b = self.a

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Deep(nn.Module):
    """Weights: a, b.0, b.1.0, c.0."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))
        self.c = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x):
        return self.c[0](self.b(self.a(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.MultiheadAttention(8, 2, batch_first=True)
        self.k = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)

    def forward(self, x):
        x, _ = self.m(x, x, x)
        return self.k(x, x[..., :4], x[..., :4])[0]


class Transposed(nn.Module):
    """Each weight has 4 input and 8 output channels, or the other way round."""

    def __init__(self):
        super().__init__()
        self.c1, self.t1 = nn.Conv1d(8, 4, 1, bias=False), nn.ConvTranspose1d(4, 8, 1, bias=False)
        self.c2, self.t2 = nn.Conv2d(8, 4, 1, bias=False), nn.ConvTranspose2d(4, 8, 1, bias=False)
        self.c3, self.t3 = nn.Conv3d(8, 4, 1, bias=False), nn.ConvTranspose3d(4, 8, 1, bias=False)

    def forward(self, x):
        x = self.t1(self.c1(x.mT.repeat(1, 1, 2)))
        x = self.t2(self.c2(x[..., None]))
        return self.t3(self.c3(x[..., None]))


class Subclass(nn.Linear):
    """Not exactly nn.Linear."""


class Subclassed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Subclass(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(self.a(x))


class OptIn(nn.Module):
    """Everything whose weights wait to be asked for, and a linear."""

    def __init__(self):
        super().__init__()
        self.e, self.norm, self.bn = nn.Embedding(16, 8), nn.LayerNorm(8), nn.BatchNorm1d(2)
        self.lstm, self.gru, self.rnn = nn.LSTM(8, 8), nn.GRU(8, 8), nn.RNN(8, 8)
        self.bi, self.lin = nn.Bilinear(8, 8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.bn(self.norm(self.e(torch.tensor([[1, 2]])) + x))
        for layer in (self.lstm, self.gru, self.rnn):
            x, _ = layer(x)
        return self.lin(self.bi(x, x))


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(8, 8))
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.lin(x), self.weight)


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.other = (nn.Parameter(torch.randn(8, 8)) for _ in range(2))
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.lin(x), self.weight.t()) @ self.other


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.e, self.norm = nn.Embedding(4, 8), nn.LayerNorm((8, 8))

    def forward(self, x):
        return self.a(x)


def normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    parametrizations.weight_norm(model[0])
    return model


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 8))


def inputs() -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-1, 1, 16).reshape(1, 2, 8),)
