"""The median distance on the C++ core."""

import torch
from torch import Tensor

from ... import _native


def median_distance(x: Tensor) -> Tensor:
    median = x.new_empty(x.shape[:-2])
    batch, (n, d) = median.numel(), x.shape[-2:]
    if batch:
        _native.call("median", x, x.contiguous(), batch, n, d, median)
    return median


def median_counts(
    x: Tensor, prefix: Tensor, known: int, digit: int, part: int, parts: int
) -> tuple[Tensor, Tensor]:
    """`reference.median_counts`; CPU only."""
    batch, (n, d) = x.shape[:-2], x.shape[-2:]
    counts, coincide = prefix.new_empty(*batch, 1 << digit), torch.empty_like(prefix)
    if batch.numel():
        config = batch.numel(), n, d, part, parts, known, digit
        _native.call(
            "median_counts", x, x.contiguous(), prefix.contiguous(), *config, counts, coincide
        )
    return counts, coincide
