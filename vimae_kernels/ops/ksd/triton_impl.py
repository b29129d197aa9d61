"""The kernel Stein discrepancy in Triton: the kernels of the Stein gradient, which meets the same pairs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..._triton import Shipped
from ..._units import scale_free
from ..stein import triton_impl as stein
from ..stein.triton_impl import sums


def shipped() -> Iterator[Shipped]:
    """Every configuration, to compile ahead of time."""
    return stein.shipped(value=True)


@scale_free(1, -1, returns=2)
def ksd(
    z: Tensor, score: Tensor | None, family: str, scales: list[float], unbiased: bool
) -> Tensor:
    """The squared discrepancy (...) of z (..., n, d); without a score, that of the standard normal."""
    return sums(z, score, family, scales, unbiased, value=True, pull=False)[0]


@scale_free(1, -1, returns=(2, 3, 1))
def ksd_grad(
    z: Tensor,
    score: Tensor | None,
    need_score: bool,
    family: str,
    scales: list[float],
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The discrepancy, its gradient in z and in the score; without a score all of it is in z."""
    value, dz, dscore = sums(z, score, family, scales, unbiased, value=True, pull=True)
    return value, dz, dscore if need_score else dscore.new_empty(0)
