"""ksd on the C++ core: allocates the outputs; half types are computed in float32."""

from __future__ import annotations

import math

from torch import Tensor

from ... import _native
from ..._autograd import accumulator
from ..._units import scale_free


@scale_free(1, -1, returns=2)
def ksd(
    z: Tensor, score: Tensor | None, family: str, scales: list[float], unbiased: bool
) -> Tensor:
    value = z.new_empty(z.shape[:-2], dtype=accumulator(z))
    _run(z, score, family, scales, unbiased, value, None, None)
    return value


@scale_free(1, -1, returns=(2, 3, 1))
def ksd_grad(
    z: Tensor,
    score: Tensor | None,
    need_score: bool,
    family: str,
    scales: list[float],
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator(z)
    value = z.new_empty(z.shape[:-2], dtype=dtype)
    dz = z.new_empty(z.shape, dtype=dtype)
    dscore = z.new_empty(z.shape if need_score else 0, dtype=dtype)
    _run(z, score, family, scales, unbiased, value, dz, dscore if need_score else None)
    return value, dz, dscore


def _run(
    z: Tensor,
    score: Tensor | None,
    family: str,
    scales: list[float],
    unbiased: bool,
    value: Tensor,
    dz: Tensor | None,
    dscore: Tensor | None,
) -> None:
    _native.check_scales(z, scales)
    shape = math.prod(z.shape[:-2]), *z.shape[-2:]
    if shape[0] == 0:
        return
    z = z.to(value.dtype).contiguous()
    score = None if score is None else score.to(value.dtype).contiguous()
    batch, n, d = shape
    config = batch, n, 0, d, family == "rbf", list(scales), len(scales), unbiased
    _native.call("ksd", z, z, score, None, None, *config, value, dz, dscore, None)
