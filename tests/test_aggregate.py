"""Entropies of an aggregated posterior on the native core against the definition in float64, and what they mean."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vimae_kernels as vk
from vimae_kernels import _native
from vimae_kernels.ops.aggregate import op, reference

native = pytest.mark.skipif(
    vk._backend.unavailable("native", "cpu") is not None, reason="the native core is not built"
)

# Panels hold 64 posteriors, blocks up to 64 rows, chunks 64 coordinates: sizes on both sides of those edges.
SHAPES = [
    ((), 1, 1, 1),
    ((), 1, 130, 3),
    ((), 129, 1, 2),
    ((), 3, 2, 2),
    ((), 63, 65, 5),
    ((), 64, 64, 10),
    ((), 65, 65, 10),
    ((), 200, 101, 8),
    ((), 100, 600, 17),
    ((), 130, 130, 64),
    ((), 67, 66, 65),
    ((), 70, 70, 200),
    ((5,), 33, 20, 4),
    ((2, 3), 17, 17, 7),
]
CONFIGS: list[tuple[str, int | None]] = [("uniform", None), ("mws", 5000), ("mss", 5000)]
# Of the densities and of the gradients, relative to the largest. A joint density is a sum of d squares, and the
# gradient exponentiates it: what rounding leaves grows with that sum.
TOLERANCE = {torch.float32: (3e-7, 1e-6), torch.float64: (5e-15, 5e-14)}


def problem(
    batch: tuple[int, ...], n: int, B: int, d: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of the posteriors where there are enough of them, as in training; broad ones, which overlap."""
    mean, log_var = torch.randn(*batch, B, d), 0.5 * torch.randn(*batch, B, d) - 0.5
    of = torch.arange(n) % B
    z = mean[..., of, :] + torch.exp(log_var[..., of, :] / 2) * torch.randn(*batch, n, d)
    return z.to(dtype), mean.to(dtype), log_var.to(dtype)


def evaluate(
    inputs: tuple[Tensor, ...], weighting: str, size: int | None, backend: str
) -> list[Tensor]:
    """Both densities and the three gradients, for upstream gradients that are the same for every backend."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = vk.aggregate_log_density(*inputs, weighting=weighting, dataset_size=size, backend=backend)
    generator = torch.Generator().manual_seed(1)
    g = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in out]
    return [*(x.detach() for x in out), *torch.autograd.grad(out, inputs, g)]


def truth(inputs: tuple[Tensor, ...], weighting: str, size: int | None) -> list[Tensor]:
    return evaluate(tuple(x.double() for x in inputs), weighting, size, "reference")


def close(got: list[Tensor], want: list[Tensor], d: int, dtype: torch.dtype) -> None:
    density, gradient = TOLERANCE[dtype]
    for a, b in zip(got[:2], want[:2], strict=True):
        assert (a - b).abs().max() <= density * (1 + b.abs().max())
    for a, b in zip(got[2:], want[2:], strict=True):
        assert relative(a, b) <= gradient * (1 + d / 16)


@native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape, dtype, poisoned):
    inputs = problem(*shape, dtype)
    for weighting, size in CONFIGS:
        if weighting == "mss" and (shape[1] != shape[2] or shape[1] < 2):
            continue
        got = evaluate(inputs, weighting, size, "native")
        close(got, truth(inputs, weighting, size), shape[3], dtype)
        assert all(x.dtype == dtype for x in got)


def test_uniform_weights_ignore_the_size_of_the_data_set():
    inputs = problem((), 6, 6, 2)
    with_size = vk.aggregate_log_density(*inputs, dataset_size=50)
    for a, b in zip(with_size, vk.aggregate_log_density(*inputs), strict=True):
        assert torch.equal(a, b)


@native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_large_dimension(dtype, poisoned):
    # Posteriors so close to each other that every one of them counts.
    z, mean, log_var = problem((), 20, 20, 4096, dtype)
    inputs = 0.02 * z, 0.02 * mean, 0.02 * log_var
    for weighting, size in CONFIGS:
        got = evaluate(inputs, weighting, size, "native")
        # The truth, in float64 as well, has an error of its own.
        as_if = 4096 if dtype == torch.float64 else 64
        close(got, truth(inputs, weighting, size), as_if, dtype)


def total(inputs: tuple[Tensor, ...], backend: str, **weights: Any) -> list[Tensor]:
    """The total correlation and its gradients, upstream gradients of a batch being 1, 2, ..."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    value = vk.total_correlation(*inputs, **weights, backend=backend)
    g = torch.arange(1, value.numel() + 1).to(value).reshape(value.shape)
    return [value.detach(), *torch.autograd.grad(value, inputs, g)]


def check_total(inputs: tuple[Tensor, ...], d: int, dtype: torch.dtype, **weights: Any) -> None:
    got, exact = total(inputs, "native", **weights), tuple(x.double() for x in inputs)
    want = total(exact, "reference", **weights)
    densities = vk.aggregate_log_density(*exact, **weights, backend="reference")
    # Relative to the densities, and to the pull of the joint ones, that these are differences of.
    size = densities.joint.abs().mean() + densities.marginal.abs().sum(-1).mean()
    one = [x.requires_grad_() for x in exact]
    joint = vk.aggregate_log_density(*one, **weights, backend="reference").joint
    pulls = torch.autograd.grad(joint.mean(-1).sum(), one)
    density, gradient = TOLERANCE[dtype]
    assert (got[0] - want[0]).abs().max() <= density * (1 + size)
    for a, b, pull in zip(got[1:], want[1:], pulls, strict=True):
        assert (a - b).norm() <= gradient * (1 + d / 16) * (b.norm() + pull.norm())
        assert a.dtype == dtype


@native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_total_correlation_matches_the_definition(shape, dtype, poisoned):
    inputs = problem(*shape, dtype)
    for weighting, size in CONFIGS:
        if weighting == "mss" and (shape[1] != shape[2] or shape[1] < 2):
            continue
        check_total(inputs, shape[3], dtype, weighting=weighting, dataset_size=size)


@native
def test_total_correlation_is_that_of_the_densities(poisoned):
    inputs = tuple(x.requires_grad_() for x in problem((3,), 40, 40, 5))
    value = vk.total_correlation(*inputs)
    joint, marginal = vk.aggregate_log_density(*inputs)
    parts = (joint - marginal.sum(-1)).mean(-1)
    torch.testing.assert_close(value, parts, rtol=1e-12, atol=1e-12)
    # The value is the same bits whether or not a gradient is wanted.
    assert torch.equal(value, vk.total_correlation(*(x.detach() for x in inputs)))
    for got, want in zip(
        torch.autograd.grad(value.sum(), inputs),
        torch.autograd.grad(parts.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


@native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("log_var", [-20.0, -8.0, 20.0])
@pytest.mark.parametrize("far", [0.0, 3.0, 1000.0])
def test_total_correlation_of_extreme_variances_and_distances(far, log_var, dtype):
    z, mean, _ = problem((), 70, 66, 5, dtype)
    z[::9] += far
    inputs = z, mean, torch.full_like(mean, log_var) + torch.randn(66, 5).to(dtype) / 8
    got = total(inputs, "native")
    assert all(x.isfinite().all() for x in got)
    want = total(tuple(x.double() for x in inputs), "reference")
    size = vk.aggregate_log_density(*(x.double() for x in inputs)).marginal.abs().sum(-1).mean()
    assert (got[0] - want[0]).abs() <= 1e-6 * size
    if dtype == torch.float64:
        tolerance = 1e-12 + 1e-15 * size
        assert all(relative(a, b) <= tolerance for a, b in zip(got[1:], want[1:], strict=True))


@native
@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
def test_total_correlation_at_every_simd_level(level, poisoned):
    used = _native.simd_levels()["used"]
    try:
        _native._C.set_level(level)
        for dtype in TOLERANCE:
            for d in (9, 70):
                inputs = problem((), 75, 75, d, dtype)
                check_total(inputs, d, dtype, weighting="mss", dataset_size=99)
            inputs = problem((2,), 75, 75, 9, dtype)
            inputs[0][1, 3, 1] = math.nan
            value, dz, dmean, _ = total(inputs, "native")
            assert value.isnan().tolist() == [False, True]
            assert dz.isnan().any(-1).nonzero().tolist() == [[1, 3]]
            assert dmean[1].isnan().all() and not dmean[0].isnan().any()
    finally:
        _native._C.set_level(used)


@native
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_total_correlation_on_any_number_of_threads(threads, poisoned):
    before = torch.get_num_threads()
    inputs = problem((), 900, 900, 9, torch.float32)
    try:
        torch.set_num_threads(threads)
        check_total(inputs, 9, torch.float32, weighting="mss", dataset_size=10**6)
        one, two = (total(inputs, "native") for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@native
@pytest.mark.parametrize("shift", [100.0, -1000.0])
def test_a_common_offset_costs_nothing(shift):
    z, mean, log_var = (x.float() for x in problem((), 70, 70, 8))
    inputs = (z + shift).float(), (mean + shift).float(), log_var
    close(evaluate(inputs, "uniform", None, "native"), truth(inputs, "uniform", None), 8, z.dtype)


@native
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads, poisoned):
    before = torch.get_num_threads()
    inputs = problem((), 900, 900, 9, torch.float32)
    want = truth(inputs, "mss", 10**6)
    try:
        torch.set_num_threads(threads)
        got, again = (evaluate(inputs, "mss", 10**6, "native") for _ in range(2))
    finally:
        torch.set_num_threads(before)
    close(got, want, 9, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@native
@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
def test_every_simd_level(level, poisoned):
    used = _native.simd_levels()["used"]
    try:
        _native._C.set_level(level)
        for dtype in TOLERANCE:
            inputs = problem((), 75, 75, 9, dtype)
            close(evaluate(inputs, "mss", 99, "native"), truth(inputs, "mss", 99), 9, dtype)
            inputs[0][3, 1] = math.nan
            joint, marginal = vk.aggregate_log_density(*inputs)
            assert joint.isnan().nonzero().tolist() == [[3]]
            assert marginal.isnan().nonzero().tolist() == [[3, 1]]
    finally:
        _native._C.set_level(used)


@native
@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 100),
    B=st.integers(1, 100),
    d=st.integers(1, 80),
    scale=st.floats(0.01, 10),
    spread=st.floats(-3, 3),
    seed=st.integers(0, 99),
)
def test_any_size_and_scale(n, B, d, scale, spread, seed):
    torch.manual_seed(seed)
    z, mean, log_var = problem((), n, B, d)
    inputs = scale * z, scale * mean, log_var + 2 * math.log(scale) + spread
    got, want = evaluate(inputs, "mws", 777, "native"), truth(inputs, "mws", 777)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-11 * (1 + b.abs().max())


@native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("log_var", [-20.0, -8.0, 20.0])
@pytest.mark.parametrize("far", [0.0, 3.0, 1000.0])
def test_extreme_variances_and_distances(far, log_var, dtype):
    z, mean, _ = problem((), 70, 66, 5, dtype)
    inputs = z + far, mean, torch.full_like(mean, log_var) + torch.randn(66, 5).to(dtype) / 8
    got = evaluate(inputs, "uniform", None, "native")
    assert all(x.isfinite().all() for x in got)
    want = truth(inputs, "uniform", None)
    assert relative(got[0], want[0]) <= 1e-6 and relative(got[1], want[1]) <= 1e-6
    if dtype == torch.float64:
        # What rounding leaves of the exponents, in the definition as here.
        tolerance = 1e-12 + 1e-15 * want[0].abs().max()
        assert all(relative(a, b) <= tolerance for a, b in zip(got[2:], want[2:], strict=True))


@native
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
def test_a_sample_far_from_every_mean_is_pulled_back(distance):
    # In float32 the log density has no digits after the point here, yet its gradient is that of the nearest.
    mean = torch.randn(100, 3)
    z = torch.full((1, 3), distance, requires_grad=True)
    joint, marginal = vk.aggregate_log_density(z, mean, torch.zeros(100, 3))
    (g,) = torch.autograd.grad(joint.sum() + marginal.sum(), z)
    assert relative(g, torch.full((1, 3), -2 * distance)) < 0.1


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_compute_in_float32(dtype):
    inputs = problem((), 90, 90, 6, dtype)
    want, got = truth(inputs, "mws", 1000), evaluate(inputs, "mws", 1000, "native")
    for a, b in zip(got[:2], want[:2], strict=True):
        assert a.dtype == torch.float32 and relative(a, b) <= 3e-7
    for a, b in zip(got[2:], want[2:], strict=True):
        assert a.dtype == dtype and relative(a, b) <= torch.finfo(dtype).eps


@native
def test_mixed_dtypes_are_promoted():
    z, mean, log_var = problem((), 9, 9, 2)
    inputs = z.bfloat16().requires_grad_(), mean.float(), log_var
    joint, marginal = vk.aggregate_log_density(*inputs)
    assert joint.dtype == marginal.dtype == torch.float64
    assert torch.autograd.grad(joint.sum(), inputs[0])[0].dtype == torch.bfloat16
    assert vk.latent_information(*inputs).conditional_entropy.dtype == torch.float64


@native
def test_batches_broadcast():
    z, mean, log_var = torch.randn(4, 1, 20, 3), torch.randn(5, 30, 3), torch.randn(30, 3)
    got, want = (evaluate((z, mean, log_var), "mws", 100, b) for b in ("native", "reference"))
    assert got[0].shape == (4, 5, 20) and got[1].shape == (4, 5, 20, 3)
    assert [x.shape for x in got[2:]] == [z.shape, mean.shape, log_var.shape]
    assert all(relative(a, b) < 1e-5 for a, b in zip(got, want, strict=True))
    none = vk.latent_information(torch.randn(0, 6, 2), torch.randn(5, 2), torch.randn(5, 2))
    assert none.total_correlation.shape == (0,) and none.conditional_entropy.shape == (0, 2)


@native
@pytest.mark.parametrize(("weighting", "size"), CONFIGS)
def test_first_derivatives(weighting, size):
    inputs = tuple(x.requires_grad_() for x in problem((2,), 5, 5, 3))

    def densities(*inputs):
        return vk.aggregate_log_density(*inputs, weighting=weighting, dataset_size=size)

    def information(*inputs):
        return tuple(vk.latent_information(*inputs, weighting=weighting, dataset_size=size))

    assert torch.autograd.gradcheck(densities, inputs)
    assert torch.autograd.gradcheck(information, inputs)
    for x in inputs:  # each alone
        others = [x if y is x else y.detach() for y in inputs]
        assert torch.autograd.gradcheck(lambda *i: vk.total_correlation(*i), others)


@native
def test_a_second_derivative_is_refused():
    inputs = tuple(x.requires_grad_() for x in problem((), 6, 6, 2))
    value = vk.total_correlation(*inputs)
    g = torch.autograd.grad(value, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        # A path from z other than through g, so that the lost one could hide.
        torch.autograd.grad(value + g[0].square().sum(), inputs)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        f = torch.func.grad(vk.total_correlation)
        torch.func.grad(lambda z: f(z, *inputs[1:]).square().sum())(inputs[0])
    assert torch.autograd.gradgradcheck(
        lambda *inputs: vk.total_correlation(*inputs, backend="reference"), inputs
    )


@native
def test_a_compiled_gradient_is_not_differentiated_silently():
    torch._dynamo.reset()
    inputs = tuple(x.requires_grad_() for x in problem((), 20, 20, 3))
    value = torch.compile(vk.total_correlation, fullgraph=True)(*inputs)
    (g,) = torch.autograd.grad(value, inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(value + g.square().sum(), inputs[0])


@native
def test_func_transforms():
    z, mean, log_var = problem((4,), 12, 12, 3)
    one = z[0], mean[0], log_var[0]
    grad, vmap, jacrev = torch.func.grad, torch.func.vmap, torch.func.jacrev

    def tc(backend):
        return lambda *inputs: vk.total_correlation(
            *inputs, weighting="mss", dataset_size=50, backend=backend
        )

    for transformed in [
        lambda f: grad(f, (0, 1, 2))(*one),
        lambda f: vmap(f)(z, mean, log_var),
        lambda f: vmap(f, (0, None, None))(z, mean[0], log_var[0]),
        lambda f: vmap(f, (1, 0, None))(z.movedim(0, 1), mean, log_var[0]),
        lambda f: vmap(grad(f, (0, 1, 2)))(z, mean, log_var),
        lambda f: grad(lambda z: vmap(f)(z, mean, log_var).square().sum())(z),
        lambda f: jacrev(f)(*one),
    ]:
        got, want = transformed(tc("native")), transformed(tc("reference"))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    densities = vmap(lambda z: tuple(vk.aggregate_log_density(z, *one[1:])))(z)
    torch.testing.assert_close(densities, tuple(vk.aggregate_log_density(z, *one[1:])))


@native
@pytest.mark.parametrize(("weighting", "size"), CONFIGS)
def test_compiles_into_one_graph(weighting, size):
    torch._dynamo.reset()
    inputs = tuple(x.requires_grad_() for x in problem((), 20, 20, 3))

    def loss(backend):
        def f(z, mean, log_var):
            config = {"weighting": weighting, "dataset_size": size, "backend": backend}
            info = vk.latent_information(z.tanh(), mean, log_var, **config)
            return info.total_correlation + info.marginal_information.sum()

        return f

    value = torch.compile(loss(None), fullgraph=True)(*inputs)
    want = loss("reference")(*inputs)
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(value, inputs), torch.autograd.grad(want, inputs), rtol=1e-9, atol=1e-12
    )


@native
def test_operations_pass_opcheck():
    z, mean, log_var = problem((2,), 9, 7, 3)
    config = "mws", 100, "native"
    called = ("aggregate_log_density", *config)
    joint, marginal, peak, total = op._log_density(z, mean, log_var, *called)
    saved = joint, peak, total, joint.float(), marginal
    active = z.clone().requires_grad_()
    torch.library.opcheck(op._log_density.dispatched, (active, mean, log_var, *called))
    torch.library.opcheck(op._log_density_gradient.dispatched, (z, mean, log_var, *saved, *called))
    torch.library.opcheck(op._total_correlation.dispatched, (active, mean, log_var, *config))


@pytest.mark.parametrize("backend", [pytest.param("native", marks=native), "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_numbers_give_nan(bad, backend):
    for which in range(3):
        inputs = problem((), 70, 66, 3)
        inputs[which][65, 1] = bad
        got = evaluate(inputs, "uniform", None, backend)
        assert got[0][65].isnan() and got[1][65, 1].isnan()
        assert all(x.isnan().any() for x in got)
        if which == 0:
            assert got[0].isnan().sum() == got[1].isnan().sum() == 1
        else:
            assert got[0].isnan().all() and got[1].isnan().sum() == 70
        assert vk.total_correlation(*inputs, backend=backend).isnan()


@pytest.mark.parametrize("B", [2, 3, 7, 65])
@pytest.mark.parametrize("size", [65, 66, 10**6])
def test_stratified_weights(B, size):
    M = B - 1
    w = reference.weights(torch.randn(B, 1, dtype=torch.float64), B, "mss", size)
    assert (w > 0).all() and torch.allclose(w.sum(1), torch.ones(B, dtype=torch.float64))
    for i in range(B):
        for j in range(B):
            want = 1 / size if j == i else (size - M) / (size * M) if j == (i + 1) % B else 1 / M
            assert w[i, j] == pytest.approx(want, rel=1e-14)


def test_stratified_weights_are_unbiased():
    # Over all minibatches of the others, the mean estimate of q(z) at a point's own sample is the whole data
    # set's (Chen et al. 2018, App. C.2): here all 24 orders in which 4 of 5 points can stand behind the first.
    from itertools import permutations

    z, mean, log_var = problem((), 5, 5, 2)
    whole = vk.aggregate_log_density(z, mean, log_var, backend="reference").joint[0].exp()
    estimates = []
    for others in permutations(range(1, 5), 2):
        batch = [0, *others]
        joint, _ = vk.aggregate_log_density(
            z[batch],
            mean[batch],
            log_var[batch],
            weighting="mss",
            dataset_size=5,
            backend="reference",
        )
        estimates.append(joint[0].exp())
    torch.testing.assert_close(torch.stack(estimates).mean(), whole)


def gaussian(n: int, correlation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of posteriors whose aggregate is a Gaussian with unit variances and this correlation."""
    variance = 0.05
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]]) - variance * torch.eye(2)
    mean = torch.randn(n, 2) @ torch.linalg.cholesky(covariance).T
    return mean + variance**0.5 * torch.randn(n, 2), mean, torch.full((n, 2), math.log(variance))


def test_total_correlation_of_known_distributions():
    # Bias of the estimate is about 0.005, its standard deviation 0.01.
    independent = vk.total_correlation(*gaussian(4000, 0.0))
    assert abs(independent) < 0.06
    for correlation in (0.5, 0.9):
        got = vk.total_correlation(*gaussian(4000, correlation))
        assert got == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.08)


def test_information_of_a_known_distribution():
    # I(x; z_k) of a standard normal aggregate with posterior variance v is log(1 / v) / 2; H = log(2 pi e) / 2.
    info = vk.latent_information(*gaussian(4000, 0.0))
    assert torch.allclose(info.marginal_information, torch.tensor(-0.5 * math.log(0.05)), atol=0.06)
    assert torch.allclose(
        info.marginal_entropy, torch.tensor(0.5 * math.log(2 * math.pi * math.e)), atol=0.06
    )
    torch.testing.assert_close(
        info.conditional_entropy, info.marginal_entropy - info.marginal_information
    )
    torch.testing.assert_close(
        info.mutual_information, info.joint_entropy - info.conditional_entropy.sum()
    )
    torch.testing.assert_close(
        info.total_correlation, info.marginal_entropy.sum() - info.joint_entropy
    )
    torch.testing.assert_close(info.total_correlation, vk.total_correlation(*gaussian_again()))


def gaussian_again() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return gaussian(4000, 0.0)


@pytest.mark.parametrize("log_var", [-12.0, -2.0, 2.0])
def test_infovae_mutual_information_is_bounded_by_log_m(log_var):
    # InfoVAE, App. B.2: mean_i log(q(z_i|x_i) / (1/M sum_j q(z_i|x_j))) <= log M; reached by posteriors apart.
    M = 50
    mean = torch.randn(M, 4, dtype=torch.float64)
    log_var = torch.full_like(mean, log_var)
    z = mean + torch.exp(log_var / 2) * torch.randn_like(mean)
    own = torch.distributions.Normal(mean, torch.exp(log_var / 2)).log_prob(z).sum(-1)
    estimate = (own - vk.aggregate_log_density(z, mean, log_var).joint).mean()
    assert estimate <= math.log(M) + 1e-12
    if log_var[0, 0] == -12:
        assert estimate == pytest.approx(math.log(M), abs=1e-9)


z, posteriors = torch.randn(10, 3), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f([[1.0]], z, z), TypeError, "z is of type list; it must be a torch.Tensor"),
        (lambda f: f(z, z.long(), z), TypeError, "mean has dtype torch.int64; it must be one of"),
        (lambda f: f(z, z, z.bool()), TypeError, "log_var has dtype torch.bool"),
        (lambda f: f(z[0], z, z), ValueError, "z has shape (3,); it must be (..., n, d)"),
        (lambda f: f(z, z[:0], z[:0]), ValueError, "mean has shape (0, 3); it needs n >= 1"),
        (lambda f: f(z, z[:, :2], z), ValueError, "mean has shape (10, 2): its last dimension"),
        (
            lambda f: f(z, posteriors, z),
            ValueError,
            "log_var has shape (10, 3); it must have the 4",
        ),
        (
            lambda f: f(z, z.expand(4, 10, 3), z.expand(5, 10, 3)),
            ValueError,
            "its batch dimensions (5,) must broadcast against those of mean, (4,)",
        ),
        (lambda f: f(z, z.to("meta"), z), ValueError, "mean is on meta but z is on cpu"),
        (lambda f: f(z, z, z, weighting="all"), ValueError, "weighting is 'all'; known weightings"),
        (
            lambda f: f(z, z, z, dataset_size=5.0),
            TypeError,
            "dataset_size is of type float; it must be an int >= 1",
        ),
        (
            lambda f: f(z, z, z, dataset_size=0),
            ValueError,
            "dataset_size is 0; it must be at least 1",
        ),
        (
            lambda f: f(z, z, z, weighting="mws"),
            ValueError,
            "dataset_size is None; weighting 'mws'",
        ),
        (
            lambda f: f(z, z, z, weighting="mws", dataset_size=5.0),
            TypeError,
            "dataset_size is of type float; it must be an int >= 1",
        ),
        (
            lambda f: f(z, z, z, weighting="mws", dataset_size=True),
            TypeError,
            "dataset_size is of type bool",
        ),
        (
            lambda f: f(z, z, z, weighting="mws", dataset_size=0),
            ValueError,
            "dataset_size is 0; it must be at least 1",
        ),
        (
            lambda f: f(z, z, z, weighting="mss", dataset_size=9),
            ValueError,
            "dataset_size is 9; for weighting 'mss' it must be at least the batch's 10",
        ),
        (
            lambda f: f(z, posteriors, posteriors, weighting="mss", dataset_size=90),
            ValueError,
            "z has shape (10, 3) and mean (4, 3); weighting 'mss' needs as many samples as posteriors",
        ),
        (
            lambda f: f(z[:1], z[:1], z[:1], weighting="mss", dataset_size=90),
            ValueError,
            "at least 2",
        ),
        (lambda f: f(z, z, z, backend="cuda"), ValueError, "backend is 'cuda'; known backends"),
    ],
)
def test_bad_input(call, error, message):
    for f in (vk.aggregate_log_density, vk.latent_information, vk.total_correlation):
        with pytest.raises(error, match=re.escape(message)):
            call(f)


@native
def test_memory_is_linear_in_the_number_of_points():
    code = """
import resource, torch, vimae_kernels as vk
z = torch.randn(10000, 64)
inputs = [x.requires_grad_() for x in (z, z + 1, 0 * z)]
few = [x[:1000].detach().requires_grad_() for x in inputs]
vk.total_correlation(*few).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vk.total_correlation(*inputs).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        int(out.stdout) < 100 * 1024
    )  # kilobytes; the definition would need several times 25 million


@native
def test_calls_do_not_leak():
    code = """
import resource, torch, vimae_kernels as vk
z = torch.randn(1500, 8)
def calls(count):
    for _ in range(count):
        vk.total_correlation(z, z, z)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(-calls(10) + calls(100))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20 * 1024  # kilobytes; a lost workspace a call would be more than that
