"""The definition of the squared MMD, in plain PyTorch: slow, n x m x d memory, any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def mmd(x: Tensor, y: Tensor, family: str, scales: tuple[float, ...], unbiased: bool) -> Tensor:
    """Squared MMD of x (..., n, d) and y (..., m, d) under the summed kernels (Gretton et al. 2012, eqs. 3, 5).

    With m = 0 the terms of y vanish.
    """
    n, m = x.shape[-2], y.shape[-2]
    xx = _mean_within(x, family, scales, unbiased)
    if m == 0:
        return xx
    yy = _mean_within(y, family, scales, unbiased)
    cross = kernel_matrix(x, y, family, scales).sum((-1, -2)) / (n * m)
    return xx + yy - 2 * cross


def pairs(x: Tensor, y: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The mean kernel over the pairs of x and y or, with m = 0, of two different points of x; in float64."""
    if y.shape[-2]:
        return kernel_matrix(x, y, family, scales).double().mean((-1, -2))
    return _mean_within(x.double(), family, scales, True)


def _mean_within(x: Tensor, family: str, scales: tuple[float, ...], unbiased: bool) -> Tensor:
    """The mean kernel over the pairs of one sample; unbiased, without the diagonal."""
    n = x.shape[-2]
    k = kernel_matrix(x, x, family, scales)
    if unbiased:
        return (k.sum((-1, -2)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))
    return k.sum((-1, -2)) / n**2


def kernel_matrix(x: Tensor, y: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The (..., n, m) matrix of the summed kernels: c / (c + s) or exp(-s / c) with s = ||x_i - y_j||^2."""
    s = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    if family == "imq":
        return torch.stack([c / (c + s) for c in scales]).sum(0)
    return torch.stack([(-s / c).exp() for c in scales]).sum(0)
