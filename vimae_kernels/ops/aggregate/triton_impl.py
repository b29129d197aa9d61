# mypy: disable-error-code="assignment, no-untyped-def"
"""Log densities of an aggregated Gaussian posterior in Triton, and their first gradient.

A marginal is the same problem as the joint density, of one coordinate: there are two kinds of kernel, one for
problems of one coordinate, which live in registers, and one for many, each with its value, its gradient
by the rows (to z) and its gradient by the columns (to the posteriors).

Every program owns a block of rows or of columns and sweeps the others. A tile is (swept, owned), and
a thread has whole columns of it: maxima and sums over what is swept stay within the thread, so nothing is
added atomically and nothing is exchanged. What several programs find for the same rows is added in
fixed order at the end.

Everything is in bits: the log density of a pair is c_j + h_j (z_i - mean_j)^2 with h = -log2(e) / (2 var).
All arrays are coordinate by coordinate. Padded to whole tiles, they can be swept without masks: a posterior
that is padding has no density, and a row that is has no gradient. They are allocated here and so begin at multiples
of 16 bytes, which `tl.multiple_of` says: a thread loads four neighbours at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton import Launch, Loop, Shipped, on_device_of

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)
# Rows and columns are padded to a multiple of what a tile sweeps.
BLOCK = tl.constexpr(16)


@triton.jit
def _program(own, swept, splits, OWN: tl.constexpr, SWEPT: tl.constexpr):
    """The problem, the slice of the output, the first row or column it owns, and those it sweeps."""
    blocks = tl.cdiv(own, OWN)
    index = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    share = tl.cdiv(tl.cdiv(swept, SWEPT), splits) * SWEPT
    start = split * share
    stop = tl.minimum(start + share, swept)
    problems = tl.num_programs(0) // splits // blocks
    part = split.to(tl.int64) * problems + index // blocks
    return (index // blocks).to(tl.int64), part, index % blocks * OWN, start, stop


@triton.jit
def _padded(n):
    return tl.cdiv(n, BLOCK) * BLOCK


@triton.jit
def _padded_rows(own, N):
    """`own`, with those past the end of the padding at its end: threads load whole fours at once."""
    fours = tl.minimum(own // 4 * 4, N - 4)
    return tl.max_contiguous(tl.multiple_of(fours + own % 4, 4), 4)


@triton.jit
def _dot(a, b, total):
    """total + the sum over rows of a b, one multiply-add after the other: half those of tl.sum, a tree, come apart."""
    ROWS: tl.constexpr = a.shape[0]
    OWN: tl.constexpr = a.shape[1]
    if ROWS == 1:
        return tl.fma(tl.reshape(a, (OWN,)), tl.reshape(b, (OWN,)), total)
    else:
        HALVES: tl.constexpr = (2, ROWS // 2, OWN)
        a0, a1 = tl.split(tl.permute(tl.reshape(a, HALVES), (1, 2, 0)))
        b0, b1 = tl.split(tl.permute(tl.reshape(b, HALVES), (1, 2, 0)))
        return _dot(a1, b1, _dot(a0, b0, total))


@triton.jit
def _posterior(posteriors, at, DOUBLE: tl.constexpr):
    """(mean, h) of the posteriors `at`."""
    if DOUBLE:
        mean, h = tl.load(posteriors + 2 * at), tl.load(posteriors + 2 * at + 1)
    else:
        # Two float32 in one 64-bit load: half the loads, and taking them apart is free.
        pair = tl.load(posteriors.to(tl.pointer_type(tl.int64)) + at)
        mean = pair.to(tl.int32).to(tl.float32, bitcast=True)
        h = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return mean, h


@triton.jit
def _stratified(
    bits, row, ROWS: tl.constexpr, rows, column, COLUMNS: tl.constexpr, columns, B, dataset_size
):
    """bits, and those by which the weights of a row's own posterior and of the next differ from 1 / (B - 1)."""
    diagonal = (column <= row + ROWS) & (row < column + COLUMNS)
    corner = (column == 0) & (row + ROWS >= B)
    if diagonal | corner:
        others = (B - 1).to(tl.float64)
        size = dataset_size.to(tl.float64)
        own_bits = tl.log2(others / size).to(bits.dtype)
        next_bits = tl.log2((size - others) / size).to(bits.dtype)
        bits = tl.where(columns == rows, bits + own_bits, bits)
        bits = tl.where(columns == tl.where(rows == B - 1, 0, rows + 1), bits + next_bits, bits)
    return bits


# One coordinate: a problem is a coordinate of a batch entry.


@triton.jit(do_not_specialize=["n", "B", "dataset_size", "splits"])
def _marginal_kernel(
    z, posteriors, offsets, peaks, totals, n, B, dataset_size, splits,
    STRATIFIED: tl.constexpr, OWN: tl.constexpr, SWEPT: tl.constexpr,
):  # fmt: skip
    """z (problems, n); posteriors (problems, B, 2); offsets (problems, B); peaks, totals (splits, problems, n)."""
    DOUBLE: tl.constexpr = z.dtype.element_ty == tl.float64
    problem, part, row, start, stop = _program(n, B, splits, OWN, SWEPT)
    N, C = _padded(n), _padded(B)
    rows = row + tl.arange(0, OWN)
    z_i = tl.load(z + problem * N + tl.minimum(rows, n - 1))[None, :]
    posteriors += problem * C * 2
    offsets += problem * C
    # Finite, so that a density of 0 leaves no inf - inf behind.
    peak = tl.full((OWN,), -3e38, z.dtype.element_ty)
    total = tl.zeros((OWN,), z.dtype.element_ty)
    for column in range(start, stop, SWEPT):
        columns = (column + tl.arange(0, SWEPT))[:, None]
        mean, h = _posterior(posteriors, columns, DOUBLE)
        difference = z_i - mean
        offset = tl.broadcast_to(tl.load(offsets + columns), difference.shape)
        bits = tl.fma(difference * h, difference, offset)
        if STRATIFIED:
            bits = _stratified(
                bits, row, OWN, rows[None, :], column, SWEPT, columns, B, dataset_size
            )
        before = peak
        peak = tl.maximum(peak, tl.max(bits, 0))
        total = tl.fma(total, tl.exp2(before - peak), tl.sum(tl.exp2(bits - peak[None, :]), 0))
    at = part * N + rows
    tl.store(peaks + at, peak, mask=rows < n)
    tl.store(totals + at, total, mask=rows < n)


@triton.jit(do_not_specialize=["n", "B", "dataset_size", "splits"])
def _marginal_rows_kernel(
    z, posteriors, offsets, peaks, scales, dz, n, B, dataset_size, splits,
    STRATIFIED: tl.constexpr, OWN: tl.constexpr, SWEPT: tl.constexpr,
):  # fmt: skip
    """dz (splits, problems, n) = scale_i sum_j 2^(l_ij - peak_i) h_j (z_i - mean_j)."""
    DOUBLE: tl.constexpr = z.dtype.element_ty == tl.float64
    problem, part, row, start, stop = _program(n, B, splits, OWN, SWEPT)
    N, C = _padded(n), _padded(B)
    rows = row + tl.arange(0, OWN)
    at = problem * N + tl.minimum(rows, n - 1)
    z_i = tl.load(z + at)[None, :]
    peak = tl.load(peaks + at)[None, :]
    posteriors += problem * C * 2
    offsets += problem * C
    # Kept apart for every place in the tile, so that each is a multiply-add.
    total = tl.zeros((SWEPT, OWN), z.dtype.element_ty)
    for column in range(start, stop, SWEPT):
        columns = (column + tl.arange(0, SWEPT))[:, None]
        mean, h = _posterior(posteriors, columns, DOUBLE)
        difference = z_i - mean
        slope = difference * h
        offset = tl.broadcast_to(tl.load(offsets + columns), difference.shape)
        bits = tl.fma(slope, difference, offset)
        if STRATIFIED:
            bits = _stratified(
                bits, row, OWN, rows[None, :], column, SWEPT, columns, B, dataset_size
            )
        total = tl.fma(tl.exp2(bits - peak), slope, total)
    tl.store(dz + part * N + rows, tl.sum(total, 0) * tl.load(scales + at), mask=rows < n)


@triton.jit(do_not_specialize=["n", "B", "dataset_size", "splits"])
def _marginal_columns_kernel(
    z, posteriors, offsets, peaks, scales, moments, n, B, dataset_size, splits,
    STRATIFIED: tl.constexpr, OWN: tl.constexpr, SWEPT: tl.constexpr,
):  # fmt: skip
    """moments (splits, problems, 3, B): with q_ij = scale_i 2^(l_ij - peak_i), the sums over i of q, q (z - mean) and
    q (z - mean)^2."""
    DOUBLE: tl.constexpr = z.dtype.element_ty == tl.float64
    problem, part, column, start, stop = _program(B, n, splits, OWN, SWEPT)
    N, C = _padded(n), _padded(B)
    columns = column + tl.arange(0, OWN)
    at = problem * C + tl.minimum(columns, B - 1)
    mean, h = _posterior(posteriors, at[None, :], DOUBLE)
    offset = tl.broadcast_to(tl.load(offsets + at)[None, :], (SWEPT, OWN))
    z += problem * N
    peaks += problem * N
    scales += problem * N
    moment0 = tl.zeros((SWEPT, OWN), z.dtype.element_ty)
    moment1 = moment0
    moment2 = moment0
    for row in range(start, stop, SWEPT):
        rows = (row + tl.arange(0, SWEPT))[:, None]
        difference = tl.load(z + rows) - mean
        bits = tl.fma(difference * h, difference, offset)
        if STRATIFIED:
            bits = _stratified(
                bits, row, SWEPT, rows, column, OWN, columns[None, :], B, dataset_size
            )
        q = tl.exp2(bits - tl.load(peaks + rows)) * tl.load(scales + rows)
        moved = q * difference
        moment0 += q
        moment1 += moved
        moment2 = tl.fma(moved, difference, moment2)
    moments += part * 3 * C + columns
    tl.store(moments, tl.sum(moment0, 0), mask=columns < B)
    tl.store(moments + C, tl.sum(moment1, 0), mask=columns < B)
    tl.store(moments + 2 * C, tl.sum(moment2, 0), mask=columns < B)


# All coordinates: a problem is a batch entry.


@triton.jit
def _joint_bits(
    z, rows, posteriors, offsets, columns, N, C, d, DEEP: tl.constexpr, DOUBLE: tl.constexpr
):
    """The log densities of the pairs of a tile, as high + low."""
    shape: tl.constexpr = tl.broadcast(rows, columns)[0].shape
    high = tl.broadcast_to(tl.load(offsets + columns), shape)
    low = high * 0
    if DEEP:
        # Sums over many coordinates are large, and about to be exponentiated: they are rounded to float32 every few
        # coordinates alone, and then what rounding took is kept.
        low += tl.load(offsets + C + columns)
        for first in range(0, d, 32):
            part = tl.zeros(shape, high.dtype)
            for _ in range(first, tl.minimum(first + 32, d)):
                mean, h = _posterior(posteriors, columns, DOUBLE)
                difference = tl.load(z + rows) - mean
                part = tl.fma(difference * h, difference, part)
                z += N
                posteriors += 2 * C
            total = high + part
            added = total - high
            low += (high - (total - added)) + (part - added)
            high = total
    else:
        for _ in range(0, d):
            mean, h = _posterior(posteriors, columns, DOUBLE)
            difference = tl.load(z + rows) - mean
            high = tl.fma(difference * h, difference, high)
            z += N
            posteriors += 2 * C
    return high, low


@triton.jit(do_not_specialize=["n", "B", "d", "dataset_size", "splits"])
def _joint_kernel(
    z, posteriors, offsets, joint, n, B, d, dataset_size, splits,
    STRATIFIED: tl.constexpr, DEEP: tl.constexpr, OWN: tl.constexpr, SWEPT: tl.constexpr,
):  # fmt: skip
    """z (problems, d, n); posteriors (problems, d, B, 2); offsets (problems, 2, B); joint (splits, problems, n)."""
    DOUBLE: tl.constexpr = z.dtype.element_ty == tl.float64
    problem, part, row, start, stop = _program(n, B, splits, OWN, SWEPT)
    N, C = _padded(n), _padded(B)
    rows = row + tl.arange(0, OWN)
    own = _padded_rows(rows, N)[None, :]
    z = tl.multiple_of(z + problem * d * N, 16)
    posteriors = tl.multiple_of(posteriors + problem * d * C * 2, 16)
    offsets = tl.multiple_of(offsets + problem * 2 * C, 16)
    peak = tl.full((OWN,), -3e38, z.dtype.element_ty)
    total = tl.zeros((OWN,), z.dtype.element_ty)
    swept = tl.arange(0, SWEPT)[:, None]
    for column in range(start, stop, SWEPT):
        posteriors_k = posteriors + column * 2
        high, low = _joint_bits(
            z, own, posteriors_k, offsets + column, swept, N, C, d, DEEP, DOUBLE
        )
        if STRATIFIED:
            columns = column + swept
            low = _stratified(low, row, OWN, rows[None, :], column, SWEPT, columns, B, dataset_size)
        before = peak
        peak = tl.maximum(peak, tl.max(high, 0))
        # Within low of the maximum, which is as good: the largest term is about 1.
        terms = tl.exp2((high - peak[None, :]) + low)
        total = tl.fma(total, tl.exp2(before - peak), tl.sum(terms, 0))
    bits = peak.to(tl.float64) + tl.log2(total).to(tl.float64)
    tl.store(joint + part * N + rows, bits, mask=rows < n)


@triton.jit(do_not_specialize=["n", "B", "d", "dataset_size", "splits"])
def _joint_rows_kernel(
    z, posteriors, offsets, joint, dz, n, B, d, dataset_size, splits,
    STRATIFIED: tl.constexpr, DEEP: tl.constexpr, OWN: tl.constexpr, SWEPT: tl.constexpr,
):  # fmt: skip
    """Adds to dz (splits, problems, d, n): sum_j 2^(l_ij - joint_i) h_jk (z_ik - mean_jk). joint (problems, 2, n)
    comes as high and low part."""
    DOUBLE: tl.constexpr = z.dtype.element_ty == tl.float64
    problem, part, row, start, stop = _program(n, B, splits, OWN, SWEPT)
    N, C = _padded(n), _padded(B)
    rows = row + tl.arange(0, OWN)
    own = _padded_rows(rows, N)
    joint = tl.multiple_of(joint + problem * 2 * N, 16)
    joint_high = tl.load(joint + own)[None, :]
    joint_low = tl.load(joint + N + own)[None, :]
    own = own[None, :]
    z = tl.multiple_of(z + problem * d * N, 16)
    dz = tl.multiple_of(dz + part * d * N, 16)
    posteriors = tl.multiple_of(posteriors + problem * d * C * 2, 16)
    offsets = tl.multiple_of(offsets + problem * 2 * C, 16)
    swept = tl.arange(0, SWEPT)[:, None]
    for column in range(start, stop, SWEPT):
        posteriors_k = posteriors + column * 2
        high, low = _joint_bits(
            z, own, posteriors_k, offsets + column, swept, N, C, d, DEEP, DOUBLE
        )
        if STRATIFIED:
            columns = column + swept
            low = _stratified(low, row, OWN, rows[None, :], column, SWEPT, columns, B, dataset_size)
        p = tl.exp2((high - joint_high) + (low - joint_low))
        z_k, dz_k = z, dz
        for _ in range(0, d):
            mean, h = _posterior(posteriors_k, swept, DOUBLE)
            slope = (tl.load(z_k + own) - mean) * h
            # Kept in memory: d is too large for registers.
            before = tl.load(dz_k + rows, mask=rows < N, other=0.0)
            tl.store(dz_k + rows, _dot(p, slope, before), mask=rows < N)
            z_k += N
            posteriors_k += 2 * C
            dz_k += N
        # The next tile reads what this one wrote.
        tl.debug_barrier()


@triton.jit(do_not_specialize=["n", "B", "d", "dataset_size", "splits"])
def _joint_columns_kernel(
    z, posteriors, offsets, joint, scales, weight, moments, n, B, d, dataset_size, splits,
    STRATIFIED: tl.constexpr, DEEP: tl.constexpr, OWN: tl.constexpr, SWEPT: tl.constexpr,
):  # fmt: skip
    """With p_ij = scale_i 2^(l_ij - joint_i): weight (splits, problems, B), the sum of p over i; adds to
    moments (splits, problems, d, 2, B) those of p (z - mean) and p (z - mean)^2."""
    DOUBLE: tl.constexpr = z.dtype.element_ty == tl.float64
    problem, part, column, start, stop = _program(B, n, splits, OWN, SWEPT)
    N, C = _padded(n), _padded(B)
    columns = column + tl.arange(0, OWN)
    own = _padded_rows(columns, C)[None, :]
    z = tl.multiple_of(z + problem * d * N, 16)
    joint = tl.multiple_of(joint + problem * 2 * N, 16)
    scales = tl.multiple_of(scales + problem * N, 16)
    posteriors = tl.multiple_of(posteriors + problem * d * C * 2, 16)
    offsets = tl.multiple_of(offsets + problem * 2 * C, 16)
    moments = tl.multiple_of(moments + part * d * 2 * C, 16)
    total = tl.zeros((OWN,), z.dtype.element_ty)
    swept = tl.arange(0, SWEPT)[:, None]
    for row in range(start, stop, SWEPT):
        z_k = z + row
        high, low = _joint_bits(z_k, swept, posteriors, offsets, own, N, C, d, DEEP, DOUBLE)
        if STRATIFIED:
            rows = row + swept
            low = _stratified(low, row, SWEPT, rows, column, OWN, columns[None, :], B, dataset_size)
        joint_high, joint_low = tl.load(joint + row + swept), tl.load(joint + N + row + swept)
        p = tl.exp2((high - joint_high) + (low - joint_low)) * tl.load(scales + row + swept)
        total += tl.sum(p, 0)
        posteriors_k, moments_k = posteriors, moments
        for _ in range(0, d):
            mean, h = _posterior(posteriors_k, own, DOUBLE)
            difference = tl.load(z_k + swept) - mean
            moved = p * difference
            first = tl.load(moments_k + columns, mask=columns < C, other=0.0)
            second = tl.load(moments_k + C + columns, mask=columns < C, other=0.0)
            tl.store(moments_k + columns, first + tl.sum(moved, 0), mask=columns < C)
            tl.store(moments_k + C + columns, _dot(moved, difference, second), mask=columns < C)
            z_k += N
            posteriors_k += 2 * C
            moments_k += 2 * C
        tl.debug_barrier()
    tl.store(weight + part * C + columns, total, mask=columns < B)


# Bits of a posterior that is padding: finite, for inf - inf is NaN.
_NOTHING = -1e38


class Tile(NamedTuple):
    """What a program owns, what it sweeps at a time, and the warps that share the tile."""

    own: int
    swept: int
    warps: int


_TILES: dict[torch.dtype, dict[Any, Tile]] = {
    torch.float32: {
        _marginal_kernel: Tile(512, 16, 4),
        _marginal_rows_kernel: Tile(512, 8, 4),
        _marginal_columns_kernel: Tile(512, 8, 4),
        _joint_kernel: Tile(256, 16, 2),
        _joint_rows_kernel: Tile(256, 16, 2),
        _joint_columns_kernel: Tile(256, 16, 2),
    },
    torch.float64: {
        _marginal_kernel: Tile(256, 16, 4),
        _marginal_rows_kernel: Tile(256, 8, 4),
        _marginal_columns_kernel: Tile(256, 8, 4),
        _joint_kernel: Tile(128, 16, 2),
        _joint_rows_kernel: Tile(128, 16, 2),
        _joint_columns_kernel: Tile(128, 16, 2),
    },
}


def configuration(kernel: Any, dtype: torch.dtype, stratified: bool, d: int = 1) -> Launch:
    """The compile-time constants and options of a kernel, for d coordinates where it takes all."""
    tile = _TILES[dtype][kernel]
    constants = {"STRATIFIED": stratified, "OWN": tile.own, "SWEPT": tile.swept}
    warps = tile.warps
    if "DEEP" in kernel.arg_names:
        constants["DEEP"] = dtype == torch.float32 and d > 32
        # What rounding took has registers of its own.
        warps *= 1 + constants["DEEP"]
    # Triton's own default for contracting a * b + c changes between its versions.
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    float32 = dtype == torch.float32
    if kernel is _joint_columns_kernel and float32 and torch.version.hip is None:
        # Left alone, ptxas spills a few registers where that lets one more program fit.
        options["maxnreg"] = 168 if constants["DEEP"] else 200
    return Launch(kernel, constants, options)


def shipped() -> Iterator[Shipped]:
    """Every kernel in both dtypes, with and without stratified weights, for few and many coordinates."""
    for dtype, tiles in _TILES.items():
        for kernel in tiles:
            deep = "DEEP" in kernel.arg_names and dtype == torch.float32
            for d in (8, 64) if deep else (8,):
                for stratified in (False, True):
                    launch = configuration(kernel, dtype, stratified, d)
                    name = kernel.__name__.strip("_").removesuffix("_kernel")
                    name += f" {str(dtype).removeprefix('torch.')}"
                    name += " many coordinates" * (d > 32) + " stratified" * stratified
                    loops = () if stratified else _loops(kernel, dtype)
                    everywhere = not stratified and dtype == torch.float32
                    yield Shipped(name, launch, _types(launch, dtype), loops, everywhere)


def _types(launch: Launch, dtype: torch.dtype) -> dict[str, str]:
    known = dict.fromkeys(launch.constants, "constexpr")
    known |= dict.fromkeys(("n", "B", "d", "splits"), "i32") | {"dataset_size": "i64"}
    if launch.kernel is _joint_kernel:
        known["joint"] = "*fp64"
    pointer = "*fp32" if dtype == torch.float32 else "*fp64"
    return {name: known.get(name, pointer) for name in launch.kernel.arg_names}


def _loops(kernel: Any, dtype: torch.dtype) -> tuple[Loop, ...]:
    """By hand, a density of one coordinate is a difference, a product and a multiply-add, and its exponential another
    two; beside them the value has a maximum and a sum, the rows a multiply-add, the columns two products, two sums
    and a multiply-add. Of many coordinates a density is the first three, and the gradient by the rows three more,
    by the columns four."""
    if dtype == torch.float64:
        return ()  # nearly all is the exponential
    if kernel is _marginal_kernel:
        return (Loop("pairs", "MUFU", 1, 7),)
    if kernel is _marginal_rows_kernel:
        return (Loop("pairs", "MUFU", 1, 6),)
    if kernel is _marginal_columns_kernel:
        return (Loop("pairs", "MUFU", 1, 10),)
    densities = Loop("densities", "FFMA", 1, 3, without="STG")
    loops = Loop("weights", "MUFU", 1, None), densities
    if kernel is _joint_kernel:
        return loops
    by_hand = 3 if kernel is _joint_rows_kernel else 4
    return *loops, Loop("gradient", "FMUL", 1, by_hand)


class _Problem(NamedTuple):
    """The data as the kernels take it, P batch entries, n and B padded."""

    z: Tensor  # (P, d, n)
    posteriors: Tensor  # (P, d, B, 2): mean and h
    marginal_offsets: Tensor  # (P, d, B)
    joint_offsets: Tensor  # (P, 2, B): high and low part
    n: int
    B: int
    d: int
    dataset_size: int
    stratified: bool


def _pack(z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, dataset_size: int) -> _Problem:
    (n, d), B = z.shape[-2:], mean.shape[-2]
    P = z.shape[:-2].numel()
    columns = B + -B % BLOCK.value
    # An infinite number is as undefined as NaN: x - x is NaN for both, and 0 for all others.
    mean, log_var = (x.reshape(P, B, d).mT for x in (mean, log_var))
    mean, log_var = mean + (mean - mean), log_var + (log_var - log_var)
    posteriors = mean.new_zeros(P, d, columns, 2)
    posteriors[..., :B, 0] = mean
    posteriors[..., :B, 1] = torch.exp(-log_var) * (-0.5 * LOG2_E)
    marginal_offsets = mean.new_full((P, d, columns), _NOTHING)
    marginal_offsets[..., :B] = (log_var + math.log(2 * math.pi)) * (-0.5 * LOG2_E)
    bits = log_var.sum(1, dtype=torch.float64) + d * math.log(2 * math.pi)
    joint_offsets = mean.new_full((P, 2, columns), _NOTHING)
    joint_offsets[..., :B] = _high_and_low(bits * (-0.5 * LOG2_E), mean.dtype)
    rows = _rows(z + (z - z), 0.0)
    return _Problem(
        rows, posteriors, marginal_offsets, joint_offsets, n, B, d, dataset_size, weighting == "mss"
    )


def _rows(x: Tensor, padding: float) -> Tensor:
    """(..., n, d) as (P, d, n), with n padded."""
    n, d = x.shape[-2:]
    x = x.reshape(x.shape[:-2].numel(), n, d).mT
    return torch.nn.functional.pad(x, (0, -n % BLOCK.value), value=padding).contiguous()


def _unpacked(x: Tensor, like: Tensor) -> Tensor:
    """(P, d, padded n) as (..., n, d)."""
    return x[..., : like.shape[-2]].mT.contiguous().view(like.shape)


def _high_and_low(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(P, m) in float64 as (P, 2, m), which sums to it."""
    high = x.to(dtype)
    return torch.stack([high, (x - high).to(dtype)], 1)


def _log_weight(weighting: str, columns: int, dataset_size: int) -> float:
    """Of most pairs; `_stratified` knows how the others differ."""
    if weighting == "mss":
        return -math.log(columns - 1)
    return -math.log(columns) - (math.log(dataset_size) if weighting == "mws" else 0.0)


def _splits(launch: Launch, problems: int, own: int, swept: int, most: int) -> int:
    """Into how many programs a sweep is split: enough to fill a GPU."""
    programs = problems * triton.cdiv(own, launch.constants["OWN"])
    return int(max(1, min(most, 1024 // programs, swept // (4 * launch.constants["SWEPT"]))))


def log_density(
    z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, dataset_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(joint, marginal, peak, total); csrc/aggregate/aggregate.h says what they are."""
    batch, (n, d), B = z.shape[:-2], z.shape[-2:], mean.shape[-2]
    P = batch.numel()
    if P == 0:
        empty = z.new_empty(z.shape)
        return z.new_empty(z.shape[:-1], dtype=torch.float64), empty, empty.clone(), empty.clone()
    data = _pack(z, mean, log_var, weighting, dataset_size)
    N = data.z.shape[-1]

    launch = configuration(_marginal_kernel, z.dtype, data.stratified)
    splits = _splits(launch, P * d, n, B, 8)
    peaks, totals = z.new_empty(2, splits, P, d, N)
    _launch(
        launch,
        data,
        P * d,
        n,
        splits,
        data.z,
        data.posteriors,
        data.marginal_offsets,
        peaks,
        totals,
    )
    peak = peaks.amax(0)
    total = (totals * torch.exp2(peaks - peak)).sum(0)

    launch = configuration(_joint_kernel, z.dtype, data.stratified, d)
    splits = _splits(launch, P, n, B, 64)
    joints = z.new_empty(splits, P, N, dtype=torch.float64)
    _launch(launch, data, P, n, splits, data.z, data.posteriors, data.joint_offsets, joints)

    log_weight = _log_weight(weighting, B, dataset_size)
    joint = (joints[..., :n] * LN_2).logsumexp(0) + log_weight
    peak, total = (_unpacked(x, z) for x in (peak, total))
    marginal = (peak + torch.log2(total)) * LN_2 + log_weight
    return joint.reshape(z.shape[:-1]), marginal, peak, total


def log_density_grad(
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    joint: Tensor,
    peak: Tensor,
    total: Tensor,
    g_joint: Tensor,
    g_marginal: Tensor,
    weighting: str,
    dataset_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to z, mean and log_var."""
    batch, (n, d), B = z.shape[:-2], z.shape[-2:], mean.shape[-2]
    P = batch.numel()
    if P == 0:
        return z.new_empty(z.shape), mean.new_empty(mean.shape), log_var.new_empty(log_var.shape)
    data = _pack(z, mean, log_var, weighting, dataset_size)
    N, C = data.z.shape[-1], data.posteriors.shape[-2]
    marginal = (
        data.z,
        data.posteriors,
        data.marginal_offsets,
        _rows(peak, math.inf),
        _rows(g_marginal / total, 0.0),
    )
    bits = (joint.reshape(P, n) - _log_weight(weighting, B, dataset_size)) * LOG2_E
    padding = 0, N - n
    joint_parts = torch.nn.functional.pad(_high_and_low(bits, z.dtype), padding)
    joint_parts[:, 0, n:] = math.inf
    all_coordinates = data.z, data.posteriors, data.joint_offsets, joint_parts
    joint_scales = torch.nn.functional.pad(g_joint.reshape(P, n), padding).contiguous()

    one = configuration(_marginal_rows_kernel, z.dtype, data.stratified)
    many = configuration(_joint_rows_kernel, z.dtype, data.stratified, d)
    one_splits, many_splits = _splits(one, P * d, n, B, 8), _splits(many, P, n, B, 8)
    marginal_dz = z.new_empty(one_splits, P, d, N)
    joint_dz = z.new_zeros(many_splits, P, d, N)
    _launch(one, data, P * d, n, one_splits, *marginal, marginal_dz)
    _launch(many, data, P, n, many_splits, *all_coordinates, joint_dz)
    dz = marginal_dz.sum(0) + joint_dz.sum(0) * joint_scales[:, None]

    one = configuration(_marginal_columns_kernel, z.dtype, data.stratified)
    many = configuration(_joint_columns_kernel, z.dtype, data.stratified, d)
    one_splits, many_splits = _splits(one, P * d, B, n, 8), _splits(many, P, B, n, 8)
    moments = z.new_empty(one_splits, P, d, 3, C)
    _launch(one, data, P * d, B, one_splits, *marginal, moments)
    joint_weight = z.new_empty(many_splits, P, 1, C)
    joint_moments = z.new_zeros(many_splits, P, d, 2, C)
    _launch(
        many, data, P, B, many_splits, *all_coordinates, joint_scales, joint_weight, joint_moments
    )

    h = data.posteriors[..., 1]
    weight, first, second = moments.sum(0).unbind(-2)
    joint_first, joint_second = joint_moments.sum(0).unbind(-2)
    dmean = (first + joint_first) * h * (-2 * LN_2)
    dlog_var = (second + joint_second) * h * -LN_2 - 0.5 * (weight + joint_weight.sum(0))
    return (
        _unpacked(dz * (2 * LN_2), z),
        _unpacked(dmean, mean),
        _unpacked(dlog_var, log_var),
    )


def _launch(
    launch: Launch, data: _Problem, problems: int, own: int, splits: int, *tensors: Tensor
) -> None:
    d = (data.d,) if "d" in launch.kernel.arg_names else ()
    programs = problems * triton.cdiv(own, launch.constants["OWN"]) * splits
    with on_device_of(data.z):
        launch.kernel[(programs,)](
            *tensors, data.n, data.B, *d, data.dataset_size, splits,
            **launch.constants, **launch.options,
        )  # fmt: skip
