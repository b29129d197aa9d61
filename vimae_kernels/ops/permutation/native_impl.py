"""The permutation test on the C++ core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _native
from ..._units import scale_free


@scale_free(1, returns=None)
def permuted_mmd(
    x: Tensor,
    labels: Tensor,
    centre: Tensor,
    n: int,
    family: str,
    scales: list[float],
    part: int = 0,
    parts: int = 1,
) -> Tensor:
    _native.check_scales(x, scales)
    size, d = x.shape[-2:]
    words, columns = labels.shape[-2:]
    values = x.new_empty(*x.shape[:-2], columns, dtype=torch.float64)
    batch = x.shape[:-2].numel()
    if batch:
        stride = words * columns if labels.ndim > 2 else 0
        x, labels = x.contiguous(), labels.contiguous()
        centre = centre.to(x.dtype).contiguous()
        config = batch, size, n, d, columns, part, parts, family == "rbf", list(scales), len(scales)
        _native.call("permutation", x, x, labels, stride, centre, *config, values)
    return values


def draw_labels(seeds: Tensor, size: int, n: int, columns: int) -> Tensor:
    """Packed labels (..., words, columns) of the identity and of one permutation for every seed; CPU only."""
    labels = seeds.new_empty(*seeds.shape[:-1], (size + 31) // 32, columns, dtype=torch.int32)
    batch, permutations = seeds.shape[:-1].numel(), seeds.shape[-1]
    if batch:
        seeds = seeds.contiguous()
        _native.call("draw", seeds, seeds, batch, permutations, size, n, columns, labels)
    return labels
