"""The Stein gradient on the C++ core: allocates the output; half types are computed in float32."""

from __future__ import annotations

import math

from torch import Tensor

from ... import _native
from ..._autograd import accumulator
from ..._units import scale_free


@scale_free(1, -1, returns=1)
def stein_gradient(z: Tensor, score: Tensor | None, family: str, scales: list[float]) -> Tensor:
    dtype = accumulator(z)
    phi = z.new_empty(z.shape, dtype=dtype)
    shape = math.prod(z.shape[:-2]), *z.shape[-2:]
    _native.check_scales(z, scales)
    if shape[0] == 0:
        return phi
    z = z.to(dtype).contiguous()
    score = None if score is None else score.to(dtype).contiguous()
    batch, n, d = shape
    config = batch, n, n, d, family == "rbf", list(scales), len(scales)
    _native.call("stein", z, z, None, score, *config, phi)
    return phi
