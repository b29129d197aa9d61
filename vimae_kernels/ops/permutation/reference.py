"""The definition of a labelling's statistic, in plain PyTorch: N^2 memory, any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mmd.reference import kernel_matrix


def permuted_mmd(x: Tensor, first: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """The unbiased squared MMD of each labelling of the pooled points, (..., columns) in float64.

    Args:
        x: points (..., N, d), float32 or float64.
        first: bool (..., columns, N), which points form the first sample; as many in every column.
    """
    a, b = first.double(), (~first).double()
    n, m = a.sum(-1), b.sum(-1)
    k = kernel_matrix(x, x, family, scales).double()
    k = k - torch.diag_embed(k.diagonal(dim1=-2, dim2=-1))
    to_first = a @ k
    zz, zx, xx = (to_first * a).sum(-1), (to_first * b).sum(-1), ((b @ k) * b).sum(-1)
    return zz / (n * (n - 1)) + xx / (m * (m - 1)) - 2 * zx / (n * m)
