"""The definition of the Gumbel-softmax and of its noise, in plain PyTorch: any device and dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._autograd import accumulator

# Of 32-bit words held in int64.
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random 32-bit words for each counter (Salmon et al. 2011, section 3.3).

    All words are int64 tensors with values below 2^32, the least significant first, and broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def _multiply(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a * m, by halves of m, so that nothing overflows an int64."""
    low = a * (m & 0xFFFF)
    high = a * (m >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | (low & 0xFFFF)


def gumbel_noise(shape: torch.Size, seed: Tensor) -> Tensor:
    """Standard Gumbel noise of `shape`, in float64.

    `seed` is int64 with a shape that `shape` begins with: each has the elements below it to itself.
    Element e, counted in order from 0, is made of word e % 4 of Philox with the counter e // 4 and
    the seed as its key. With w this word, u = (w + 1/2) 2^-32 is the probability of the upper tail:
    g = -log(-log(1 - u)), so that large g, which decide, have the resolution of small u.
    """
    count = shape[seed.ndim :].numel()
    block = torch.arange((count + 3) // 4, device=seed.device)
    zero = torch.zeros_like(block)
    key = seed[..., None] & _LOW, seed[..., None] >> 32 & _LOW
    words = torch.stack(philox((block & _LOW, block >> 32, zero, zero), key), -1)
    u = (words.flatten(-2)[..., :count].double() + 0.5) * 2.0**-32
    return -(-torch.log1p(-u)).log().reshape(shape)


def gumbel_softmax(logits: Tensor, seed: Tensor, tau: float | Tensor, hard: bool) -> Tensor:
    """softmax((logits + g) / tau) over the last dimension, in the dtype of the logits (Jang et al. 2017, eq. 2).

    `tau` is a number, or a tensor of shape () or (...), one for each row of logits (..., K).
    """
    dtype = accumulator(logits)
    z = logits.to(dtype) + gumbel_noise(logits.shape, seed).to(dtype)
    # Differences to the maximum before the division, and in halves: nothing finite overflows, at any tau.
    halves = 0.5 * z - 0.5 * z.detach().amax(-1, keepdim=True)
    half = half_tau(tau, dtype)
    if isinstance(half, Tensor) and half.ndim:
        half = half.unsqueeze(-1)
    y = (halves / half).softmax(-1)
    if hard:
        one_hot = torch.zeros_like(y).scatter(-1, z.argmax(-1, keepdim=True), 1.0)
        y = one_hot + (y - y.detach())
    return y.to(logits.dtype)  # type: ignore[no-any-return]


def half_tau(tau: float | Tensor, dtype: torch.dtype) -> Any:
    """tau / 2, but neither it nor its inverse 0 or infinite in `dtype`; NaN where a tensor is not positive."""
    limits = torch.finfo(dtype)
    least, most = 2 * limits.tiny, 0.25 * limits.max
    if isinstance(tau, Tensor):
        return (0.5 * tau).clamp(least, most).where(tau > 0, torch.nan)
    return min(max(0.5 * tau, least), most)
