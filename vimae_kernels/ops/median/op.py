"""The median distance between points: the bandwidth of `RBF("median")`."""

from __future__ import annotations

from torch import Tensor

from ..._operation import on_backend, operation
from . import reference


def median_distance(x: Tensor, backend: str) -> Tensor:
    """The lower median over pairs i < j of ||x_i - x_j||, without gradient, in O(N) memory.

    Args:
        x: points (..., N, d), N >= 2, float32 or float64.
        backend: a resolved backend.

    Returns:
        (...), in the units and dtype of x. NaN where a coordinate is not finite.
    """
    if backend == "reference":
        return reference.median_distance(x.detach())
    return _median_distance(x.detach(), backend)  # type: ignore[no-any-return]


_median_distance = operation(
    "_median_distance(Tensor x, str backend) -> Tensor",
    on_backend(__package__, "median_distance"),
    lambda x, backend: x.new_empty(x.shape[:-2]),
    tensors=1,
)
