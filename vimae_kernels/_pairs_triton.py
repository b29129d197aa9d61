# mypy: disable-error-code="assignment, no-untyped-def"
"""What Triton kernels over pairs of points are made of.

Large d: a tile of pairs has four dimensions, (R, C, DOWN, ACROSS): row r * DOWN + i meets column c * ACROSS + j.
Triton spreads a tensor's last dimensions over threads first, so where DOWN * ACROSS is the number of threads each of
them holds R x C pairs in registers, and R + C loads serve R * C differences. R * DOWN and C * ACROSS must be fewer than
the threads: then Triton loads a coordinate where it is used, and not by way of shared memory.

Points come in quads of coordinates (see `quads`): a tile's points lie side by side, and the coordinates of a quad one
load apart. They are padded so that no tile reaches beyond, for then a thread has one address for its points of a side,
and a constant to each of them. That needs POINTS to be a multiple of a tile's rows, and those of its columns.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Points and coordinates come in multiples of these.
POINTS: tl.constexpr = tl.constexpr(128)
PADDED: tl.constexpr = tl.constexpr(32)


def quads(t: Tensor, directions: Tensor | None) -> Tensor:
    """t (B, n, d) as (B, quads, padded n, 4), zeros at the end; with directions as (..., 8), four of each."""
    parts = [t] if directions is None else [t, directions]
    padding = 0, -t.shape[-1] % PADDED.value, 0, -t.shape[-2] % POINTS.value
    parts = [torch.nn.functional.pad(p, padding) for p in parts]
    return torch.cat([p.unflatten(-1, (-1, 4)) for p in parts], -1).movedim(-2, -3).contiguous()


def sums_like(t: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Memory for what programs add up for t (..., n, d), the tile of a program after that of another."""
    *batch, n, d = t.shape
    size = triton.cdiv(n, rows) * rows * triton.cdiv(d, PADDED.value) * PADDED.value
    return t.new_empty(math.prod(batch) * size, dtype=dtype)


def gathered(sums: Tensor, t: Tensor, rows: int, depth: int) -> Tensor:
    """Those sums as t is."""
    *batch, n, d = t.shape
    blocks, deep = triton.cdiv(n, rows), triton.cdiv(d, PADDED.value) * (PADDED.value // depth)
    tiles = sums.view(*batch, blocks, deep, rows, depth).transpose(-3, -2)
    return tiles.reshape(*batch, blocks * rows, deep * depth)[..., :n, :d].contiguous()


# Kernels as functions of s = ||x - y||^2. With c the smallest scale, they are returned in units
# that spare a single scale the multiplications: k = V * _value_unit, -k' = A * _slope_unit and
# 2 k'' = B * _slope_unit.


@triton.jit
def scale(scales, i: tl.constexpr, DOUBLE: tl.constexpr):
    # Triton passes Python floats as float32; two of them make a double good to 1e-14.
    if DOUBLE:
        c = tl.full((), scales[2 * i], tl.float64) + tl.full((), scales[2 * i + 1], tl.float64)
    else:
        c = tl.full((), scales[i], tl.float32)
    return c


@triton.jit
def start_of(scales, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    """What a sum of squares starts from: with c, the c + s of IMQ costs no addition."""
    c = scale(scales, 0, DOUBLE)
    return c if IMQ else c * 0.0


@triton.jit
def reciprocal(s, DOUBLE: tl.constexpr):
    """1 / s for s > 1.2e-38, in half the instructions of a division or fewer; 0 where s overflows float32."""
    r = tl.rsqrt(s.to(tl.float32))
    r = r * r
    if DOUBLE:
        first = r.to(tl.float64)
        # At most 2^-21: its cube is nothing in float64.
        error = tl.fma(-s, first, 1.0)
        exact = tl.fma(tl.fma(error, error, error), first, first)
        r = tl.where(r == 0.0, 0.0, exact)
    return r


@triton.jit
def power_of_2(x, zero):
    """2^x for float64 x <= 0 to 4e-16 of itself, 1 at 0; below 2^-1021 it is 0.

    The polynomial is that of degree 10 with the least relative error for |f| <= 1/2. Its last three coefficients
    have 21 bits, which more would not improve, for such are part of an instruction. The others are made anew for
    every use, two moves each, unless `zero` is one that the compiler does not know: then they wait in registers.
    """
    # Of so large a number the last bit is 1: what is added to it is rounded to a whole number.
    shifted = x + 6755399441055744.0
    f = x - (shifted - 6755399441055744.0)
    p = f * 7.041922600592443e-09 + 1.0208520961896284e-07
    p = p * f + 1.321563104283996e-06
    p = p * f + (1.52526582275013e-05 + zero)
    p = p * f + (0.00015403530041365867 + zero)
    p = p * f + (0.0013333558228314545 + zero)
    p = p * f + (0.00961812910794362 + zero)
    p = p * f + (0.05550410866446093 + zero)
    p = p * f + (0.24022650695909212 + zero)
    p = p * f + (0.6931471805599497 + zero)
    p = p * f + 1.0
    # 1.0 with that number in its exponent.
    power = (shifted.to(tl.int64, bitcast=True) << 52) + 0x3FF0000000000000
    return tl.where(x < -1021.0, 0.0, p * power.to(tl.float64, bitcast=True))


@triton.jit
def exponential(s, c, SCALES: tl.constexpr, DOUBLE: tl.constexpr):
    """e^(-s / c)."""
    x = s * (-1.4426950408889634 / c)
    if DOUBLE and SCALES == 1 and len(s.shape) == 2:
        x = power_of_2(x, c * 0.0)
    elif DOUBLE:
        # Several scales, and tiles of four dimensions, leave no registers.
        x = power_of_2(x, 0.0)
    else:
        x = tl.exp2(x)
    return x


@triton.jit
def kernel(s, scales, SCALES: tl.constexpr, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    """(V, A, B) for s counted from `_start`."""
    c = scale(scales, 0, DOUBLE)
    for i in tl.static_range(SCALES):
        ci = scale(scales, i, DOUBLE)
        if IMQ:
            s_i = s if i == 0 else s + (ci - c)
            u = reciprocal(s_i, DOUBLE)
            ratio = ci / c
            v_i = u
            a_i = u * u
            b_i = a_i * u * 4.0
        else:
            ratio = c / ci
            v_i = exponential(s, ci, SCALES, DOUBLE)
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
def value_unit(scales, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    c = scale(scales, 0, DOUBLE).to(tl.float64)
    return c if IMQ else c / c


@triton.jit
def slope_unit(scales, IMQ: tl.constexpr, DOUBLE: tl.constexpr):
    c = scale(scales, 0, DOUBLE).to(tl.float64)
    return c if IMQ else 1.0 / c


@triton.jit
def share_of(begin, end, split, splits, COLUMNS: tl.constexpr):
    """The part of the columns begin..end that one of `splits` programs sweeps."""
    size = tl.cdiv(tl.cdiv(end - begin, splits), COLUMNS) * COLUMNS
    start = begin + split * size
    return start, tl.minimum(start + size, end)


@triton.jit
def coordinates(p, mask, D: tl.constexpr, PAIRED: tl.constexpr):
    """The D coordinates of the points at p, a tuple of vectors."""
    out = ()
    if PAIRED and p.dtype.element_ty == tl.float64:
        # Two in one load of 16 bytes, where they are aligned; see `quad`.
        for k in tl.static_range(0, D, 2):
            at = p[:, None] + (k + tl.arange(0, 2))[None, :]
            pair = tl.load(
                at,
                mask=None if mask is None else mask[:, None],
                other=None if mask is None else 0.0,
            )
            low, high = tl.split(pair)
            out = out + (low, high)
    elif PAIRED:
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
def quad(p, WIDTH: tl.constexpr):
    """The WIDTH coordinates at each p (R, DOWN), of points in quads: a tuple."""
    if p.dtype.element_ty == tl.float64:
        # Two in one load of 16 bytes; twice the points are to be fewer than the threads, as in the beginning.
        out = ()
        for k in tl.static_range(0, WIDTH, 2):
            at = tl.multiple_of(p[:, :, None] + (k + tl.arange(0, 2)), (1, 1, 16))
            low, high = tl.split(tl.load(at))
            out = out + (low, high)
    else:
        out = coordinates(p, None, WIDTH, True)
    return out


@triton.jit
def points(first, R: tl.constexpr, DOWN: tl.constexpr):
    """The points of a side of a tile, (R, DOWN)."""
    return first + tl.arange(0, R)[:, None] * DOWN + tl.arange(0, DOWN)[None, :]


@triton.jit
def padded(n):
    """The points of `quads` for n."""
    return tl.cdiv(n, POINTS) * POINTS


@triton.jit
def places(first, R: tl.constexpr, DOWN: tl.constexpr, WIDTH: tl.constexpr):
    """Where the points of a side of a tile begin, (R, DOWN)."""
    # In 64 bits: sums of 32 may wrap, and nothing is known of their distance.
    own = (first + tl.arange(0, DOWN)).to(tl.int64) * WIDTH
    return own[None, :] + (tl.arange(0, R).to(tl.int64) * (DOWN * WIDTH))[:, None]


@triton.jit
def distances(
    x, row, n_rows, y, column, n_columns, d, start,
    DIRECTIONS: tl.constexpr, DOUBLE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """||x_i - y_j||^2 from `start` on and, with DIRECTIONS, (x_i - y_j) . (v_i - w_j), of padded points."""
    WIDTH: tl.constexpr = 8 if DIRECTIONS else 4
    s = tl.zeros((R, C, DOWN, ACROSS), tl.float64 if DOUBLE else tl.float32)
    q = s
    s += start
    own = places(row, R, DOWN, WIDTH)
    other = places(column, C, ACROSS, WIDTH)
    for _ in range(0, d, 4):
        xs = quad(x + own, WIDTH)
        ys = quad(y + other, WIDTH)
        for k in tl.static_range(4):
            difference = xs[k][:, None, :, None] - ys[k][None, :, None, :]
            s = tl.fma(difference, difference, s)
            if DIRECTIONS:
                q = tl.fma(difference, xs[k + 4][:, None, :, None] - ys[k + 4][None, :, None, :], q)
        x += n_rows * WIDTH
        y += n_columns * WIDTH
    return s, q


@triton.jit
def row_sums(partial):
    """(rows, 1) of what the threads of a row have, (R, DOWN, ACROSS)."""
    return tl.reshape(tl.sum(partial, 2), (partial.shape[0] * partial.shape[1], 1))


@triton.jit
def column_pieces(tile):
    """A tile as matrices (rows, ACROSS), of the columns 0.., ACROSS.., 2 ACROSS.. and so on; C is 2, 4 or 8."""
    C: tl.constexpr = tile.shape[1]
    ACROSS: tl.constexpr = tile.shape[3]
    rows: tl.constexpr = tile.shape[0] * tile.shape[2]
    tile = tl.permute(tile, (0, 2, 3, 1))
    # In the order of bits from the last: a tensor splits in two along its last dimension alone.
    x, y = tl.split(tl.reshape(tile, (rows, ACROSS, C // 2, 2)))
    if C == 2:
        return tl.reshape(x, (rows, ACROSS)), tl.reshape(y, (rows, ACROSS))
    else:
        x0, x1 = tl.split(tl.reshape(x, (rows, ACROSS, C // 4, 2)))
        y0, y1 = tl.split(tl.reshape(y, (rows, ACROSS, C // 4, 2)))
        if C == 4:
            return (
                tl.reshape(x0, (rows, ACROSS)),
                tl.reshape(y0, (rows, ACROSS)),
                tl.reshape(x1, (rows, ACROSS)),
                tl.reshape(y1, (rows, ACROSS)),
            )
        else:
            x00, x01 = tl.split(x0)
            x10, x11 = tl.split(x1)
            y00, y01 = tl.split(y0)
            y10, y11 = tl.split(y1)
            return x00, y00, x10, y10, x01, y01, x11, y11


@triton.jit
def block(x, first, n, k, COUNT: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """The addresses of the coordinates k.. k + DEPTH of COUNT points, (COUNT, DEPTH)."""
    ks = tl.arange(0, DEPTH)
    x += n.to(tl.int64) * WIDTH * (k // 4)
    at = ((first + tl.arange(0, COUNT)) * WIDTH)[:, None]
    return x + (at + (ks // 4 * (n * WIDTH) + ks % 4)[None, :]).to(tl.int64)


@triton.jit
def sums_of(g, k, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """The addresses of a program's sums for the coordinates k.. k + DEPTH, (ROWS, DEPTH): see `gathered`."""
    rows = tl.arange(0, ROWS)[:, None]
    return g + k * ROWS + (rows * DEPTH + tl.arange(0, DEPTH)[None, :])


@triton.jit
def product(a, y, total):
    """total + a y, in full precision. Triton 3.6 wants at least 16 columns of a."""
    return tl.dot(a, y, total, input_precision="ieee", out_dtype=total.dtype)
