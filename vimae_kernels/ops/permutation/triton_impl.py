# mypy: disable-error-code="assignment, no-untyped-def"
"""The statistics of all labellings in Triton: a product of kernel tiles with labels, on tensor cores.

Every program makes tile after tile of the kernel matrix, each pair of blocks once, and multiplies it
with the labels of all permutations while it has it. A labelling's statistic is a quadratic form in u_i,
one of two numbers, plus what does not depend on it: `weights`, as in csrc/permutation/permutation.h. A
program adds to sums of its own in memory, in float64; the sums of all programs are added in the end.

Labels are +-1, which half precision holds exactly, and a float32 kernel value is two of them: high + low
to 2^-22 of itself or 2^-38 of the largest in its tile, whichever is more: a power of two makes that nearly the
largest number in half precision. So the product is two on tensor cores that add in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._pairs_triton import (
    PADDED,
    column_pieces,
    distances,
    kernel,
    padded,
    product,
    quads,
    reciprocal,
    scale,
    start_of,
    value_unit,
)
from ..._triton import Launch, Loop, Shipped, on_device_of
from ..._units import scale_free
from ..mmd.triton_impl import _pack, _scale_arguments
from .reference import weights


@triton.jit
def _signs(labels, first, words, columns, cs, POINTS: tl.constexpr, PERMUTATIONS: tl.constexpr):
    """+-1 (POINTS, PERMUTATIONS) in int32 of the points from `first` on, half a word or whole ones."""
    WORDS: tl.constexpr = (POINTS + 31) // 32
    word = first // 32 + tl.arange(0, WORDS)
    at = labels + word.to(tl.int64)[:, None] * columns + cs[None, :]
    mask = (word < words)[:, None] & (cs < columns)[None, :]
    bits = tl.load(at, mask=mask, other=0)
    places = first % 32 + tl.arange(0, POINTS // WORDS)
    ones = (bits[:, None, :] >> places[None, :, None]) & 1
    return tl.reshape(ones, (POINTS, PERMUTATIONS)) * 2 - 1


@triton.jit
def _expm1(x, DOUBLE: tl.constexpr):
    """e^x - 1 for x <= 0, to a few roundings of itself."""
    # In float64 of a part of x, for fewer constants: e^2x - 1 is y (y + 2) of y = e^x - 1. Below -64 it is -1.
    DEGREE: tl.constexpr = 9 if DOUBLE else 8
    HALVES: tl.constexpr = 10 if DOUBLE else 0
    near = tl.maximum(x, -64.0 if DOUBLE else -0.5) * (1.0 / 2**HALVES)
    p = near * 0.0 + 1.0
    for i in tl.static_range(DEGREE - 1):
        p = near * p * (1.0 / (DEGREE - i)) + 1.0
    p *= near
    for _ in tl.static_range(HALVES):
        p *= p + 2.0
    return p if DOUBLE else tl.where(x < -0.5, tl.exp(x) - 1.0, p)


@triton.jit
def _less_one(s, scales, SCALES: tl.constexpr, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    """The sum of k - 1 over the kernels, to the rounding of itself."""
    total = s * 0.0
    for i in tl.static_range(SCALES):
        c = scale(scales, i, DOUBLE)
        if IMQ:
            far = tl.minimum(s, 1e37)
            total -= far * reciprocal(far + c, DOUBLE)
        else:
            total += _expm1(s * (-1.0 / c), DOUBLE)
    return total


@triton.jit(do_not_specialize=["N", "d", "words", "columns", "programs", "label_stride"])
def _tiles_kernel(
    x, labels, centre, forms, totals, N, d, words, columns, programs, label_stride,
    shift_high, shift_low, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    PERMUTATIONS: tl.constexpr,
):  # fmt: skip
    """x (B, quads, N, 4); forms (B, programs, columns) and totals (B, programs), over pairs i < j."""
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    FLOAT: tl.constexpr = x.dtype.element_ty
    SIDE: tl.constexpr = TILE // BLOCK
    batch = (tl.program_id(0) // programs).to(tl.int64)
    x += batch * padded(N) * tl.cdiv(d, PADDED) * PADDED
    labels += batch * label_stride
    forms += tl.program_id(0).to(tl.int64) * columns
    for c in range(0, columns, PERMUTATIONS):
        cs = c + tl.arange(0, PERMUTATIONS)
        tl.store(forms + cs, tl.zeros((PERMUTATIONS,), tl.float64), mask=cs < columns)
    tl.debug_barrier()
    if DOUBLE:
        shift = tl.full((), shift_high, tl.float64) + tl.full((), shift_low, tl.float64)
    else:
        shift = tl.full((), shift_high, tl.float32)
    unit = value_unit(scales, IMQ, DOUBLE).to(FLOAT)
    about = tl.load(centre + batch)
    blocks = tl.cdiv(N, TILE)
    # Tile (p, q), q >= p, row after row; the next of this program is `programs` further.
    p = 0
    q = tl.program_id(0) % programs
    while q >= blocks:
        p += 1
        q += p - blocks
    total = tl.full((), 0.0, tl.float64)
    while p < blocks:
        rows = p * TILE + tl.arange(0, TILE)
        others = q * TILE + tl.arange(0, TILE)
        # The layout that the product below wants would spread the points of a thread, at a load for each.
        s, _ = distances(
            x, p * TILE, padded(N), x, q * TILE, padded(N), d, 0.0, False, DOUBLE, BLOCK, BLOCK, SIDE, SIDE,
        )  # fmt: skip
        s = tl.reshape(tl.permute(s, (0, 2, 1, 3)), (TILE, TILE))
        if about < 0.0:
            v = _less_one(s, scales, SCALES, IMQ, DOUBLE)
        else:
            v, _a, _b = kernel(s + start_of(scales, IMQ, DOUBLE), scales, SCALES, IMQ, DOUBLE)
            v = v * unit
        pair = (rows[:, None] < others[None, :]) & (others < N)[None, :]
        v = tl.where(pair, v - about, 0.0)
        row_sums = tl.sum(v, 1)
        total += tl.sum(row_sums).to(tl.float64)
        row_sums = (row_sums * shift)[:, None]
        if DOUBLE:
            v = tl.permute(tl.reshape(v, (BLOCK, SIDE, BLOCK, SIDE)), (0, 2, 1, 3))
            pieces = column_pieces(v)
        else:
            # The power of two that makes the largest 2^14 ... 2^15, and its reciprocal, by their exponents.
            exponent = tl.max(tl.abs(v)).to(tl.int32, bitcast=True) & 0x7F800000
            exponent = tl.minimum(tl.maximum(exponent, 0x0F000000), 0x7E000000)
            v *= (0x7F000000 - exponent + (14 << 23)).to(FLOAT, bitcast=True)
            back = (exponent - (14 << 23)).to(FLOAT, bitcast=True)
            high = v.to(tl.float16)
            low = (v - high.to(FLOAT)).to(tl.float16)
        for c in range(0, columns, PERMUTATIONS):
            cs = c + tl.arange(0, PERMUTATIONS)
            if DOUBLE:
                # Where float64 has no matrix instruction a product takes all of its factors into registers.
                y = tl.zeros((TILE, PERMUTATIONS), FLOAT)
                for i in tl.static_range(BLOCK):
                    first = q * TILE + i * SIDE
                    signs = _signs(labels, first, words, columns, cs, SIDE, PERMUTATIONS)
                    y = product(pieces[i], signs.to(FLOAT), y)
            else:
                signs = _signs(labels, q * TILE, words, columns, cs, TILE, PERMUTATIONS)
                signs = signs.to(tl.float16)
                y = tl.dot(low, signs, out_dtype=FLOAT)
                y = tl.dot(high, signs, y, out_dtype=FLOAT) * back
            own = _signs(labels, p * TILE, words, columns, cs, TILE, PERMUTATIONS).to(FLOAT)
            form = tl.sum((y + row_sums) * (own + shift), 0)
            before = tl.load(forms + cs, mask=cs < columns, other=0.0)
            tl.store(forms + cs, before + form.to(tl.float64), mask=cs < columns)
        # The next tile reads what this one wrote.
        tl.debug_barrier()
        q += programs
        while (q >= blocks) & (p < blocks):
            p += 1
            q += p - blocks
    tl.store(totals + tl.program_id(0), total)


# Points of a side of a tile and of a thread's part of it, permutations per product, warps.
_TILES = {torch.float32: (64, 4, 64, 8), torch.float64: (64, 4, 32, 8)}
# In float64 the constants of several scales fill the registers.
_SEVERAL_SCALES = {torch.float32: _TILES[torch.float32], torch.float64: (32, 2, 32, 8)}


def configuration(dtype: torch.dtype, family: str, scales: int) -> Launch:
    """The kernel, compile-time constants and options, for any d."""
    tile, block, permutations, warps = (_TILES if scales == 1 else _SEVERAL_SCALES)[dtype]
    constants = {"SCALES": scales, "IMQ": family == "imq"}
    constants |= {"TILE": tile, "BLOCK": block, "PERMUTATIONS": permutations}
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    if dtype == torch.float64 and scales > 1 and torch.version.hip is None:
        # Left alone, ptxas spills a few registers where that lets one more program fit.
        options["maxnreg"] = 255
    return Launch(_tiles_kernel, constants, options)


def shipped() -> Iterator[Shipped]:
    """Every configuration, to compile ahead of time."""
    for family in ("imq", "rbf"):
        for scales in (1, 7):
            for dtype, pointer, add in (
                (torch.float32, "*fp32", "FADD"),
                (torch.float64, "*fp64", "DADD"),
            ):
                launch = configuration(dtype, family, scales)
                known = {"x": pointer, "centre": pointer, "labels": "*i32"}
                known |= dict.fromkeys(("forms", "totals"), "*fp64")
                known |= dict.fromkeys(("shift_high", "shift_low"), "fp32")
                known |= dict.fromkeys(launch.constants, "constexpr")
                types = {a: known.get(a, "i32") for a in launch.kernel.arg_names}
                types["scales"] = ("fp32",) * len(_scale_arguments([1.0] * scales, dtype))
                name = f"{pointer[1:]} {family}" + f", {scales} scales" * (scales > 1)
                # A subtraction and a multiply-add.
                # The products with labels have additions too.
                product = "HMMA" if dtype == torch.float32 else "DMMA"
                # A debt: sm_120 has 1.29 in float32, 1.25 before kernels near 1 had a form of their own.
                pairs = Loop("distances", add, 1, 2, 1.3, without=product)
                # Kernels have additions of their own.
                marker = "DSETP" if (family, add) == ("rbf", "DADD") else "MUFU"
                loops = (Loop("kernel", marker, 1, None), pairs)
                yield Shipped(
                    name,
                    launch,
                    types,
                    loops if scales == 1 else (),
                    everywhere=family == "imq" and scales == 1,
                )


@scale_free(1, returns=None)
def permuted_mmd(
    x: Tensor, labels: Tensor, centre: Tensor, n: int, family: str, scales: list[float]
) -> Tensor:
    """The unbiased squared MMD of every labelling: (..., columns) in float64."""
    batch, (size, d) = x.shape[:-2], x.shape[-2:]
    words, columns = labels.shape[-2:]
    problems = batch.numel()
    if problems == 0:
        return x.new_empty(*batch, columns, dtype=torch.float64)
    launch = configuration(x.dtype, family, len(scales))
    blocks = triton.cdiv(size, launch.constants["TILE"])
    # Enough programs to fill a GPU; each has sums for all columns.
    most = min(1024 // problems, 2**24 // columns)
    programs = max(1, min(blocks * (blocks + 1) // 2, most))
    forms = x.new_empty(problems, programs, columns, dtype=torch.float64)
    totals = x.new_empty(problems, programs, 1, dtype=torch.float64)
    w = weights(n, size - n)
    shift = float(torch.tensor(w.shift, dtype=torch.float32))
    packed = quads(_pack(x, x.dtype), None)
    with on_device_of(x):
        launch.kernel[(problems * programs,)](
            packed, labels.contiguous(), centre.to(x.dtype).contiguous(), forms, totals,
            size, d, words, columns, programs, words * columns if labels.ndim > 2 else 0,
            shift, w.shift - shift, _scale_arguments(scales, x.dtype),
            **launch.constants, **launch.options,
        )  # fmt: skip
    values = 2 * (w.quadratic * forms.sum(1) + w.total * totals.sum(1))
    return values.reshape(*batch, columns)
