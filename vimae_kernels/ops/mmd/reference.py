"""The definition of the squared MMD, in plain PyTorch: slow, n x m x d memory, any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._units import scale_free


@scale_free(1, 1, returns=0)
def mmd(x: Tensor, y: Tensor, family: str, scales: tuple[float, ...], unbiased: bool) -> Tensor:
    """Squared MMD of x (..., n, d) and y (..., m, d) under the summed kernels (Gretton et al. 2012, eqs. 3, 5).

    With m = 0 the terms of y vanish. The biased estimate is a squared norm: rounding never makes it negative.
    """
    n, m = x.shape[-2], y.shape[-2]
    xx = _mean_within(x, family, scales, unbiased)
    if m == 0:
        return xx
    yy = _mean_within(y, family, scales, unbiased)
    cross = kernel_matrix(x, y, family, scales).sum((-1, -2)) / (n * m)
    value = xx + yy - 2 * cross
    # Its gradient is left as it is.
    return value if unbiased else value - value.detach().clamp(max=0)


@scale_free(1, 1, returns=None)
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
        return off_diagonal(k).sum((-1, -2)) / (n * (n - 1))
    return k.sum((-1, -2)) / n**2


def off_diagonal(k: Tensor) -> Tensor:
    """k with zeros on its diagonal, which taken off a sum would leave the sum's rounding; NaN stays NaN."""
    diagonal = torch.eye(k.shape[-1], dtype=torch.bool, device=k.device)
    return torch.where(diagonal, k - k, k)


def kernel_matrix(x: Tensor, y: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The (..., n, m) matrix of the summed kernels."""
    return kernel_of((x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1), family, scales)


def kernel_of(s: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The summed kernels of s = ||x - y||^2: c / (c + s) or exp(-s / c)."""
    if family == "imq":
        return torch.stack([c / (c + s) for c in scales]).sum(0)
    return torch.stack([(-s / c).exp() for c in scales]).sum(0)
