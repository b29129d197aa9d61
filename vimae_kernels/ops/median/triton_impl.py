# mypy: disable-error-code="assignment, no-untyped-def"
"""The median distance in Triton: bisection over the bits of a squared distance.

Squared distances are not negative, so they are ordered as the integers with the same bits. Each
step counts the pairs that lie at or below a trial value, in integers, and settles one bit of the
answer on the device: no N x N memory, no atomics and nothing that the host waits for.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._pairs_triton import PADDED, distances, padded, points, quads
from ..._triton import Launch, Loop, Shipped, on_device_of


@triton.jit(do_not_specialize=["n", "d", "below"])
def _count_kernel(
    x, found, counts, n, d, below, TILE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Per TILE rows of x (B, quads, n, 4), the pairs i < j whose bits are at most found[b] + below."""
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    SIDE: tl.constexpr = TILE // BLOCK
    blocks = tl.cdiv(n, TILE)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * TILE
    stride = padded(n)
    x += batch * stride * tl.cdiv(d, PADDED) * PADDED
    trial = tl.load(found + batch) + below
    count = tl.zeros((BLOCK, BLOCK, SIDE, SIDE), tl.int32)
    undefined = tl.zeros((BLOCK, BLOCK, SIDE, SIDE), tl.int32)
    for start in range(row, n, TILE):
        s, _ = distances(
            x, row, stride, x, start, stride, d, 0.0, False, DOUBLE, BLOCK, BLOCK, SIDE, SIDE
        )
        columns = points(start, BLOCK, SIDE)[None, :, None, :]
        pair = (points(row, BLOCK, SIDE)[:, None, :, None] < columns) & (columns < n)
        count += (pair & (s.to(found.dtype.element_ty, bitcast=True) <= trial)).to(tl.int32)
        undefined |= (pair & (s != s)).to(tl.int32)
    # With a NaN among the distances no trial is large enough, and the answer ends as all ones: NaN.
    any_undefined = tl.max(undefined).to(tl.int64)
    total = tl.sum(count).to(tl.int64) - (any_undefined << 45)
    tl.store(counts + tl.program_id(0), total)


@triton.jit(do_not_specialize=["blocks", "step"])
def _settle_kernel(found, counts, wanted, blocks, step, BLOCK: tl.constexpr):
    """Add `step` to found[b] if fewer than wanted[b] pairs were counted."""
    batch = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, blocks, BLOCK):
        index = start + offsets
        total += tl.load(counts + batch * blocks + index, mask=index < blocks, other=0)
    bits = tl.load(found + batch)
    more = tl.sum(total) < tl.load(wanted + batch)
    tl.store(found + batch, bits + more.to(bits.dtype) * step)


_COUNT = Launch(
    _count_kernel,
    {"TILE": 64, "BLOCK": 4},
    {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": True},
)
_SETTLE = Launch(
    _settle_kernel, {"BLOCK": 512}, {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
)


def shipped() -> Iterator[Shipped]:
    """Every configuration, to compile ahead of time."""
    for bits, add in ((32, "FADD"), (64, "DADD")):
        integers = {"found": f"*i{bits}", "counts": "*i64", "wanted": "*i64", "step": f"i{bits}"}
        integers["below"] = f"i{bits}"
        # A subtraction and a multiply-add.
        pairs = Loop("distances", add, 1, 2)
        for name, launch, loops in (("count", _COUNT, (pairs,)), ("settle", _SETTLE, ())):
            known = {"x": f"*fp{bits}", **integers, **dict.fromkeys(launch.constants, "constexpr")}
            types = {a: known.get(a, "i32") for a in launch.kernel.arg_names}
            yield Shipped(f"{name} fp{bits}", launch, types, loops)


def median_distance(x: Tensor) -> Tensor:
    """The lower median over pairs i < j of the ||x_i - x_j|| that are not 0: (...) for x (..., N, d)."""
    batch, (n, d) = x.shape[:-2], x.shape[-2:]
    problems = batch.numel()
    integer = torch.int64 if x.dtype == torch.float64 else torch.int32
    found = torch.zeros(problems, dtype=integer, device=x.device)
    x = x.reshape(problems, n, d)
    packed = quads(x, None)
    blocks = triton.cdiv(n, _COUNT.constants["TILE"])
    counts = torch.empty(problems * blocks, dtype=torch.int64, device=x.device)
    pairs = n * (n - 1) // 2
    with on_device_of(x):

        def count(below: int) -> None:
            _COUNT.kernel[(problems * blocks,)](
                packed, found, counts, n, d, below, **_COUNT.constants, **_COUNT.options
            )

        if problems:
            count(0)
        # Of those that do not coincide, the pair of the median's rank has so many of all at or below it.
        zeros = counts.view(problems, blocks).sum(-1).clamp_(min=0)
        wanted = zeros + torch.div(pairs - zeros - 1, 2, rounding_mode="floor") + 1
        for bit in reversed(range(torch.iinfo(integer).bits - 1 if problems else 0)):
            count((1 << bit) - 1)
            _SETTLE.kernel[(problems,)](
                found, counts, wanted, blocks, 1 << bit, **_SETTLE.constants, **_SETTLE.options
            )
    return found.view(x.dtype).sqrt().reshape(batch)
