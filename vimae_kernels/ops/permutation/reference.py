"""The definition of a labelling's statistic, in plain PyTorch: N^2 memory, any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._units import scale_free
from ..mmd.reference import kernel_matrix, off_diagonal


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
    # A number taken from all kernel values changes nothing: those that are nearly 1 keep their digits less 1.
    less = less_one(x, x, family, scales)
    near = less.mean((-1, -2), keepdim=True) > -len(scales) / 2
    k = off_diagonal(less.where(near, kernel_matrix(x, x, family, scales)))
    to_first = a @ k
    zz, zx, xx = (to_first * a).sum(-1), (to_first * b).sum(-1), ((b @ k) * b).sum(-1)
    return zz / (n * (n - 1)) + xx / (m * (m - 1)) - 2 * zx / (n * m)


def less_one(x: Tensor, y: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The (..., n, m) matrix of the sum of k - 1 over the kernels, to the rounding of itself."""
    s = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    if family == "imq":
        return torch.stack([-1 / (1 + c / s) for c in scales]).sum(0)
    return torch.stack([(-s / c).expm1() for c in scales]).sum(0)
