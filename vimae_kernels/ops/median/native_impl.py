"""The median distance on the C++ core."""

from torch import Tensor

from ... import _native


def median_distance(x: Tensor) -> Tensor:
    median = x.new_empty(x.shape[:-2])
    batch, (n, d) = median.numel(), x.shape[-2:]
    if batch:
        _native.call("median", x, x.contiguous(), batch, n, d, median)
    return median
