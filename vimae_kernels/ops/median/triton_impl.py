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

from ..._triton import Launch, Loop, Shipped, on_device_of


@triton.jit(do_not_specialize=["n", "d", "below"])
def _count_kernel(x, found, counts, n, d, below, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Per block of rows of x (B, d, n), the pairs i < j whose bits are at most found[b] + below."""
    blocks = tl.cdiv(n, ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS
    rows = row + tl.arange(0, ROWS)
    x += batch * n * d
    trial = tl.load(found + batch) + below
    count = tl.zeros((ROWS, COLUMNS), tl.int32)
    undefined = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(row, n, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        s = tl.zeros((ROWS, COLUMNS), x.dtype.element_ty)
        p = x + tl.minimum(rows, n - 1)
        q = x + tl.minimum(columns, n - 1)
        for _ in range(0, d):
            difference = tl.load(p)[:, None] - tl.load(q)[None, :]
            s = tl.fma(difference, difference, s)
            p += n
            q += n
        pair = (rows[:, None] < columns[None, :]) & (columns[None, :] < n)
        count += (pair & (s.to(found.dtype.element_ty, bitcast=True) <= trial)).to(tl.int32)
        undefined |= (pair & (s != s)).to(tl.int32)
    # With a NaN among the distances no trial is large enough, and the answer ends as all ones: NaN.
    any_undefined = tl.max(tl.max(undefined, 1), 0).to(tl.int64)
    total = tl.sum(count).to(tl.int64) - (any_undefined << 45)
    tl.store(counts + tl.program_id(0), total)


@triton.jit(do_not_specialize=["blocks", "wanted", "step"])
def _settle_kernel(found, counts, blocks, wanted, step, BLOCK: tl.constexpr):
    """Add `step` to found[b] if fewer than `wanted` pairs were counted."""
    batch = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, blocks, BLOCK):
        index = start + offsets
        total += tl.load(counts + batch * blocks + index, mask=index < blocks, other=0)
    bits = tl.load(found + batch)
    more = tl.sum(total) < wanted
    tl.store(found + batch, bits + more.to(bits.dtype) * step)


_COUNT = Launch(
    _count_kernel,
    {"ROWS": 64, "COLUMNS": 32},
    {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True},
)
_SETTLE = Launch(
    _settle_kernel, {"BLOCK": 512}, {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
)


def shipped() -> Iterator[Shipped]:
    """Every configuration, to compile ahead of time."""
    for bits, add in ((32, "FADD"), (64, "DADD")):
        integers = {"found": f"*i{bits}", "counts": "*i64", "wanted": "i64", "step": f"i{bits}"}
        integers["below"] = f"i{bits}"
        # A subtraction and a multiply-add; columns are loaded, and addresses counted, one coordinate at a time.
        distances = Loop("distances", add, 1, 2, limit=2.9)
        for name, launch, loops in (("count", _COUNT, (distances,)), ("settle", _SETTLE, ())):
            known = {"x": f"*fp{bits}", **integers, **dict.fromkeys(launch.constants, "constexpr")}
            types = {a: known.get(a, "i32") for a in launch.kernel.arg_names}
            yield Shipped(f"{name} fp{bits}", launch, types, loops)


def median_distance(x: Tensor) -> Tensor:
    """The lower median over pairs i < j of ||x_i - x_j||: (...) for x (..., N, d)."""
    batch, (n, d) = x.shape[:-2], x.shape[-2:]
    problems = batch.numel()
    integer = torch.int64 if x.dtype == torch.float64 else torch.int32
    found = torch.zeros(problems, dtype=integer, device=x.device)
    # Coordinate by coordinate, so that the columns of a tile are read side by side.
    x = x.reshape(problems, n, d).mT.contiguous()
    blocks = triton.cdiv(n, _COUNT.constants["ROWS"])
    counts = torch.empty(problems * blocks, dtype=torch.int64, device=x.device)
    # The pair of rank (pairs - 1) // 2 has so many at or below it.
    wanted = (n * (n - 1) // 2 - 1) // 2 + 1
    with on_device_of(x):
        for bit in reversed(range(torch.iinfo(integer).bits - 1 if problems else 0)):
            _COUNT.kernel[(problems * blocks,)](
                x, found, counts, n, d, (1 << bit) - 1, **_COUNT.constants, **_COUNT.options
            )
            _SETTLE.kernel[(problems,)](
                found, counts, blocks, wanted, 1 << bit, **_SETTLE.constants, **_SETTLE.options
            )
    return found.view(x.dtype).sqrt().reshape(batch)
