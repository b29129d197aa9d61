"""The kernels of gumbel_softmax on CPUs, called as op.py calls them, against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

import vimae_kernels as vk
from vimae_kernels import _native
from vimae_kernels.ops.gumbel import native_impl, reference

pytestmark = pytest.mark.skipif(
    vk._backend.unavailable("native", "cpu") is not None, reason="the native core is not built"
)

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

# Rows of up to 32 elements are met several together, windows of noise hold 2048.
SHAPES = [(1, 1), (5, 1), (2, 3, 3), (129, 10), (33, 17), (9, 33), (3, 1000), (4, 2049)]


def accumulator(dtype):
    return F64 if dtype == F64 else F32


def a_seed(shape=()):
    return torch.randint(-(2**63), 2**63 - 1, shape)


def temperatures(shape, dtype):
    """Of each row; not one of them 1."""
    return (0.3 + 2 * torch.rand(shape[:-1], dtype=F64)).to(dtype)


def definition(x, seed, tau):
    """z = logits + noise, and softmax(z / tau), in float64."""
    z = x.double() + reference.gumbel_noise(x.shape, seed)
    rows = torch.as_tensor(tau, dtype=F64).expand(x.shape[:-1])[..., None]
    return z, (z / rows).softmax(-1), rows


@pytest.mark.parametrize("kind", ["number", "one", "rows"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_formula(shape, dtype, kind, poisoned):
    x, seed, exact = (3 * torch.randn(shape)).to(dtype), a_seed(), accumulator(dtype)
    taus = {
        "number": 0.7,
        "one": torch.tensor(0.7, dtype=exact),
        "rows": temperatures(shape, exact),
    }
    tau = taus[kind]
    z, want, rows = definition(x, seed, tau)
    # Rounding of z, divided by tau, and of the exponential's argument.
    size = z.abs().amax(-1, keepdim=True) + z.amax(-1, keepdim=True) - z.amin(-1, keepdim=True)
    tolerance = torch.finfo(exact).eps * (8 + 4 * size / rows)

    soft, nothing = native_impl.gumbel_softmax(x, seed, tau, False, True)
    assert soft.dtype == exact and soft.shape == shape and nothing.shape == (0,)
    assert ((soft - want).abs() <= tolerance * want + 1e-37).all()
    same, _ = native_impl.gumbel_softmax(x, seed, tau, False, False)
    assert torch.equal(soft, same)

    nothing, alone = native_impl.gumbel_softmax(x, seed, tau, True, False)
    saved, beside = native_impl.gumbel_softmax(x, seed, tau, True, True)
    assert nothing.shape == (0,) and saved.dtype == exact
    assert ((saved - want).abs() <= tolerance * want + 1e-37).all()
    first = torch.zeros(shape, dtype=dtype).scatter(-1, z.argmax(-1, keepdim=True), 1.0)
    for one_hot in (alone, beside):
        assert one_hot.dtype == dtype and torch.equal(one_hot, first)

    g = torch.randn(shape, dtype=exact)
    slope = native_impl.softmax_grad(soft, g, tau)
    y, dy = soft.double(), g.double()
    expected = y * (dy - (y * dy).sum(-1, keepdim=True)) / rows
    scale = y * (dy.abs() + (y * dy.abs()).sum(-1, keepdim=True)) / rows
    assert slope.dtype == exact and slope.shape == shape
    assert ((slope - expected).abs() <= 16 * torch.finfo(exact).eps * scale + 1e-37).all()


@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
@pytest.mark.parametrize("shape", [(40, 3), (40, 10), (7, 33), (3, 5000)], ids=str)
def test_a_tensor_of_equal_temperatures_is_that_temperature(level, shape):
    used = _native.simd_levels()["used"]
    x, seed, g = 3 * torch.randn(shape), a_seed(), torch.randn(shape)
    try:
        _native._C.set_level(level)
        for tau in (torch.tensor(0.6), torch.tensor(1.0)):
            number, rows = float(tau), tau.expand(shape[:-1]).contiguous()
            want, _ = native_impl.gumbel_softmax(x, seed, number, False, True)
            slope = native_impl.softmax_grad(want, g, number)
            for given in (tau, rows):
                soft, _ = native_impl.gumbel_softmax(x, seed, given, False, True)
                # At 1, one for all has a shorter way to the same sample.
                torch.testing.assert_close(soft, want, rtol=1e-5 if number == 1 else 0, atol=0)
                assert torch.equal(native_impl.softmax_grad(want, g, given), slope)
    finally:
        _native._C.set_level(used)


@pytest.mark.parametrize("k", [4, 40, 4000])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_no_temperature_makes_its_row_nan_and_no_other(k, dtype):
    values = [0.5, 0.0, -1.0, math.nan, -math.inf, -0.0, math.inf, 1e-45, 1e-320]
    tau = torch.tensor(values, dtype=dtype).repeat(5)
    x, seed, g = (
        torch.randn(len(tau), k, dtype=dtype),
        a_seed(),
        torch.randn(len(tau), k, dtype=dtype),
    )
    soft, one_hot = native_impl.gumbel_softmax(x, seed, tau, True, True)
    _, alone = native_impl.gumbel_softmax(x, seed, tau, True, False)
    slope = native_impl.softmax_grad(torch.full_like(x, 1 / k), 0.01 * g, tau)
    good = tau > 0
    for result in (soft, one_hot, alone, slope):
        assert result[good].isfinite().all() and result[~good].isnan().all()
    # Infinite is the limit: all alike.
    assert (soft[tau == math.inf] == 1 / k).all()
    for given in values:
        one = torch.tensor(given, dtype=dtype)
        for y in native_impl.gumbel_softmax(x, seed, one, True, True):
            assert y.isfinite().all() if one > 0 else y.isnan().all()


@pytest.mark.parametrize("k", [4, 36, 8196])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_extremes(k, dtype):
    most = torch.finfo(dtype).max
    rows = torch.tensor(
        [
            [1e30, -1e30, 0.0, 3e38],
            [-3e38, 3e38, 3e38, 0.0],
            [1.0, -math.inf, 0.0, -math.inf],
            [-math.inf, -most, -most, -most],
            [1.0, math.nan, 0.0, 2.0],
            [1.0, math.inf, 0.0, 2.0],
            [-math.inf] * 4,
        ],
        dtype=dtype,
    )
    x, seed = rows.repeat(1, k // 4), a_seed()
    z = (x.double() + reference.gumbel_noise(x.shape, seed)).to(dtype)
    for tau in (5e-324, 1e-30, 1.0, 1e30, 1e300):
        for given in (tau, torch.full((7,), tau, dtype=F64).clamp(1e-45, 3e38).to(dtype)):
            soft, beside = native_impl.gumbel_softmax(x, seed, given, True, True)
            _, alone = native_impl.gumbel_softmax(x, seed, given, True, False)
            for y in (soft, beside, alone):
                assert y[:4].isfinite().all() and y[4:].isnan().all()
                assert (y[:4][x[:4] == -math.inf] == 0).all()
                torch.testing.assert_close(y[:4].sum(-1), torch.ones(4, dtype=dtype))
            # The first of equals.
            assert torch.equal(alone[:4].argmax(-1), z[:4].argmax(-1))
            assert torch.equal(alone[:4], beside[:4])


def test_several_seeds_and_temperatures():
    x, seed = torch.randn(3, 2, 7, dtype=F64), a_seed((3, 2))
    tau = temperatures(x.shape, F64)
    for seeds in (seed, seed[:, 0].clone()):
        _, want, _ = definition(x, seeds, tau)
        got, _ = native_impl.gumbel_softmax(x, seeds, tau, False, True)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_no_rows():
    x = torch.randn(0, 5)
    for tau in (1.0, torch.tensor(1.0), torch.empty(0)):
        soft, one_hot = native_impl.gumbel_softmax(x, a_seed(), tau, True, True)
        assert soft.shape == one_hot.shape == native_impl.softmax_grad(x, x, tau).shape == (0, 5)


@pytest.mark.parametrize("shape", [(4, 10), (3, 130_001)], ids=str)
def test_threads_change_no_bit_of_the_one_hot_sample(shape):
    x, seed, tau = torch.randn(shape), a_seed(), temperatures(shape, F32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs = [native_impl.gumbel_softmax(x, seed, tau, True, True) for _ in range(2)]
            assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
            found.append(runs[0])
    finally:
        torch.set_num_threads(before)
    (soft, one_hot), (soft3, one_hot3) = found
    assert torch.equal(one_hot, one_hot3)
    torch.testing.assert_close(soft, soft3)
