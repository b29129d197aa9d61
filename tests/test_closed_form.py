"""mmd(..., estimator="closed_form") against 30 digits, sampling, and everything autograd does with it."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import mpmath
import pytest
import torch
from helpers import relative

import vimae_kernels as vk
from vimae_kernels.ops.mmd import closed_form

BACKENDS = [b for b in ("native", "reference") if vk._backend.unavailable(b, "cpu") is None]
KERNELS = ["imq", "rbf", vk.IMQ(0.3), vk.RBF([0.5, 2.0]), vk.IMQ.wae(3)]


def mmd(z, kernel="imq", **rest):
    return vk.mmd(z, "normal", kernel, estimator="closed_form", **rest)


def imq_expectation(c, d, rs, step=16):
    """E c / (c + ||z - p||^2) for ||z||^2 in rs, in 30 digits.

    The trapezoidal rule in x = log t over all of R, whose error is exp(-pi^2 step); its ends are below 1e-35.
    """
    with mpmath.workdps(30):
        c = mpmath.mpf(c)
        totals = [mpmath.mpf(0)] * len(rs)
        for k in range(-90 * step, 13 * step):
            t = mpmath.exp(mpmath.mpf(k) / step)
            if c * t > 100:
                break
            density = c * t * mpmath.exp(-c * t) * (1 + 2 * t) ** (-mpmath.mpf(d) / 2) / step
            rate = t / (1 + 2 * t)
            totals = [a + density * mpmath.exp(-rate * r) for a, r in zip(totals, rs, strict=True)]
        return totals


@pytest.mark.parametrize("c", [1e-3, 0.05, 1.0, 16.0, 1000.0, 1e5])
@pytest.mark.parametrize("d", [1, 2, 7, 64, 700, 4096])
def test_quadrature_to_thirteen_digits(d, c):
    rs = [0.0, 1e-4, 0.3, 5.0, 60.0, 1e3, 2e4, 1e6, 1e8]
    rate, weight, _ = closed_form._exponentials("imq", (c,), d, torch.device("cpu"))
    r = torch.tensor(rs, dtype=torch.float64)
    got = (-r[:, None] * rate).exp() @ weight
    for a, b in zip(got.tolist(), imq_expectation(c, d, rs, step=4), strict=True):
        assert abs(a - b) <= 1e-13 * b


def test_the_truth_of_these_tests_converged():
    for c, d in ((1e-3, 1), (16.0, 64), (1e5, 4096)):
        for a, b in zip(
            imq_expectation(c, d, [0.0, 30.0, 1e8], step=4),
            imq_expectation(c, d, [0.0, 30.0, 1e8], step=8),
            strict=True,
        ):
            assert abs(a - b) <= 1e-16 * b


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (50, 3), (2, 3, 70, 8), (65, 100)], ids=str)
def test_value_and_gradient_from_the_formula(shape, dtype, backend, poisoned):
    z = (0.8 * torch.randn(shape, dtype=torch.float64) + 0.3).to(dtype)
    n, d = shape[-2:]
    for c in (0.7 * d, 5.0 * d):
        for kernel in (vk.IMQ(c), vk.RBF(math.sqrt(c / 2))):
            x = z.double().requires_grad_()
            r = x.square().sum(-1)
            if isinstance(kernel, vk.RBF):
                # E exp(-||z - p||^2 / c): a product over the coordinates of one-dimensional integrals.
                cross = (1 + 2 / c) ** (-d / 2) * (-r / (c + 2)).exp()
                prior = (1 + 4 / c) ** (-d / 2)
            else:
                # The integrals over t, by the trapezoidal rule in log t on more of it than counts.
                t = torch.arange(-45, 10, 0.1, dtype=torch.float64).exp()
                mixed = 0.1 * c * t * (-c * t).exp()
                at = mixed * (1 + 2 * t) ** (-d / 2)
                cross = (-r[..., None] * t / (1 + 2 * t)).exp() @ at
                prior = mixed @ (1 + 4 * t) ** (-d / 2)
            s = (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)
            k = c / (c + s) if isinstance(kernel, vk.IMQ) else (-s / c).exp()
            want = (k.sum((-1, -2)) - n) / (n * (n - 1)) + prior - 2 * cross.mean(-1)
            y = z.clone().requires_grad_()
            got = mmd(y, kernel, backend=backend)
            assert got.dtype == dtype
            tolerance = 1e-13 if dtype == torch.float64 else 3e-7
            assert (got - want).abs().max() <= tolerance
            g = torch.autograd.grad(got.sum(), y)[0], torch.autograd.grad(want.sum(), x)[0]
            assert relative(*g) <= (1e-12 if dtype == torch.float64 else 5e-6)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_is_the_mean_of_the_unbiased_estimator(kernel):
    z = 0.7 * torch.randn(40, 3, dtype=torch.float64) + 0.2
    draws = vk.mmd(z.expand(3000, 40, 3), "normal", kernel)
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - mmd(z, kernel)) < 4 * error


def test_scales_add_up():
    z = torch.randn(30, 5, dtype=torch.float64)
    for family in (vk.IMQ, vk.RBF):
        total = sum(mmd(z, family(c)) for c in (0.4, 3.0, 20.0))
        assert abs(mmd(z, family([0.4, 3.0, 20.0])) - total) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_compute_in_float32(dtype):
    z = torch.randn(300, 8).to(dtype).requires_grad_()
    x = z.detach().double().requires_grad_()
    value, want = mmd(z), mmd(x)
    value.backward(), want.backward()
    assert value.dtype == torch.float32 and abs(value - want) <= 3e-7
    assert relative(z.grad, x.grad) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("kernel", ["imq", vk.RBF(1.1), vk.IMQ.wae(3)], ids=str)
def test_first_and_second_derivatives(kernel):
    z = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: mmd(z, kernel), (z,))
    assert torch.autograd.gradgradcheck(lambda z: mmd(z, kernel), (z,))
    assert torch.autograd.gradgradcheck(lambda z: mmd(z, kernel).exp(), (z,))


def test_the_reference_has_forward_mode_and_third_derivatives():
    z = torch.randn(4, 2, dtype=torch.float64)

    def f(z):
        return mmd(z, backend="reference")

    torch.testing.assert_close(torch.func.jacfwd(f)(z), torch.func.jacrev(f)(z))
    hessian = torch.func.hessian(f)
    third = torch.func.jacrev(hessian)(z)
    step = 1e-5 * torch.randn_like(z)
    moved = (hessian(z + step) - hessian(z - step)) / 2
    torch.testing.assert_close((third * step).sum((-1, -2)), moved, rtol=1e-6, atol=1e-12)


def test_func_transforms():
    z = torch.randn(4, 20, 3, dtype=torch.float64)
    grad, vmap = torch.func.grad, torch.func.vmap

    def penalty(f):
        return lambda z: grad(lambda z: grad(f)(z).square().sum())(z)

    def reference(z):
        return mmd(z, backend="reference")

    # The first call of all is inside a transform: what it keeps must serve outside of it.
    closed_form._kept.cache_clear()
    for transformed in [
        lambda f: grad(f)(z[0]),
        lambda f: vmap(f)(z),
        lambda f: vmap(f, 1)(z.movedim(0, 1)),
        lambda f: vmap(grad(f))(z),
        lambda f: grad(lambda z: vmap(f)(z).square().sum())(z),
        lambda f: penalty(f)(z[0]),
        lambda f: vmap(penalty(f))(z),
    ]:
        torch.testing.assert_close(transformed(mmd), transformed(reference), rtol=1e-9, atol=1e-12)
    closed_form._kept.cache_clear()
    with torch.inference_mode():
        mmd(z)
    torch.autograd.grad(mmd(z.requires_grad_()).sum(), z)


@pytest.mark.parametrize("kernel", ["imq", vk.RBF([1.0, 3.0])], ids=str)
@pytest.mark.parametrize("warm", [False, True])
def test_compiles_into_one_graph(kernel, warm):
    torch._dynamo.reset()
    closed_form._kept.cache_clear()
    z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    if warm:
        mmd(z, kernel)
    compiled = torch.compile(lambda z: 2 * mmd(z.tanh(), kernel), fullgraph=True)
    value = compiled(z)
    got = value, *torch.autograd.grad(value, z)
    value = 2 * mmd(z.tanh(), kernel, backend="reference")
    want = value, *torch.autograd.grad(value, z)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    value = compiled(z)
    # A compiled gradient has no second derivative, and says so.
    with pytest.raises(RuntimeError, match="create_graph=False|double backward"):
        torch.autograd.grad(torch.autograd.grad(value, z, create_graph=True)[0].square().sum(), z)


def test_autocast():
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
        value = mmd(z)
    assert value.dtype == torch.float32
    assert torch.equal(value, mmd(z.float()))
    value.backward()
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_give_nan(bad):
    z = torch.randn(2, 70, 3)
    z[1, 66, 1] = bad
    value = mmd(z)
    assert value[0].isfinite() and value[1].isnan()


def test_far_points_and_extreme_scales():
    z = 1e10 * torch.randn(20, 3, dtype=torch.float64)
    value = mmd(z)
    assert abs(value - (mmd(z, vk.IMQ(6.0)))) == 0 and 0 < value < 1
    for c in (1e-150, 1e-30, 1e30):
        assert 0 <= mmd(torch.randn(20, 3), vk.IMQ(c)).abs() < 1e-6
    assert mmd(torch.randn(0, 5, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda z: vk.mmd(z, z, estimator="closed_form"),
            "prior is of type Tensor; the closed_form estimator supports 'normal' and Normal, ",
        ),
        (
            lambda z: vk.mmd(z, "logistic", estimator="closed_form"),
            "prior is 'logistic'; the closed_form estimator supports 'normal' and Normal, ",
        ),
        (
            lambda z: vk.mmd(z, torch.distributions.Laplace(0.0, 1.0), estimator="closed_form"),
            "prior is of type Laplace; the closed_form estimator supports 'normal' and Normal, ",
        ),
        (lambda z: mmd(z, vk.RBF("median")), "kernel is RBF('median'); the closed_form estimator"),
        (lambda z: mmd(z[:1]), "z has shape (1, 3); it needs n >= 2 for the closed_form estimator"),
        (lambda z: vk.mmd(z, z[:0]), "prior has shape (0, 3); it needs n >= 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.randn(10, 3))


def test_nothing_is_drawn():
    before = torch.get_rng_state()
    mmd(torch.zeros(5, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_is_linear_in_the_number_of_points():
    code = """
import resource, torch, vimae_kernels as vk
from vimae_kernels.ops.mmd import closed_form
z = torch.randn(1000000, 2, requires_grad=True)
vk.mmd(z[:1000], "normal", estimator="closed_form").backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
closed_form.prior_terms(z, vk.IMQ(), "native").backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 250 * 1024  # kilobytes; all nodes of all points would be 560 thousand
