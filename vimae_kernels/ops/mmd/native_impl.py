"""mmd on the C++ core: allocates the outputs; half types are computed in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import _native
from ..._autograd import accumulator
from ..._units import scale_free


@scale_free(1, 1, returns=0)
def mmd(x: Tensor, y: Tensor, family: str, scales: list[float], unbiased: bool) -> Tensor:
    value = x.new_empty(x.shape[:-2], dtype=accumulator(x))
    _run(x, y, None, None, family, scales, unbiased, value, None, None)
    return value


@scale_free(1, 1, returns=(0, 1, 1))
def mmd_grad(
    x: Tensor,
    y: Tensor,
    need_x: bool,
    need_y: bool,
    family: str,
    scales: list[float],
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator(x)
    value = x.new_empty(x.shape[:-2], dtype=dtype)
    dx = x.new_empty(x.shape if need_x else 0, dtype=dtype)
    dy = y.new_empty(y.shape if need_y else 0, dtype=dtype)
    wanted = dx if need_x else None, dy if need_y else None
    _run(x, y, None, None, family, scales, unbiased, value, *wanted)
    return value, dx, dy


@scale_free(1, 1, 1, 1, returns=(1, 1))
def mmd_hvp(
    x: Tensor, y: Tensor, vx: Tensor, vy: Tensor, family: str, scales: list[float], unbiased: bool
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(x)
    hx, hy = x.new_empty(x.shape, dtype=dtype), y.new_empty(y.shape, dtype=dtype)
    vx, vy = vx.to(dtype).contiguous(), vy.to(dtype).contiguous()
    _run(x, y, vx, vy, family, scales, unbiased, None, hx, hy)
    return hx, hy


@scale_free(1, 1, returns=None)
def pairs(x: Tensor, y: Tensor, family: str, scales: list[float]) -> Tensor:
    value = x.new_empty(x.shape[:-2], dtype=torch.float64)
    _run(x, y, None, None, family, scales, True, None, None, None, value)
    return value


@scale_free(1, 1, returns=(None, 1, 1))
def pairs_grad(
    x: Tensor, y: Tensor, need_x: bool, need_y: bool, family: str, scales: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator(x)
    value = x.new_empty(x.shape[:-2], dtype=torch.float64)
    dx = x.new_empty(x.shape if need_x else 0, dtype=dtype)
    dy = y.new_empty(y.shape if need_y else 0, dtype=dtype)
    wanted = dx if need_x else None, dy if need_y else None
    _run(x, y, None, None, family, scales, True, None, *wanted, value)
    return value, dx, dy


def _run(
    x: Tensor,
    y: Tensor,
    vx: Tensor | None,
    vy: Tensor | None,
    family: str,
    scales: list[float],
    unbiased: bool,
    value: Tensor | None,
    dx: Tensor | None,
    dy: Tensor | None,
    pairs: Tensor | None = None,
) -> None:
    """Value into `value` and gradients into `dx`, `dy`; with `vx`, `vy` the Hessian-vector product.

    With `pairs` the mean kernel into that, and its gradients.
    """
    _native.check_scales(x, scales)
    x, y = _rows(x), _rows(y)
    (n, d), m = x.shape[-2:], y.shape[-2]
    batch = math.prod(x.shape[:-2])
    if batch == 0:
        return
    strides = x.stride(0) if x.ndim == 3 else n * d, y.stride(0) if y.ndim == 3 else m * d
    config = batch, n, m, d, family == "rbf", list(scales), len(scales), unbiased
    _native.call("mmd", x, x, y, *strides, vx, vy, *config, value, dx, dy, pairs)


def _rows(x: Tensor) -> Tensor:
    """x in the accumulator's dtype with contiguous rows; a repeated batch entry stays one."""
    if x.is_contiguous() and x.dtype in (torch.float32, torch.float64):
        return x
    x = x.to(accumulator(x)).reshape(x.shape[:-2].numel(), *x.shape[-2:])
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
