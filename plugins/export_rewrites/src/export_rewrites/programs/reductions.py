"""Sums, extremes, statistics, sorting, running totals."""

from __future__ import annotations

import torch

from export_rewrites.programs._record import Program, calls, normal

_X = normal(3, 8)
_TIES = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 5.0, 5.0, -1.0]])
_INTEGERS = torch.tensor([[4, 1, 3, 3], [0, -2, 7, 5]])

REDUCTIONS: list[Program] = [
    *calls(
        {
            "sum": lambda x: x.sum(),
            "sum over axes, kept": lambda x: x.sum((0, 1), keepdim=True),
            "sum of booleans": lambda x: (x > 0).sum(-1),
            "mean": lambda x: x.mean(-1),
            "mean of all": lambda x: x.mean(),
            "prod": lambda x: x.prod(-1),
            "prod of all": lambda x: x.prod(),
            "amax": lambda x: x.amax(-1),
            "amin over two axes": lambda x: x.amin((0, 1)),
            "max with indices": lambda x: x.max(-1),
            "min with indices": lambda x: x.min(0),
            "max of all": lambda x: x.max(),
            "argmax": lambda x: x.argmax(-1),
            "argmax of all": lambda x: x.argmax(),
            "argmax, kept": lambda x: x.argmax(0, keepdim=True),
            "argmin": lambda x: x.argmin(-1),
            "any": lambda x: (x > 1).any(-1),
            "all": lambda x: (x > -1).all(-1),
            "all of all": lambda x: (x > -9).all(),
            "var": lambda x: x.var(-1),
            "var, correction=0": lambda x: x.var(-1, correction=0),
            "var, correction=2": lambda x: x.var(-1, correction=2, keepdim=True),
            "var of all": lambda x: x.var(),
            "std": lambda x: x.std(-1),
            "std, biased": lambda x: x.std(0, unbiased=False),
            "var_mean": lambda x: torch.var_mean(x, -1),
            "std_mean": lambda x: torch.std_mean(x, -1),
            "norm": lambda x: x.norm(dim=-1),
            "norm of order 1": lambda x: x.norm(1, -1),
            "norm of order 3": lambda x: x.norm(3, -1),
            "norm of order infinity": lambda x: x.norm(float("inf"), -1),
            "linalg.norm": lambda x: torch.linalg.norm(x, dim=-1),
            "normalize": lambda x: torch.nn.functional.normalize(x, dim=-1),
            "logsumexp": lambda x: x.logsumexp(-1),
            "cumsum": lambda x: x.cumsum(-1),
            "cumsum over axis 0": lambda x: x.cumsum(0),
            "cumsum of booleans": lambda x: (x > 0).cumsum(-1),
            "cumprod": lambda x: x.cumprod(-1),
            "cummax": lambda x: x.cummax(-1),
            "cummin": lambda x: x.cummin(-1),
            "logcumsumexp": lambda x: x.logcumsumexp(-1),
            "diff": lambda x: x.diff(dim=-1),
            "sort": lambda x: x.sort(-1),
            "sort, descending": lambda x: x.sort(-1, descending=True)[0],
            "argsort": lambda x: x.argsort(-1),
            "sort over axis 0": lambda x: x.sort(0)[0],
            "topk": lambda x: x.topk(3),
            "topk, smallest": lambda x: x.topk(3, largest=False)[0],
            "topk over axis 0": lambda x: x.topk(2, 0)[0],
            "kthvalue": lambda x: x.kthvalue(3, -1)[0],
            "median": lambda x: x.median(-1)[0],
            "median of all": lambda x: x.median(),
            "quantile": lambda x: x.quantile(0.3, -1),
            "count_nonzero": lambda x: torch.count_nonzero(x > 0, -1),
            "nansum": lambda x: torch.nansum(x.log(), -1),
            "aminmax": lambda x: torch.aminmax(x, dim=-1),
            "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
            "searchsorted": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), x),
            "histogram by comparison": lambda x: (x[..., None] > torch.linspace(-1, 1, 5)).sum(
                (0, 1)
            ),
        },
        _X,
    ),
    *calls(
        {
            "argmax of equals": lambda x: x.argmax(-1),
            "argmin of equals": lambda x: x.argmin(-1),
            "max of equals": lambda x: x.max(-1),
            "stable sort of equals": lambda x: torch.sort(x, dim=-1, stable=True),
        },
        _TIES,
    ),
    *calls(
        {
            "integers, sum": lambda a: a.sum(-1),
            "integers, max": lambda a: a.max(-1)[0],
            "integers, sort": lambda a: a.sort(-1)[0],
            "integers, cumsum": lambda a: a.cumsum(-1),
            "integers, argmax": lambda a: a.argmax(-1),
            "integers, prod": lambda a: a.prod(-1),
            "one_hot": lambda a: torch.nn.functional.one_hot(a.clamp(0, 7), 8),
            "bincount by one_hot": lambda a: torch.nn.functional.one_hot(a.clamp(0, 7), 8).sum(
                (0, 1)
            ),
        },
        _INTEGERS,
    ),
]
