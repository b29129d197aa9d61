"""Priors by name and as distributions, and the logistic distribution itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal

import vimae_kernels as vk
from vimae_kernels.priors import sample_prior


def test_logistic_matches_scipy():
    loc, scale = (
        torch.tensor([0.5, -2.0], dtype=torch.float64),
        torch.tensor([0.3, 4.0], dtype=torch.float64),
    )
    ours, theirs = vk.Logistic(loc, scale), scipy.stats.logistic(loc.numpy(), scale.numpy())
    x = torch.linspace(-60, 60, 41, dtype=torch.float64)[:, None]
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(ours.log_prob(x), theirs.logpdf(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(ours.cdf(x), theirs.cdf(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(ours.icdf(u), theirs.ppf(u.numpy()), rtol=1e-12)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-12)
    np.testing.assert_allclose(ours.mean, theirs.mean(), rtol=1e-12)
    np.testing.assert_allclose(ours.variance, theirs.var(), rtol=1e-12)


def test_logistic_gradients():
    loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([-30.0, -1.0, 0.3, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: vk.Logistic(a, b).log_prob(x + 0.01), (loc, scale))
    assert torch.autograd.gradgradcheck(lambda a, b: vk.Logistic(a, b).log_prob(x), (loc, scale))
    sample = vk.Logistic(loc, scale).rsample((1000,))
    g = torch.autograd.grad(sample.sum(), (loc, scale))
    assert g[0] == 1000 and torch.allclose(g[1], ((sample - loc) / scale).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logistic_in_half_types_has_its_variance(dtype):
    unit = torch.tensor(math.sqrt(3) / math.pi, dtype=dtype)
    samples = vk.Logistic(torch.zeros_like(unit), unit).sample((200_000,)).float()
    assert abs(samples.mean()) < 0.02 and abs(samples.var() - 1) < 0.03


def test_logistic_is_a_distribution():
    wide = vk.Logistic(0.0, 2.0).expand((3, 2))
    assert wide.sample((5,)).shape == (5, 3, 2) and wide.has_rsample
    with pytest.raises(ValueError, match="value"):
        vk.Logistic(0.0, 1.0, validate_args=True).log_prob(torch.tensor(math.nan))


@pytest.mark.parametrize(
    ("prior", "cdf"),
    [
        ("normal", scipy.stats.norm.cdf),
        ("logistic", scipy.stats.logistic(0, math.sqrt(3) / math.pi).cdf),
        (vk.Logistic(1.0, 0.2), scipy.stats.logistic(1.0, 0.2).cdf),
        (Normal(-1.0, 3.0), scipy.stats.norm(-1, 3).cdf),
        (Normal(torch.tensor([-1.0] * 4), 3.0), scipy.stats.norm(-1, 3).cdf),
        (Independent(Laplace(torch.zeros(4), torch.ones(4)), 1), scipy.stats.laplace.cdf),
        (MultivariateNormal(torch.zeros(4), torch.eye(4)), scipy.stats.norm.cdf),
    ],
    ids=[
        "normal",
        "logistic",
        "Logistic",
        "Normal",
        "Normal of 4",
        "Laplace",
        "MultivariateNormal",
    ],
)
def test_samples_follow_the_prior(prior, cdf):
    z = torch.empty(3, 2000, 4)
    first, again = (sample_prior(prior, z, torch.Generator().manual_seed(s)) for s in (5, 5))
    assert first.shape == z.shape and torch.equal(first, again)
    assert scipy.stats.kstest(first.flatten().numpy(), cdf).pvalue > 1e-3
    # Batch entries are independent draws.
    assert (first[0] != first[1]).all()


def test_a_generator_leaves_the_global_one_alone():
    z = torch.randn(10, 3)
    state = torch.get_rng_state()
    for prior in ("normal", "logistic", Normal(0.0, 1.0)):
        vk.mmd(z, prior, generator=torch.Generator().manual_seed(1))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        a = vk.mmd(z, prior)
        torch.manual_seed(1)
        assert torch.equal(a, vk.mmd(z, prior))
        torch.set_rng_state(state)


def test_unit_variance_by_name():
    z = torch.empty(400_000, 1, dtype=torch.float64)
    for prior in ("normal", "logistic"):
        samples = sample_prior(prior, z, torch.Generator().manual_seed(0))
        assert samples.dtype == torch.float64
        assert abs(samples.mean()) < 0.01 and abs(samples.var() - 1) < 0.02


def test_mmd_tells_priors_apart():
    z = torch.randn(4000, 2)
    same, other = vk.mmd(z, "normal"), vk.mmd(z, Normal(0.5, 1.0))
    assert abs(same) < 2e-3 < 1e-2 < other


def test_distribution_parameters_are_trained():
    z = torch.randn(2000, 2) + 1
    loc = torch.zeros(2, requires_grad=True)
    vk.mmd(z, Normal(loc, 1.0)).backward()
    assert (loc.grad < 0).all()
