"""mmd(..., estimator="closed_form") for every distribution that is N(loc, scale^2 I)."""

from __future__ import annotations

import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

import vimae_kernels as vk
from vimae_kernels.ops.mmd import closed_form

F64 = torch.float64
BACKENDS = [b for b in ("native", "reference") if vk._backend.unavailable(b, "cpu") is None]


def mmd(z, prior, kernel="imq", **rest):
    return vk.mmd(z, prior, kernel, estimator="closed_form", **rest)


@pytest.fixture
def z():
    return torch.randn(4, 50, 3, dtype=F64, generator=torch.Generator().manual_seed(1))


zero, one, eye = torch.zeros(3), torch.ones(3), torch.eye(3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", ["imq", "rbf", vk.IMQ.wae(3), vk.RBF((0.5, 2.0))], ids=str)
@pytest.mark.parametrize(
    "prior",
    [
        Normal(0.0, 1.0),
        Normal(0, 1),
        Normal(zero, 1.0),
        Normal(zero, one),
        Normal(torch.zeros(4, 1), 1.0),
        Independent(Normal(zero, one), 1),
        Independent(Normal(torch.zeros(4, 3), 1.0), 1),
        MultivariateNormal(zero, eye),
        MultivariateNormal(zero, precision_matrix=eye),
        MultivariateNormal(torch.zeros(4, 3), scale_tril=eye),
        Independent(MultivariateNormal(zero, eye), 0),
    ],
    ids=str,
)
def test_the_standard_normal_by_any_name(z, prior, kernel, backend):
    torch.testing.assert_close(
        mmd(z, prior, kernel, backend=backend),
        mmd(z, "normal", kernel, backend=backend),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [vk.IMQ, vk.RBF], ids=["imq", "rbf"])
def test_points_and_kernel_measured_from_loc_in_units_of_scale(z, make, backend):
    loc, scale = torch.tensor([3.0, -1.0, 100.0], dtype=F64), 2.5
    sizes = (0.7, 4.0)
    moved = make(tuple(s * (scale**2 if make is vk.IMQ else scale) for s in sizes))
    want = mmd(z, "normal", make(sizes), backend=backend)
    for prior in (
        Normal(loc, scale),
        Independent(Normal(loc, torch.full((3,), scale, dtype=F64)), 1),
        MultivariateNormal(loc, scale**2 * torch.eye(3, dtype=F64)),
    ):
        got = mmd(z * scale + loc, prior, moved, backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    # A loc for every batch entry.
    locs = torch.arange(4.0, dtype=F64)[:, None] * loc
    got = mmd(z * scale + locs[:, None], Normal(locs, scale), moved, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_is_the_mean_of_the_unbiased_estimator():
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(60, 2, dtype=F64, generator=generator)
    prior = Normal(torch.tensor([0.5, -1.0], dtype=F64), 1.7)
    drawn = torch.stack([vk.mmd(z, prior, generator=generator) for _ in range(2000)])
    error = (drawn.mean() - mmd(z, prior)).abs() / (drawn.std() / 2000**0.5)
    assert error < 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_to_loc(z, backend):
    loc = torch.tensor([0.3, -0.2, 0.5], dtype=F64, requires_grad=True)
    z = z[:, :8].clone().requires_grad_()

    def run(z, loc):
        return mmd(z, Normal(loc, 1.3), backend=backend)

    assert torch.autograd.gradcheck(run, (z, loc))
    assert torch.autograd.gradgradcheck(run, (z, loc))
    per_entry = torch.func.vmap(lambda z, loc: run(z, loc))(z, loc.expand(4, 3))
    torch.testing.assert_close(per_entry, run(z, loc))
    torch.func.grad(lambda loc: run(z[0], loc))(loc)
    # Everything is made inside of the transform.
    torch.func.grad(lambda z: mmd(z, Normal(0.0, 1.0), backend=backend))(z[0].detach())


def test_dtypes_are_promoted(z):
    assert mmd(z.float(), Normal(0.0, 1.0)).dtype == torch.float32
    assert mmd(z, Normal(0.0, 1.0)).dtype == F64
    assert mmd(z.float(), Normal(zero.double(), one.double())).dtype == F64
    assert mmd(z.bfloat16(), Normal(zero.bfloat16(), 1.0)).dtype == torch.float32


def test_half_precision_and_far_locs():
    z = (torch.randn(100, 2, dtype=F64) + 1000).float()
    near = mmd(z.double() - 1000, "normal")
    torch.testing.assert_close(mmd(z, Normal(1000.0, 1.0)).double(), near, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            Normal(zero, torch.tensor([1.0, 1.0, 2.0])),
            "prior is Normal with scales from 1 to 2; the",
        ),
        (
            Independent(Normal(zero, one + eye[0]), 1),
            "prior is Independent with scales from 1 to 2",
        ),
        (
            MultivariateNormal(zero, eye + 0.5),
            "and correlations; the closed_form estimator supports",
        ),
        (Normal(zero, torch.nn.Parameter(one)), "prior has a scale with a derivative"),
        (
            MultivariateNormal(zero, eye.clone().requires_grad_()),
            "prior has a scale with a derivative",
        ),
        (Normal(0.0, -1.0, validate_args=False), "prior has the scale -1.0; it must be positive"),
        (vk.Logistic(), "prior is of type Logistic; the closed_form estimator supports"),
        (
            LowRankMultivariateNormal(zero, torch.zeros(3, 1), one),
            "prior is of type LowRankMultivariateNormal; the closed_form",
        ),
        (
            Normal(torch.zeros(2), 1.0),
            "prior has batch_shape (2,), which does not broadcast to (4, 3)",
        ),
        (MultivariateNormal(torch.zeros(2), torch.eye(2)), "prior has event_shape (2,)"),
        (
            MultivariateNormal(zero.to("meta"), eye.to("meta"), validate_args=False),
            "prior has parameters on meta but z is on cpu",
        ),
    ],
    ids=str,
)
def test_what_has_no_closed_form_is_refused_by_name(z, prior, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mmd(z.float(), prior)
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.func.grad(lambda z: mmd(z, prior).sum())(z.float())


def test_a_scale_inside_a_transform_is_refused(z):
    with pytest.raises(ValueError, match="prior has a scale with a derivative"):
        torch.func.grad(lambda s: mmd(z[0], Normal(0.0, s)))(torch.tensor(1.0))
    with pytest.raises(ValueError, match="prior has a scale with a derivative"):
        torch.func.jvp(
            lambda s: mmd(z[0], Normal(0.0, s, validate_args=False)),
            (torch.tensor(1.0),),
            (torch.tensor(1.0),),
        )
    with pytest.raises(ValueError, match="prior has a scale that vmap runs over"):
        torch.func.vmap(lambda s: mmd(z[0], Normal(0.0, s, validate_args=False)))(one)


def test_quadratures_of_annealed_scales_are_not_kept_for_ever(z):
    closed_form._kept.cache_clear()
    for i in range(300):
        mmd(z, Normal(0.0, 1 + i / 100))
    info = closed_form._kept.cache_info()
    assert info.currsize == info.maxsize < 300
    assert not closed_form._captured


@pytest.mark.parametrize("kernel", ["imq", vk.RBF((0.5, 2.0))], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda scale: Normal(0.5, scale),
        lambda scale: Normal(torch.arange(3.0), scale),
        lambda scale: Independent(Normal(torch.arange(3.0), scale), 1),
    ],
)
def test_compiles_into_one_graph_for_all_scales(z, make, kernel):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(
        lambda z, prior: mmd(z, prior, kernel).sum(), fullgraph=True, backend=counter
    )
    for scale in (1.0, 2.0, 0.3, 4.5):
        prior = make(scale)
        torch.testing.assert_close(run(z, prior), mmd(z, prior, kernel).sum())
    assert counter.frame_count <= 2
    leaf, other = (z.clone().requires_grad_() for _ in range(2))
    run(leaf, prior).backward()
    mmd(other, prior, kernel).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    inside = torch.compile(
        lambda z, s: mmd(z, make(s), kernel).sum(), fullgraph=True, backend="aot_eager"
    )
    for scale in (1.5, 2.5):
        torch.testing.assert_close(inside(z, scale), mmd(z, make(scale), kernel).sum())


def test_what_compiled_code_cannot_see_is_read_between_two_graphs(z):
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, cov: mmd(z, MultivariateNormal(zero, cov)), backend="eager")
    torch.testing.assert_close(compiled(z, 4 * eye), mmd(z, Normal(0.0, 2.0)))
    with pytest.raises(ValueError, match="and correlations; the closed_form"):
        compiled(z, 4 * eye + 1)
