"""The median distance on the C++ core."""

from torch import Tensor

from ... import _native


def median_distance(x: Tensor) -> Tensor:
    median = x.new_empty(x.shape[:-2])
    _native.median(x.contiguous(), median)
    return median
