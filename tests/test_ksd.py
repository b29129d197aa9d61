"""ksd on the native core against the definition in float64, and everything autograd does with it."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from helpers import relative
from hypothesis import given, settings
from torch import distributions as D

import vimae_kernels as vk
from vimae_kernels import _native

pytestmark = pytest.mark.skipif(
    vk._backend.unavailable("native", "cpu") is not None, reason="the native core is not built"
)

# Panels hold 64 points and chunks 64 coordinates: sizes on both sides of those edges.
SHAPES = [
    ((), 2, 1),
    ((), 63, 5),
    ((), 64, 8),
    ((), 129, 9),
    ((), 70, 67),
    ((), 65, 130),
    ((5,), 33, 4),
    ((2, 3), 17, 7),
]
# Of the value, relative to the mean of |u|, and of the gradients.
TOLERANCE = {torch.float32: (1e-6, 5e-6), torch.float64: (2e-14, 5e-14)}


def kernels(d: int) -> list[object]:
    return ["imq", "rbf", vk.RBF([0.5, 2.0]), vk.IMQ([0.3, 2.0 * d])]


def size(z, kernel, score=None) -> float:
    """The mean of the absolute values of the terms."""
    z = z.detach().double()
    score = -z if score is None else score.double()
    k = vk.kernels.resolve_kernel(kernel)
    e = z.unsqueeze(-2) - z.unsqueeze(-3)
    s = e.square().sum(-1)
    f, first, second = vk.ops.stein.reference.kernel(s, k.family, k.scales(z.shape[-1]))
    p = (score.unsqueeze(-2) * score.unsqueeze(-3)).abs().sum(-1) * f
    q = ((score.unsqueeze(-3) - score.unsqueeze(-2)) * e).abs().sum(-1) * -2 * first
    return float((p + q + 4 * second * s - 2 * z.shape[-1] * first).mean())


def evaluate(z, backend, kernel="imq", estimator="unbiased", score=None, prior="normal"):
    """The value and its gradients by z and, where there is one, by the score."""
    inputs = [t.detach().requires_grad_() for t in (z, score) if t is not None]
    value = vk.ksd(
        inputs[0],
        prior,
        kernel,
        estimator=estimator,
        score=None if score is None else inputs[1],
        backend=backend,
    )
    return value.detach(), *torch.autograd.grad(value.sum(), inputs)


def truth(z, kernel="imq", estimator="unbiased", score=None, prior="normal"):
    score = None if score is None else score.double()
    return evaluate(z.double(), "reference", kernel, estimator, score, prior)


def test_definition_is_that_of_the_paper():
    z = torch.randn(5, 3, dtype=torch.float64)

    def score(x):
        return -x.tanh() * 1.3

    for kernel, k in (
        (vk.RBF([0.7, 1.5]), lambda s: (-s / 0.98).exp() + (-s / 4.5).exp()),
        (vk.IMQ([0.7, 4.0]), lambda s: 0.7 / (0.7 + s) + 4 / (4 + s)),
    ):

        def of_pair(x, y, k=k):
            return k((x - y).square().sum())

        def u(x, y, of_pair=of_pair):
            by_x, by_y = torch.func.grad(of_pair, 0), torch.func.grad(of_pair, 1)
            trace = torch.func.jacrev(lambda x: by_y(x, y))(x).trace()
            dots = score(x) @ by_y(x, y) + score(y) @ by_x(x, y)
            return score(x) @ score(y) * of_pair(x, y) + dots + trace

        every = torch.stack([torch.stack([u(x, y) for y in z]) for x in z])
        for estimator, want in (
            ("biased", every.mean()),
            ("unbiased", (every.sum() - every.trace()) / 20),
        ):
            got = vk.ksd(z, kernel=kernel, estimator=estimator, score=score(z), backend="reference")
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape, dtype, shift, poisoned):
    batch, n, d = shape
    z = (0.7 * torch.randn(*batch, n, d, dtype=torch.float64) + 0.4 + shift).to(dtype)
    given = torch.randn(*batch, n, d, dtype=torch.float64).to(dtype)
    of_value, of_gradient = TOLERANCE[dtype]
    for kernel in kernels(d):
        for score in (None, given):
            for estimator in ("biased", "unbiased"):
                want = truth(z, kernel, estimator, score)
                got = evaluate(z, "native", kernel, estimator, score)
                allowed = of_value * size(z, kernel, score)
                assert (got[0] - want[0]).abs().max() <= allowed
                for a, b in zip(got[1:], want[1:], strict=True):
                    assert a.dtype == dtype and relative(a, b) <= of_gradient
                # Without gradients, and with that of z alone.
                value = vk.ksd(z, kernel=kernel, estimator=estimator, score=score)
                assert (value - want[0]).abs().max() <= allowed
                x = z.clone().requires_grad_()
                vk.ksd(x, kernel=kernel, estimator=estimator, score=score).sum().backward()
                assert relative(x.grad, want[1]) <= of_gradient


def test_large_dimension_and_many_points(poisoned):
    for z in (torch.randn(10, 4096), torch.randn(70, 200), torch.randn(2100, 1)):
        for score in (None, z.cos()):
            want, got = truth(z, score=score), evaluate(z, "native", score=score)
            assert abs(got[0] - want[0]) <= 1e-6 * size(z, "imq", score)
            assert all(relative(a, b) <= 1e-5 for a, b in zip(got[1:], want[1:], strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads, poisoned):
    before = torch.get_num_threads()
    z = torch.randn(500, 12) + 0.2
    try:
        torch.set_num_threads(threads)
        for score in (None, z.cos()):
            want, got = truth(z, score=score), evaluate(z, "native", score=score)
            again = evaluate(z, "native", score=score)
            assert abs(got[0] - want[0]) <= 1e-6 * size(z, "imq", score)
            assert all(relative(a, b) <= 5e-6 for a, b in zip(got[1:], want[1:], strict=True))
            assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
def test_every_simd_level(level, poisoned):
    used = _native.simd_levels()["used"]
    z = torch.randn(130, 9)
    try:
        _native._C.set_level(level)
        for kernel in ("imq", "rbf"):
            want, got = truth(z, kernel), evaluate(z, "native", kernel)
            assert abs(got[0] - want[0]) <= 1e-6 * size(z, kernel)
            assert relative(got[1], want[1]) <= 5e-6
    finally:
        _native._C.set_level(used)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_compute_in_float32(dtype):
    z = (torch.randn(300, 8) + 0.5).to(dtype)
    for prior in ("normal", "logistic"):
        got, want = evaluate(z, "native", prior=prior), evaluate(z.float(), "native", prior=prior)
        assert got[0].dtype == torch.float32 and torch.equal(got[0], want[0])
        assert got[1].dtype == dtype and torch.equal(got[1], want[1].to(dtype))


def test_batches_broadcast_and_any_strides():
    z, score = torch.randn(4, 1, 20, 3), torch.randn(5, 20, 3)
    got, want = evaluate(z, "native", score=score), truth(z, score=score)
    assert got[0].shape == (4, 5)
    assert all(relative(a, b) < 5e-6 for a, b in zip(got, want, strict=True))
    assert vk.ksd(torch.randn(0, 6, 2)).shape == (0,)
    wide = torch.randn(40, 12, 6)
    for z in (wide[0].T, wide[::2, 3, ::2], wide.movedim(0, 1)[..., 1:4]):
        for a, b in zip(evaluate(z, "native"), evaluate(z.contiguous(), "native"), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "prior",
    [
        "logistic",
        D.Normal(torch.tensor([0.1, -0.2, 0.3]).double(), 1.5),
        D.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double() + 0.2),
        D.MixtureSameFamily(
            D.Categorical(torch.ones(2).double()), D.Normal(torch.tensor([-1.0, 1.0]).double(), 0.7)
        ),
    ],
    ids=lambda p: p if isinstance(p, str) else type(p).__name__,
)
def test_the_gradient_goes_through_the_score(prior):
    z = torch.randn(2, 20, 3, dtype=torch.float64)
    for kernel in ("imq", vk.RBF("median")):
        want, got = truth(z, kernel, prior=prior), evaluate(z, "native", kernel, prior=prior)
        assert all(relative(a, b) < 1e-12 for a, b in zip(got, want, strict=True))
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: vk.ksd(z, prior), z)


def test_the_gradient_reaches_the_parameters_of_a_distribution():
    z = torch.randn(20, 3, dtype=torch.float64)
    loc = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda loc: vk.ksd(z, D.Normal(loc, 1.3)), loc)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["imq", vk.RBF(1.1), vk.IMQ.wae(3), vk.RBF([0.7, 2.0])], ids=str)
def test_first_derivatives(kernel, estimator):
    z = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    score = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def loss(z, score=None):
        return vk.ksd(z, kernel=kernel, estimator=estimator, score=score).sin()

    assert torch.autograd.gradcheck(loss, (z,))
    assert torch.autograd.gradcheck(loss, (z, score))
    assert torch.autograd.gradcheck(lambda score: loss(z.detach(), score), (score,))


def test_median_is_the_median_heuristic():
    z = torch.randn(80, 5, dtype=torch.float64) + 100
    bandwidth = torch.pdist(z).median().item()
    for prior in ("normal", "logistic"):
        want = truth(z, vk.RBF(bandwidth), prior=prior)
        for backend in ("native", "reference"):
            got = evaluate(z, backend, vk.RBF("median"), prior=prior)
            assert all(relative(a, b) < 1e-10 for a, b in zip(got, want, strict=True))


def test_zero_on_the_prior_and_positive_off_it():
    for prior, exact in (("normal", D.Normal(0.0, 1.0)), ("logistic", vk.Logistic(0.0, 0.5513))):
        z = exact.sample((50, 400, 3))  # 50 independent estimates, each unbiased
        values = vk.ksd(z, prior)
        spread = values.std()
        assert values.mean().abs() < 4 * spread / 50**0.5
        for off in (z + 0.5, 1.5 * z, 0.6 * z):
            assert (vk.ksd(off, prior) > 4 * spread).all()
        assert (vk.ksd(z, prior, estimator="biased") >= 0).all()


def test_descent_moves_samples_onto_the_prior():
    z = (1 + 0.5 * torch.randn(150, 2, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    before = vk.ksd(z, estimator="biased").item()
    for _ in range(300):
        optimizer.zero_grad()
        vk.ksd(z, estimator="biased").backward()
        optimizer.step()
    assert vk.ksd(z, estimator="biased") < before / 100
    assert z.detach().mean(0).abs().max() < 0.05
    assert (z.detach().var(0) - 1).abs().max() < 0.2


def test_a_second_derivative_is_refused_or_right():
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    for prior in ("normal", "logistic"):
        (g,) = torch.autograd.grad(vk.ksd(z, prior), z, create_graph=True)
        with pytest.raises(RuntimeError, match="not a second: use backend='reference'"):
            g.square().sum().backward()
        with pytest.raises(RuntimeError, match="not a second"):
            torch.func.grad(
                lambda z, prior=prior: torch.func.grad(lambda z: vk.ksd(z, prior))(z).square().sum()
            )(z.detach())
    assert torch.autograd.gradgradcheck(lambda z: vk.ksd(z, backend="reference"), z)


def test_compiled_gradients_are_not_differentiated_silently():
    torch._dynamo.reset()
    z = torch.randn(20, 3, requires_grad=True)
    value = torch.compile(lambda z: vk.ksd(z), fullgraph=True)(z)
    (g,) = torch.autograd.grad(value, z, create_graph=True)
    # A path from z to the penalty other than through g, so that the lost one could hide.
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(value + g.square().sum(), z)


def test_func_transforms():
    z = torch.randn(4, 20, 3, dtype=torch.float64)
    given = torch.randn(20, 3, dtype=torch.float64)
    grad, vmap = torch.func.grad, torch.func.vmap
    for prior in ("normal", "logistic", D.Normal(0.2, 1.5)):

        def native(z, prior=prior):
            return vk.ksd(z, prior)

        def reference(z, prior=prior):
            return vk.ksd(z, prior, backend="reference")

        for transformed in [
            lambda f: grad(f)(z[0]),
            lambda f: vmap(f)(z),
            lambda f: vmap(f, 1)(z.movedim(0, 1)),
            lambda f: vmap(grad(f))(z),
            lambda f: grad(lambda z: vmap(f)(z).square().sum())(z),
            lambda f: torch.func.jacrev(f)(z),
        ]:
            torch.testing.assert_close(
                transformed(native), transformed(reference), rtol=1e-9, atol=1e-12
            )

    def scored(backend):
        return vmap(grad(lambda z, s: vk.ksd(z, score=s, backend=backend), (0, 1)), (0, None))

    torch.testing.assert_close(scored("native")(z, given), scored("reference")(z, given))


@pytest.mark.parametrize("prior", ["normal", "logistic"])
@pytest.mark.parametrize("kernel", ["imq", vk.RBF("median")], ids=str)
def test_compiles_into_one_graph(kernel, prior):
    torch._dynamo.reset()
    z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda z: 2 * vk.ksd(z.tanh(), prior, kernel), fullgraph=True)
    value = compiled(z)
    got = value, *torch.autograd.grad(value, z)
    value = 2 * vk.ksd(z.tanh(), prior, kernel, backend="reference")
    want = value, *torch.autograd.grad(value, z)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_whatever_watches_or_wraps_sees_the_operation():
    from torch.fx.experimental.proxy_tensor import make_fx

    from vimae_kernels.ops.ksd import op

    z = torch.randn(20, 3)
    want = vk.ksd(z)
    assert torch.equal(make_fx(lambda z: vk.ksd(z))(z + 1)(z), want)
    assert torch.equal(vk.ksd(torch._neg_view(z)), vk.ksd(-z))
    assert torch.equal(vk.ksd(torch.nn.Parameter(z, requires_grad=False)), want)
    config = ("imq", torch.tensor([6.0]).double(), True, "native")
    gradient, scaled = op._ksd.with_gradient.dispatched, op._ksd.scaled.dispatched
    for score in (None, z.cos()):
        need = [True, score is not None]
        value, dz, dscore = gradient(z, score, need, *config)
        torch.library.opcheck(op._ksd.dispatched, (z, score, *config))
        torch.library.opcheck(gradient, (z, score, need, *config))
        torch.library.opcheck(scaled, (z, score, dz, dscore, value, *config))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("prior", ["normal", "logistic", D.Normal(0.0, 1.0)], ids=str)
@pytest.mark.parametrize("kernel", ["imq", "rbf", vk.RBF("median")], ids=str)
def test_bad_numbers_give_nan(kernel, prior, bad):
    z = torch.randn(70, 3)
    z[66, 1] = bad
    assert vk.ksd(z, prior, kernel).isnan()
    assert evaluate(z, "native", kernel, prior=prior)[1].isnan().any()


def test_memory_is_linear_in_the_number_of_points():
    code = """
import resource, torch, vimae_kernels as vk
z = torch.randn(30000, 2, requires_grad=True)
vk.ksd(z[:1000]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vk.ksd(z).backward()
assert z.grad.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20 * 1024  # kilobytes; one 30000 x 30000 matrix would be 3.6 million


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 150),
    d=st.sampled_from([1, 2, 3, 8, 17, 64, 70]),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1e-3, 1.0, 10.0]),
    scales=st.lists(st.floats(0.05, 50), min_size=1, max_size=4),
    family=st.sampled_from([vk.IMQ, vk.RBF]),
)
def test_for_every_input(n, d, seed, spread, scales, family):
    generator = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(n, d, generator=generator, dtype=torch.float64)
    given = torch.randn(n, d, generator=generator, dtype=torch.float64)
    kernel = family(scales)
    for score in (None, given):
        allowed = 1e-13 * size(z, kernel, score)
        for estimator in ("biased", "unbiased"):
            got = evaluate(z, "native", kernel, estimator, score)
            want = truth(z, kernel, estimator, score)
            assert abs(got[0] - want[0]) <= allowed * n
            for a, b in zip(got[1:], want[1:], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        assert vk.ksd(z, kernel=kernel, estimator="biased", score=score) >= -allowed * n
        several = sum(vk.ksd(z, kernel=family(c), score=score) for c in scales)
        assert abs(several - got[0]) <= allowed * n
    # The repulsion changes nothing where the points move together and the scores stay.
    assert abs(vk.ksd(z + 3.5, kernel=kernel, score=given) - got[0]) <= 1e3 * allowed * n


z10 = torch.randn(10, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vk.ksd([[1.0]]), TypeError, "z is of type list; it must be a torch.Tensor"),
        (lambda: vk.ksd(z10[:1]), ValueError, "it needs n >= 2 for the unbiased estimator"),
        (
            lambda: vk.ksd(z10[:1], kernel=vk.RBF("median"), estimator="biased"),
            ValueError,
            "it needs n >= 2 for the median distance",
        ),
        (lambda: vk.ksd(z10, z10), TypeError, "prior is a tensor, and samples have no score"),
        (lambda: vk.ksd(z10, "cauchy"), ValueError, "prior is 'cauchy'; known names are"),
        (lambda: vk.ksd(z10, kernel="cauchy"), ValueError, "kernel is 'cauchy'; known names are"),
        (
            lambda: vk.ksd(z10, estimator="v"),
            ValueError,
            "estimator is 'v'; known estimators are ['biased', 'unbiased']",
        ),
        (lambda: vk.ksd(z10, score=z10[:9]), ValueError, "score has shape (9, 3); it must have"),
        (lambda: vk.ksd(z10, backend="cuda"), ValueError, "backend is 'cuda'; known backends"),
        (lambda: vk.ksd(z10, backend="triton"), RuntimeError, "cannot run on cpu"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_single_sample_has_a_biased_estimate():
    z = torch.randn(1, 3)
    want = z.square().sum() + 2 * 3 / 6  # c is 2 d
    torch.testing.assert_close(vk.ksd(z, estimator="biased"), want)
