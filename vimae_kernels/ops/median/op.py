"""The median distance between points: the bandwidth of `RBF("median")`."""

from __future__ import annotations

from torch import Tensor

from ..._autograd import implementation
from ..._library import register
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


def _median_distance_vmap(info, dims, x, backend):  # type: ignore[no-untyped-def]
    return _median_distance(x.movedim(dims[0], 0), backend), 0


_median_distance = register(
    "_median_distance(Tensor x, str backend) -> Tensor",
    lambda x, backend: implementation(__package__, backend).median_distance(x),
    lambda x, backend: x.new_empty(x.shape[:-2]),
    _median_distance_vmap,
)
