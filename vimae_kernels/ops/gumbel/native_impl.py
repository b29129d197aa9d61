"""The Gumbel-softmax on the C++ core: allocates the outputs; half types are computed in float32."""

from __future__ import annotations

from torch import Tensor

from ... import _native
from ..._autograd import accumulator


def gumbel_softmax(logits, seed, tau, hard, need_soft):
    tau = float(tau)
    soft = (
        _gumbel(logits.to(accumulator(logits)), seed, tau, False, None)
        if need_soft
        else logits.new_empty(0)
    )
    return soft, _gumbel(logits, seed, tau, True, None) if hard else logits.new_empty(0)


def softmax_grad(y: Tensor, g: Tensor, tau: float) -> Tensor:
    tau = float(tau)
    y, g = _dense(y), _dense(g)
    out = y.new_empty(y.shape)
    if out.numel():
        k = y.shape[-1]
        _native.call("gumbel_backward", y, y, g, y.numel() // k, k, tau, out)
    return out


def _gumbel(logits: Tensor, seed: Tensor, tau: float, hard: bool, g: Tensor | None) -> Tensor:
    """The sample or, with `g`, the gradient in the logits of the soft sample of this seed."""
    x, seed = _dense(logits), seed.contiguous()
    out = x.new_empty(x.shape)
    if out.numel():
        k = x.shape[-1]
        _native.call("gumbel", x, x, seed, g, x.numel() // k, k, seed.numel(), tau, hard, out)
    return out.to(logits.dtype)


def _dense(x: Tensor) -> Tensor:
    return x.to(accumulator(x)).contiguous()
