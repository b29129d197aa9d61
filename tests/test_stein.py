"""The Stein gradient on the native core against the definition in float64, and what it is for."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import distributions as D

import vimae_kernels as vk
from vimae_kernels import _native

pytestmark = pytest.mark.skipif(
    vk._backend.unavailable("native", "cpu") is not None, reason="the native core is not built"
)

# Panels hold 64 points and chunks 64 coordinates: sizes on both sides of those edges.
SHAPES = [
    ((), 1, 3),
    ((), 2, 1),
    ((), 63, 5),
    ((), 64, 8),
    ((), 129, 16),
    ((), 70, 67),
    ((), 65, 130),
    ((5,), 33, 4),
    ((2, 3), 17, 7),
]
# Of the terms that are added up, which cancel where the samples are close to the prior.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 4e-15}


def kernels(d: int) -> list[object]:
    return ["imq", "rbf", vk.IMQ(0.3), vk.RBF([0.5, 2.0]), vk.IMQ.wae(d)]


def error(got, z, score, kernel) -> float:
    """The largest error of a coordinate, relative to the mean size of its terms, both in float64."""
    z, score = z.double(), score.double()
    k = vk.kernels.resolve_kernel(kernel)
    want = vk.stein_gradient(z, kernel=k, score=score, backend="reference")
    e = z.unsqueeze(-2) - z.unsqueeze(-3)
    f, slope, _ = (
        t.unsqueeze(-1)
        for t in vk.ops.stein.reference.kernel(e.square().sum(-1), k.family, k.scales(z.shape[-1]))
    )
    size = ((f * score.unsqueeze(-3)).abs() + (2 * slope * e).abs()).mean(-2)
    return float(((got.double() - want).abs() / size).max())


def test_definition_is_that_of_the_paper():
    z = torch.randn(5, 3, dtype=torch.float64)
    score = torch.randn(5, 3, dtype=torch.float64)
    for kernel, k in (
        (vk.RBF([0.7, 1.5]), lambda s: (-s / 0.98).exp() + (-s / 4.5).exp()),
        (vk.IMQ([0.7, 4.0]), lambda s: 0.7 / (0.7 + s) + 4 / (4 + s)),
    ):

        def of_pair(x, y, k=k):
            return k((x - y).square().sum())

        gradient = torch.func.grad(of_pair)  # by the first argument
        want = torch.stack(
            [
                sum(of_pair(z[j], z[i]) * score[j] + gradient(z[j], z[i]) for j in range(5)) / 5
                for i in range(5)
            ]
        )
        got = vk.stein_gradient(z, kernel=kernel, score=score, backend="reference")
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape, dtype, shift, poisoned):
    batch, n, d = shape
    z = (0.7 * torch.randn(*batch, n, d, dtype=torch.float64) + 0.4 + shift).to(dtype)
    score = torch.randn(*batch, n, d, dtype=torch.float64).to(dtype)
    for kernel in kernels(d):
        normal = vk.stein_gradient(z, kernel=kernel, backend="native")
        given = vk.stein_gradient(z, kernel=kernel, score=score, backend="native")
        assert normal.dtype == given.dtype == dtype
        assert error(normal, z, -z, kernel) <= TOLERANCE[dtype]
        assert error(given, z, score, kernel) <= TOLERANCE[dtype]


def test_large_dimension_and_many_points(poisoned):
    for z in (torch.randn(10, 4096), torch.randn(70, 600)):
        assert error(vk.stein_gradient(z), z, -z, "rbf") <= 2e-6
        assert error(vk.stein_gradient(z, score=z.flip(0)), z, z.flip(0), "rbf") <= 2e-6
    z = torch.randn(2100, 1)  # rows are reduced in the middle of a sweep
    assert error(vk.stein_gradient(z), z, -z, "rbf") <= 2e-6


# Points whose differences are small or far against how they lie as a whole: what a product of
# matrices would lose.
LAYOUTS = {
    "uniform": lambda n, d: torch.rand(n, d, dtype=torch.float64),
    "two tight clusters": lambda n, d: (
        0.01 * torch.randn(n, d, dtype=torch.float64) + 2.0 * (torch.arange(n)[:, None] % 2)
    ),
    "twins": lambda n, d: (
        torch.randn(n // 2, d, dtype=torch.float64).repeat(2, 1)
        + 1e-3 * torch.randn(n // 2 * 2, d, dtype=torch.float64)
    ),
    "an outlier": lambda n, d: torch.cat(
        [0.01 * torch.randn(n - 1, d, dtype=torch.float64), torch.ones(1, d)]
    ),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_of_the_points_costs_digits(layout, dtype, poisoned):
    for n, d in ((300, 3), (80, 64), (66, 300)):
        for shift in (0.0, 100.0):
            z = (LAYOUTS[layout](n, d) + shift).to(dtype)
            widest = (z.double() - z.double().mean(0)).square().sum(-1).max().item()
            # Bandwidths from more than the points reach to a third of it. The drift -k z_j of an
            # outlier is what is left of larger terms, k (z_i - z_j) - k z_i: scores are given.
            for part in (0.5, 2.0, 5.0, 7.0, 9.0):
                kernel = vk.RBF(math.sqrt(widest / part))
                for score in (None, torch.zeros_like(z), torch.randn_like(z)):
                    if score is None and layout == "an outlier":
                        continue
                    got = vk.stein_gradient(z, kernel=kernel, score=score)
                    known = -z if score is None else score
                    assert error(got, z, known, kernel) <= 2 * TOLERANCE[dtype]


def test_padding_has_no_weight_however_far_the_points_are_from_the_origin():
    z = torch.randn(33, 3, dtype=torch.float64)
    for shift in torch.logspace(1, 6, 120).tolist():
        score = torch.randn_like(z)
        got = vk.stein_gradient(z + shift, score=score)
        torch.testing.assert_close(got, vk.stein_gradient(z, score=score), rtol=1e-8, atol=1e-8)


def test_bandwidths_at_the_ends_of_the_range():
    z = torch.randn(80, 5)
    for bandwidth in (1e-15, 1e-8, 1e8, 1e15, 1e50):
        kernel = vk.RBF(bandwidth)
        assert error(vk.stein_gradient(z, kernel=kernel), z, -z, kernel) <= 2e-6


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads, poisoned):
    before = torch.get_num_threads()
    z = torch.randn(700, 24)
    try:
        torch.set_num_threads(threads)
        for score in (None, z.cos()):
            got = vk.stein_gradient(z, score=score)
            assert error(got, z, -z if score is None else score, "rbf") <= 2e-6
            assert torch.equal(got, vk.stein_gradient(z, score=score))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
def test_every_simd_level(level, poisoned):
    used = _native.simd_levels()["used"]
    z = torch.randn(130, 9)
    try:
        _native._C.set_level(level)
        for kernel in ("imq", "rbf"):
            assert error(vk.stein_gradient(z, kernel=kernel), z, -z, kernel) <= 2e-6
    finally:
        _native._C.set_level(used)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_compute_in_float32(dtype):
    z = (torch.randn(300, 8) + 0.2).to(dtype)
    for prior in ("normal", "logistic"):
        got = vk.stein_gradient(z, prior)
        assert got.dtype == dtype
        assert torch.equal(got, vk.stein_gradient(z.float(), prior).to(dtype))
        assert vk.stein_loss(z, prior).dtype == torch.float32


def test_batches_broadcast_and_any_strides():
    z, score = torch.randn(4, 1, 20, 3), torch.randn(5, 20, 3)
    got = vk.stein_gradient(z, score=score)
    assert got.shape == (4, 5, 20, 3)
    want = vk.stein_gradient(z.double(), score=score.double(), backend="reference")
    assert torch.allclose(got.double(), want, atol=1e-6)
    assert vk.stein_gradient(torch.randn(0, 6, 2)).shape == (0, 6, 2)
    wide = torch.randn(40, 12, 6)
    for z in (
        wide[0].T,
        wide[::2, 3, ::2],
        wide.movedim(0, 1)[..., 1:4],
        wide[:, :, :1].expand(40, 12, 6),
    ):
        assert torch.equal(vk.stein_gradient(z), vk.stein_gradient(z.contiguous()))
        torch.testing.assert_close(vk.stein_loss(z), vk.stein_loss(z.contiguous()))


def test_scores_of_priors():
    z = torch.randn(2, 30, 3, dtype=torch.float64)
    loc, scale = torch.randn(3).double(), torch.rand(3).double() + 0.5
    cov = torch.tensor([[2, 0.3, 0], [0.3, 1, 0.1], [0, 0.1, 1]], dtype=torch.float64)
    unit = math.sqrt(3) / math.pi
    for prior, score in [
        ("normal", -z),
        ("logistic", -(z / (2 * unit)).tanh() / unit),
        (vk.Logistic(0.0, unit), -(z / (2 * unit)).tanh() / unit),
        (D.Normal(loc, scale), (loc - z) / scale**2),
        (D.Independent(D.Normal(loc, scale), 1), (loc - z) / scale**2),
        (D.MultivariateNormal(loc, cov), (loc - z) @ cov.inverse()),
        # One for each batch entry.
        (D.Normal(loc.expand(2, 1, 3)[:, 0], scale), (loc - z) / scale**2),
        (D.MultivariateNormal(loc.expand(2, 3), cov), (loc - z) @ cov.inverse()),
    ]:
        for backend in ("native", "reference"):
            got = vk.stein_gradient(z, prior, backend=backend)
            want = vk.stein_gradient(z, score=score, backend="reference")
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)  # vk.Logistic is in float32


def test_median_is_the_median_heuristic():
    z = torch.randn(80, 5, dtype=torch.float64) + 100
    bandwidth = torch.pdist(z).median().item()
    for prior in ("normal", "logistic"):
        want = vk.stein_gradient(z, prior, vk.RBF(bandwidth), backend="reference")
        for backend in ("native", "reference"):
            got = vk.stein_gradient(z, prior, vk.RBF("median"), backend=backend)
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_the_loss_has_the_gradient_it_promises():
    z = torch.randn(2, 40, 3, dtype=torch.float64, requires_grad=True)
    phi = vk.stein_gradient(z)
    assert not phi.requires_grad
    loss = vk.stein_loss(z)
    assert loss.shape == (2,)
    torch.testing.assert_close(loss, -(z * phi).sum(-1).mean(-1))
    (g,) = torch.autograd.grad(loss.sum(), z, create_graph=True)
    torch.testing.assert_close(g, -phi / 40)
    assert not g.requires_grad  # linear in z: the second derivative is zero
    # Through what made z, where it is not.
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda w: (z.detach() @ w).tanh().mul(phi[0]).sum() * vk.stein_loss(z.detach()).sum(), w
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z.detach(), torch.ones_like(z))
        tangent = torch.autograd.forward_ad.unpack_dual(vk.stein_loss(dual)).tangent
    torch.testing.assert_close(tangent, -phi.sum((-1, -2)) / 40)


@pytest.mark.parametrize("kernel", ["rbf", "imq", vk.RBF("median")], ids=str)
def test_descent_lowers_the_divergence_from_the_prior(kernel):
    z = (2 + 0.4 * torch.randn(200, 2, dtype=torch.float64)).requires_grad_()

    def divergence() -> float:
        """KL of the Gaussian with the mean and variance of z from N(0, I)."""
        mean, var = z.detach().mean(0), z.detach().var(0)
        return float((var + mean.square() - 1 - var.log()).sum() / 2)

    seen = [divergence()]
    for step in range(600):
        (g,) = torch.autograd.grad(vk.stein_loss(z, kernel=kernel), z)
        with torch.no_grad():
            z -= 0.3 * len(z) * g
        if step % 100 == 99:
            seen.append(divergence())
    assert seen[0] > 4 and seen[1] < seen[0] / 2 and seen[-1] < 0.03
    assert z.detach().mean(0).abs().max() < 0.02
    assert (z.detach().var(0) - 1).abs().max() < 0.25


def test_func_transforms():
    z = torch.randn(4, 20, 3, dtype=torch.float64)
    score = torch.randn(20, 3, dtype=torch.float64)
    grad, vmap = torch.func.grad, torch.func.vmap
    for prior in ("normal", "logistic", D.Normal(torch.zeros(3).double(), 2.0)):
        for transformed in [
            lambda f: vmap(f)(z),
            lambda f: vmap(f, 1)(z.movedim(0, 1)),
            lambda f: grad(lambda z: f(z).square().sum() + f(z).sum())(z[0]),
            lambda f: vmap(grad(lambda z: f(z).sum()))(z),
        ]:
            for public in (vk.stein_loss, vk.stein_gradient):

                def native(z, public=public, prior=prior):
                    return public(z, prior)

                def reference(z, public=public, prior=prior):
                    return public(z, prior, backend="reference")

                torch.testing.assert_close(
                    transformed(native), transformed(reference), rtol=1e-10, atol=1e-12
                )
    got = vmap(lambda z, s: vk.stein_gradient(z, score=s), (0, None))(z, score)
    torch.testing.assert_close(got, vk.stein_gradient(z, score=score))


@pytest.mark.parametrize("prior", ["normal", "logistic", D.Normal(0.5, 1.0)], ids=str)
def test_compiles_into_one_graph(prior):
    torch._dynamo.reset()
    z = torch.randn(20, 3, requires_grad=True)
    compiled = torch.compile(lambda z: 2 * vk.stein_loss(z.tanh(), prior), fullgraph=True)
    (g,) = torch.autograd.grad(compiled(z), z)
    (want,) = torch.autograd.grad(2 * vk.stein_loss(z.tanh(), prior), z)
    torch.testing.assert_close(g, want, rtol=1e-5, atol=1e-6)


def test_whatever_watches_or_wraps_sees_the_operation():
    from torch.fx.experimental.proxy_tensor import make_fx

    z = torch.randn(20, 3)
    want = vk.stein_gradient(z)
    assert torch.equal(make_fx(lambda z: vk.stein_gradient(z))(z + 1)(z), want)
    assert torch.equal(vk.stein_gradient(torch._neg_view(z)), vk.stein_gradient(-z))
    assert torch.equal(vk.stein_gradient(torch.nn.Parameter(z)), want)
    with torch.inference_mode():
        assert torch.equal(vk.stein_gradient(z, D.Normal(0.0, 1.0)), vk.stein_gradient(z, score=-z))
    config = ("rbf", torch.tensor([6.0]).double(), "native")
    torch.library.opcheck(vk.ops.stein.op._stein.dispatched, (z, None, *config))
    torch.library.opcheck(vk.ops.stein.op._stein.dispatched, (z, -z, *config))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("prior", ["normal", "logistic", D.Normal(0.0, 1.0)], ids=str)
@pytest.mark.parametrize("kernel", ["imq", "rbf", vk.RBF("median")], ids=str)
def test_bad_numbers_give_nan(kernel, prior, bad):
    z = torch.randn(70, 3)
    z[66, 1] = bad
    assert vk.stein_gradient(z, prior, kernel)[66].isnan().any()
    assert vk.stein_loss(z, prior, kernel).isnan()


def test_memory_is_linear_in_the_number_of_points():
    code = """
import resource, torch, vimae_kernels as vk
z = torch.randn(30000, 2)
vk.stein_gradient(z[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert vk.stein_gradient(z).isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20 * 1024  # kilobytes; one 30000 x 30000 matrix would be 3.6 million


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 150),
    d=st.sampled_from([1, 2, 3, 8, 17, 64, 70]),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1e-3, 1.0, 10.0]),
    scales=st.lists(st.floats(0.05, 50), min_size=1, max_size=4),
    family=st.sampled_from([vk.IMQ, vk.RBF]),
)
def test_for_every_input(n, d, seed, spread, scales, family):
    generator = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(n, d, generator=generator, dtype=torch.float64)
    score = torch.randn(n, d, generator=generator, dtype=torch.float64)
    kernel = family(scales)
    assert error(vk.stein_gradient(z, kernel=kernel), z, -z, kernel) <= 1e-13
    phi = vk.stein_gradient(z, kernel=kernel, score=score)
    assert error(phi, z, score, kernel) <= 1e-13
    near = {"rtol": 1e-9, "atol": 1e-11}
    # Without the prior's pull points only repel each other: nothing moves their mean.
    repulsion = vk.stein_gradient(z, kernel=kernel, score=torch.zeros_like(z))
    assert repulsion.mean(0).abs().max() <= 1e-11 * (1 + repulsion.abs().max())
    order = torch.randperm(n, generator=generator)
    torch.testing.assert_close(
        vk.stein_gradient(z[order], kernel=kernel, score=score[order]), phi[order], **near
    )
    torch.testing.assert_close(vk.stein_gradient(z + 3.5, kernel=kernel, score=score), phi, **near)
    several = sum(vk.stein_gradient(z, kernel=family(c), score=score) for c in scales)
    torch.testing.assert_close(phi, several, **near)


z10 = torch.randn(10, 3)


@pytest.mark.parametrize("call", [vk.stein_gradient, vk.stein_loss])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]],), TypeError, "z is of type list; it must be a torch.Tensor"),
        ((z10.long(),), TypeError, "z has dtype torch.int64; it must be one of float64"),
        ((z10[0],), ValueError, "z has shape (3,); it must be (..., n, d)"),
        ((z10[:0],), ValueError, "z has shape (0, 3); it needs n >= 1"),
        (
            (z10[:1], "normal", vk.RBF("median")),
            ValueError,
            "z has shape (1, 3); it needs n >= 2 for the median distance",
        ),
        ((z10, "gaussian"), ValueError, "prior is 'gaussian'; known names are ['logistic', 'norm"),
        ((z10, z10), TypeError, "prior is a tensor, and samples have no score"),
        ((z10, 3), TypeError, "prior is of type int; it must be a torch.distributions"),
        ((z10, "normal", "cauchy"), ValueError, "kernel is 'cauchy'; known names are ['imq', 'r"),
        (
            (z10, D.MultivariateNormal(torch.zeros(2), torch.eye(2))),
            ValueError,
            "prior has event_shape (2,); for z of shape (10, 3) it must be () or (3,)",
        ),
        (
            (z10, D.Normal(torch.zeros(4), 1.0)),
            ValueError,
            "prior has batch_shape (4,), which does not broadcast to (3,)",
        ),
        (
            (z10, D.Normal(torch.zeros(10, 3), 1.0)),
            ValueError,
            "prior has batch_shape (10, 3), which does not broadcast to (3,)",
        ),
        ((z10, "normal", "rbf", {"score": 3}), TypeError, "score is of type int; it must be"),
        (
            (z10, "normal", "rbf", {"score": z10[:9]}),
            ValueError,
            "score has shape (9, 3); it must have a row for every row of z, (10, 3)",
        ),
        (
            (z10, "normal", "rbf", {"score": z10[:, :2]}),
            ValueError,
            "score has shape (10, 2): its last dimension must be",
        ),
        (
            (z10, "logistic", "rbf", {"score": z10}),
            ValueError,
            "prior and score are both given",
        ),
        (
            (z10, "normal", "rbf", {"score": z10.to("meta")}),
            ValueError,
            "score is on meta but z is on cpu",
        ),
        ((z10, "normal", "rbf", {"backend": "cuda"}), ValueError, "backend is 'cuda'; known"),
        ((z10, "normal", "rbf", {"backend": "triton"}), RuntimeError, "cannot run on cpu"),
    ],
)
def test_bad_input(call, arguments, error, message):
    keywords = arguments[-1] if isinstance(arguments[-1], dict) else {}
    arguments = [a for a in arguments if not isinstance(a, dict)]
    with pytest.raises(error, match=re.escape(message)):
        call(*arguments, **keywords)
