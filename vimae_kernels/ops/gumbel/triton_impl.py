# mypy: disable-error-code="assignment, no-untyped-def"
"""The Gumbel-softmax in Triton: a program has one or several rows, and makes their noise as it goes.

Up to some thousand categories a row is held in registers and met once. Beyond, a first sweep over it
finds the largest element and the sums, a second writes, and both make the noise: four logarithms of
arithmetic cost less than the memory to keep it.

Four neighbouring elements share a block of Philox words. A row that does not begin with the first
of four starts up to three columns early, which are left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._autograd import accumulator
from ..._triton import Launch, Loop, Shipped, on_device_of


@triton.jit
def _philox(counter, k0, k1):
    """Philox4x32-10 of int64 counters, with the words of the key: four words each."""
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    for i in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ (k0 + (0x9E3779B9 * i & 0xFFFFFFFF))
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ (k1 + (0xBB67AE85 * i & 0xFFFFFFFF))
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _log1p_near(r, DOUBLE: tl.constexpr):
    """log(1 + r) for sqrt(1/2) <= 1 + r <= sqrt(2), exact also where r is small: see gumbel_math.h."""
    if DOUBLE:
        s = r / (r + 2.0)
        z = s * s
        half = r * r * 0.5
        p = z * (2.0 / 21)
        for k in tl.static_range(1, 10):
            p = (p + 2.0 / (2 * (10 - k) + 1)) * z
        log = r - (half - s * (half + p))
    else:
        z = r * r
        low = tl.fma(
            tl.fma(r, -0.1657758504152298, 0.19963063299655914),
            z,
            tl.fma(r, -0.2500133812427521, 0.3333390951156616),
        )
        p = tl.fma(tl.fma(r, 0.08700434863567352, -0.14267486333847046), r, 0.14914768934249878)
        p = tl.fma(p, z * z, low)
        log = tl.fma(tl.fma(p, r, -0.5), z, r)
    return log


@triton.jit
def _split(x, DOUBLE: tl.constexpr):
    """(k, f) with x = 2^k f and sqrt(1/2) <= f < sqrt(2), for normal positive x; k of float32 in units of 2^-23."""
    if DOUBLE:
        bits = x.to(tl.int64, bitcast=True) - 0x3FE6A09E667F3BCD
        k = bits >> 52
        f = (bits & ((1 << 52) - 1)) + 0x3FE6A09E667F3BCD
    else:
        bits = x.to(tl.int32, bitcast=True)
        # As it stands in the bits of x.
        k = (bits - 0x3F3504F3) & -0x800000
        f = bits - k
    return k.to(x.dtype), f.to(x.dtype, bitcast=True)


@triton.jit
def _add_log2(k, log, DOUBLE: tl.constexpr):
    if DOUBLE:
        return k * 0.6931471803691238 + (log + k * 1.9082149292705877e-10)
    else:
        # Rounded to float32, log 2 is right to 3e-9 of itself.
        return tl.fma(k, 8.262958317573066e-08, log)


@triton.jit
def _gumbel(word, DOUBLE: tl.constexpr):
    """-log(-log(1 - u)) with u = (word + 1/2) 2^-32."""
    FLOAT: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    # Of u and 1 - u the smaller is exact; below 1 - sqrt(1/2), log(1 - u) needs no exponent.
    small = word < 1257966797
    v = tl.fma(
        tl.where(small, word, ~word).to(FLOAT), 2.3283064365386963e-10, 1.1641532182693481e-10
    )
    k, f = _split(v, DOUBLE)
    near = _log1p_near(tl.where(small, -v, f - 1.0), DOUBLE)
    e = -_add_log2(tl.where(small, 0.0, k), near, DOUBLE)
    k, f = _split(e, DOUBLE)
    return -_add_log2(k, _log1p_near(f - 1.0, DOUBLE), DOUBLE)


@triton.jit
def _words(block, k0, k1, start, COLUMNS: tl.constexpr):
    """The words of COLUMNS elements of each row, `start` after the first of the block."""
    counter = block + (start // 4 + tl.arange(0, COLUMNS // 4))[None, :]
    w0, w1, w2, w3 = _philox(counter, k0, k1)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def _rows(seed, rows, K, share, ROWS: tl.constexpr, SEEDS: tl.constexpr, ALIGNED: tl.constexpr):
    """Of each row, as columns: its number, its first block and column in it, and its key."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    number = tl.zeros_like(row)
    if SEEDS:
        number = row // share
    first = (row - number * share) * K
    key = tl.load(seed + number, mask=row < rows, other=0)
    early = first * 0 if ALIGNED else first & 3
    return (
        row[:, None],
        (first >> 2)[:, None],
        early.to(tl.int32)[:, None],
        key.to(tl.uint32)[:, None],
        (key >> 32).to(tl.uint32)[:, None],
    )


@triton.jit
def _exp(x, DOUBLE: tl.constexpr):
    return tl.exp(x) if DOUBLE else tl.exp2(x)


@triton.jit
def _float(bits, DOUBLE: tl.constexpr):
    """A float64 or float32 that came as an integer: Triton takes Python floats as float32."""
    return tl.cast(bits, tl.float64 if DOUBLE else tl.float32, bitcast=True)


@triton.jit
def _rate(rate, numerator, tau, stride, row, rows, PER_ROW: tl.constexpr, DOUBLE: tl.constexpr):
    """`rate`, or numerator / tau of each row: the normal number nearest to it, NaN where tau is not positive."""
    if PER_ROW:
        TINY: tl.constexpr = 2.2250738585072014e-308 if DOUBLE else 1.1754943508222875e-38
        MOST: tl.constexpr = 1.7976931348623157e308 if DOUBLE else 3.4028234663852886e38
        t = tl.load(tau + row * stride, mask=row < rows, other=1.0)
        n = tl.full(t.shape, numerator, t.dtype)
        quotient = n / t if DOUBLE else tl.div_rn(n, t)
        quotient = tl.minimum(tl.maximum(quotient, TINY), MOST)
        return tl.where(t > 0.0, quotient, float("nan"))
    else:
        return _float(rate, DOUBLE)


@triton.jit(do_not_specialize=["stride", "rows", "K", "share", "scale"])
def _sample_kernel(
    logits, seed, tau, soft, one_hot, stride, rows, K, share, scale,
    MODE: tl.constexpr, PER_ROW: tl.constexpr, SEEDS: tl.constexpr, ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The samples of logits (rows, K) that MODE says: "soft", "hard", "both".

    `share` rows have a seed together; `scale` is 2 / tau in units of _exp, unless PER_ROW has that of row b at
    tau + b * stride.
    """
    DOUBLE: tl.constexpr = logits.dtype.element_ty == tl.float64
    FLOAT: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row, block, early, k0, k1 = _rows(seed, rows, K, share, ROWS, SEEDS, ALIGNED)
    UNIT: tl.constexpr = 2.0 if DOUBLE else 2.8853900817779268
    scale = _rate(scale, UNIT, tau, stride, row, rows, PER_ROW, DOUBLE)
    if ALIGNED:
        # Of an argument tl.multiple_of says nothing, and then no thread loads four at once.
        K = K // 4 * 4
    stop = tl.where(row < rows, K, 0)
    at = row * K - early
    columns = tl.arange(0, COLUMNS)[None, :]
    lowest = float("-inf")
    if WHOLE:
        c = columns - early
        inside = (c >= 0) & (c < stop)
        z = tl.load(logits + at + columns, mask=inside, other=lowest).to(FLOAT)
        z += _gumbel(_words(block, k0, k1, 0, COLUMNS), DOUBLE)
        most = tl.max(z, 1)[:, None]
        if MODE != "soft":
            first = tl.min(tl.where(z == most, c, K), 1)[:, None]
            undefined = tl.max((z != z).to(tl.int32), 1)[:, None] > 0
            if PER_ROW:
                undefined |= scale != scale
            y = tl.where(c == first, 1.0, 0.0)
            y = tl.where(undefined | (most - most != 0.0), float("nan"), y)
            tl.store(one_hot + at + columns, y.to(one_hot.dtype.element_ty), mask=inside)
        if MODE != "hard":
            # In halves: the difference of two finite numbers may be infinite.
            y = _exp((z * 0.5 - most * 0.5) * scale, DOUBLE)
            y /= tl.sum(y, 1)[:, None]
            tl.store(soft + at + columns, y, mask=inside)
    else:
        # Each column of the block has a maximum, and its sum is relative to it.
        # Sums must not meet the difference of two infinities.
        LEAST: tl.constexpr = -1.7976931348623157e308 if DOUBLE else -3.4028234663852886e38
        highest = tl.full((ROWS, COLUMNS), LEAST if MODE == "soft" else lowest, FLOAT)
        total = tl.zeros((ROWS, COLUMNS), FLOAT)
        found = tl.zeros((ROWS, COLUMNS), tl.int32)
        for start in range(0, K + 3, COLUMNS):
            c = start + columns - early
            inside = (c >= 0) & (c < stop)
            z = tl.load(logits + at + start + columns, mask=inside, other=lowest).to(FLOAT)
            z += _gumbel(_words(block, k0, k1, start, COLUMNS), DOUBLE)
            higher = z > highest
            if MODE == "hard":
                total = tl.where(z != z, 1.0, total)
            else:
                bound = highest if MODE == "soft" else tl.maximum(highest, LEAST)
                x = _exp(-tl.abs((z * 0.5 - bound * 0.5) * scale), DOUBLE)
                total = tl.where(higher, total * x + 1.0, total + x)
            if MODE != "soft":
                found = tl.where(higher, c, found)
            highest = tl.where(higher, z, highest)
        most = tl.max(highest, 1)[:, None]
        if MODE == "hard":
            undefined = tl.max(total, 1)[:, None] > 0.0
            if PER_ROW:
                undefined |= scale != scale
        else:
            weight = _exp((highest * 0.5 - most * 0.5) * scale, DOUBLE)
            inverse = 1.0 / tl.sum(total * weight, 1)[:, None]
            undefined = inverse != inverse
        if MODE != "soft":
            first = tl.min(tl.where(highest == most, found, K), 1)[:, None]
        for start in range(0, K + 3, COLUMNS):
            c = start + columns - early
            inside = (c >= 0) & (c < stop)
            if MODE != "soft":
                y = tl.where(c == first, 1.0, 0.0)
                y = tl.where(undefined | (most - most != 0.0), float("nan"), y)
                y = y.to(one_hot.dtype.element_ty)
                tl.store(one_hot + at + start + columns, y, mask=inside)
            if MODE != "hard":
                z = tl.load(logits + at + start + columns, mask=inside, other=lowest).to(FLOAT)
                z += _gumbel(_words(block, k0, k1, start, COLUMNS), DOUBLE)
                y = _exp((z * 0.5 - most * 0.5) * scale, DOUBLE) * inverse
                tl.store(soft + at + start + columns, y, mask=inside)


@triton.jit(do_not_specialize=["stride", "rows", "K", "slope"])
def _backward_kernel(
    sample, gradient, tau, out, stride, rows, K, slope,
    PER_ROW: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = sample (gradient - sum(sample gradient)) / tau of the rows of (rows, K); `slope` is 1 / tau."""
    DOUBLE: tl.constexpr = sample.dtype.element_ty == tl.float64
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    slope = _rate(slope, 1.0, tau, stride, row, rows, PER_ROW, DOUBLE)
    stop = tl.where(row < rows, K, 0)
    columns = tl.arange(0, COLUMNS)[None, :]
    at = row * K + columns
    if WHOLE:
        y = tl.load(sample + at, mask=columns < stop, other=0.0)
        g = tl.load(gradient + at, mask=columns < stop, other=0.0)
        g -= tl.sum(y * g, 1)[:, None]
        tl.store(out + at, y * g * slope, mask=columns < stop)
    else:
        dot = tl.zeros((ROWS, COLUMNS), sample.dtype.element_ty)
        for start in range(0, K, COLUMNS):
            y = tl.load(sample + at + start, mask=start + columns < stop, other=0.0)
            g = tl.load(gradient + at + start, mask=start + columns < stop, other=0.0)
            dot += y * g
        total = tl.sum(dot, 1)[:, None]
        for start in range(0, K, COLUMNS):
            y = tl.load(sample + at + start, mask=start + columns < stop, other=0.0)
            g = tl.load(gradient + at + start, mask=start + columns < stop, other=0.0)
            tl.store(out + at + start, y * (g - total) * slope, mask=start + columns < stop)


def _tile(K: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and options for rows of K columns: four elements per thread and more for long rows."""
    whole = K <= 8192
    columns = max(16, triton.next_power_of_2(K)) if whole else 2048
    warps = 4 if columns <= 1024 else 8 if columns <= 4096 else 16
    constants = {"WHOLE": whole, "ROWS": max(1, 512 // columns), "COLUMNS": columns}
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    if not whole and torch.version.hip is None:
        # Left alone, ptxas spills a few registers where that lets one more program fit.
        options["maxnreg"] = 128
    return constants, options


def _sample_launch(K: int, mode: str, per_row: bool, seeds: bool) -> Launch:
    aligned = K % 4 == 0
    constants, options = _tile(K if aligned else K + 3)
    constants = {"MODE": mode, "PER_ROW": per_row, "SEEDS": seeds, "ALIGNED": aligned, **constants}
    return Launch(_sample_kernel, constants, options)


def _backward_launch(K: int, per_row: bool) -> Launch:
    constants, options = _tile(K)
    return Launch(_backward_kernel, {"PER_ROW": per_row, **constants}, options)


def shipped() -> Iterator[Shipped]:
    """Kinds of tiles with float32 logits and some with others.

    Several seeds, which add a division per row, and several temperatures, which add another, once.
    """
    for bits, sizes in ((32, (10, 13, 128, 1024, 8192, 65536)), (64, (10, 1024)), (16, (1024,))):
        word = "i64" if bits == 64 else "i32"
        types = {
            **dict.fromkeys(("logits", "one_hot"), f"*fp{bits}"),
            **dict.fromkeys(("tau", "soft", "sample", "gradient", "out"), f"*fp{max(bits, 32)}"),
            **{"seed": "*i64", "scale": word, "slope": word},
        }
        launches = [
            (f"{mode} K={K}", _sample_launch(K, mode, False, False))
            for K in sizes
            for mode in ("soft", "hard", "both")
        ]
        if 1024 in sizes:
            launches += [
                ("soft K=1024, seeds", _sample_launch(1024, "soft", False, True)),
                ("both K=1024, taus", _sample_launch(1024, "both", True, False)),
            ]
        if bits > 16:
            launches += [(f"from the sample K={K}", _backward_launch(K, False)) for K in sizes]
            launches += [("from the sample K=1024, taus", _backward_launch(1024, True))]
        for name, launch in launches:
            known = {**types, **dict.fromkeys(launch.constants, "constexpr")}
            arguments = {a: known.get(a, "i32") for a in launch.kernel.arg_names}
            everywhere = bits == 32 and name.endswith("K=1024")
            loops = _loops(launch) if bits == 32 else ()
            yield Shipped(f"{name} fp{bits}", launch, arguments, loops, everywhere)


def _loops(launch: Launch) -> tuple[Loop, ...]:
    """By hand, an element in float32 of rows that are met twice; shorter rows have no loop.

    Its noise takes 49: 10 of Philox, for four elements share ten rounds of two wide products and two exclusive ors of
    three words; 4 to make u of a word (a comparison, the complement, a conversion, a multiply-add); 34 for two
    logarithms, each a split in four (difference, mask, difference, conversion), f - 1, ten for the polynomial
    (multiply-adds but for two products), a multiply-add for the exponent, and two selections in the first; and one
    to add it to the logit. Then 9 for the sum: a comparison, three for the argument of the exponential, that, two
    updates and a selection among them, and the maximum. For the one-hot sample beside it two more: the place of the
    maximum and its bound. The second sweep has the three of the argument, the exponential and a product, and for the
    one-hot sample a comparison and two selections more. The hard sample alone has five: two comparisons and three
    selections.
    """
    if launch.kernel is _backward_kernel or launch.constants["WHOLE"]:
        return ()
    mode = launch.constants["MODE"]
    ffma, plain = {"soft": (21, 58), "hard": (19, 54), "both": (21, 60)}[mode]
    sweep = Loop("sums", "FFMA", ffma, plain, without="STG")
    if mode == "hard":
        return (sweep,)
    return sweep, Loop("sample", "FFMA", 20, 54 if mode == "soft" else 57)


def gumbel_softmax(
    logits: Tensor, seed: Tensor, tau: float | Tensor, hard: bool, need_soft: bool
) -> tuple[Tensor, Tensor]:
    """As in native_impl.py."""
    x, seed = logits.contiguous(), seed.contiguous()
    mode = "both" if hard and need_soft else "hard" if hard else "soft"
    soft = x.new_empty(0 if mode == "hard" else x.shape, dtype=accumulator(x))
    one_hot = x.new_empty(0 if mode == "soft" else x.shape)
    if x.numel():
        K = x.shape[-1]
        rows = x.numel() // K
        launch = _sample_launch(K, mode, isinstance(tau, Tensor), seed.numel() > 1)
        unit = 2 if x.dtype == torch.float64 else 2 * 1.4426950408889634
        taus, stride, scale = _temperature(unit, tau, soft)
        with on_device_of(x):
            launch.kernel[(triton.cdiv(rows, launch.constants["ROWS"]),)](
                x, seed, taus, soft, one_hot, stride, rows, K, rows // seed.numel(), scale,
                **launch.constants, **launch.options,
            )  # fmt: skip
    return soft, one_hot


def softmax_grad(y: Tensor, g: Tensor, tau: float | Tensor) -> Tensor:
    y, g = y.contiguous(), g.contiguous()
    out = y.new_empty(y.shape)
    if out.numel():
        K = y.shape[-1]
        rows, launch = y.numel() // K, _backward_launch(K, isinstance(tau, Tensor))
        taus, stride, slope = _temperature(1, tau, y)
        with on_device_of(y):
            launch.kernel[(triton.cdiv(rows, launch.constants["ROWS"]),)](
                y, g, taus, out, stride, rows, K, slope, **launch.constants, **launch.options
            )
    return out


def _temperature(numerator: float, tau: float | Tensor, like: Tensor) -> tuple[Tensor, int, int]:
    """What a kernel takes for tau: its values, the step from row to row, or else the bits of numerator / tau.

    `like` is a tensor in the accumulator's dtype, to stand where there are no values.
    """
    if isinstance(tau, Tensor):
        return tau, int(tau.ndim > 0), 0
    limits = torch.finfo(like.dtype)
    # The normal number nearest to it.
    rate = min(max(numerator / tau, limits.tiny), limits.max)
    number, integer = ("d", "q") if limits.bits == 64 else ("f", "i")
    (bits,) = struct.unpack(integer, struct.pack(number, rate))
    return like, 0, int(bits)
