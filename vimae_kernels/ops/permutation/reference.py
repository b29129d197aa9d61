"""The definition of a labelling's statistic, in plain PyTorch: N^2 memory, any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._units import scale_free
from ..mmd.reference import kernel_of, off_diagonal


@scale_free(1, returns=None)
def permuted_mmd(x: Tensor, first: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The unbiased squared MMD of each labelling of the pooled points, (..., columns) in float64.

    Args:
        x: points (..., N, d), float32 or float64.
        first: bool (..., columns, N), which points form the first sample; as many in every column.
    """
    a, b = first.double(), (~first).double()
    n, m = a.sum(-1), b.sum(-1)
    x = x.double()
    s = (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)
    # A number taken from all kernel values changes nothing: those that are nearly 1 keep their digits less 1, and
    # about their mean all sums are small.
    less = less_one(s, family, scales)
    near = less.mean((-1, -2), keepdim=True) > -len(scales) / 2
    k = off_diagonal(less.where(near, kernel_of(s, family, scales)))
    pairs = x.shape[-2] * (x.shape[-2] - 1)
    k = off_diagonal(k - k.sum((-1, -2), keepdim=True) / pairs)
    to_first = a @ k
    zz, zx, xx = (to_first * a).sum(-1), (to_first * b).sum(-1), ((b @ k) * b).sum(-1)
    return zz / (n * (n - 1)) + xx / (m * (m - 1)) - 2 * zx / (n * m)


def less_one(s: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The sum of k - 1 over the kernels, of s = ||x - y||^2, to the rounding of itself."""
    if family == "imq":
        return torch.stack([-1 / (1 + c / s) for c in scales]).sum(0)
    return torch.stack([(-s / c).expm1() for c in scales]).sum(0)


class Weights(NamedTuple):
    """u = sign + shift; the statistic is quadratic sum k_ij u_i u_j + total sum k_ij over i != j."""

    shift: float
    quadratic: float
    total: float


def weights(n: int, m: int) -> Weights:
    zz, xx, zx = 1 / (n * (n - 1)), 1 / (m * (m - 1)), 1 / (n * m)
    a = (zz + xx + 2 * zx) / 4
    return Weights((zz - xx) / (4 * a), a, (n + m - 1) * zz * xx * zx / (4 * a))
