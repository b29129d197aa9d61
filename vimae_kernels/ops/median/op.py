"""The median distance between points: the bandwidth of `RBF("median")`, and the unit of length it is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._distributed import Ranks
from ..._operation import on_backend, operation
from . import native_impl, reference

SAMPLE = 64  # points whose distances tell the order of magnitude
DIGIT = 11  # bits, kMedianDigit of csrc/median/median.h
ORDINARY = 24.0  # distances that are 2^-24 ... 2^24 of themselves can be squared as they are


class Unit(NamedTuple):
    """The median distance of each batch entry as the unit of length: no host ever sees it."""

    powers: tuple[
        Tensor, Tensor
    ]  # of two, by which points are multiplied so that they can be squared
    centre: Tensor  # in that unit, as is the median
    median: Tensor  # (..., 1, 1), not 0

    def measure(self, x: Tensor) -> Tensor:
        """x about the centre. Centred first, so that dividing rounds differences and not positions."""
        return (x * self.powers[0] * self.powers[1] - self.centre) / self.median

    @property
    def length(self) -> Tensor:
        return self.median / self.powers[0] / self.powers[1]


def median_unit(x: Tensor, backend: str, ranks: Ranks | None = None) -> Unit:
    """The unit for points x (..., N, d), N >= 2, float32 or float64, without gradient.

    Where all points coincide it is infinite: they all lie at 0 in it, and every kernel of them is 1. With `ranks`,
    which all have the same x, each counts a part of the pairs.
    """
    x = x.detach()
    powers = _powers(x)
    x = x * powers[0] * powers[1]
    if ranks is not None and ranks.divides(x, backend):
        median = _of_ranks(x, backend, ranks)[..., None, None]
    else:
        median = _of(x, backend)[..., None, None]
    # Not the mean: about that, all are alike to rounding where one is far away.
    centre = _few(x).median(-2, keepdim=True).values
    return Unit(powers, centre, median.where(median != 0, torch.inf))


def median_distance(x: Tensor, backend: str) -> Tensor:
    """The lower median over pairs i < j of the ||x_i - x_j|| that are not 0, without gradient, in O(N) memory.

    Args:
        x: points (..., N, d), N >= 2, float32 or float64.
        backend: a resolved backend.

    Returns:
        (...), in the units and dtype of x; 0 where all points coincide, NaN where a coordinate is not finite.
    """
    x = x.detach()
    first, second = _powers(x)
    return _of(x * first * second, backend) / first[..., 0, 0] / second[..., 0, 0]


def _powers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two (..., 1, 1) whose product makes the distances of x numbers that can be squared; mostly 1.

    Two, for their product may be beyond x's dtype. They follow the median of a few distances and not the size of the
    points: one point far away would make all others coincide.
    """
    most = math.log2(torch.finfo(x.dtype).max) - 28
    few = _few(x)
    far = torch.cdist(few, few, p=torch.inf).flatten(-2)
    typical = far.where(far > 0, torch.nan).nanmedian(-1).values.log2()
    largest = x.abs().amax((-1, -2)).log2()
    exponent = torch.maximum(typical.where(typical.isfinite(), largest), largest - most).round()
    wanted = exponent.isfinite() & (exponent.abs() > ORDINARY)
    exponent = exponent.where(wanted, 0.0)[..., None, None]
    half = (exponent / 2).floor()
    return (-half).exp2(), (half - exponent).exp2()


def _few(x: Tensor) -> Tensor:
    """Of any number of points always as many, so that compiled code has one shape for all: few are repeated."""
    return x[..., torch.linspace(0, x.shape[-2] - 1, SAMPLE, device=x.device).long(), :]


def _of(x: Tensor, backend: str) -> Tensor:
    if backend == "reference":
        return reference.median_distance(x)
    return _median_distance(x, backend)  # type: ignore[no-any-return]


def _of_ranks(x: Tensor, backend: str, ranks: Ranks) -> Tensor:
    """The same, by a radix selection in which ranks count, as csrc/median/median_cpu.cpp has threads count."""
    counting = native_impl.median_counts if backend == "native" else reference.median_counts
    width, known = torch.finfo(x.dtype).bits, 1
    prefix = torch.zeros(x.shape[:-2], dtype=torch.int64, device=x.device)
    pairs, rank = x.shape[-2] * (x.shape[-2] - 1) // 2, prefix
    while known < width:
        digit = min(DIGIT, width - known)
        mine = counting(x, prefix, known, digit, ranks.rank, ranks.size)
        # As float64, which holds such counts.
        counts, coincide = (ranks.sum(count.double()).long() for count in mine)
        if known == 1:
            rank = coincide + (pairs - coincide - 1).div(2, rounding_mode="floor")
            rank = rank.where(coincide < pairs, 0)
        below = counts.cumsum(-1)
        bin = (below <= rank[..., None]).sum(-1).clamp(max=(1 << digit) - 1)
        rank = rank - (below - counts).gather(-1, bin[..., None])[..., 0]
        prefix, known = prefix << digit | bin, known + digit
    bits = prefix if width == 64 else prefix.int()
    return bits.view(x.dtype).sqrt() + (x - x).sum((-1, -2))


_median_distance = operation(
    "_median_distance(Tensor x, str backend) -> Tensor",
    on_backend(__package__, "median_distance"),
    lambda x, backend: x.new_empty(x.shape[:-2]),
    tensors=1,
)
