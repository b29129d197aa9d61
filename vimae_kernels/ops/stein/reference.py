"""The definition of the Stein gradient, in plain PyTorch: n x n x d memory, any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._units import scale_free


@scale_free(1, -1, returns=1)
def stein_gradient(z: Tensor, score: Tensor, family: str, scales: tuple[float, ...]) -> Tensor:
    """phi_i = 1/n sum_j [k(z_i, z_j) score_j + grad_{z_j} k(z_j, z_i)] of z (..., n, d) (Liu and Wang 2016, eq. 8)."""
    e = z.unsqueeze(-2) - z.unsqueeze(-3)  # (..., i, j, d)
    k, slope, _ = (t.unsqueeze(-1) for t in kernel(e.square().sum(-1), family, scales))
    return (k * score.unsqueeze(-3) - 2 * slope * e).mean(-2)


def kernel(s: Tensor, family: str, scales: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The summed kernels of squared distances s, c / (c + s) or exp(-s / c), and their first two derivatives."""
    terms = []
    for c in scales:
        if family == "imq":
            f = c / (c + s)
            terms.append((f, -f.square() / c, 2 * f**3 / c**2))
        else:
            f = (-s / c).exp()
            terms.append((f, -f / c, f / c**2))
    k, first, second = (torch.stack(t).sum(0) for t in zip(*terms, strict=True))
    return k, first, second
