# mypy: disable-error-code="assignment, no-untyped-def"
"""The Stein gradient in Triton, and the kernel Stein discrepancy, which sweeps the same pairs.

With e = z_i - z_j, s = ||e||^2, k = f(s) and scores s_i, the program that owns a block of rows i adds
up over the columns j

    the Stein gradient      f s_j - 2f' e
    the discrepancy         u = p f - 2f' q - 4f'' s - 2d f',  p = s_i . s_j,  q = (s_i - s_j) . e
    its gradient in z_i     w e + 2f' (s_j - s_i),  w = 2 (p f' - 2f'' q - 4f''' s - (4 + 2d) f'')
    its gradient in s_i     f s_j - 2f' e

The score of the standard normal is -z and never an array: there s_j = e - z_i and q = -s, so that a row
is pulled by one weight times e and, when all is added up, the sum of f times z_i; and
p = (||z_i||^2 + ||z_j||^2 - s) / 2 is two operations. Its rounding is that of the norms, which u itself
has on the diagonal. Distances are sums of squared differences of coordinates, as in mmd.

Nothing is added atomically; a second kernel adds the partial results in fixed order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

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
    exponential,
    gathered,
    padded,
    places,
    points,
    product,
    quad,
    quads,
    reciprocal,
    row_sums,
    scale,
    share_of,
    start_of,
    sums_like,
    sums_of,
    value_unit,
)
from ..._triton import Launch, Loop, Shipped, on_device_of
from ..._units import scale_free
from ..mmd.triton_impl import (
    _FINISH_BLOCK,
    _FINISH_OPTIONS,
    Tile,
    _finish_kernel,
    _pack,
    _scale_arguments,
    _splits,
)

# Every kernel is compiled with VALUE where the discrepancy is added up, and with PULL where what pulls
# on the rows is: the Stein gradient is PULL alone, the gradient of the discrepancy both. NORMAL: the
# score is -z.


@triton.jit
def _pair(
    s, p, q, d, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, VALUE: tl.constexpr, NORMAL: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """(f, u, a, g) in units of `value_unit`: the kernel, u, what multiplies e, and -2f'.

    s is counted from `start_of`. For the standard normal `a` is all that multiplies e, q is not given,
    and p is counted from `_dot_start`.
    """
    c = scale(scales, 0, DOUBLE)
    for i in tl.static_range(SCALES):
        ci = scale(scales, i, DOUBLE)
        # u = f * inner and w = 2f' * outer.
        inner = p
        outer = p
        if IMQ:
            s_i = s if i == 0 else (s - c) + ci
            r = reciprocal(s_i, DOUBLE)
            f_i = r if i == 0 else r * (ci / c)
            g_i = f_i * r * 2.0
            if VALUE and NORMAL:
                inner = p + r * (r * (ci * 8.0) + (ci * 2.0 + (2.0 * d - 8.0)))
                outer = p + r * (r * (ci * 24.0) + (ci * 4.0 + (4.0 * d - 16.0)))
            elif VALUE:
                inner = p + r * (r * (ci * 8.0) + (2.0 * d - 8.0 + q * 2.0))
                outer = p + r * (r * (ci * 24.0) + (4.0 * d - 16.0 + q * 4.0))
        else:
            f_i = exponential(s, ci, SCALES, DOUBLE)
            g_i = f_i * (2.0 / ci)
            if VALUE and NORMAL:
                inner = p + (s * ((-2.0 - 4.0 / ci) / ci) + 2.0 * d / ci)
                outer = inner + (4.0 / ci + 2.0)
            elif VALUE:
                inner = p + (s * (-4.0 / (ci * ci)) + 2.0 * d / ci) + q * (2.0 / ci)
                outer = inner + 4.0 / ci
        u_i = f_i * inner
        a_i = -g_i * outer if VALUE else g_i
        if NORMAL:
            a_i = a_i - f_i if VALUE else a_i + f_i
        if i == 0:
            f = f_i
            u = u_i
            a = a_i
            g = g_i
        else:
            f += f_i
            u += u_i
            a += a_i
            g += g_i
    return f, u, a, g


@triton.jit
def _dot_start(scales, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    """What p of the standard normal starts from: with IMQ, -2 is what q = -s leaves of -2f' q, and half
    the start of s is made good."""
    c = scale(scales, 0, DOUBLE)
    return c * 0.5 - 2.0 if IMQ else c * 0.0


@triton.jit
def _corner(norms, rows, n, d, scales, SCALES: tl.constexpr, DOUBLE: tl.constexpr):
    """The sum of u over the diagonal of these rows, from half the squared norms of their scores."""
    slopes = 0.0 * scale(scales, 0, DOUBLE)
    for i in tl.static_range(SCALES):
        slopes += 2.0 / scale(scales, i, DOUBLE)
    half = tl.load(norms + rows, mask=rows < n, other=0.0)
    u = half * (2.0 * SCALES) + slopes * d
    return tl.sum(tl.where(rows < n, u, 0.0).to(tl.float64))


@triton.jit
def _program(n, splits, ROWS: tl.constexpr):
    """Which problem, which share of the columns and which first row."""
    index = tl.program_id(0) // splits
    blocks = tl.cdiv(n, ROWS)
    return (index // blocks).to(tl.int64), tl.program_id(0) % splits, index % blocks * ROWS


@triton.jit
def _means(
    n, unbiased, split, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, VALUE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """What a pair weighs in the value and in the pull, and what the diagonal does, which a biased discrepancy has.

    It is left out of all sums of the discrepancy: taken off an unbiased one it would leave their rounding.
    """
    pairs = n.to(tl.float64)
    if VALUE:
        pairs *= (n - unbiased).to(tl.float64)
    unit = value_unit(scales, IMQ, DOUBLE) / pairs
    weight = 2.0 * unit if VALUE else unit
    # One of the splits adds it. There e is 0, and the kernel 1.
    included = tl.where(split == 0, 1 - unbiased, 0).to(tl.float64) / pairs
    if not VALUE:
        included *= 0.0
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    return unit, weight.to(dtype), (included * (2.0 * SCALES)).to(dtype), included


# The standard normal in few dimensions: coordinates in registers.


@triton.jit
def _tile(
    xs, half, p, norms, mask, pairs, total, mass, acc, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, VALUE: tl.constexpr,
    PULL: tl.constexpr, PAIRED: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Add the pairs of the rows xs and the columns at p, each to its element of the tile; None are all of them."""
    ys = coordinates(p, mask, D, PAIRED)
    s = xs[0][:, None] - ys[0][None, :]
    ds = (s,)
    s = tl.fma(s, s, tl.broadcast_to(start_of(scales, IMQ, DOUBLE), s.shape))
    for k in tl.static_range(1, D):
        difference = xs[k][:, None] - ys[k][None, :]
        ds = ds + (difference,)
        s = tl.fma(difference, difference, s)
    dot = s
    if VALUE:
        other = tl.load(norms, mask=mask, other=None if mask is None else 0.0)
        dot = s * -0.5 + (half[:, None] + other[None, :])
    f, u, a, _ = _pair(s, dot, None, D, scales, SCALES, IMQ, VALUE, True, DOUBLE)
    if pairs is not None:
        f = tl.where(pairs, f, 0.0)
        u = tl.where(pairs, u, 0.0)
        a = tl.where(pairs, a, 0.0)
    new = ()
    if PULL:
        for k in tl.static_range(D):
            new = new + (tl.fma(a, ds[k], acc[k]),)
    return total + u, mass + f, new


@triton.jit
def _sweep(
    x, norms, start, stop, xs, half, row, n, g, weight, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, VALUE: tl.constexpr,
    PULL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAIRED: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """The sum of u over the rows and the columns start..stop; what pulls on the rows goes to g."""
    columns = tl.arange(0, COLUMNS)
    value = tl.full((), 0.0, tl.float64)
    # The tile's elements are summed apart, in chunks short enough for float32.
    chunk = start
    while chunk < stop:
        end = tl.minimum(chunk + 128 * COLUMNS, stop)
        full = end - (end - chunk) % COLUMNS
        if VALUE:
            # Where rows are among the columns a chunk is one tile, of which a point's pair with itself is left out.
            if chunk + COLUMNS <= row:
                end = tl.minimum(end, row)
                full = end - (end - chunk) % COLUMNS
            elif chunk < row + ROWS:
                end = tl.minimum(chunk + COLUMNS, stop)
                full = chunk
        total = tl.zeros((ROWS, COLUMNS), tl.float64 if DOUBLE else tl.float32)
        mass = total
        acc = ()
        if PULL:
            for _ in tl.static_range(D):
                acc = acc + (tl.zeros((ROWS, COLUMNS), total.dtype),)
        p = x + (chunk + columns) * D
        norms_at = norms + chunk + columns
        for _ in range(chunk, full, COLUMNS):
            total, mass, acc = _tile(
                xs, half, p, norms_at, None, None, total, mass, acc, scales,
                D, SCALES, IMQ, VALUE, PULL, PAIRED, DOUBLE,
            )  # fmt: skip
            p += COLUMNS * D
            norms_at += COLUMNS
        if full < end:
            mask = full + columns < end
            pairs = mask[None, :]
            if VALUE:
                pairs = pairs & ((row + tl.arange(0, ROWS))[:, None] != (full + columns)[None, :])
            total, mass, acc = _tile(
                xs, half, p, norms_at, mask, pairs, total, mass, acc, scales,
                D, SCALES, IMQ, VALUE, PULL, PAIRED, DOUBLE,
            )  # fmt: skip
        chunk = end
        rows = row + tl.arange(0, ROWS)
        if VALUE:
            value += tl.sum(tl.where((rows < n)[:, None], total, 0.0)).to(tl.float64)
        if PULL:
            # Kept in memory, not in the registers that the loop above needs.
            own = tl.sum(mass, 1) if VALUE else -tl.sum(mass, 1)
            for k in tl.static_range(D):
                before = tl.load(g + rows * D + k, mask=rows < n, other=0.0)
                pull = tl.fma(own, xs[k], tl.sum(acc[k], 1))
                tl.store(g + rows * D + k, tl.fma(pull, weight, before), mask=rows < n)
            tl.debug_barrier()
    return value


@triton.jit(do_not_specialize=["n", "unbiased", "splits", "share"])
def _register_kernel(
    x, norms, g, values, n, unbiased, splits, share, scales,
    D: tl.constexpr, SCALES: tl.constexpr, IMQ: tl.constexpr, VALUE: tl.constexpr,
    PULL: tl.constexpr, PAIRED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x (B, n, D), half its squared norms (B, n); g (splits, B, n, D), `share` elements apart."""
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    batch, split, row = _program(n, splits, ROWS)
    x += batch * n * D
    norms += batch * n
    g += split.to(tl.int64) * share + batch * n * D
    rows = row + tl.arange(0, ROWS)
    clamped = tl.minimum(rows, n - 1)
    xs = coordinates(x + clamped * D, None, D, False)
    half = xs[0]
    if VALUE:
        half = tl.load(norms + clamped) + _dot_start(scales, IMQ, DOUBLE)
    unit, weight, diagonal, included = _means(
        n, unbiased, split, scales, SCALES, IMQ, VALUE, DOUBLE
    )
    if PULL:
        for k in tl.static_range(D):
            tl.store(g + rows * D + k, xs[k] * diagonal, mask=rows < n)
        tl.debug_barrier()
        start, stop = share_of(0, n, split, splits, COLUMNS)
        value = _sweep(
            x, norms, start, stop, xs, half, row, n, g, weight, scales,
            D, SCALES, IMQ, VALUE, PULL, ROWS, COLUMNS, PAIRED, DOUBLE,
        )  # fmt: skip
    else:
        # The block on the diagonal; then those right of it, each for itself and its mirror image.
        begin, end = share_of(row, n, split, splits, COLUMNS)
        start, stop = begin, tl.minimum(row + ROWS, end)
        value = 0.0 * unit
        for part in range(2):
            value += (1 + part) * _sweep(
                x, norms, start, stop, xs, half, row, n, g, weight, scales,
                D, SCALES, IMQ, VALUE, PULL, ROWS, COLUMNS, PAIRED, DOUBLE,
            )  # fmt: skip
            start, stop = tl.maximum(begin, row + ROWS), end
    if VALUE:
        corner = _corner(norms, rows, n, D, scales, SCALES, DOUBLE)
        tl.store(values + tl.program_id(0), value * unit + corner * included)


# Any d and any score: a tile of distances is summed over all coordinates, then the weights it gives
# are applied coordinate by coordinate.


@triton.jit
def _products(
    x, row, column, stride, d, start,
    DOUBLE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):  # fmt: skip
    """s from `start` on, p = s_i . s_j and q = (s_i - s_j) . e of points beside their scores; as `distances`."""
    s = tl.zeros((R, C, DOWN, ACROSS), tl.float64 if DOUBLE else tl.float32)
    p = s
    q = s
    s += start
    own = places(row, R, DOWN, 8)
    other = places(column, C, ACROSS, 8)
    for _ in range(0, d, 4):
        xs = quad(x + own, 8)
        ys = quad(x + other, 8)
        for k in tl.static_range(4):
            e = xs[k][:, None, :, None] - ys[k][None, :, None, :]
            v = tl.broadcast_to(xs[k + 4][:, None, :, None], s.shape)
            w = tl.broadcast_to(ys[k + 4][None, :, None, :], s.shape)
            s = tl.fma(e, e, s)
            # The row's operand in the same place everywhere: then instructions for two are made of the same two rows.
            p = tl.fma(w, v, p)
            q = tl.fma(v - w, e, q)
        x += stride * 8
    return s, p, q


@triton.jit
def _tiled_sweep(
    x, score, norms, gx, gs, n, d, row, start, stop, weight, diagonal, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, VALUE: tl.constexpr, PULL: tl.constexpr,
    NORMAL: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """The sum of u over the rows from `row` and the columns start..stop; writes their pull."""
    DOWN: tl.constexpr = ROWS // R
    ACROSS: tl.constexpr = COLUMNS // C
    DTYPE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    stride = padded(n)
    if PULL:
        for k in range(0, d, DEPTH):
            tl.store(sums_of(gx, k, ROWS, DEPTH), tl.zeros((ROWS, DEPTH), DTYPE))
            if VALUE and not NORMAL:
                tl.store(sums_of(gs, k, ROWS, DEPTH), tl.zeros((ROWS, DEPTH), DTYPE))
        tl.debug_barrier()
    value = tl.zeros((DOWN, ACROSS), tl.float64)
    # Summed over a tile's columns at once: a row's sum is one register of a thread, its parts would be R.
    f_sum = tl.zeros((ROWS, 1), DTYPE)
    a_sum = f_sum
    g_sum = f_sum
    for j in range(start, stop, COLUMNS):
        first = start_of(scales, IMQ, DOUBLE)
        if VALUE and not NORMAL:
            s, p, q = _products(x, row, j, stride, d, first, DOUBLE, R, C, DOWN, ACROSS)
        else:
            s, q = distances(
                x, row, stride, x, j, stride, d, first, False, DOUBLE, R, C, DOWN, ACROSS
            )
            p = s
        # A point pulls on itself with e = 0, times a weight that may be any number beside what is left of the others;
        # and its pair with itself is not in the discrepancy's sums: it is as good as infinitely far.
        apart = points(row, R, DOWN)[:, None, :, None] != points(j, C, ACROSS)[None, :, None, :]
        if VALUE and NORMAL:
            own = tl.load(norms + tl.minimum(points(row, R, DOWN), n - 1))
            own += _dot_start(scales, IMQ, DOUBLE)
            other = tl.load(norms + tl.minimum(points(j, C, ACROSS), n - 1))
            p = s * -0.5 + (own[:, None, :, None] + other[None, :, None, :])
        if VALUE:
            s = tl.where(apart, s, 1e30 if IMQ else 1e15)
        f, u, a, g = _pair(s, p, q, d, scales, SCALES, IMQ, VALUE, NORMAL, DOUBLE)
        inside = (points(row, R, DOWN) < n)[:, None, :, None]
        inside = inside & (points(j, C, ACROSS) < stop)[None, :, None, :]
        if VALUE:
            value += tl.sum(tl.sum(tl.where(inside, u, 0.0), 0), 0).to(tl.float64)
        if PULL:
            # sum_j a_ij (z_i - z_j) = (sum_j a_ij) (z_i - r) - sum_j a_ij (z_j - r) for every r: a
            # product of matrices, whose first term waits for the end. With r the block's first point
            # both are differences of points, so a common offset costs nothing here either.
            a = tl.where(inside if VALUE else inside & apart, a, 0.0)
            a_sum += row_sums(tl.sum(a, 1))
            a = column_pieces(a)
            if NORMAL:
                f_sum += row_sums(tl.sum(tl.where(inside, f, 0.0), 1))
            else:
                f = column_pieces(tl.where(inside, -f, 0.0))
                if VALUE:
                    g = tl.where(inside, g, 0.0)
                    g_sum += row_sums(tl.sum(g, 1))
                    g = column_pieces(g)
            for k in range(0, d, DEPTH):
                r = tl.load(block(x, row, stride, k, 1, DEPTH, WIDTH))
                ys = block(x, j, stride, k, ACROSS, DEPTH, WIDTH)
                vs = block(score, j, stride, k, ACROSS, DEPTH, WIDTH)
                total = tl.zeros((ROWS, DEPTH), DTYPE)
                if VALUE and not NORMAL:
                    # Two loops: the registers do not hold two sums.
                    for c in tl.static_range(C):
                        total = product(g[c], tl.load(ys + c * ACROSS * WIDTH) - r, total)
                        total = product(f[c], tl.load(vs + c * ACROSS * WIDTH), total)
                    at = sums_of(gs, k, ROWS, DEPTH)
                    tl.store(at, tl.load(at) + total)
                    total = tl.zeros((ROWS, DEPTH), DTYPE)
                    rv = tl.load(block(score, row, stride, k, 1, DEPTH, WIDTH))
                for c in tl.static_range(C):
                    total = product(a[c], tl.load(ys + c * ACROSS * WIDTH) - r, total)
                    if not NORMAL:
                        v_c = tl.load(vs + c * ACROSS * WIDTH)
                        total = product(g[c] if VALUE else f[c], v_c - rv if VALUE else v_c, total)
                at = sums_of(gx, k, ROWS, DEPTH)
                tl.store(at, tl.load(at) + total)
            # The next tile reads what this one wrote.
            tl.debug_barrier()
    if PULL:
        for k in range(0, d, DEPTH):
            zs = tl.load(block(x, row, stride, k, ROWS, DEPTH, WIDTH))
            xs = zs - tl.load(block(x, row, stride, k, 1, DEPTH, WIDTH))
            at = sums_of(gx, k, ROWS, DEPTH)
            total = a_sum * xs - tl.load(at)
            if NORMAL:
                total += (f_sum if VALUE else -f_sum) * zs
                total = total * weight + zs * diagonal
            elif VALUE:
                vs = tl.load(block(score, row, stride, k, ROWS, DEPTH, WIDTH))
                total += g_sum * (vs - tl.load(block(score, row, stride, k, 1, DEPTH, WIDTH)))
                total *= weight
                at_s = sums_of(gs, k, ROWS, DEPTH)
                own = g_sum * xs - tl.load(at_s)
                tl.store(at_s, own * weight + vs * diagonal)
            else:
                total *= weight
            tl.store(at, total)
    return tl.sum(value)


@triton.jit(do_not_specialize=["n", "d", "unbiased", "splits", "share"])
def _tiled_kernel(
    x, score, norms, gx, gs, values, n, d, unbiased, splits, share, scales,
    SCALES: tl.constexpr, IMQ: tl.constexpr, VALUE: tl.constexpr, PULL: tl.constexpr,
    NORMAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x and score in quads, norms (B, n); gx and gs (splits, B, rows, coordinates) as `gathered` has them.

    What adds up products of scores has them beside x, where each coordinate of both has one address.
    """
    DOUBLE: tl.constexpr = x.dtype.element_ty == tl.float64
    WIDTH: tl.constexpr = 8 if VALUE and not NORMAL else 4
    batch, split, row = _program(n, splits, ROWS)
    quads = tl.cdiv(d, PADDED) * (PADDED // 4)
    x += batch * padded(n) * quads * WIDTH
    score += batch * padded(n) * quads * WIDTH
    norms += batch * n
    # Four of a thread's sums in one load.
    own = split.to(tl.int64) * share + (batch * (tl.cdiv(n, ROWS) * ROWS) + row) * quads * 4
    gx = tl.multiple_of(gx + own, 16)
    gs = tl.multiple_of(gs + own, 16)
    unit, weight, diagonal, included = _means(
        n, unbiased, split, scales, SCALES, IMQ, VALUE, DOUBLE
    )
    begin, end = share_of(row if not PULL else 0, n, split, splits, COLUMNS)
    value = 0.0 * unit
    if PULL:
        value += _tiled_sweep(
            x, score, norms, gx, gs, n, d, row, begin, end, weight, diagonal, scales,
            SCALES, IMQ, VALUE, PULL, NORMAL, WIDTH, ROWS, COLUMNS, R, C, DEPTH, DOUBLE,
        )  # fmt: skip
    else:
        start, stop = begin, tl.minimum(row + ROWS, end)
        for part in range(2):
            value += (1 + part) * _tiled_sweep(
                x, score, norms, gx, gs, n, d, row, start, stop, weight, diagonal, scales,
                SCALES, IMQ, VALUE, PULL, NORMAL, WIDTH, ROWS, COLUMNS, R, C, DEPTH, DOUBLE,
            )  # fmt: skip
            start, stop = tl.maximum(begin, row + ROWS), end
    if VALUE:
        rows = row + tl.arange(0, ROWS)
        corner = _corner(norms, rows, n, d, scales, SCALES, DOUBLE)
        tl.store(values + tl.program_id(0), value * unit + corner * included)


# Before 3.9 Triton may make no product of fewer than 16 columns of a tile, with which these spill a little.
_OF_SCORES = (8, 2) if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else (4, 4)
# By what is computed (value, pull, normal) and the largest d a tile is for. Up to it a row's coordinates
# live in registers and d is a constant of the compilation; None is every larger d, for the tiled kernel.
_FLOAT32: dict[tuple[bool, bool, bool], dict[int | None, Tile]] = {
    (True, False, True): {
        8: Tile(64, 8, 4),
        16: Tile(64, 16, 4),
        None: Tile(128, 128, 8, 32, (8, 8)),
    },
    (True, True, True): {
        8: Tile(64, 8, 4),
        16: Tile(32, 8, 4),
        None: Tile(128, 128, 8, 32, (8, 8)),
    },
    (False, True, True): {
        8: Tile(64, 8, 4),
        16: Tile(32, 16, 4),
        None: Tile(128, 128, 8, 32, (8, 8)),
    },
    (True, False, False): {None: Tile(64, 64, 8, 16, (4, 4))},
    (True, True, False): {None: Tile(128, 32, 8, 32, _OF_SCORES)},
    (False, True, False): {None: Tile(128, 64, 8, 32, (8, 4))},
}
_FLOAT64: dict[tuple[bool, bool, bool], dict[int | None, Tile]] = {
    (True, False, True): {
        8: Tile(32, 16, 4),
        16: Tile(16, 16, 4),
        None: Tile(64, 64, 8, 16, (4, 4)),
    },
    (True, True, True): {8: Tile(16, 8, 4), None: Tile(64, 64, 8, 16, (4, 4))},
    (False, True, True): {
        8: Tile(16, 16, 4),
        16: Tile(16, 16, 8),
        None: Tile(64, 64, 8, 16, (4, 4)),
    },
    (True, False, False): {None: Tile(64, 64, 8, 16, (4, 4))},
    (True, True, False): {None: Tile(64, 64, 8, 16, (4, 4))},
    (False, True, False): {None: Tile(64, 64, 8, 16, (4, 4))},
}


# The tiled kernels with several scales, whose constants fill the registers: where those of one would spill.
_SEVERAL_SCALES = {
    (torch.float32, True, True, True): Tile(64, 64, 8, 16, (4, 4)),
    (torch.float32, True, True, False): Tile(16, 32, 8, 16, (1, 2)),
    (torch.float32, False, True, True): Tile(128, 64, 8, 32, (8, 4)),
    (torch.float64, True, False, True): Tile(64, 32, 8, 16, (2, 4)),
    (torch.float64, True, True, True): Tile(16, 32, 8, 16, (1, 2)),
    (torch.float64, False, True, True): Tile(64, 32, 8, 16, (4, 2)),
    (torch.float64, True, False, False): Tile(32, 32, 8, 16, (1, 4)),
    (torch.float64, True, True, False): Tile(16, 32, 8, 16, (1, 2)),
    (torch.float64, False, True, False): Tile(64, 32, 8, 16, (4, 2)),
}


def configuration(
    d: int, dtype: torch.dtype, value: bool, pull: bool, normal: bool, family: str, scales: int
) -> Launch:
    """The kernel, compile-time constants and options for points in d dimensions."""
    tiles = (_FLOAT64 if dtype == torch.float64 else _FLOAT32)[value, pull, normal]
    limit = next(limit for limit in tiles if limit is None or d <= limit)
    tile = tiles[limit]
    if limit is None and scales > 1:
        tile = _SEVERAL_SCALES.get((dtype, value, pull, normal), tile)
    constants = {
        "SCALES": scales,
        "IMQ": family == "imq",
        "VALUE": value,
        "PULL": pull,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
    }
    # Triton's own default for contracting a * b + c changes between its versions.
    options = {"num_warps": tile.warps, "num_stages": 1, "enable_fp_fusion": True}
    if limit is None:
        if torch.version.hip is None:
            # Left alone, ptxas spills a few registers where that lets one more program fit.
            options["maxnreg"] = 255
        r, c = tile.block
        constants |= {"NORMAL": normal, "R": r, "C": c, "DEPTH": tile.depth}
        return Launch(_tiled_kernel, constants, options)
    if scales > 1 and dtype == torch.float64:
        # Their constants leave the registers for one or two pairs of a thread.
        options["num_warps"] = 8
    if value and not pull and dtype == torch.float32 and torch.version.hip is None:
        options["maxnreg"] = 255
    return Launch(_register_kernel, {**constants, "D": d, "PAIRED": d % 2 == 0}, options)


def shipped(value: bool = False) -> Iterator[Shipped]:
    """Every tile of the Stein gradient, or of the discrepancy and its gradient, at its largest d."""
    for family, scales in itertools.product(("imq", "rbf"), (1, 7)):
        for dtype, tables in ((torch.float32, _FLOAT32), (torch.float64, _FLOAT64)):
            for (adds_value, pull, normal), tiles in tables.items():
                if adds_value == value:
                    for limit in tiles:
                        yield _shipped(limit, tiles, dtype, value, pull, normal, family, scales)


def _shipped(
    limit: int | None,
    tiles: dict[int | None, Tile],
    dtype: torch.dtype,
    value: bool,
    pull: bool,
    normal: bool,
    family: str,
    scales: int,
) -> Shipped:
    d = limit or 1 + max((k for k in tiles if k is not None), default=0)
    launch = configuration(d, dtype, value, pull, normal, family, scales)
    pointer = "*fp32" if dtype == torch.float32 else "*fp64"
    known = dict.fromkeys(("x", "score", "norms", "g", "gx", "gs"), pointer)
    known |= {"values": "*fp64", **dict.fromkeys(launch.constants, "constexpr")}
    types = {name: known.get(name, "i32") for name in launch.kernel.arg_names}
    types["scales"] = ("fp32",) * len(_scale_arguments([1.0] * scales, dtype))
    side = "gradient" if pull else "value"
    return Shipped(
        f"d={limit or 'any'} {pointer[1:]} {side}{'' if normal else ' score'} {family}"
        + f", {scales} scales" * (scales > 1),
        launch,
        types,
        _loops(limit, dtype, value, pull, normal, family) if scales == 1 else (),
        everywhere=family == "imq" and scales == 1 and dtype == torch.float32,
    )


def _loops(
    d: int | None, dtype: torch.dtype, value: bool, pull: bool, normal: bool, family: str
) -> tuple[Loop, ...]:
    """By hand: a pair and coordinate is a subtraction, a multiply-add and another for what pulls on the row, a
    score three more for its products. With one scale, a reciprocal or exponential with its argument, p and u take
    seven instructions, and weights and the sum of f the others."""
    double = dtype == torch.float64
    fma, add = ("DFMA", "DADD") if double else ("FFMA", "FADD")
    if d is not None:
        kernel = {(True, False): 7, (True, True): 13, (False, True): 7}[value, pull]
        pairs = Loop(
            "pairs", "MUFU", 1, (3 if pull else 2) * d + kernel - 2 * (family == "rbf" and pull)
        )
        # Divisions and exponentials of float64 are no one instruction.
        return () if double else (pairs,)
    products = value and not normal
    # A division takes 16 instructions and an exponential 30: told by what a multiply-add is not.
    around = Loop("kernel", "DSETP" if double and family == "rbf" else "MUFU", 1, None)
    pull_on = Loop("pull", fma, 1, 1)
    if products:
        # By their multiply-adds: where two differences are one instruction, others become additions.
        distances = Loop("distances", fma, 3, 5)
        return (around, pull_on, distances) if pull else (around, distances)
    distances = Loop("distances", add, 1, 2)
    return (around, distances, pull_on) if pull else (around, distances)


@scale_free(1, -1, returns=1)
def stein_gradient(z: Tensor, score: Tensor | None, family: str, scales: list[float]) -> Tensor:
    """The Stein gradient (..., n, d) of z (..., n, d); without a score, that of the standard normal."""
    return sums(z, score, family, scales, False, value=False, pull=True)[1]


def sums(
    z: Tensor,
    score: Tensor | None,
    family: str,
    scales: list[float],
    unbiased: bool,
    *,
    value: bool,
    pull: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The discrepancy (...) if `value`, what pulls on z and, with both and a score, on the score (..., n, d).

    Those that are not made are empty.
    """
    batch, (n, d) = z.shape[:-2], z.shape[-2:]
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    problems = batch.numel()
    empty = z.new_empty(0, dtype=dtype)
    out = z.new_empty(batch, dtype=dtype) if value else empty
    gx = z.new_empty(z.shape, dtype=dtype) if pull else empty
    gs = z.new_empty(z.shape, dtype=dtype) if value and pull and score is not None else empty
    if problems == 0:
        return out, gx, gs

    launch = configuration(d, dtype, value, pull, score is None, family, len(scales))
    tiled = launch.kernel is _tiled_kernel
    norms = empty
    if value:
        own = z if score is None else score
        norms = own.to(dtype).square().sum(-1).mul_(0.5).reshape(-1)
    x = _pack(z, dtype)
    arguments: tuple[Any, ...] = (x,)
    if tiled and score is None:
        x = quads(x, None)
        arguments = (x, x)
    elif score is not None and value:
        x = quads(x, _pack(score, dtype))
        arguments = (x, x[..., 4:])
    elif score is not None:
        arguments = (quads(x, None), quads(_pack(score, dtype), None))

    blocks = triton.cdiv(n, launch.constants["ROWS"])
    splits = _splits(problems * blocks, n, launch.constants["COLUMNS"])
    values = z.new_empty(problems * blocks * splits, dtype=torch.float64) if value else empty
    # One split writes the sums themselves, several write partial ones for _finish_kernel.
    sums_x, sums_s, share = gx, gs, 0
    if tiled and pull:
        sums_x = sums_like(z, launch.constants["ROWS"], dtype)
        sums_s = (
            sums_like(z, launch.constants["ROWS"], dtype) if value and score is not None else empty
        )
    partial, partial_s = sums_x, sums_s
    if splits > 1 and pull:
        share = sums_x.numel() + sums_s.numel()
        partial = z.new_empty(splits * share, dtype=dtype)
        partial_s = partial[sums_x.numel() :]
    arguments += (norms, partial, partial_s, values, n, d) if tiled else (norms, partial, values, n)

    with on_device_of(z):
        launch.kernel[(problems * blocks * splits,)](
            *arguments, int(unbiased), splits, share, _scale_arguments(scales, dtype),
            **launch.constants, **launch.options,
        )  # fmt: skip
        finish = (problems if value else 0) + triton.cdiv(share, _FINISH_BLOCK)
        if finish:
            _finish_kernel[(finish,)](
                values, out, partial, sums_x, sums_s, blocks * splits, problems, splits, share,
                sums_x.numel(), VALUES=value, BLOCK=_FINISH_BLOCK, **_FINISH_OPTIONS,
            )  # fmt: skip
    if value and not unbiased:
        out.clamp_(min=0)  # a squared norm, which rounding does not make negative; NaN stays NaN
    if tiled and pull:
        tile = launch.constants["ROWS"], launch.constants["DEPTH"]
        gx = gathered(sums_x, z, *tile)
        gs = gathered(sums_s, z, *tile) if value and score is not None else gs
    return out, gx, gs
