"""Data and kernel scaled together, data far from the scale, points that coincide, and points of very different size."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from test_closed_form import imq_expectation

import vimae_kernels as vk
from vimae_kernels import _native
from vimae_kernels.ops.median import reference as median_reference
from vimae_kernels.ops.median.op import median_distance
from vimae_kernels.ops.mmd import closed_form

BACKENDS = [b for b in ("native", "reference") if vk._backend.unavailable(b, "cpu") is None]
native_only = pytest.mark.skipif("native" not in BACKENDS, reason="the native core is not built")
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

KERNELS = {
    "imq": lambda a: vk.IMQ(6.0 * a * a),
    "rbf": lambda a: vk.RBF(1.7 * a),
    "imqs": lambda a: vk.IMQ((2.0 * a * a, 9.0 * a * a)),
    "rbfs": lambda a: vk.RBF((0.7 * a, 2.0 * a)),
    "median": lambda a: vk.RBF("median"),
}
# Powers of two round nothing: then every backend has the same numbers at every scale, but for what its dtype cannot
# hold. The square of a scale has to be a float64, for it is what a kernel is given.
POWERS = {F32: (-100, -66, -33, -17, 17, 33, 66, 100), F64: (-500, -300, -100, 100, 300, 500)}


def problem(n=40, m=50, d=3):
    g = torch.Generator().manual_seed(n)
    z = torch.randn(n, d, generator=g, dtype=F64)
    p = torch.randn(m, d, generator=g, dtype=F64) + 0.5
    v = torch.randn(n, d, generator=g, dtype=F64)
    return [t.float().double() for t in (z, p, v)]


def mmd_and_derivatives(a, dtype, kernel, backend, estimator="unbiased"):
    """Without unit: the value, the gradient in units of 1 / a, the product of the Hessian with a v."""
    z, p, v = ((a * t).to(dtype) for t in problem())
    z.requires_grad_()
    value = vk.mmd(z, p, kernel(a), estimator=estimator, backend=backend)
    (g,) = torch.autograd.grad(value, z, create_graph=True)
    (h,) = torch.autograd.grad((g * v).sum(), z)
    return value.detach().double(), g.detach().double() * a, h.double() * a


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_mmd_of_any_scale(kernel, dtype, backend):
    want = mmd_and_derivatives(1.0, F64, kernel, "reference")
    eps = torch.finfo(dtype).eps
    for power in POWERS[dtype]:
        got = mmd_and_derivatives(2.0**power, dtype, kernel, backend)
        assert abs(got[0] - want[0]) <= 30 * eps
        for a, b in zip(got[1:], want[1:], strict=True):
            assert (a - b).abs().max() <= 30 * eps * b.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_stein_gradient_of_any_scale(kernel, dtype, backend):
    z, _, v = problem()
    want = vk.stein_gradient(z, score=v, kernel=kernel(1.0), backend="reference")
    for power in POWERS[dtype]:
        a = 2.0**power
        got = vk.stein_gradient(
            (a * z).to(dtype), score=(v / a).to(dtype), kernel=kernel(a), backend=backend
        )
        assert got.dtype == dtype
        error = (got.double() * a - want).abs().max()
        assert error <= 30 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", ["imq", "rbf", "imqs", "rbfs"])
def test_ksd_of_any_scale(kernel, backend):
    z, _, v = problem()

    def run(a, dtype, backend, estimator):
        x, score = (a * z).to(dtype).requires_grad_(), (v / a).to(dtype).requires_grad_()
        value = vk.ksd(
            x, score=score, kernel=KERNELS[kernel](a), estimator=estimator, backend=backend
        )
        return value.detach(), *torch.autograd.grad(value, (x, score))

    for estimator in ("unbiased", "biased"):
        want = run(1.0, F64, "reference", estimator)
        # A value in units of 1 / a^2 and a gradient in those of 1 / a^3: what float32 holds of them.
        for power, dtype in [(p, F32) for p in (-36, -17, 17, 36)] + [
            (p, F64) for p in (-300, -100, 100, 300)
        ]:
            a = 2.0**power
            for t, w, unit in zip(run(a, dtype, backend, estimator), want, (2, 3, 1), strict=True):
                got = t.double()
                for _ in range(unit):
                    got = got * a
                assert (got - w).abs().max() <= 100 * torch.finfo(dtype).eps * w.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "kernel", [vk.IMQ(1e40), vk.IMQ(1e-40), vk.RBF(1e20), vk.IMQ((1e-30, 1.0))], ids=str
)
def test_ksd_with_a_score_that_has_another_scale(kernel, backend):
    z, _, v = problem()
    for score in (None, v):
        options = {"kernel": kernel, "score": score}
        want = vk.ksd(z, **options, backend="reference")
        x = z.float().requires_grad_()
        got = vk.ksd(
            x, kernel=kernel, score=None if score is None else score.float(), backend=backend
        )
        assert abs(got - want) <= 1e-5 * (abs(want) + 1e-30)
        (g,) = torch.autograd.grad(got, x)
        assert g.isfinite().all()
        phi = vk.stein_gradient(z, **options, backend="reference")
        phi_32 = vk.stein_gradient(
            z.float(),
            kernel=kernel,
            score=None if score is None else score.float(),
            backend=backend,
        )
        assert (phi_32 - phi).abs().max() <= 1e-6 * phi.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16], ids=str)
def test_the_limits_of_a_kernel(dtype, backend):
    z, p, v = (t.to(dtype) for t in problem())
    wide = [vk.IMQ(1e40), vk.RBF(1e20), vk.IMQ(1e300), vk.IMQ(5e39)]
    narrow = [vk.IMQ(1e-40), vk.RBF(1e-20), vk.IMQ(1e-320), vk.RBF(1e-150)]
    for kernel in wide + narrow:
        for estimator in ("unbiased", "biased"):
            x = z.clone().requires_grad_()
            value = vk.mmd(x, p, kernel, estimator=estimator, backend=backend)
            # All kernel values are 1, or all but those of a point with itself are 0.
            apart = estimator == "biased" and kernel in narrow
            assert abs(value - (1 / 40 + 1 / 50) * apart) < 1e-6
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            assert g.double().abs().max() < 1e-35
            (h,) = torch.autograd.grad((g * v).sum(), x)
            assert h.isfinite().all()
        phi = vk.stein_gradient(z, kernel=kernel, backend=backend).double()
        want = -z.double().mean(0).expand_as(phi) if kernel in wide else -z.double() / 40
        assert (phi - want).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wide_kernel_is_linear_in_the_squared_distance(backend):
    # k = 1 - s / c: the gradient of the MMD is that of 2 ||mean z - mean p||^2 / c, whatever c is.
    z, p, _ = problem()
    for c in (1e12, 1e20, 1e30):
        x = z.float().requires_grad_()
        value = vk.mmd(x, p.float(), vk.IMQ(c), estimator="biased", backend=backend)
        (g,) = torch.autograd.grad(value, x)
        want = 4 * (z.mean(0) - p.mean(0)) / (40 * c)
        assert (g - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", [vk.IMQ, vk.RBF])
def test_scales_that_span_what_float32_does_not(family, backend):
    z, p, _ = problem()
    apart = (1e-30, 1e30) if family is vk.IMQ else (1e-15, 1e15)
    x = z.float().requires_grad_()
    value = vk.mmd(x, p.float(), family((*apart, 1.5)), estimator="biased", backend=backend)
    (g,) = torch.autograd.grad(value, x)
    y = z.requires_grad_()
    want = vk.mmd(y, p, family(1.5), estimator="biased", backend="reference")
    (w,) = torch.autograd.grad(want, y)
    assert abs(value - (want + 1 / 40 + 1 / 50)) < 1e-6
    assert (g - w).abs().max() <= 1e-5 * w.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", ["imq", "rbf", vk.RBF("median")], ids=str)
@pytest.mark.parametrize("far", [1e18, 1e25, 1e30])
def test_data_far_beyond_the_scale(far, kernel, backend):
    # Beside points of the kernel's size, and more of them, for the median to be theirs.
    z, p, v = (t.float() for t in problem())
    z[7] *= far
    z.requires_grad_()
    value = vk.mmd(z, p, kernel, backend=backend)
    want = vk.mmd(z.detach().double(), p.double(), kernel, backend="reference")
    assert abs(value - want) < 1e-6
    (g,) = torch.autograd.grad(value, z, create_graph=True)
    (h,) = torch.autograd.grad((g * v).sum(), z)
    assert g.isfinite().all() and h.isfinite().all()
    assert g[7].abs().max() < 1e-10 and h[7].abs().max() < 1e-10


def test_what_a_kernel_may_be():
    for c in (5e-324, 1e-320, 1e-200, 1e300):
        assert vk.IMQ(c).c == c
    for bandwidth in (1.2e-154, 9e153):
        assert vk.RBF(bandwidth).bandwidth == bandwidth
    for make, words in (
        (lambda: vk.IMQ(0.0), "IMQ: c is 0.0; it must be positive and finite"),
        (
            lambda: vk.RBF(1e-160),
            "RBF: bandwidth is 1e-160; it must be positive and finite, and between 1.1e-154 and",
        ),
        (
            lambda: vk.RBF(1e200),
            "RBF: bandwidth is 1e+200; it must be positive and finite, and between 1.1e-154 and",
        ),
        (
            lambda: vk.IMQ((1e-40, 1e40)),
            "IMQ: c has 1e-40 and 1e+40; the largest must be at most 1.6e+60 times the",
        ),
        (
            lambda: vk.RBF([1e20, 1.0, 1e-20]),
            "RBF: bandwidth has 1e-20 and 1e+20; the largest must be at most 1.3e+30",
        ),
    ):
        with pytest.raises(ValueError, match="^" + words.replace("(", r"\(").replace("+", r"\+")):
            make()


# Points that coincide.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_the_median_is_that_of_distances_that_are_not_zero(dtype, backend):
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 3, (5, 90, 2), generator=g).to(dtype) * 0.7
    x[1, 1:] = x[1, 0]  # one pair in 45 is apart
    x[1, 0] += 2
    x[2] = 0.3  # all coincide
    x[3] = torch.randn(90, 2, generator=g)
    got = median_distance(x, backend)
    for b in range(5):
        distances = torch.pdist(x[b].double())
        apart = distances[distances > 1e-6]
        want = apart.median() if len(apart) else torch.zeros(())
        assert abs(got[b] - want) <= 4 * torch.finfo(dtype).eps * want
    assert got[2] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_a_median_in_units_of_the_data(dtype, backend):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 70, 4, generator=g, dtype=F64).float().double()
    for powers in ((-90, 0, 100), (-40, 40, 80), (-3, 3, 90)):
        scaled = torch.stack([2.0**p * t for p, t in zip(powers, x, strict=True)]).to(dtype)
        want = [2.0**p * torch.pdist(t).median() for p, t in zip(powers, x, strict=True)]
        got = median_distance(scaled, backend)
        assert ((got.double() / torch.stack(want) - 1).abs() <= 8 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("far", [1e20, 1e28, 3e38])
def test_a_median_beside_points_far_away(far, backend):
    x = torch.randn(70, 4)
    x[:5] *= far / 5
    want = median_reference.median_distance(x.double())
    assert abs(median_distance(x, backend) / want - 1) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_that_coincide(backend):
    kernel, zeros = vk.RBF("median"), torch.zeros(30, 2)
    for z in (zeros, zeros + 0.1, zeros - 100.3, zeros + 1e30):
        for dtype in (F32, F64, BF16):
            x = z.to(dtype).requires_grad_()
            for estimator in ("unbiased", "biased"):
                value = vk.mmd(x, z[:20].to(dtype), kernel, estimator=estimator, backend=backend)
                (g,) = torch.autograd.grad(value, x)
                assert value == 0 and (g == 0).all()
            test = vk.mmd_test(
                z.to(dtype), z[:20].to(dtype), kernel, permutations=20, backend=backend
            )
            assert test.statistic == 0 and test.p_value == 1
            # A kernel that is 1 everywhere: only the scores are left.
            phi = vk.stein_gradient(x, kernel=kernel, backend=backend)
            torch.testing.assert_close(phi, -x.detach(), rtol=1e-5, atol=0)
            if z.abs().max() < 1e10:
                value = vk.ksd(x, kernel=kernel, backend=backend)
                (g,) = torch.autograd.grad(value, x)
                torch.testing.assert_close(
                    value.double(), x.detach().double()[0].square().sum(), rtol=1e-5, atol=1e-20
                )
                torch.testing.assert_close(
                    g.double(), 2 * x.detach().double() / 30, rtol=1e-2, atol=1e-20
                )
    # Half of the pairs coincide, and each entry of a batch has its own median.
    z = torch.randn(2, 30, 2)
    z[0, :25] = 1.0
    x = z.clone().requires_grad_()
    value = vk.mmd(x, z.flip(-2) + 0.1, kernel, backend=backend)
    (g,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all() and g.isfinite().all()
    alone = torch.stack([vk.mmd(t, t.flip(-2) + 0.1, kernel, backend=backend) for t in z])
    torch.testing.assert_close(value.detach(), alone, rtol=1e-5, atol=1e-7)


# What is never negative.


@pytest.mark.parametrize("level", _native.simd_levels()["runnable"] or [None])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_biased_estimates_are_not_negative(dtype, backend, level):
    used = _native.simd_levels()["used"]
    try:
        if level:
            _native._C.set_level(level)
        x = torch.tensor([[0.0], [1.0], [3.0]], dtype=dtype)
        assert vk.mmd(x, x, estimator="biased", backend=backend) >= 0
        batch = torch.randn(200, 7, 2, dtype=dtype)
        for kernel in ("imq", "rbf", vk.IMQ.wae(2)):
            for y in (batch, batch.flip(-2)):
                assert (vk.mmd(batch, y, kernel, estimator="biased", backend=backend) >= 0).all()
        # Two points whose scores cancel each other's pull.
        for kernel in ("imq", "rbf"):
            z = torch.zeros(50, 2, 1, dtype=dtype)
            score = torch.randn(50, 2, 1, dtype=dtype) * 100
            score[:, 1] = -score[:, 0]
            assert (
                vk.ksd(z, kernel=kernel, score=score, estimator="biased", backend=backend) >= 0
            ).all()
    finally:
        if level:
            _native._C.set_level(used)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_biased_estimate_is_left_alone(backend):
    x = torch.tensor([[0.0], [1.0], [3.0]])
    for y in (x, x + 0.5):
        z, w = x.clone().requires_grad_(), x.double().requires_grad_()
        (g,) = torch.autograd.grad(vk.mmd(z, y, estimator="biased", backend=backend), z)
        s = (w - y.double().T).square()
        t = (w - w.T).square()
        (want,) = torch.autograd.grad((2 / (2 + t)).mean() - 2 * (2 / (2 + s)).mean(), w)
        assert (g - want).abs().max() < 1e-7
    bad = torch.tensor([[0.0], [math.nan], [3.0]])
    assert vk.mmd(bad, x, estimator="biased", backend=backend).isnan()
    assert vk.ksd(bad, estimator="biased", backend=backend).isnan()
    bad[1] = math.inf
    for estimator in ("biased", "unbiased"):
        assert vk.mmd(bad, x, estimator=estimator, backend=backend).isnan()
        assert vk.ksd(bad, estimator=estimator, backend=backend).isnan()


# Sums that leave out what would hide the rest, and products of points of very different size.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [2, 64])
def test_unbiased_ksd_where_the_diagonal_is_nearly_all(d, backend):
    z = torch.randn(60, d, generator=torch.Generator().manual_seed(d), dtype=F64).float()
    for kernel in (vk.RBF(0.15 * math.sqrt(d)), vk.IMQ(1e-4 * d)):
        x, y = z.clone().requires_grad_(), z.double().requires_grad_()
        got, want = (
            vk.ksd(x, kernel=kernel, backend=backend),
            vk.ksd(y, kernel=kernel, backend="reference"),
        )
        assert abs(got - want) <= 2e-5 * abs(want)
        (g,), (w,) = torch.autograd.grad(got, x), torch.autograd.grad(want, y)
        assert (g - w).norm() <= 5e-5 * w.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("kernel", [vk.IMQ(1e6), vk.RBF(1000.0)], ids=str)
def test_ksd_of_points_of_very_different_size(kernel, d, backend):
    z = torch.randn(90, d, generator=torch.Generator().manual_seed(d), dtype=F64).float()
    z[:3] *= 1000
    # All pairs of a large point with small ones.
    for estimator in ("unbiased", "biased"):
        x, y = z.clone().requires_grad_(), z.double().requires_grad_()
        got = vk.ksd(x, kernel=kernel, estimator=estimator, backend=backend)
        want = vk.ksd(y, kernel=kernel, estimator=estimator, backend="reference")
        assert abs(got - want) <= 2e-6 * abs(want)
        (g,), (w,) = torch.autograd.grad(got, x), torch.autograd.grad(want, y)
        assert (g - w).abs().max() <= 2e-5 * w.abs().max()
        # Of the small points too, each by itself.
        assert (g[3:] - w[3:]).abs().max() <= 5e-6 * w[3:].abs().max()


# The closed form beyond the nodes of its quadrature.


@pytest.mark.parametrize("d", [1, 64, 4096])
@pytest.mark.parametrize("c", [1e-3, 1.0, 1e5, 1e12])
def test_closed_form_far_away(c, d):
    rs = [1.1e8, 1e9, 1e10, 1e15, 1e30]
    for order in (0, 1, 2):
        got = closed_form._far_imq(torch.tensor(rs, dtype=F64), (c,), d, order)
        with mpmath.workdps(30):
            for value, r in zip(got.tolist(), rs, strict=True):
                sum_cr = mpmath.mpf(c) + r

                def integrand(u, sum_cr=sum_cr, r=r, order=order):
                    t = u / sum_cr
                    bent = 2 * r * t * t / (1 + 2 * t) - mpmath.mpf(d) / 2 * mpmath.log1p(2 * t)
                    return mpmath.exp(bent - u) * (-u / (1 + 2 * t)) ** order

                want = mpmath.quad(integrand, [0, 1, 5, 20, 60, 120]) * c / sum_cr ** (order + 1)
                assert abs(value - want) <= 1e-13 * abs(want)
    # Where both hold they agree.
    r = torch.tensor([1e8], dtype=F64)
    far = closed_form._far_imq(r, (c,), d, 0)
    assert abs(far - float(imq_expectation(c, d, [1e8], step=4)[0])) <= 1e-13 * far


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_form_of_points_far_away(backend):
    # One sample alone tells of itself and the prior: E k(p, p') + E k(z, z') - 2 E k(z, p).
    for size in (1e5, 1e8, 1e15, 1e60):
        z = (torch.tensor([[0.3, 0.4], [0.6, 0.8]], dtype=F64) * size).requires_grad_()
        value = vk.mmd(z, "normal", vk.IMQ(3.0), estimator="closed_form", backend=backend)
        (g,) = torch.autograd.grad(value, z)
        constant = closed_form._exponentials("imq", (3.0,), 2, torch.device("cpu"))[2]
        s = float((z[0] - z[1]).detach().square().sum())
        r = z.detach().square().sum(-1)
        # E c / (c + s) for r large is c / r (1 + (4 - c - d) / r).
        expected = 3 / r * (1 - 1 / r)
        assert abs(value - (constant + 3 / (3 + s) - 2 * expected.mean())) <= 1e-14
        pull = 2 * 3 / r.square()[:, None] * z.detach()
        push = -2 * 3 / (3 + s) ** 2 * (z[0] - z[1]).detach()
        want = pull + 2 * torch.stack([push, -push]) / 2
        assert (g - want).abs().max() <= 1e-8 * want.abs().max()
