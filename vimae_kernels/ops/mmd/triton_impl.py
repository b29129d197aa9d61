# mypy: disable-error-code="assignment, no-untyped-def"
"""Squared MMD in Triton: value, gradient and Hessian-vector product, one pass over the pairs each.

Every program owns a block of rows (points of x or of y) and sweeps columns. What the pairs add to
the gradient of a row is summed by the program that owns it, so nothing is added atomically. A
symmetric pair is thus visited from both its ends: one distance more, but no partial gradient for
every block of columns, which is the other deterministic way. A value needs no owner: there each
block of a symmetric term is visited once. A second kernel adds the partial results in fixed order.

Distances are sums of squared coordinate differences: ||x||^2 + ||y||^2 - 2 x.y loses every digit
that the points' common offset takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._pairs_triton import (
    PADDED,
    block,
    column_pieces,
    coordinates,
    distances,
    gathered,
    kernel,
    padded,
    points,
    product,
    quads,
    row_sums,
    share_of,
    slope_unit,
    start_of,
    sums_like,
    sums_of,
    value_unit,
)
from ..._triton import Launch, Loop, Shipped, on_device_of

# What a kernel computes.
VALUE, GRADIENT, HESSIAN = 0, 1, 2


@triton.jit
def _program(x, y, vx, vy, gx, gy, n, m, unbiased, apart, splits, ROWS: tl.constexpr):
    """Which block of rows, of which side of which problem, and which share of its columns."""
    blocks_x = tl.cdiv(n, ROWS)
    blocks = blocks_x + tl.cdiv(m, ROWS)
    index = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    batch = (index // blocks).to(tl.int64)
    block = index % blocks
    is_x = block < blocks_x
    if is_x:
        own, own_v, g, n_own, row = x, vx, gx, n, block * ROWS
        other, other_v, n_other = y, vy, m
    else:
        own, own_v, g, n_own, row = y, vy, gy, m, (block - blocks_x) * ROWS
        other, other_v, n_other = x, vx, n
    same = 1.0 / (n_own.to(tl.float64) * (n_own - unbiased).to(tl.float64))
    # Without a second sample its terms vanish: there is nothing that `cross` would weigh.
    cross = -1.0 / (n_own.to(tl.float64) * tl.maximum(n_other, 1).to(tl.float64))
    # The mean over the pairs of x and y alone.
    cross = tl.where(apart != 0, -0.5 * cross, cross)
    return batch, split, is_x, own, own_v, other, other_v, g, n_own, n_other, row, same, cross


@triton.jit
def _store_value(values, value, n, m, unbiased, splits, ROWS: tl.constexpr, SCALES: tl.constexpr):
    """One partial value per program; a problem's first takes k(x, x) = 1 off the diagonals."""
    programs = (tl.cdiv(n, ROWS) + tl.cdiv(m, ROWS)) * splits
    ones = SCALES / (n - unbiased).to(tl.float64)
    if m > 0:
        ones += SCALES / (m - unbiased).to(tl.float64)
    first = (tl.program_id(0) % programs == 0).to(tl.float64)
    tl.store(values + tl.program_id(0), value - unbiased * first * ones)


# Small d: coordinates in registers.


@triton.jit
def _tile(
    xs, vs, p, pv, mask, total, acc, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr,
    PAIRED: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Add the pairs of the rows xs and the columns at p, each to its element of the tile."""
    ys = coordinates(p, mask, D, PAIRED)
    s = xs[0][:, None] - ys[0][None, :]
    ds = (s,)
    s = tl.fma(s, s, tl.broadcast_to(start_of(scales, IMQ, DOUBLE), s.shape))
    for k in tl.static_range(1, D):
        difference = xs[k][:, None] - ys[k][None, :]
        ds = ds + (difference,)
        s = tl.fma(difference, difference, s)
    v, a, b = kernel(s, scales, SCALES, IMQ, DOUBLE)
    if mask is not None:
        v = tl.where(mask[None, :], v, 0.0)
        a = tl.where(mask[None, :], a, 0.0)
        b = tl.where(mask[None, :], b, 0.0)
    new = ()
    if ORDER == 1:
        for k in tl.static_range(D):
            new = new + (tl.fma(a, ds[k], acc[k]),)
    elif ORDER == 2:
        # -2k' (v_i - v_j) - 4k'' ((x_i - y_j) . (v_i - v_j)) (x_i - y_j), halved.
        ws = coordinates(pv, mask, D, PAIRED)
        q = ds[0] * (vs[0][:, None] - ws[0][None, :])
        for k in tl.static_range(1, D):
            q = tl.fma(ds[k], vs[k][:, None] - ws[k][None, :], q)
        q = -q * b
        for k in tl.static_range(D):
            moved = tl.fma(a, vs[k][:, None] - ws[k][None, :], acc[k])
            new = new + (tl.fma(q, ds[k], moved),)
    return total + v, new


@triton.jit
def _sweep(
    y, vy, start, stop, xs, vs, row, n_rows, g, weight, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAIRED: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """The sum of V over the rows and the columns start..stop; adds to the gradient at g."""
    columns = tl.arange(0, COLUMNS)
    value = tl.full((), 0.0, tl.float64)
    # The tile's elements are summed apart, in chunks short enough for float32.
    for chunk in range(start, stop, 128 * COLUMNS):
        end = tl.minimum(chunk + 128 * COLUMNS, stop)
        full = end - (end - chunk) % COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float64 if DOUBLE else tl.float32)
        acc = ()
        if ORDER > 0:
            for _ in tl.static_range(D):
                acc = acc + (tl.zeros((ROWS, COLUMNS), total.dtype),)
        p = y + (chunk + columns) * D
        pv = vy + (chunk + columns) * D
        for _ in range(chunk, full, COLUMNS):
            total, acc = _tile(
                xs, vs, p, pv, None, total, acc, scales, D, SCALES, IMQ, ORDER, PAIRED, DOUBLE
            )
            p += COLUMNS * D
            pv += COLUMNS * D
        if full < end:
            total, acc = _tile(
                xs, vs, p, pv, full + columns < end, total, acc, scales,
                D, SCALES, IMQ, ORDER, PAIRED, DOUBLE,
            )  # fmt: skip
        rows = row + tl.arange(0, ROWS)
        row_mask = rows < n_rows
        if ORDER < 2:
            value += tl.sum(tl.where(row_mask[:, None], total, 0.0)).to(tl.float64)
        if ORDER > 0:
            # Kept in memory, not in the registers that the loop above needs.
            for k in tl.static_range(D):
                before = tl.load(g + rows * D + k, mask=row_mask, other=0.0)
                tl.store(g + rows * D + k, tl.fma(tl.sum(acc[k], 1), weight, before), mask=row_mask)
            tl.debug_barrier()
    return value


@triton.jit(do_not_specialize=["n", "m", "unbiased", "apart", "splits", "share"])
def _register_kernel(
    x, y, vx, vy, gx, gy, values, n, m, unbiased, apart, splits, share, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr,
    BOTH: tl.constexpr, PAIRED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x (B, n, D), y (B, m, D); gx (splits, B, n, D) and gy, `share` elements apart."""
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    batch, split, is_x, own, own_v, other, other_v, g, n_own, n_other, row, same, cross = _program(
        x, y, vx, vy, gx, gy, n, m, unbiased, apart, splits, ROWS
    )
    own += batch * n_own * D
    own_v += batch * n_own * D
    other += batch * n_other * D
    other_v += batch * n_other * D
    rows = row + tl.arange(0, ROWS)
    clamped = tl.minimum(rows, n_own - 1) * D
    xs = coordinates(own + clamped, None, D, False)
    vs = ()
    if ORDER == 2:
        vs = coordinates(own_v + clamped, None, D, False)

    value = 0.0 * same
    if ORDER > 0 and (BOTH or is_x):
        unit = -4.0 * slope_unit(scales, IMQ, DOUBLE)
        g += split.to(tl.int64) * share + batch * n_own * D
        for k in tl.static_range(D):
            tl.store(g + rows * D + k, tl.zeros((ROWS,), x.dtype.element_ty), mask=rows < n_own)
        tl.debug_barrier()
        # Their own sample, then the other: one loop, so that the sweep is compiled once.
        start, stop = share_of(0, n_own, split, splits, COLUMNS)
        stop = tl.where(apart != 0, start, stop)
        y_at, v_at, weight, count = own, own_v, same, same
        for _ in range(2):
            value += count * _sweep(
                y_at, v_at, start, stop, xs, vs, row, n_own, g,
                (unit * weight).to(x.dtype.element_ty), scales,
                D, SCALES, IMQ, ORDER, ROWS, COLUMNS, PAIRED, DOUBLE,
            )  # fmt: skip
            start, stop = share_of(0, n_other, split, splits, COLUMNS)
            y_at, v_at, weight = other, other_v, cross
            # The rows of y meet the pairs between the samples again.
            count = tl.where(is_x, 2.0 * cross, 0.0)
    else:
        # The block on the diagonal; those right of it, each for itself and its mirror image; then,
        # for the rows of x, the other sample.
        begin, end = share_of(row, n_own, split, splits, COLUMNS)
        end = tl.where(apart != 0, begin, end)
        start, stop = begin, tl.minimum(row + ROWS, end)
        y_at, count = own, same
        for part in range(tl.where(is_x, 3, 2)):
            value += count * _sweep(
                y_at, own_v, start, stop, xs, vs, row, n_own, g, 0.0,
                scales, D, SCALES, IMQ, 0, ROWS, COLUMNS, PAIRED, DOUBLE,
            )  # fmt: skip
            if part == 0:
                start, stop, count = tl.maximum(begin, row + ROWS), end, 2.0 * same
            else:
                start, stop = share_of(0, n_other, split, splits, COLUMNS)
                y_at, count = other, 2.0 * cross
    if ORDER < 2:
        value *= value_unit(scales, IMQ, DOUBLE)
        _store_value(values, value, n, m, unbiased, splits, ROWS, SCALES)


# Large d: a tile of distances is summed over all coordinates, then the weights it gives are applied
# coordinate by coordinate.


@triton.jit
def _add_own(
    g, x, partial, row, n_rows, d, ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr
):
    """At g, less the rows' coordinates, from the first row's, times the sums of their weights."""
    weights = row_sums(partial)
    for k in range(0, d, DEPTH):
        xs = tl.load(block(x, row, n_rows, k, ROWS, DEPTH, WIDTH))
        xs -= tl.load(block(x, row, n_rows, k, 1, DEPTH, WIDTH))
        at = sums_of(g, k, ROWS, DEPTH)
        tl.store(at, tl.fma(-weights, xs, tl.load(at)))
    tl.debug_barrier()


@triton.jit
def _tiled_sweep(
    x, y, g, n_rows, n_columns, d, row, start, stop, weight, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    DEPTH: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """The sum of V over the rows from `row` and the columns start..stop; adds to the sums at g."""
    DOWN: tl.constexpr = ROWS // R
    ACROSS: tl.constexpr = COLUMNS // C
    x_stride = padded(n_rows)
    y_stride = padded(n_columns)
    value = tl.zeros((DOWN, ACROSS), tl.float64)
    a_sum = tl.zeros((R, DOWN, ACROSS), tl.float64 if DOUBLE else tl.float32)
    b_sum = a_sum
    for j in range(start, stop, COLUMNS):
        s, q = distances(
            x, row, x_stride, y, j, y_stride, d, start_of(scales, IMQ, DOUBLE),
            WIDTH == 8, DOUBLE, R, C, DOWN, ACROSS,
        )  # fmt: skip
        v, a, b = kernel(s, scales, SCALES, IMQ, DOUBLE)
        inside = (points(row, R, DOWN) < n_rows)[:, None, :, None]
        inside = inside & (points(j, C, ACROSS) < stop)[None, :, None, :]
        if ORDER < 2:
            value += tl.sum(tl.sum(tl.where(inside, v, 0.0), 0), 0).to(tl.float64)
        if ORDER > 0:
            # sum_j a_ij (y_j - x_i) = sum_j a_ij (y_j - r) - (sum_j a_ij) (x_i - r) for every r: a
            # product of matrices. With r the block's first point all its terms are differences of
            # samples, so a common offset costs nothing here either.
            a = tl.where(inside, a * -weight, 0.0)
            a_sum += tl.sum(a, 1)
            a = column_pieces(a)
            if ORDER == 2:
                b = tl.where(inside, b * q * weight, 0.0)
                b_sum += tl.sum(b, 1)
                b = column_pieces(b)
            for k in range(0, d, DEPTH):
                r = tl.load(block(x, row, x_stride, k, 1, DEPTH, WIDTH))
                ys = block(y, j, y_stride, k, ACROSS, DEPTH, WIDTH)
                total = tl.zeros((ROWS, DEPTH), x.dtype.element_ty)
                for c in tl.static_range(C):
                    y_c = tl.load(ys + c * ACROSS * WIDTH) - r
                    total = product(b[c] if ORDER == 2 else a[c], y_c, total)
                if ORDER == 2:
                    r = tl.load(block(x + 4, row, x_stride, k, 1, DEPTH, WIDTH))
                    for c in tl.static_range(C):
                        w_c = tl.load(ys + (c * ACROSS * WIDTH + 4)) - r
                        total = product(a[c], w_c, total)
                at = sums_of(g, k, ROWS, DEPTH)
                tl.store(at, tl.load(at) + total)
            # The next tile reads what this one wrote.
            tl.debug_barrier()
    if ORDER == 1:
        _add_own(g, x, a_sum, row, x_stride, d, ROWS, DEPTH, WIDTH)
    elif ORDER == 2:
        _add_own(g, x + 4, a_sum, row, x_stride, d, ROWS, DEPTH, WIDTH)
        _add_own(g, x, b_sum, row, x_stride, d, ROWS, DEPTH, WIDTH)
    return tl.sum(value)


@triton.jit(do_not_specialize=["n", "m", "d", "unbiased", "apart", "splits", "share"])
def _tiled_kernel(
    x, y, gx, gy, values, n, m, d, unbiased, apart, splits, share, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr, BOTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """x and y in quads, with directions for a Hessian; gx and gy of each split as `gathered` has them."""
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    batch, split, is_x, own, _own_v, other, _other_v, g, n_own, n_other, row, same, cross = (
        _program(x, y, x, y, gx, gy, n, m, unbiased, apart, splits, ROWS)
    )
    WIDTH: tl.constexpr = 8 if ORDER == 2 else 4
    quads = tl.cdiv(d, PADDED) * (PADDED // 4)
    own += batch * padded(n_own) * quads * WIDTH
    other += batch * padded(n_other) * quads * WIDTH
    value = 0.0 * same
    if ORDER > 0 and (BOTH or is_x):
        unit = -4.0 * slope_unit(scales, IMQ, DOUBLE)
        rows = batch * (tl.cdiv(n_own, ROWS) * ROWS) + row
        # Four of a thread's sums in one load.
        g = tl.multiple_of(g + (split.to(tl.int64) * share + rows * quads * 4), 16)
        for k in range(0, d, DEPTH):
            tl.store(sums_of(g, k, ROWS, DEPTH), tl.zeros((ROWS, DEPTH), x.dtype.element_ty))
        tl.debug_barrier()
        start, stop = share_of(0, n_own, split, splits, COLUMNS)
        stop = tl.where(apart != 0, start, stop)
        y_at, n_at, weight, count = own, n_own, same, same
        for _ in range(2):
            value += count * _tiled_sweep(
                own, y_at, g, n_own, n_at, d, row, start, stop,
                (unit * weight).to(x.dtype.element_ty), scales,
                SCALES, IMQ, ORDER, WIDTH, ROWS, COLUMNS, R, C, DEPTH, DOUBLE,
            )  # fmt: skip
            start, stop = share_of(0, n_other, split, splits, COLUMNS)
            y_at, n_at, weight = other, n_other, cross
            count = tl.where(is_x, 2.0 * cross, 0.0)
    else:
        begin, end = share_of(row, n_own, split, splits, COLUMNS)
        end = tl.where(apart != 0, begin, end)
        start, stop = begin, tl.minimum(row + ROWS, end)
        y_at, n_at, count = own, n_own, same
        for part in range(tl.where(is_x, 3, 2)):
            value += count * _tiled_sweep(
                own, y_at, g, n_own, n_at, d, row, start, stop, 0.0, scales,
                SCALES, IMQ, 0, WIDTH, ROWS, COLUMNS, R, C, DEPTH, DOUBLE,
            )  # fmt: skip
            if part == 0:
                start, stop, count = tl.maximum(begin, row + ROWS), end, 2.0 * same
            else:
                start, stop = share_of(0, n_other, split, splits, COLUMNS)
                y_at, n_at, count = other, n_other, 2.0 * cross
    if ORDER < 2:
        value *= value_unit(scales, IMQ, DOUBLE)
        _store_value(values, value, n, m, unbiased, splits, ROWS, SCALES)


@triton.jit(do_not_specialize=["programs", "problems", "splits", "share", "size_x"])
def _finish_kernel(
    values, out, partial, gx, gy, programs, problems, splits, share, size_x,
    VALUES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[b] = the sum of problem b's partial values; gx and gy sum the partial gradients."""
    offsets = tl.arange(0, BLOCK)
    pid = tl.program_id(0)
    if VALUES:
        if pid < problems:
            total = tl.zeros((BLOCK,), tl.float64)
            for start in range(0, programs, BLOCK):
                index = start + offsets
                at = values + pid.to(tl.int64) * programs + index
                total += tl.load(at, mask=index < programs, other=0.0)
            tl.store(out + pid, tl.sum(total).to(out.dtype.element_ty))
        pid -= problems
    if pid >= 0:
        index = pid.to(tl.int64) * BLOCK + offsets
        total = tl.zeros((BLOCK,), partial.dtype.element_ty)
        for _ in range(splits):
            total += tl.load(partial + index, mask=index < share, other=0.0)
            partial += share
        tl.store(gx + index, total, mask=index < size_x)
        tl.store(gy + (index - size_x), total, mask=(index >= size_x) & (index < share))


class Tile(NamedTuple):
    """The pairs a program holds at once, and the warps that share them."""

    rows: int
    columns: int
    warps: int
    # For tiled kernels: coordinates per product, and the rows and columns of a thread.
    depth: int = 0
    block: tuple[int, int] = (1, 1)


# By the largest d a tile is for. Up to it a row's coordinates live in registers and d is a constant
# of the compilation; None is every larger d, for the tiled kernel. The more rows a thread has, the
# fewer loads per pair, and the fewer warps the registers leave room for. Registers per thread and
# per multiprocessor are the same on every GPU from sm_80 to sm_120, hence one table:
# tests/test_triton_aot.py compiles all of it for each and fails if one spills.
_FLOAT32: dict[int, dict[int | None, Tile]] = {
    VALUE: {8: Tile(64, 8, 4), 16: Tile(64, 16, 4), None: Tile(128, 128, 8, 32, (8, 8))},
    GRADIENT: {8: Tile(64, 8, 4), 16: Tile(32, 16, 4), None: Tile(128, 64, 8, 32, (8, 4))},
    HESSIAN: {8: Tile(32, 16, 4), None: Tile(64, 64, 4, 32, (8, 4))},
}
_FLOAT64: dict[int, dict[int | None, Tile]] = {
    VALUE: {8: Tile(32, 16, 4), 16: Tile(16, 16, 4), None: Tile(64, 64, 8, 16, (4, 4))},
    GRADIENT: {8: Tile(16, 16, 4), 16: Tile(16, 16, 8), None: Tile(64, 64, 8, 16, (4, 4))},
    HESSIAN: {8: Tile(16, 16, 4), None: Tile(64, 64, 8, 16, (4, 4))},
}
# The tiled kernels with several scales, where those of one would spill.
_SEVERAL_SCALES = {
    (torch.float32, GRADIENT): Tile(64, 64, 8, 32, (4, 4)),
    (torch.float32, HESSIAN): Tile(64, 64, 8, 32, (4, 4)),
    (torch.float64, VALUE): Tile(64, 32, 8, 16, (2, 4)),
    (torch.float64, GRADIENT): Tile(32, 32, 8, 16, (2, 2)),
    (torch.float64, HESSIAN): Tile(32, 32, 8, 16, (2, 2)),
}


def configuration(
    d: int, dtype: torch.dtype, order: int, both: bool, family: str, scales: int
) -> Launch:
    """The kernel, compile-time constants and options for points in d dimensions."""
    tiles = (_FLOAT64 if dtype == torch.float64 else _FLOAT32)[order]
    limit = next(limit for limit in tiles if limit is None or d <= limit)
    tile = tiles[limit]
    if limit is None and scales > 1:
        tile = _SEVERAL_SCALES.get((dtype, order), tile)
    constants = {
        "SCALES": scales,
        "IMQ": family == "imq",
        "ORDER": order,
        "BOTH": both,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
    }
    # Triton's own default for contracting a * b + c changes between its versions.
    options = {"num_warps": tile.warps, "num_stages": 1, "enable_fp_fusion": True}
    if limit is None:
        if torch.version.hip is None:
            # Left alone, ptxas spills a few registers where that lets one more program fit. Of what 255 gave, the
            # gradient in float64 with RBF moved two numbers in every step of its distances.
            options["maxnreg"] = 248 if (dtype, order) == (torch.float64, GRADIENT) else 255
        r, c = tile.block
        return Launch(_tiled_kernel, {**constants, "R": r, "C": c, "DEPTH": tile.depth}, options)
    if dtype == torch.float64 and torch.version.hip is None:
        options["maxnreg"] = 255
    if dtype == torch.float64 and order == HESSIAN and scales > 1:
        # Their constants leave the registers for one pair of a thread.
        options["num_warps"] = 8
    return Launch(_register_kernel, {**constants, "D": d, "PAIRED": d % 2 == 0}, options)


_FINISH_BLOCK = 512
_FINISH_OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


def shipped() -> Iterator[Shipped]:
    """Every tile at its largest d, for both families and, to see that nothing spills, seven scales."""
    for family in ("imq", "rbf"):
        for scales in (1, 7):
            for dtype, tables in ((torch.float32, _FLOAT32), (torch.float64, _FLOAT64)):
                for order, tiles in tables.items():
                    for limit in tiles:
                        for both in (False, True) if order == GRADIENT else (order == HESSIAN,):
                            yield _shipped(limit, tiles, dtype, order, both, family, scales)
    for pointer in ("*fp32", "*fp64"):
        launch = Launch(_finish_kernel, {"VALUES": True, "BLOCK": _FINISH_BLOCK}, _FINISH_OPTIONS)
        yield Shipped(f"finish {pointer[1:]}", launch, _types(launch, pointer, 0))


def _shipped(
    limit: int | None,
    tiles: dict[int | None, Tile],
    dtype: torch.dtype,
    order: int,
    both: bool,
    family: str,
    scales: int,
) -> Shipped:
    d = limit or 1 + max(k for k in tiles if k is not None)
    launch = configuration(d, dtype, order, both, family, scales)
    pointer = "*fp32" if dtype == torch.float32 else "*fp64"
    side = ("value", "both" if both else "one side", "hessian")[order]
    return Shipped(
        f"d={limit or 'any'} {pointer[1:]} {side} {family}" + (f", {scales} scales" * (scales > 1)),
        launch,
        _types(launch, pointer, len(_scale_arguments([1.0] * scales, dtype))),
        _loops(limit, dtype, order, family) if scales == 1 else (),
        everywhere=family == "imq" and scales == 1,
    )


def _types(launch: Launch, pointer: str, scales: int) -> dict[str, Any]:
    known = dict.fromkeys(("x", "y", "vx", "vy", "gx", "gy", "out", "partial"), pointer)
    known |= {"values": "*fp64", **dict.fromkeys(launch.constants, "constexpr")}
    types = {name: known.get(name, "i32") for name in launch.kernel.arg_names}
    return {**types, "scales": ("fp32",) * scales} if scales else types


def _loops(d: int | None, dtype: torch.dtype, order: int, family: str) -> tuple[Loop, ...]:
    """By hand: a pair and coordinate is a subtraction, a multiply-add and another for the gradient; a Hessian has two
    subtractions and four multiply-adds. A kernel of one scale is one reciprocal or exponential and two more.

    In float64 a reciprocal is ten: two conversions, the square of a reciprocal root, three multiply-adds, and zero
    where float32 has none, a comparison and a selection of two words. An exponential is 18: three to split off the
    whole number, ten multiply-adds, that number to an exponent, a product, and zero where it is too small.
    """
    hessian = 2 if order == HESSIAN else 1
    single = dtype == torch.float32
    add, fma = ("FADD", "FFMA") if single else ("DADD", "DFMA")
    pair = "MUFU" if single or family == "imq" else "DSETP"
    kernel = 3 if single else 12 if family == "imq" else 20
    if d is not None:
        return (Loop("pairs", pair, 1, (2, 3, 6)[order] * d + kernel),)
    distances = Loop("distances", add, hessian, 2 * hessian)
    # A debt: on sm_120 float64 has no matrix instruction, and a thread's sums are too few for its operands. There
    # a multiply-add takes the time of 64 other instructions, and so nothing is lost.
    gradient = Loop("gradient", fma, hessian, hessian, 1.25 if single else 1.74, without=pair)
    kernels = Loop("kernel", pair, 1, None)
    if order == VALUE:
        return (kernels, distances)
    # A product in float64 has nearly as many additions as the distances, and more multiply-adds.
    return (kernels, distances, gradient) if single else (kernels, gradient, distances)


def mmd(x: Tensor, y: Tensor, family: str, scales: list[float], unbiased: bool) -> Tensor:
    """The squared MMD (...) of x (..., n, d) and y (..., m, d)."""
    return _run(VALUE, x, y, None, None, False, family, scales, unbiased)[0]


def mmd_grad(
    x: Tensor,
    y: Tensor,
    need_x: bool,
    need_y: bool,
    family: str,
    scales: list[float],
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The squared MMD and its gradients in x and y; one that is not needed is empty."""
    if need_y and not need_x:
        value, dy, dx = _run(GRADIENT, y, x, None, None, False, family, scales, unbiased)
        return value, dx, dy
    return _run(GRADIENT if need_x else VALUE, x, y, None, None, need_y, family, scales, unbiased)


def mmd_hvp(
    x: Tensor,
    y: Tensor,
    vx: Tensor,
    vy: Tensor,
    family: str,
    scales: list[float],
    unbiased: bool,
) -> tuple[Tensor, Tensor]:
    """The Hessian of the squared MMD applied to (vx, vy)."""
    return _run(HESSIAN, x, y, vx, vy, True, family, scales, unbiased)[1:]


def pairs(x: Tensor, y: Tensor, family: str, scales: list[float]) -> Tensor:
    """The mean kernel (...) over the pairs of x and y or, with m = 0, of two different points of x; in float64."""
    return _run(VALUE, x, y, None, None, False, family, scales, True, pairs=True)[0]


def pairs_grad(
    x: Tensor, y: Tensor, need_x: bool, need_y: bool, family: str, scales: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean kernel and its gradients in x and y; one that is not needed is empty."""
    config = family, scales, True, True
    if need_y and not need_x:
        value, dy, dx = _run(GRADIENT, y, x, None, None, False, *config)
        return value, dx, dy
    return _run(GRADIENT if need_x else VALUE, x, y, None, None, need_y, *config)


def _run(
    order: int,
    x: Tensor,
    y: Tensor,
    vx: Tensor | None,
    vy: Tensor | None,
    both: bool,
    family: str,
    scales: list[float],
    unbiased: bool,
    pairs: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(value, gx, gy) of a launch of this order; those it does not make are empty."""
    batch, (n, d), m = x.shape[:-2], x.shape[-2:], y.shape[-2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    problems = batch.numel()
    empty = x.new_empty(0, dtype=dtype)
    value = (
        x.new_empty(batch, dtype=torch.float64 if pairs else dtype) if order != HESSIAN else empty
    )
    apart = pairs and m > 0
    gx = x.new_empty(x.shape, dtype=dtype) if order != VALUE else empty
    gy = x.new_empty(y.shape, dtype=dtype) if both else empty
    if problems == 0:
        return value, gx, gy

    launch = configuration(d, dtype, order, both, family, len(scales))
    tiled = launch.kernel is _tiled_kernel
    x, y = _pack(x, dtype), _pack(y, dtype)
    vx = None if vx is None else _pack(vx, dtype)
    vy = None if vy is None else _pack(vy, dtype)
    points = (
        (quads(x, vx), quads(y, vy))
        if tiled
        else (x, y, x if vx is None else vx, y if vy is None else vy)
    )

    blocks = triton.cdiv(n, launch.constants["ROWS"]) + triton.cdiv(m, launch.constants["ROWS"])
    splits = _splits(problems * blocks, max(n, m), launch.constants["COLUMNS"])
    values = empty
    if order != HESSIAN:
        values = x.new_empty(problems * blocks * splits, dtype=torch.float64)
    # One split writes the gradients themselves, several write partial ones for _finish_kernel.
    sums_x, sums_y, share = gx, gy, 0
    if tiled and order != VALUE:
        sums_x = sums_like(x, launch.constants["ROWS"], dtype)
        sums_y = sums_like(y, launch.constants["ROWS"], dtype) if both else empty
    partial_x, partial_y = sums_x, sums_y
    if splits > 1 and order != VALUE:
        share = sums_x.numel() + sums_y.numel()
        partial_x = x.new_empty(splits * share, dtype=dtype)
        partial_y = partial_x[sums_x.numel() :]

    sizes = (n, m, d) if tiled else (n, m)
    with on_device_of(x):
        launch.kernel[(problems * blocks * splits,)](
            *points, partial_x, partial_y, values, *sizes, int(unbiased and not apart),
            int(apart), splits, share, _scale_arguments(scales, dtype), **launch.constants, **launch.options,
        )  # fmt: skip
        finish = (0 if order == HESSIAN else problems) + triton.cdiv(share, _FINISH_BLOCK)
        if finish:
            _finish_kernel[(finish,)](
                values, value, partial_x, sums_x, sums_y, blocks * splits, problems, splits,
                share, sums_x.numel(), VALUES=order != HESSIAN, BLOCK=_FINISH_BLOCK,
                **_FINISH_OPTIONS,
            )  # fmt: skip
    if tiled and order != VALUE:
        tile = launch.constants["ROWS"], launch.constants["DEPTH"]
        gx = gathered(sums_x, x, *tile).view(gx.shape)
        gy = gathered(sums_y, y, *tile).view(gy.shape) if both else gy
    return value, gx, gy


def _pack(t: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, n, d), contiguous and with pairs of float32 aligned.

    A copy, where one is needed, is O(n d) beside the O(n^2 d) to come.
    """
    t = t.to(dtype).reshape(t.shape[:-2].numel(), *t.shape[-2:]).contiguous()
    return t if t.data_ptr() % 8 == 0 else t.clone()


def _splits(blocks: int, columns: int, tile: int) -> int:
    """Into how many programs a block's columns are split: enough to fill a GPU.

    At most 8, for each has a partial gradient.
    """
    return max(1, min(8, 1024 // blocks, columns // (2 * tile)))


def _scale_arguments(scales: list[float], dtype: torch.dtype) -> tuple[float, ...]:
    """The scales in ascending order, as `_scale` reads them."""
    ordered = sorted(scales)
    if dtype == torch.float32:
        return tuple(ordered)
    high = torch.tensor(ordered, dtype=torch.float64).float().double().tolist()
    return tuple(part for c, h in zip(ordered, high, strict=True) for part in (h, c - h))
