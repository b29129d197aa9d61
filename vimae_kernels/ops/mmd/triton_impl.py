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

from ..._triton import Launch, on_device_of

# What a kernel computes.
VALUE, GRADIENT, HESSIAN = 0, 1, 2


# Kernels as functions of s = ||x - y||^2. With c the smallest scale, they are returned in units
# that spare a single scale the multiplications: k = V * _value_unit, -k' = A * _slope_unit and
# 2 k'' = B * _slope_unit.


@triton.jit
def _scale(scales, i: tl.constexpr, DOUBLE: tl.constexpr):
    # Triton passes Python floats as float32; two of them make a double good to 1e-14.
    if DOUBLE:
        c = tl.full((), scales[2 * i], tl.float64) + tl.full((), scales[2 * i + 1], tl.float64)
    else:
        c = tl.full((), scales[i], tl.float32)
    return c


@triton.jit
def _start(scales, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    """What a sum of squares starts from: with c, the c + s of IMQ costs no addition."""
    c = _scale(scales, 0, DOUBLE)
    return c if IMQ else c * 0.0


@triton.jit
def _kernel(s, scales, SCALES: tl.constexpr, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    """(V, A, B) for s counted from `_start`."""
    c = _scale(scales, 0, DOUBLE)
    for i in tl.static_range(SCALES):
        ci = _scale(scales, i, DOUBLE)
        if IMQ:
            s_i = s if i == 0 else s + (ci - c)
            if DOUBLE:
                u = 1.0 / s_i
            else:
                # Half the instructions of a division, and as exact as is asked for.
                r = tl.rsqrt(s_i)
                u = r * r
            ratio = ci / c
            v_i = u
            a_i = u * u
            b_i = a_i * u * 4.0
        else:
            ratio = c / ci
            v_i = tl.exp(s * (-1.0 / ci)) if DOUBLE else tl.exp2(s * (-1.4426950408889634 / ci))
            a_i = v_i
            b_i = v_i * (2.0 / ci)
        if i == 0:
            v = v_i
            a = a_i
            b = b_i
        else:
            v = tl.fma(v_i, ratio, v) if IMQ else v + v_i
            a = tl.fma(a_i, ratio, a)
            b = tl.fma(b_i, ratio, b)
    return v, a, b


@triton.jit
def _value_unit(scales, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    c = _scale(scales, 0, DOUBLE).to(tl.float64)
    return c if IMQ else c / c


@triton.jit
def _slope_unit(scales, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    c = _scale(scales, 0, DOUBLE).to(tl.float64)
    return c if IMQ else 1.0 / c


@triton.jit
def _program(x, y, vx, vy, gx, gy, n, m, unbiased, splits, ROWS: tl.constexpr):
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
    cross = -1.0 / (n_own.to(tl.float64) * n_other.to(tl.float64))
    return batch, split, is_x, own, own_v, other, other_v, g, n_own, n_other, row, same, cross


@triton.jit
def _share(begin, end, split, splits, COLUMNS: tl.constexpr):
    """The part of the columns begin..end that one of `splits` programs sweeps."""
    size = tl.cdiv(tl.cdiv(end - begin, splits), COLUMNS) * COLUMNS
    start = begin + split * size
    return start, tl.minimum(start + size, end)


@triton.jit
def _store_value(values, value, n, m, unbiased, splits, ROWS: tl.constexpr, SCALES: tl.constexpr):
    """One partial value per program; a problem's first takes k(x, x) = 1 off the diagonals."""
    programs = (tl.cdiv(n, ROWS) + tl.cdiv(m, ROWS)) * splits
    ones = SCALES / (n - unbiased).to(tl.float64) + SCALES / (m - unbiased).to(tl.float64)
    first = (tl.program_id(0) % programs == 0).to(tl.float64)
    tl.store(values + tl.program_id(0), value - unbiased * first * ones)


# Small d: coordinates in registers.


@triton.jit
def _coordinates(p, mask, D: tl.constexpr, PAIRED: tl.constexpr):
    """The D coordinates of the points at p, a tuple of vectors."""
    out = ()
    if PAIRED:
        # Two float32 in one 64-bit load: half the loads, and taking them apart is free.
        p = p.to(tl.pointer_type(tl.int64))
        for k in tl.static_range(D // 2):
            pair = tl.load(p + k, mask=mask, other=None if mask is None else 0)
            low = pair.to(tl.int32).to(tl.float32, bitcast=True)
            high = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
            out = out + (low, high)
    else:
        for k in tl.static_range(D):
            out = out + (tl.load(p + k, mask=mask, other=None if mask is None else 0.0),)
    return out


@triton.jit
def _tile(
    xs, vs, p, pv, mask, total, acc, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr,
    PAIRED: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Add the pairs of the rows xs and the columns at p, each to its element of the tile."""
    ys = _coordinates(p, mask, D, PAIRED)
    s = xs[0][:, None] - ys[0][None, :]
    ds = (s,)
    s = tl.fma(s, s, tl.broadcast_to(_start(scales, IMQ, DOUBLE), s.shape))
    for k in tl.static_range(1, D):
        difference = xs[k][:, None] - ys[k][None, :]
        ds = ds + (difference,)
        s = tl.fma(difference, difference, s)
    v, a, b = _kernel(s, scales, SCALES, IMQ, DOUBLE)
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
        ws = _coordinates(pv, mask, D, PAIRED)
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


@triton.jit(do_not_specialize=["n", "m", "unbiased", "splits", "share"])
def _register_kernel(
    x, y, vx, vy, gx, gy, values, n, m, unbiased, splits, share, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr,
    BOTH: tl.constexpr, PAIRED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x (B, n, D), y (B, m, D); gx (splits, B, n, D) and gy, `share` elements apart."""
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    batch, split, is_x, own, own_v, other, other_v, g, n_own, n_other, row, same, cross = _program(
        x, y, vx, vy, gx, gy, n, m, unbiased, splits, ROWS
    )
    own += batch * n_own * D
    own_v += batch * n_own * D
    other += batch * n_other * D
    other_v += batch * n_other * D
    rows = row + tl.arange(0, ROWS)
    clamped = tl.minimum(rows, n_own - 1) * D
    xs = _coordinates(own + clamped, None, D, False)
    vs = ()
    if ORDER == 2:
        vs = _coordinates(own_v + clamped, None, D, False)

    value = 0.0 * same
    if ORDER > 0 and (BOTH or is_x):
        unit = -4.0 * _slope_unit(scales, IMQ, DOUBLE)
        g += split.to(tl.int64) * share + batch * n_own * D
        for k in tl.static_range(D):
            tl.store(g + rows * D + k, tl.zeros((ROWS,), x.dtype.element_ty), mask=rows < n_own)
        tl.debug_barrier()
        # Their own sample, then the other: one loop, so that the sweep is compiled once.
        start, stop = _share(0, n_own, split, splits, COLUMNS)
        y_at, v_at, weight, count = own, own_v, same, same
        for _ in range(2):
            value += count * _sweep(
                y_at, v_at, start, stop, xs, vs, row, n_own, g,
                (unit * weight).to(x.dtype.element_ty), scales,
                D, SCALES, IMQ, ORDER, ROWS, COLUMNS, PAIRED, DOUBLE,
            )  # fmt: skip
            start, stop = _share(0, n_other, split, splits, COLUMNS)
            y_at, v_at, weight = other, other_v, cross
            # The rows of y meet the pairs between the samples again.
            count = tl.where(is_x, 2.0 * cross, 0.0)
    else:
        # The block on the diagonal; those right of it, each for itself and its mirror image; then,
        # for the rows of x, the other sample.
        begin, end = _share(row, n_own, split, splits, COLUMNS)
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
                start, stop = _share(0, n_other, split, splits, COLUMNS)
                y_at, count = other, 2.0 * cross
    if ORDER < 2:
        value *= _value_unit(scales, IMQ, DOUBLE)
        _store_value(values, value, n, m, unbiased, splits, ROWS, SCALES)


# Large d: a tile of distances is summed over all coordinates, then the weights it gives are applied
# coordinate by coordinate. Points come in quads of coordinates, (ceil(d / 4), points, 4) with zeros
# at the end: a tile's points lie side by side, and the coordinates of a quad one load apart.


@triton.jit
def _distances(
    x, vx, rows, n_rows, y, vy, columns, n_columns, quads, scales,
    IMQ: tl.constexpr, ORDER: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """s from `_start` and q = (x_i - y_j) . (v_i - v_j), both (ROWS, COLUMNS)."""
    s = tl.zeros((rows.shape[0], columns.shape[0]), tl.float64 if DOUBLE else tl.float32)
    q = s
    s += _start(scales, IMQ, DOUBLE)
    px, py = x + rows * 4, y + columns * 4
    pvx, pvy = vx + rows * 4, vy + columns * 4
    for _ in range(0, quads):
        xs = _coordinates(px, None, 4, not DOUBLE)
        ys = _coordinates(py, None, 4, not DOUBLE)
        if ORDER == 2:
            vs = _coordinates(pvx, None, 4, not DOUBLE)
            ws = _coordinates(pvy, None, 4, not DOUBLE)
        for k in tl.static_range(4):
            difference = xs[k][:, None] - ys[k][None, :]
            s = tl.fma(difference, difference, s)
            if ORDER == 2:
                q = tl.fma(difference, vs[k][:, None] - ws[k][None, :], q)
        px += n_rows * 4
        py += n_columns * 4
        if ORDER == 2:
            pvx += n_rows * 4
            pvy += n_columns * 4
    return s, q


@triton.jit
def _coordinate_block(x, points, n, ks, quads):
    """The coordinates ks of the points, 0 beyond the last quad."""
    quad = ks // 4
    at = quad.to(tl.int64) * n * 4 + (points * 4 + ks % 4)
    return tl.load(x + at, mask=quad < quads, other=0.0)


@triton.jit
def _tiled_sweep(
    x, vx, y, vy, g, n_rows, n_columns, d, row, start, stop, weight, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """The sum of V over the rows from `row` and the columns start..stop; adds to the sums at g."""
    rows = row + tl.arange(0, ROWS)
    quads = tl.cdiv(d, 4)
    value = tl.full((), 0.0, tl.float64)
    for j in range(start, stop, COLUMNS):
        columns = j + tl.arange(0, COLUMNS)
        own = tl.minimum(rows, n_rows - 1)
        other = tl.minimum(columns, n_columns - 1)
        s, q = _distances(
            x, vx, own, n_rows, y, vy, other, n_columns, quads, scales, IMQ, ORDER, DOUBLE
        )
        v, a, b = _kernel(s, scales, SCALES, IMQ, DOUBLE)
        inside = (rows < n_rows)[:, None] & (columns < stop)[None, :]
        if ORDER < 2:
            value += tl.sum(tl.where(inside, v, 0.0)).to(tl.float64)
        if ORDER > 0:
            # sum_j a_ij (y_j - x_i) = sum_j a_ij (y_j - r) - (sum_j a_ij) (x_i - r) for every r: a
            # product of matrices. With r the block's first point all its terms are differences of
            # samples, so a common offset costs nothing here either.
            a = tl.where(inside, a * -weight, 0.0)
            a_sum = tl.sum(a, 1)[:, None]
            if ORDER == 2:
                b = tl.where(inside, b * q * weight, 0.0)
                b_sum = tl.sum(b, 1)[:, None]
            for k in range(0, d, DEPTH):
                ks = k + tl.arange(0, DEPTH)
                at = g + rows[:, None].to(tl.int64) * d + ks[None, :]
                mask = (rows < n_rows)[:, None] & (ks < d)[None, :]
                total = tl.load(at, mask=mask, other=0.0)
                r = _coordinate_block(x, row, n_rows, ks, quads)
                xs = _coordinate_block(x, own[:, None], n_rows, ks[None, :], quads) - r[None, :]
                ys = (
                    _coordinate_block(y, other[:, None], n_columns, ks[None, :], quads) - r[None, :]
                )
                if ORDER == 1:
                    total = tl.fma(-a_sum, xs, total)
                    total = tl.dot(a, ys, total, input_precision="ieee", out_dtype=total.dtype)
                else:
                    r = _coordinate_block(vx, row, n_rows, ks, quads)
                    vs = (
                        _coordinate_block(vx, own[:, None], n_rows, ks[None, :], quads) - r[None, :]
                    )
                    ws = _coordinate_block(vy, other[:, None], n_columns, ks[None, :], quads)
                    total = tl.fma(-a_sum, vs, tl.fma(-b_sum, xs, total))
                    total = tl.dot(
                        a, ws - r[None, :], total, input_precision="ieee", out_dtype=total.dtype
                    )
                    total = tl.dot(b, ys, total, input_precision="ieee", out_dtype=total.dtype)
                tl.store(at, total, mask=mask)
            # The next tile reads what this one wrote.
            tl.debug_barrier()
    return value


@triton.jit(do_not_specialize=["n", "m", "d", "unbiased", "splits", "share"])
def _tiled_kernel(
    x, y, vx, vy, gx, gy, values, n, m, d, unbiased, splits, share, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, ORDER: tl.constexpr, BOTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x and y in quads; gx (splits, B, n, d) and gy (splits, B, m, d), `share` elements apart."""
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    batch, split, is_x, own, own_v, other, other_v, g, n_own, n_other, row, same, cross = _program(
        x, y, vx, vy, gx, gy, n, m, unbiased, splits, ROWS
    )
    quads = tl.cdiv(d, 4)
    own += batch * n_own * quads * 4
    own_v += batch * n_own * quads * 4
    other += batch * n_other * quads * 4
    other_v += batch * n_other * quads * 4
    value = 0.0 * same
    if ORDER > 0 and (BOTH or is_x):
        unit = -4.0 * _slope_unit(scales, IMQ, DOUBLE)
        g += split.to(tl.int64) * share + batch * n_own * d
        rows = row + tl.arange(0, ROWS)
        for k in range(0, d, DEPTH):
            ks = k + tl.arange(0, DEPTH)
            at = g + rows[:, None].to(tl.int64) * d + ks[None, :]
            mask = (rows < n_own)[:, None] & (ks < d)[None, :]
            tl.store(at, tl.zeros((ROWS, DEPTH), x.dtype.element_ty), mask=mask)
        tl.debug_barrier()
        start, stop = _share(0, n_own, split, splits, COLUMNS)
        y_at, v_at, n_at, weight, count = own, own_v, n_own, same, same
        for _ in range(2):
            value += count * _tiled_sweep(
                own, own_v, y_at, v_at, g, n_own, n_at, d, row, start, stop,
                (unit * weight).to(x.dtype.element_ty), scales,
                SCALES, IMQ, ORDER, ROWS, COLUMNS, DEPTH, DOUBLE,
            )  # fmt: skip
            start, stop = _share(0, n_other, split, splits, COLUMNS)
            y_at, v_at, n_at, weight = other, other_v, n_other, cross
            count = tl.where(is_x, 2.0 * cross, 0.0)
    else:
        begin, end = _share(row, n_own, split, splits, COLUMNS)
        start, stop = begin, tl.minimum(row + ROWS, end)
        y_at, n_at, count = own, n_own, same
        for part in range(tl.where(is_x, 3, 2)):
            value += count * _tiled_sweep(
                own, own_v, y_at, own_v, g, n_own, n_at, d, row, start, stop, 0.0, scales,
                SCALES, IMQ, 0, ROWS, COLUMNS, DEPTH, DOUBLE,
            )  # fmt: skip
            if part == 0:
                start, stop, count = tl.maximum(begin, row + ROWS), end, 2.0 * same
            else:
                start, stop = _share(0, n_other, split, splits, COLUMNS)
                y_at, n_at, count = other, n_other, 2.0 * cross
    if ORDER < 2:
        value *= _value_unit(scales, IMQ, DOUBLE)
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
    depth: int = 0  # coordinates per product, for tiled kernels


# By the largest d a tile is for. Up to it a row's coordinates live in registers and d is a constant
# of the compilation; None is every larger d, for the tiled kernel. The more rows a thread has, the
# fewer loads per pair, and the fewer warps the registers leave room for. Registers per thread and
# per multiprocessor are the same on every GPU from sm_80 to sm_120, hence one table:
# tests/test_triton_aot.py compiles all of it for each and fails if one spills.
_FLOAT32: dict[int, dict[int | None, Tile]] = {
    VALUE: {8: Tile(64, 8, 4), 16: Tile(64, 16, 4), None: Tile(64, 64, 2)},
    GRADIENT: {8: Tile(64, 8, 4), 16: Tile(32, 16, 4), None: Tile(64, 64, 4, 16)},
    HESSIAN: {8: Tile(32, 16, 4), None: Tile(128, 16, 4, 16)},
}
_FLOAT64: dict[int, dict[int | None, Tile]] = {
    VALUE: {8: Tile(32, 16, 4), 16: Tile(16, 16, 4), None: Tile(32, 32, 4)},
    GRADIENT: {8: Tile(16, 16, 4), 16: Tile(16, 16, 8), None: Tile(32, 32, 4, 16)},
    HESSIAN: {8: Tile(16, 16, 4), None: Tile(32, 16, 4, 16)},
}


def configuration(
    d: int, dtype: torch.dtype, order: int, both: bool, family: str, scales: int
) -> Launch:
    """The kernel, compile-time constants and options for points in d dimensions."""
    tiles = (_FLOAT64 if dtype == torch.float64 else _FLOAT32)[order]
    limit = next(limit for limit in tiles if limit is None or d <= limit)
    tile = tiles[limit]
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
            # Left alone, ptxas spills a few registers where that lets one more program fit.
            options["maxnreg"] = 255
        return Launch(_tiled_kernel, {**constants, "DEPTH": tile.depth}, options)
    paired = dtype == torch.float32 and d % 2 == 0
    return Launch(_register_kernel, {**constants, "D": d, "PAIRED": paired}, options)


_FINISH_BLOCK = 512
_FINISH_OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


def shipped(family: str, scales: int) -> Iterator[tuple[str, Launch, dict[str, Any]]]:
    """(name, launch, argument types) of every tile at its largest d, to compile ahead of time."""
    for dtype, pointer, tables in (
        (torch.float32, "*fp32", _FLOAT32),
        (torch.float64, "*fp64", _FLOAT64),
    ):
        types = dict.fromkeys(("x", "y", "vx", "vy", "gx", "gy", "out", "partial"), pointer)
        types["values"] = "*fp64"
        types["scales"] = ("fp32",) * len(_scale_arguments([1.0] * scales, dtype))

        def named(name, launch, types=types):
            known = {**types, **dict.fromkeys(launch.constants, "constexpr")}
            return name, launch, {a: known.get(a, "i32") for a in launch.kernel.arg_names}

        for order, tiles in tables.items():
            for limit in tiles:
                d = limit or 1 + max(k for k in tiles if k is not None)
                for both in (False, True) if order == GRADIENT else (order == HESSIAN,):
                    side = ("value", "both" if both else "one side", "hessian")[order]
                    launch = configuration(d, dtype, order, both, family, scales)
                    yield named(f"d={limit or 'any'} {pointer[1:]} {side}", launch)
        constants = {"VALUES": True, "BLOCK": _FINISH_BLOCK}
        launch = Launch(_finish_kernel, constants, _FINISH_OPTIONS)
        yield named(f"finish {pointer[1:]}", launch)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """(value, gx, gy) of a launch of this order; those it does not make are empty."""
    batch, (n, d), m = x.shape[:-2], x.shape[-2:], y.shape[-2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    problems = batch.numel()
    empty = x.new_empty(0, dtype=dtype)
    value = x.new_empty(batch, dtype=dtype) if order != HESSIAN else empty
    gx = x.new_empty(x.shape, dtype=dtype) if order != VALUE else empty
    gy = x.new_empty(y.shape, dtype=dtype) if both else empty
    if problems == 0:
        return value, gx, gy

    launch = configuration(d, dtype, order, both, family, len(scales))
    tiled = launch.kernel is _tiled_kernel
    x, y = _pack(x, dtype, tiled), _pack(y, dtype, tiled)
    vx = x if vx is None else _pack(vx, dtype, tiled)
    vy = y if vy is None else _pack(vy, dtype, tiled)

    blocks = triton.cdiv(n, launch.constants["ROWS"]) + triton.cdiv(m, launch.constants["ROWS"])
    splits = _splits(problems * blocks, max(n, m), launch.constants["COLUMNS"])
    values = empty
    if order != HESSIAN:
        values = x.new_empty(problems * blocks * splits, dtype=torch.float64)
    # One split writes the gradients themselves, several write partial ones for _finish_kernel.
    partial_x, partial_y, share = gx, gy, 0
    if splits > 1 and order != VALUE:
        share = gx.numel() + gy.numel()
        partial_x = x.new_empty(splits * share, dtype=dtype)
        partial_y = partial_x[gx.numel() :]

    sizes = (n, m, d) if tiled else (n, m)
    with on_device_of(x):
        launch.kernel[(problems * blocks * splits,)](
            x, y, vx, vy, partial_x, partial_y, values, *sizes, int(unbiased), splits, share,
            _scale_arguments(scales, dtype), **launch.constants, **launch.options,
        )  # fmt: skip
        finish = (0 if order == HESSIAN else problems) + triton.cdiv(share, _FINISH_BLOCK)
        if finish:
            _finish_kernel[(finish,)](
                values, value, partial_x, gx, gy, blocks * splits, problems, splits, share,
                gx.numel(), VALUES=order != HESSIAN, BLOCK=_FINISH_BLOCK,
                **_FINISH_OPTIONS,
            )  # fmt: skip
    return value, gx, gy


def _pack(t: Tensor, dtype: torch.dtype, tiled: bool) -> Tensor:
    """(B, n, d), contiguous and with pairs of float32 aligned; in quads for the tiled kernel.

    A copy, where one is needed, is O(n d) beside the O(n^2 d) to come.
    """
    t = t.to(dtype).reshape(t.shape[:-2].numel(), *t.shape[-2:])
    if tiled:
        t = torch.nn.functional.pad(t, (0, -t.shape[-1] % 4))
        t = t.unflatten(-1, (-1, 4)).movedim(-2, -3)
    t = t.contiguous()
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
