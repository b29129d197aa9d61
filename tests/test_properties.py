"""What must hold for every input: symmetries, bounds, sums of scales, and backends that agree."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import vimae_kernels as vk

BACKENDS = [b for b in ("native", "reference") if vk._backend.unavailable(b, "cpu") is None]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, object]:
    n, m = draw(st.integers(2, 150)), draw(st.integers(2, 150))
    d = draw(st.sampled_from([1, 2, 3, 8, 17, 64, 70]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([1e-3, 1.0, 10.0]))
    z = spread * torch.randn(n, d, generator=generator, dtype=torch.float64)
    p = torch.randn(m, d, generator=generator, dtype=torch.float64) + draw(
        st.sampled_from([0.0, 1.0])
    )
    scale = st.floats(0.05, 50)
    kernel = draw(
        st.one_of(
            st.sampled_from(["imq", "rbf", vk.RBF("median")]),
            st.builds(vk.IMQ, st.one_of(scale, st.lists(scale, min_size=1, max_size=4))),
            st.builds(vk.RBF, st.one_of(scale, st.lists(scale, min_size=1, max_size=4))),
        )
    )
    return z, p, kernel


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), data=st.data())
def test_invariances(backend, problem, data):
    z, p, kernel = problem
    for estimator in ("biased", "unbiased"):

        def mmd(a, b, estimator=estimator):
            return vk.mmd(a, b, kernel, estimator=estimator, backend=backend)

        value = mmd(z, p)
        assert close(mmd(p, z), value)
        assert close(mmd(z[torch.randperm(len(z))], p[torch.randperm(len(p))]), value)
        assert close(mmd(z + 3.5, p + 3.5), value)
        assert close(mmd(-z, -p), value)
        if data.draw(st.booleans()):
            q, _ = torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], dtype=torch.float64))
            assert close(mmd(z @ q, p @ q), value)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_biased_is_not_negative_and_zero_on_itself(backend, problem):
    z, p, kernel = problem
    assert vk.mmd(z, p, kernel, estimator="biased", backend=backend) >= -1e-12
    assert abs(vk.mmd(z, z, kernel, estimator="biased", backend=backend)) <= 1e-12


@settings(max_examples=40, deadline=None)
@given(problem=problems(), scales=st.lists(st.floats(0.05, 50), min_size=1, max_size=5))
def test_several_scales_are_the_sum(backend, problem, scales):
    z, p, _ = problem
    for family in (vk.IMQ, vk.RBF):
        total = sum(vk.mmd(z, p, family(c), backend=backend) for c in scales)
        assert close(vk.mmd(z, p, family(scales), backend=backend), total)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_gradients_of_a_translation_cancel(backend, problem):
    # MMD does not change when both samples move together, so the forces on all points add up to zero.
    z, p, kernel = problem
    z, p = z.clone().requires_grad_(), p.clone().requires_grad_()
    g, h = torch.autograd.grad(vk.mmd(z, p, kernel, backend=backend), (z, p))
    assert (g.sum(0) + h.sum(0)).abs().max() <= 1e-11 * (1 + g.abs().sum() + h.abs().sum())


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_backends_agree(backend, problem):
    z, p, kernel = problem
    z, p = z.clone().requires_grad_(), p.clone().requires_grad_()
    got = vk.mmd(z, p, kernel, backend=backend)
    want = vk.mmd(z, p, kernel, backend="reference")
    assert close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, (z, p)), torch.autograd.grad(want, (z, p)), strict=True
    ):
        assert close(a, b)
