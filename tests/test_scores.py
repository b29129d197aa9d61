"""The score of a prior: which priors have one, scores given as functions, and how they are differentiated."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributions as td
from torch.distributions import Independent, MultivariateNormal, Normal

import vimae_kernels as vk

F64 = torch.float64
one = torch.ones(3)


def on(validate: bool):
    """Distributions whose support is not all of R^d."""
    v = {"validate_args": validate}
    return [
        td.Uniform(-1.0, 1.0, **v),
        Independent(td.Uniform(-one, one, **v), 1, **v),
        td.Beta(one, one, **v),
        td.Gamma(1.0, 1.0, **v),
        td.Exponential(one, **v),
        td.Dirichlet(one, **v),
        td.HalfNormal(1.0, **v),
        td.LogNormal(0.0, 1.0, **v),
        td.Pareto(1.0, 1.0, **v),
        td.Categorical(one, **v),
        td.OneHotCategorical(one, **v),
        td.Poisson(one, **v),
        td.Bernoulli(one / 3, **v),
        td.Multinomial(3, one, **v),
        td.RelaxedBernoulli(torch.tensor(1.0), one / 3, **v),
        td.LogisticNormal(torch.zeros(2), torch.ones(2), **v),
        td.MixtureSameFamily(td.Categorical(one), td.Gamma(one, one, **v), **v),
        td.TransformedDistribution(Normal(0.0, one, **v), [td.TanhTransform()], **v),
        td.TransformedDistribution(td.Uniform(-one, one, **v), [td.AffineTransform(0.0, 9.0)], **v),
        Independent(
            td.TransformedDistribution(
                td.Gamma(one, one, **v),
                [td.AffineTransform(0.0, 2.0), td.AffineTransform(3.0, 2.0)],
                **v,
            ),
            1,
            **v,
        ),
    ]


@pytest.mark.parametrize("prior", on(True) + on(False), ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("function", [vk.ksd, vk.stein_gradient, vk.stein_loss])
def test_bounded_and_discrete_priors_have_no_score(function, prior):
    z = torch.rand(6, 3) / 3
    message = (
        f"prior is {type(prior).__name__}, whose support is bounded or discrete; it must have a density on "
        "all of R^d"
    )

    def run(z):
        return function(z, prior).sum()

    for call in (
        run,
        torch.func.grad(run),
        torch.func.vmap(run),
        torch.func.vmap(torch.func.grad(run)),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(z.expand(2, 6, 3) if call is not run else z)
    with pytest.raises(ValueError, match=re.escape(message)):
        vk.nn.SteinLoss(prior)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: Normal(0.5, 2.0, validate_args=v),
        lambda v: Independent(Normal(one.double(), 2 * one, validate_args=v), 1, validate_args=v),
        lambda v: MultivariateNormal(one.double(), torch.eye(3, dtype=F64) + 0.5, validate_args=v),
        lambda v: td.LowRankMultivariateNormal(
            one.double(), torch.ones(3, 1, dtype=F64), one.double(), validate_args=v
        ),
        lambda v: td.StudentT(4.0 * one.double(), validate_args=v),
        lambda v: td.Gumbel(0.0 * one.double(), 1.0, validate_args=v),
        lambda v: vk.Logistic(0.5, 2.0, validate_args=v),
        lambda v: td.MixtureSameFamily(
            td.Categorical(torch.ones(2), validate_args=v),
            Normal(torch.tensor([-1.0, 1.0], dtype=F64), 1.0, validate_args=v),
            validate_args=v,
        ),
        lambda v: td.TransformedDistribution(
            Normal(0.0 * one.double(), 1.0, validate_args=v),
            [td.AffineTransform(1.0, 2.0)],
            validate_args=v,
        ),
        lambda v: td.TransformedDistribution(
            td.Uniform(0.0 * one.double(), 1.0, validate_args=v),
            [td.SigmoidTransform().inv, td.AffineTransform(1.0, 2.0)],
            validate_args=v,
        ),
    ],
)
def test_priors_on_all_of_space_in_every_transform(make, validate):
    prior = make(validate)
    z = torch.randn(2, 6, 3, dtype=F64)
    leaf = z.clone().requires_grad_()
    (score,) = torch.autograd.grad(prior.log_prob(leaf.movedim(1, 0)).sum(), leaf)
    want = vk.ksd(z, score=score)
    torch.testing.assert_close(vk.ksd(z, prior), want)
    torch.testing.assert_close(torch.func.vmap(lambda z: vk.ksd(z, prior))(z), want)
    torch.testing.assert_close(vk.stein_gradient(z, prior), vk.stein_gradient(z, score=score))
    gradient = torch.autograd.grad(vk.ksd(leaf, prior).sum(), leaf)[0]
    torch.testing.assert_close(torch.func.grad(lambda z: vk.ksd(z, prior).sum())(z), gradient)
    assert prior._validate_args == validate
    nan = z.clone()
    nan[0, 0, 0] = torch.nan
    value = vk.ksd(nan, prior)
    assert value[0].isnan()


class NoDensity(td.Distribution):
    arg_constraints: dict = {}
    support = td.constraints.real

    def __init__(self):
        super().__init__(validate_args=False)


class OwnDensity(NoDensity):
    """A user's own, which says nothing of its support."""

    support = td.constraints.dependent

    def log_prob(self, value):
        return -0.5 * value.square()


def test_distributions_of_users():
    z = torch.randn(6, 3)
    with pytest.raises(ValueError, match="prior is NoDensity, which has no log_prob"):
        vk.ksd(z, NoDensity())
    torch.testing.assert_close(vk.ksd(z, OwnDensity()), vk.ksd(z))


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (torch.zeros(6, 3), TypeError, "prior is a tensor, and samples have no score"),
        ("gaussian", ValueError, "prior is 'gaussian'; known names are ['logistic', 'normal']"),
        (3, TypeError, "prior is of type int; it must be a torch.distributions.Distribution"),
        (Normal(torch.zeros(4), 1.0), ValueError, "prior has batch_shape (4,), which does not"),
        (
            Normal(torch.zeros(3, device="meta"), 1.0, validate_args=False),
            ValueError,
            "prior has parameters on meta but z is on cpu",
        ),
    ],
    ids=str,
)
def test_other_priors_are_refused_by_name(prior, error, message):
    z = torch.randn(6, 3)
    for call in (vk.ksd, vk.stein_gradient, vk.stein_loss):
        with pytest.raises(error, match=re.escape(message)):
            call(z, prior)


class Score(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.precision = torch.nn.Parameter(torch.tensor(2.0, dtype=F64))

    def forward(self, z):
        return -self.precision * z.tanh()


def test_a_score_may_be_a_function():
    z = torch.randn(2, 8, 3, dtype=F64, requires_grad=True)
    score = Score()
    for kernel in ("imq", "rbf", vk.RBF("median")):
        want = vk.ksd(z, kernel=kernel, score=score(z))
        got = vk.ksd(z, kernel=kernel, score=score)
        assert torch.equal(got, want)
        for a, b in zip(
            torch.autograd.grad(got.sum(), (z, score.precision)),
            torch.autograd.grad(want.sum(), (z, score.precision)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        assert torch.equal(
            vk.stein_gradient(z, kernel=kernel, score=score),
            vk.stein_gradient(z, kernel=kernel, score=score(z)),
        )
        assert torch.equal(
            vk.stein_loss(z, kernel=kernel, score=score),
            vk.stein_loss(z, kernel=kernel, score=score(z)),
        )
    assert not vk.stein_gradient(z, score=score).requires_grad
    assert torch.equal(vk.nn.SteinLoss()(z, score), vk.stein_loss(z, score=score))
    of_prior = torch.func.grad(lambda z: Normal(0.0, 2.0).log_prob(z).sum())
    torch.testing.assert_close(vk.ksd(z, score=of_prior), vk.ksd(z, Normal(0.0, 2.0)))
    compiled = torch.compile(
        lambda z: vk.ksd(z, score=lambda z: -z), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(z), vk.ksd(z))


@pytest.mark.parametrize("call", [vk.ksd, vk.stein_gradient, vk.stein_loss])
@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda z: 3.0, TypeError, "score(z) is of type float; it must be a torch.Tensor"),
        (
            lambda z: z[:3],
            ValueError,
            "score(z) has shape (3, 3); it must have a row for every row",
        ),
        (lambda z: z[:, :2], ValueError, "score(z) has shape (8, 2): its last dimension must be"),
        (lambda z: z.sum(-1), ValueError, "score(z) has shape (8,); it must be (..., n, d)"),
        (lambda z: z.long(), TypeError, "score(z) has dtype torch.int64"),
        (
            torch.zeros(8, 3).numpy(),
            TypeError,
            "must be a torch.Tensor: write torch.from_numpy(score)",
        ),
        (Normal(0.0, 1.0), TypeError, "score is of type Normal; it must be a torch.Tensor"),
    ],
)
def test_scores_of_the_wrong_kind(call, score, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(torch.randn(8, 3), score=score)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "prior",
    ["normal", "logistic", Normal(0.5, 2.0), MultivariateNormal(one, torch.eye(3) + 0.5)],
    ids=str,
)
@pytest.mark.parametrize("function", [vk.ksd, vk.stein_gradient, vk.stein_loss])
def test_traced_by_torch_jit(function, prior):
    z, other = torch.randn(2, 9, 3)
    traced = torch.jit.trace(lambda z: function(z, prior), (z,))
    torch.testing.assert_close(traced(other), function(other, prior))
    with torch.no_grad():
        torch.testing.assert_close(traced(other), function(other, prior))
