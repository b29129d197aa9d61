"""The Triton kernels against the float64 definition.

Not collected by name: Triton chooses between compiling and interpreting when it is imported, so
tests/test_interpreted.py runs this file in a process of its own, interpreted on the CPU or, where
there is one, on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

import vimae_kernels as vk
from vimae_kernels import _pairs_triton
from vimae_kernels.ops.median import reference as median_reference
from vimae_kernels.ops.median import triton_impl as median_triton
from vimae_kernels.ops.mmd import reference, triton_impl

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"

# Absolute error of the loss per scale, and of derivatives relative to their largest entry.
TOLERANCES = {
    torch.float64: (1e-14, 1e-13),
    torch.float32: (2e-6, 2e-4),
    torch.bfloat16: (2e-6, 2e-4),
    torch.float16: (2e-6, 2e-4),
}
SHIFTED = {torch.float64: (1e-13, 1e-11), torch.float32: (5e-6, 1e-3)}

IMQ1, IMQ3 = ("imq", [3.0]), ("imq", [9.1, 0.4, 27.3])
RBF1, RBF2 = ("rbf", [5.0]), ("rbf", [0.7, 5.0])
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """Memory from torch.empty holds NaN, so that an element nobody writes is seen."""

    def poison(empty):
        def filled(*args, **kwargs):
            out = empty(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(-(2**30))

        return filled

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


def samples(n, m, d, dtype, batch=(), shift=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, d, generator=g, dtype=F64) + shift
    y = 1.2 * torch.randn(*batch, m, d, generator=g, dtype=F64) + 0.1 + shift
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def directions(x, y):
    g = torch.Generator().manual_seed(9)
    return (torch.randn(t.shape, generator=g, dtype=F64).to(DEVICE, t.dtype) for t in (x, y))


def truth(x, y, kernel, unbiased, directions=None):
    """Value, gradient and, given directions, Hessian-vector product by autograd in float64."""
    x, y = x.double().requires_grad_(), y.double().requires_grad_()
    # The square is for m = 0, where the value does not know of y.
    value = reference.mmd(x, y, *kernel, unbiased) + 0 * y.square().sum((-1, -2))
    gradient = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    if directions is None:
        return value, *gradient
    along = sum((g * v.double()).sum() for g, v in zip(gradient, directions, strict=True))
    return value, *gradient, *torch.autograd.grad(along, (x, y))


def check_value(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance


def check_derivative(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (
        actual.numel() == 0
        or (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()
    )


# Every d below, at and above the powers of two; d = 17 and 100 take the tiled kernels.
@pytest.mark.parametrize(
    ("n", "m", "d", "dtype", "kernel", "unbiased", "batch"),
    [
        (2, 3, 1, F64, IMQ1, True, ()),
        (3, 2, 1, F32, RBF1, False, (3,)),
        (17, 7, 2, F32, IMQ3, True, ()),
        (7, 33, 2, F64, RBF2, False, (2, 2)),
        (33, 17, 3, F64, IMQ3, True, (2,)),
        (33, 70, 3, F32, IMQ1, False, ()),
        (70, 33, 8, F32, IMQ1, True, ()),
        (2, 33, 8, BF16, RBF1, True, (2,)),
        (33, 2, 8, F64, RBF1, True, ()),
        (130, 100, 10, F32, IMQ1, True, ()),
        (17, 33, 16, F16, IMQ3, False, ()),
        (33, 17, 16, F64, IMQ1, True, ()),
        (7, 3, 17, F32, RBF2, True, (2,)),
        (33, 17, 17, F64, IMQ1, False, ()),
        (70, 40, 64, F32, IMQ1, True, ()),
        (2, 3, 64, F64, RBF1, True, (2,)),
        (3, 2, 100, BF16, IMQ1, True, ()),
        (33, 35, 100, F32, IMQ3, False, ()),
        # Without a second sample its terms vanish.
        (33, 0, 3, F32, IMQ3, True, (2,)),
        (17, 0, 17, F64, RBF2, False, ()),
    ],
)
def test_against_the_definition(n, m, d, dtype, kernel, unbiased, batch):
    kernel = kernel[0], [c * d for c in kernel[1]]
    x, y = samples(n, m, d, dtype, batch)
    vx, vy = directions(x, y)
    value, gx, gy, hx, hy = truth(x, y, kernel, unbiased, (vx, vy))
    absolute, relative = TOLERANCES[dtype]
    absolute *= len(kernel[1])
    accumulator = F64 if dtype == F64 else F32

    alone = triton_impl.mmd(x, y, *kernel, unbiased)
    assert alone.dtype == accumulator
    check_value(alone, value, absolute)

    # No caller asks for the gradient of an empty sample alone.
    for need_x, need_y in ((True, True), (True, False), (False, True))[: 3 if m else 2]:
        out, dx, dy = triton_impl.mmd_grad(x, y, need_x, need_y, *kernel, unbiased)
        check_value(out, value, absolute)
        for need, actual, expected in ((need_x, dx, gx), (need_y, dy, gy)):
            assert actual.dtype == accumulator
            if need:
                check_derivative(actual, expected, relative)
            else:
                assert actual.shape == (0,)

    hessian = triton_impl.mmd_hvp(x, y, vx, vy, *kernel, unbiased)
    for actual, expected in zip(hessian, (hx, hy), strict=True):
        assert actual.dtype == accumulator
        check_derivative(actual, expected, relative)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("d", [5, 40])
def test_a_common_offset_costs_nothing(d, dtype):
    x, y = samples(35, 18, d, dtype, shift=100.0)
    kernel = ("imq", [2.0 * d])
    value, gx, gy = truth(x, y, kernel, True)
    out, dx, dy = triton_impl.mmd_grad(x, y, True, True, *kernel, True)
    absolute, relative = SHIFTED[dtype]
    check_value(out, value, absolute)
    check_derivative(dx, gx, relative)
    check_derivative(dy, gy, relative)


@pytest.mark.parametrize("d", [4, 20])
def test_any_strides(d):
    x, y = samples(9, 2 * d, d, F32, (2,))
    layouts = (
        (x.mT.contiguous().mT, y),
        (x, y[:, ::2]),
        (x.expand(2, 2, 9, d)[:, 0], y),
        (torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape), y),
    )
    for left, right in layouts:
        value, gx, gy = truth(left, right, IMQ1, True)
        out, dx, dy = triton_impl.mmd_grad(left, right, True, True, *IMQ1, True)
        check_value(out, value, 2e-6)
        check_derivative(dx, gx, 2e-4)
        check_derivative(dy, gy, 2e-4)


@pytest.mark.parametrize("d", [3, 18])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_give_nan_for_that_problem_only(d, bad):
    x, y = samples(5, 19, d, F32, (2,))
    y[1, 18, d - 1] = bad
    for value in (
        triton_impl.mmd(x, y, *IMQ1, True),
        triton_impl.mmd_grad(x, y, True, True, *IMQ1, True)[0],
        triton_impl.mmd_grad(x, y, True, False, *IMQ1, False)[0],
    ):
        assert value[0].isfinite()
        assert value[1].isnan()


@pytest.mark.parametrize("d", [8, 24])
def test_two_runs_are_bitwise_equal(d):
    x, y = samples(40, 70, d, F32)
    runs = [triton_impl.mmd_grad(x, y, True, True, *IMQ1, True) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_no_problems_at_all():
    x, y = samples(4, 5, 3, F32, (0,))
    value, dx, dy = triton_impl.mmd_grad(x, y, True, True, *IMQ1, True)
    assert (value.shape, dx.shape, dy.shape) == ((0,), (0, 4, 3), (0, 5, 3))


def test_public_function_and_its_derivatives():
    x, y = samples(4, 3, 2, F64)
    x.requires_grad_(), y.requires_grad_()

    def loss(x, y):
        return vk.mmd(x, y, vk.IMQ((1.0, 6.0)), backend="triton")

    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y))


def test_public_function_in_half_precision():
    x, y = samples(33, 20, 8, BF16)
    x.requires_grad_()
    loss = vk.mmd(x, y, "rbf", backend="triton")
    loss.backward()
    assert loss.dtype == F32
    assert x.grad.dtype == BF16
    check_value(loss, vk.mmd(x.double(), y.double(), "rbf", backend="reference"), 2e-6)


# Coordinates are small integers, so that every implementation computes the same distances.
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (3, 7, 3), (70, 5)])
def test_median_is_the_definition_exactly(shape, dtype):
    g = torch.Generator().manual_seed(1)
    x = torch.randint(-9, 9, shape, generator=g).to(DEVICE, dtype)
    assert torch.equal(median_triton.median_distance(x), median_reference.median_distance(x))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_median_of_any_numbers(dtype):
    x, _ = samples(40, 2, 7, dtype, (2,))
    expected = median_reference.median_distance(x)
    torch.testing.assert_close(median_triton.median_distance(x), expected)


def test_median_of_nan_is_nan():
    x, _ = samples(70, 2, 3, F32, (2,))
    x[1, 0, 0] = float("nan")
    out = median_triton.median_distance(x)
    assert out[0].isfinite()
    assert out[1].isnan()


def test_median_bandwidth_through_the_public_function():
    x, y = samples(9, 8, 3, F64)
    kernel = vk.RBF("median")
    out, expected = (vk.mmd(x, y, kernel, backend=b) for b in ("triton", "reference"))
    torch.testing.assert_close(out, expected)


@triton.jit
def _elementary_kernel(x, reciprocals, powers, KEPT: tl.constexpr):
    at = tl.arange(0, 1024)
    x = tl.load(x + at)
    tl.store(reciprocals + at, _pairs_triton.reciprocal(x, True))
    if KEPT:
        tl.store(powers + at, _pairs_triton.power_of_2(-x, tl.sum(x * 0.0)))
    else:
        tl.store(powers + at, _pairs_triton.power_of_2(-x, 0.0))


@pytest.mark.parametrize("kept", [False, True])
def test_reciprocals_and_powers_in_float64(kept):
    """To a few roundings over all of float32's range and of the exponential's, and exact where they must be."""
    x = torch.cat(
        [
            torch.logspace(-37, 38, 511, dtype=F64),
            torch.linspace(0, 1021, 513, dtype=F64)[1:],
            torch.tensor([1022.0], dtype=F64),
        ]
    ).to(DEVICE)
    reciprocals, powers = torch.zeros_like(x), torch.zeros_like(x)
    _elementary_kernel[(1,)](x, reciprocals, powers, KEPT=kept)
    eps = torch.finfo(F64).eps
    assert ((reciprocals * x - 1).abs() <= 3 * eps).all()
    want = [2.0**-v if v <= 1021 else 0.0 for v in x.tolist()]
    want = torch.tensor(want, dtype=F64, device=DEVICE)
    assert ((powers - want).abs() <= 3 * eps * want).all()


def test_reciprocals_and_powers_of_the_extremes():
    x = torch.zeros(1024, dtype=F64)
    x[0], x[1], x[2] = math.inf, math.nan, 1e200
    x = x.to(DEVICE)
    reciprocals, powers = torch.zeros_like(x), torch.zeros_like(x)
    _elementary_kernel[(1,)](x, reciprocals, powers, KEPT=False)
    assert powers[0] == powers[2] == 0 and powers[1].isnan() and (powers[3:] == 1).all()
    assert reciprocals[0] == reciprocals[2] == 0 and reciprocals[1].isnan()


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("n", "m", "d"), [(6, 5, 3), (6, 0, 3), (3, 5, 18)])
def test_mean_kernel_over_pairs(n, m, d, dtype):
    x, y = samples(n, m, d, dtype, (2,))
    exact = x.double().requires_grad_(), y.double().requires_grad_()
    want = reference.pairs(*exact, *IMQ3)
    dx, dy = torch.autograd.grad(want.sum(), exact, materialize_grads=True)
    value_error, error = TOLERANCES[dtype]
    for need_x, need_y in ((False, False), (True, False), (False, True), (True, True)):
        if need_y and m == 0:
            continue
        value, got_x, got_y = triton_impl.pairs_grad(x, y, need_x, need_y, *IMQ3)
        assert value.dtype == F64
        torch.testing.assert_close(value, want.detach(), rtol=0, atol=3 * value_error)
        if need_x:
            torch.testing.assert_close(got_x.double(), dx, rtol=0, atol=error * dx.abs().max())
        if need_y:
            torch.testing.assert_close(got_y.double(), dy, rtol=0, atol=error * dy.abs().max())
