"""The Gumbel-softmax on the C++ core: allocates the outputs; half types are computed in float32."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import _native
from ..._autograd import accumulator


def gumbel_softmax(
    logits: Tensor, seed: Tensor, tau: float | Tensor, hard: bool, need_soft: bool
) -> tuple[Tensor, Tensor]:
    """The samples (soft, one-hot): that without `hard` or, with it, without `need_soft`, is of shape (0,).

    `tau` is a number, or a tensor in the accumulator's dtype, () or one for each row. The soft sample
    is in that dtype too, the one-hot sample in that of the logits.
    """
    x, seed = logits.to(accumulator(logits)).contiguous(), seed.contiguous()
    soft = x.new_empty(x.shape if need_soft or not hard else 0)
    one_hot = x.new_empty(x.shape if hard else 0)
    if x.numel():
        k = x.shape[-1]
        # The address of a tensor of shape (0,) is 0.
        _native.call(
            "gumbel", x, x, seed, x.numel() // k, k, seed.numel(), *_temperature(tau), soft, one_hot
        )  # fmt: skip
    return soft, one_hot.to(logits.dtype)


def softmax_grad(y: Tensor, g: Tensor, tau: float | Tensor) -> Tensor:
    """The gradient in the logits from the soft sample y: y (g - sum(y g)) / tau."""
    y, g = y.contiguous(), g.to(y.dtype).contiguous()
    out = y.new_empty(y.shape)
    if out.numel():
        k = y.shape[-1]
        _native.call("gumbel_backward", y, y, g, y.numel() // k, k, *_temperature(tau), out)
    return out


def _temperature(tau: float | Tensor) -> tuple[Any, ...]:
    """One for all rows, or the address of the first and the step to the next."""
    return (1.0, tau, int(tau.ndim > 0)) if isinstance(tau, Tensor) else (tau, None, 0)
