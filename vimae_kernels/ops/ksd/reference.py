"""The definition of the squared kernel Stein discrepancy, in plain PyTorch: n x n x d memory, any device and dtype."""

from __future__ import annotations

from torch import Tensor

from ..._units import scale_free
from ..mmd.reference import off_diagonal
from ..stein.reference import kernel


@scale_free(1, -1, returns=2)
def ksd(z: Tensor, score: Tensor, family: str, scales: tuple[float, ...], unbiased: bool) -> Tensor:
    """The mean over pairs of u(x, y) of z (..., n, d) (Liu, Lee and Jordan 2016, theorem 3.6, eq. 14)."""
    n, d = z.shape[-2:]
    x, y = z.unsqueeze(-2), z.unsqueeze(-3)
    score_x, score_y = score.unsqueeze(-2), score.unsqueeze(-3)
    s = (x - y).square().sum(-1)
    k, first, second = kernel(s, family, scales)
    # grad_x k = 2 k' (x - y), grad_y k = -2 k' (x - y)
    u = (
        (score_x * score_y).sum(-1) * k
        + 2 * first * ((score_y - score_x) * (x - y)).sum(-1)
        - (4 * second * s + 2 * d * first)
    )
    if unbiased:
        return off_diagonal(u).sum((-1, -2)) / (n * (n - 1))
    # A squared norm: rounding never makes it negative, and leaves its gradient as it is.
    value = u.sum((-1, -2)) / n**2
    return value - value.detach().clamp(max=0)
