"""Densities, likelihoods and objectives on cases small enough to work out by hand."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import vimae_kernels as vk
from vimae_models import build, densities, objectives
from vimae_models.likelihoods import LIKELIHOODS

LOG_2 = math.log(2)


def posteriors(n=6, d=3, seed=0):
    """Samples, means and log variances (n, d) in float64."""
    generator = torch.Generator().manual_seed(seed)
    mean, log_var = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    return densities.draw_normal(mean, log_var, generator), mean, log_var


def test_normal_densities_are_those_of_torch():
    z, mean, log_var = posteriors()
    normal = Normal(mean, (0.5 * log_var).exp())
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    assert torch.allclose(
        densities.normal_log_density(z, mean, log_var), normal.log_prob(z).sum(-1)
    )
    assert torch.allclose(densities.normal_kl(mean, log_var), kl_divergence(normal, standard))
    wide = Normal(torch.zeros_like(mean), torch.full_like(mean, 1.7))
    cross = kl_divergence(normal, wide) + normal.entropy()
    assert torch.allclose(densities.normal_cross_entropy(mean, log_var, 1.7), cross)


def test_prior_densities():
    z = torch.tensor([[0.3, -2.0], [0.0, 1.0]], dtype=torch.float64)
    standard = Normal(torch.zeros(2, dtype=torch.float64), 1.0)
    assert torch.allclose(densities.prior_log_density(z, "normal"), standard.log_prob(z).sum(-1))
    s = math.sqrt(3) / math.pi
    by_hand = (-z / s - math.log(s) - 2 * (1 + (-z / s).exp()).log()).sum(-1)
    assert torch.allclose(densities.prior_log_density(z, "logistic"), by_hand)


def test_categorical_entropies():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    log_p = p.log()
    assert torch.allclose(
        densities.categorical_entropy(log_p), torch.tensor([LOG_2, 0.0, 2 * LOG_2])
    )
    assert torch.allclose(densities.uniform_kl(log_p), torch.tensor([LOG_2, 2 * LOG_2, 0.0]))
    mean = densities.mean_log_probability(log_p[:2]).exp()
    assert torch.allclose(mean, torch.tensor([0.75, 0.25, 0.0, 0.0]))


def test_draws_have_the_mean_and_variance_asked_for():
    mean, log_var = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2 * math.log(3)]])
    z = densities.draw_normal(mean.expand(100_000, -1), log_var, torch.Generator().manual_seed(0))
    assert z.mean(0).tolist() == pytest.approx([1, -2], abs=0.05)
    assert z.std(0).tolist() == pytest.approx([1, 3], rel=0.02)


def test_simple_likelihoods_by_hand():
    theta = torch.tensor([[[[0.0, math.log(3)]]]])  # means 1/2 and 3/4
    x = torch.tensor([[[[1.0, 0.5]]]])
    log_p = {
        name: p.log_prob(theta, x).item() for name, p in LIKELIHOODS.items() if "-" not in name
    }
    squares = 0.25 + 0.0625
    cross = math.log(0.5) + 0.5 * (math.log(0.75) + math.log(0.25))
    assert log_p["bernoulli"] == pytest.approx(cross)
    assert log_p["l2"] == pytest.approx(-squares)
    normal = Normal(theta.sigmoid(), math.sqrt(0.5)).log_prob(x).sum().item()
    assert log_p["gaussian"] == pytest.approx(normal)
    for name in log_p:
        assert torch.allclose(LIKELIHOODS[name].mean(theta), torch.tensor([0.5, 0.75]))
    draws = LIKELIHOODS["bernoulli"].sample(theta.expand(20_000, -1, -1, -1))
    assert draws.unique().tolist() == [0, 1]
    assert draws.mean((0, 1, 2)).tolist() == pytest.approx([0.5, 0.75], abs=0.02)
    draws = LIKELIHOODS["gaussian"].sample(theta.expand(20_000, -1, -1, -1))
    assert draws.var(0).flatten().tolist() == pytest.approx([0.5, 0.5], rel=0.05)
    assert torch.equal(LIKELIHOODS["l2"].sample(theta), theta.sigmoid())


LEVELS = torch.arange(256, dtype=torch.float64) / 255


def mixture_theta(channels, seed=0, spread=1.0):
    p = LIKELIHOODS["logistic-mixture"]
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(1, p.channels(channels), 1, 1, dtype=torch.float64, generator=generator)
    theta[:, 10 * (1 + channels) : 10 * (1 + 2 * channels)] *= spread
    return theta


@pytest.mark.parametrize("spread", [0.1, 2.0, 6.0])
def test_logistic_mixture_is_a_distribution_over_bytes(spread):
    p = LIKELIHOODS["logistic-mixture"]
    theta = mixture_theta(1, spread=spread)
    log_p = p.log_prob(theta.expand(256, -1, -1, -1), LEVELS.view(256, 1, 1, 1))
    assert torch.isfinite(log_p).all()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    draws = p.sample(theta.expand(40_000, -1, -1, -1), torch.Generator().manual_seed(0)).flatten()
    assert torch.equal(draws, LEVELS[(draws * 255).round().long()])
    expected = (log_p.exp() * LEVELS).sum()
    assert draws.mean().item() == pytest.approx(expected.item(), abs=0.01)
    spread_of_draws = (log_p.exp() * (LEVELS - expected).square()).sum().sqrt()
    assert draws.std().item() == pytest.approx(spread_of_draws.item(), rel=0.03, abs=2e-3)


def test_logistic_mixture_of_three_channels_is_the_product_of_the_paper():
    """Eqs. 1 to 3 of PixelCNN++, written out for one pixel with scipy's distribution function."""
    from scipy.special import expit

    p = LIKELIHOODS["logistic-mixture"]
    theta = mixture_theta(3)
    flat = theta.flatten()
    pi = flat[:10].softmax(0)
    mu, log_s, raw = flat[10:].view(3, 3, 10)
    c = raw.tanh()
    for pixel in ((0, 100, 255), (255, 0, 31), (17, 200, 100)):
        r, g, b = (2 * v / 255 - 1 for v in pixel)
        means = mu[0], mu[1] + c[0] * r, mu[2] + c[1] * r + c[2] * g
        total = 0.0
        for k in range(10):
            product = float(pi[k])
            for value, level, m, s in zip(
                (r, g, b), pixel, means, log_s.clamp_min(-7).exp(), strict=True
            ):
                upper = 1.0 if level == 255 else expit(float((value + 1 / 255 - m[k]) / s[k]))
                lower = 0.0 if level == 0 else expit(float((value - 1 / 255 - m[k]) / s[k]))
                product *= upper - lower
            total += product
        x = torch.tensor(pixel, dtype=torch.float64).view(1, 3, 1, 1) / 255
        assert p.log_prob(theta, x).item() == pytest.approx(math.log(total), rel=1e-9)


def test_logistic_mixture_draws_depend_on_the_channels_before():
    """Narrow scales: green follows red with slope tanh(coefficient)."""
    p = LIKELIHOODS["logistic-mixture"]
    theta = torch.zeros(2000, 100, 1, 1)
    theta[:, 40:70] = -6.0
    theta[:, 40:50] = -2.0  # only red is wide
    theta[:, 70:80] = 10.0
    theta[:, 80:100] = -10.0
    r, g, b = p.sample(theta, torch.Generator().manual_seed(0))[..., 0, 0].T * 2 - 1
    assert r.std() > 0.1
    assert (g - r).abs().max() < 0.1
    assert (b - (-r - g).clamp(-1, 1)).abs().max() < 0.1


def test_logistic_mixture_is_finite_at_any_scale():
    """As wide as a byte is not, half of the mass is on either end; gradients are finite."""
    p = LIKELIHOODS["logistic-mixture"]
    for log_s in (-1000.0, -7.0, 3.0, 12.0, 90.0, 1000.0):
        theta = torch.zeros(1, 30, 1, 1)
        theta[:, 20:] = log_s
        theta.requires_grad_()
        for level in (0, 3, 255):
            log_p = p.log_prob(theta, torch.full((1, 1, 1, 1), level / 255))
            (g,) = torch.autograd.grad(log_p.sum(), theta)
            assert torch.isfinite(log_p).all() and torch.isfinite(g).all()
            if log_s > 80 and level != 3:
                assert log_p.item() == pytest.approx(-LOG_2, rel=1e-5)
            if log_s > 80 and level == 3:
                assert log_p.item() == pytest.approx(-log_s + math.log(2 / 255 / 4), rel=1e-5)


def test_logistic_mixture_refuses_two_channels():
    with pytest.raises(ValueError, match="1 or 3 channels; these have 2"):
        build("vae", data_shape=(2, 8, 8), likelihood="logistic-mixture")


def test_infomax_on_two_points():
    z = torch.tensor([[0.0], [2.0]])
    prior = torch.tensor([[0.0], [1.0]])
    # d = 1, so k(x, y) = 2 / (2 + (x - y)^2).
    within_z = 2 / 6
    within_prior = 2 / 3
    across = (1 + 2 / 3 + 2 / 6 + 2 / 3) / 4
    mmd = within_z + within_prior - 2 * across
    terms = objectives.infomax(torch.tensor(0.25), z, prior, lam=10.0)
    assert set(terms) == {"loss", "reconstruction", "mmd"}
    assert terms["reconstruction"].item() == 0.25
    assert terms["mmd"].item() == pytest.approx(mmd, abs=1e-6)
    assert terms["loss"].item() == pytest.approx(0.25 + 10 * mmd, abs=1e-5)


def test_kernels_by_name():
    z, prior, _ = posteriors(d=4)
    for name, kernel in (
        ("imq", vk.IMQ()),
        ("wae", vk.IMQ.wae(4)),
        ("mmd-vae", vk.RBF.mmd_vae(4)),
        ("median", vk.RBF("median")),
        (vk.IMQ(3.0), vk.IMQ(3.0)),
    ):
        mmd = objectives.infomax(torch.tensor(0.0), z, prior, 1.0, name)["mmd"]
        assert torch.equal(mmd, vk.mmd(z, prior, kernel))
    with pytest.raises(ValueError, match="kernel is 'gauss'.*'imq', 'rbf', 'wae'"):
        build("vimae-n", data_shape=(1, 8, 8), kernel="gauss")


def test_descending_the_stein_term_brings_the_codes_to_the_prior():
    """KL(q || p) of the best Gaussian fit falls; with the sign the paper prints it would rise."""
    z = 3 + 0.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    z = z.double().requires_grad_()

    def kl():
        covariance = torch.cov(z.detach().T)
        trace, mean = covariance.trace(), z.detach().mean(0)
        return 0.5 * (trace + mean.square().sum() - 2 - covariance.logdet()).item()

    before = kl()
    for _ in range(300):
        loss = objectives.stein(torch.tensor(0.0), z, "normal", lam=1.0)["loss"]
        (g,) = torch.autograd.grad(loss, z)
        with torch.no_grad():
            z -= 0.1 * len(z) * g
    assert before > 9
    assert kl() < 0.2


def test_elbo_by_hand():
    mean = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    log_var = torch.tensor([[0.0, math.log(4)], [0.0, 0.0]])
    kl = (0.5 + 0.5 * (4 - 1 - math.log(4)) + 0) / 2
    terms = objectives.elbo(torch.tensor(7.0), mean, log_var, beta=3.0)
    assert terms["kl"].item() == pytest.approx(kl)
    assert terms["loss"].item() == pytest.approx(7 + 3 * kl)


@pytest.mark.parametrize("rate, distance", [(0.0, 0.25), (0.1, 0.15), (2.0, 1.75)])
def test_minimal_rate_by_hand(rate, distance):
    mean, log_var = torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1)  # KL 1/2 and 0
    terms = objectives.minimal_rate(torch.tensor(1.0), mean, log_var, beta=4.0, rate=rate)
    assert terms["loss"].item() == pytest.approx(1 + 4 * distance)


def test_adversarial_terms_by_hand():
    odds = torch.tensor([math.log(3.0)])  # D = 3/4
    terms = objectives.adversarial(torch.tensor(1.0), odds, lam=2.0)
    assert terms["adversarial"].item() == pytest.approx(-math.log(0.75))
    assert terms["loss"].item() == pytest.approx(1 - 2 * math.log(0.75))
    terms = objectives.discrimination(odds, -odds)
    assert terms["loss"].item() == pytest.approx(-2 * math.log(0.75))
    # No better than chance: no divergence seen. Certain: log 2.
    zero = torch.zeros(1)
    assert objectives.discrimination(zero, zero)["js"].item() == pytest.approx(0, abs=1e-7)
    sure = torch.full((1,), 50.0)
    assert objectives.discrimination(sure, -sure)["js"].item() == pytest.approx(LOG_2)


def test_best_discriminator_gives_the_jensen_shannon_divergence():
    """Between N(0, 1) and N(1, 1), whose log density ratio is 1/2 - z."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(200_000, dtype=torch.float64, generator=generator)
    q = 1 + torch.randn(200_000, dtype=torch.float64, generator=generator)
    js = objectives.discrimination(0.5 - p, 0.5 - q)["js"].item()
    grid = torch.linspace(-8, 9, 20_001, dtype=torch.float64)
    a, b = (Normal(torch.tensor(m, dtype=torch.float64), 1.0).log_prob(grid) for m in (0.0, 1.0))
    mixture = torch.logaddexp(a, b) - LOG_2
    exact = 0.5 * torch.trapezoid(a.exp() * (a - mixture) + b.exp() * (b - mixture), grid).item()
    assert js == pytest.approx(exact, abs=2e-3)


# The identities of the papers, on random posteriors.


def infovae(alpha, lam, divergence, kernel="imq"):
    return objectives.info_vae(
        torch.tensor(5.0, dtype=torch.float64),
        *posteriors(40),
        alpha=alpha,
        lam=lam,
        divergence=divergence,
        kernel=kernel,
    )


def test_infovae_with_kl_and_equal_weights_is_beta_vae():
    _, mean, log_var = posteriors(40)
    for weight in (1.0, 4.0):
        elbo = objectives.elbo(torch.tensor(5.0, dtype=torch.float64), mean, log_var, weight)
        assert infovae(weight, weight, "kl")["loss"].item() == pytest.approx(elbo["loss"].item())
    unequal = infovae(0.0, 1.0, "kl")
    assert unequal["loss"] < elbo["loss"]
    assert unequal["kl_aggregate"] + unequal["mutual_information"] == pytest.approx(
        unequal["kl"].item()
    )


@pytest.mark.parametrize("divergence", ["mmd", "stein"])
def test_infovae_without_information_is_mmd_vae_or_stein_vae(divergence):
    z, _, _ = posteriors(40)
    objective = {"mmd": objectives.infomax, "stein": objectives.stein}[divergence]
    torch.manual_seed(0)
    expected = objective(torch.tensor(5.0, dtype=torch.float64), z, "normal", 3.0, "rbf")
    torch.manual_seed(0)
    terms = infovae(0.0, 3.0, divergence, "rbf")
    assert terms["loss"].item() == pytest.approx(expected["loss"].item())
    torch.manual_seed(0)
    informed = infovae(2.0, 3.0, divergence, "rbf")
    assert (informed["loss"] - terms["loss"]).item() == pytest.approx(
        2 * terms["mutual_information"].item()
    )


def test_minimal_rate_of_zero_is_beta_vae():
    _, mean, log_var = posteriors()
    reconstruction = torch.tensor(2.0)
    a = objectives.minimal_rate(reconstruction, mean, log_var, beta=3.0, rate=0.0)["loss"]
    assert a.item() == pytest.approx(
        objectives.elbo(reconstruction, mean, log_var, 3.0)["loss"].item()
    )


def test_rate_is_information_and_divergence_of_a_gaussian_channel():
    """x ~ N(0, 1), q(z|x) = N(x, s^2): I = log(1 + 1/s^2) / 2 and q(z) = N(0, 1 + s^2)."""
    s2, n = 0.3, 6000
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    log_var = torch.full_like(mean, math.log(s2))
    z = densities.draw_normal(mean, log_var, generator)
    terms = objectives.info_vae(
        torch.tensor(0.0), z, mean, log_var, alpha=0.0, lam=0.0, divergence="kl"
    )
    assert terms["mutual_information"].item() == pytest.approx(0.5 * math.log(1 + 1 / s2), abs=0.05)
    aggregate = 0.5 * (1 + s2 - 1 - math.log(1 + s2))
    assert terms["kl_aggregate"].item() == pytest.approx(aggregate, abs=0.05)
    assert terms["kl"].item() == pytest.approx(0.5 * math.log(1 + 1 / s2) + aggregate, abs=0.05)


def test_information_bound_of_a_gaussian_channel_is_the_information():
    """With the exact posterior as Q the bound is tight."""
    s2, n = 0.3, 6000
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    x = z + math.sqrt(s2) * torch.randn(n, 1, dtype=torch.float64, generator=generator)
    shrink = 1 / (1 + s2)
    log_q = densities.normal_log_density(z, shrink * x, torch.full_like(x, math.log(s2 * shrink)))
    entropy = torch.tensor(0.5 * (1 + math.log(2 * math.pi)))
    bound = objectives.information_bound(log_q, entropy)
    assert bound.item() == pytest.approx(0.5 * math.log(1 + 1 / s2), abs=0.02)


# VIMAE.


@pytest.mark.parametrize("name, kurtosis", [("vimae-n", 3.0), ("vimae-l", 4.2)])
def test_prior_of_each_system_by_its_moments(name, kurtosis):
    model = build(name, data_shape=(1, 4, 4), latent_dim=2)
    z = model.sample_prior(400_000, torch.Generator().manual_seed(0)).double()
    assert z.mean().item() == pytest.approx(0, abs=0.01)
    assert z.var().item() == pytest.approx(1, abs=0.02)
    # The kurtosis tells the two apart: 3 for the normal, 4.2 for the logistic distribution.
    assert z.pow(4).mean().item() == pytest.approx(kurtosis, abs=0.1)


@pytest.mark.parametrize("name, prior", [("vimae-n", "normal"), ("vimae-l", "logistic")])
def test_loss_is_the_objective_on_the_systems_prior(name, prior):
    torch.manual_seed(0)
    model = build(name, data_shape=(1, 6, 6), lam=7.0).eval()
    x = torch.rand(50, 1, 6, 6)
    torch.manual_seed(3)
    terms = model(x)
    torch.manual_seed(3)
    z = model.encode(x)
    error = (x - model.decode(z)).square().sum() / len(x)
    expected = objectives.infomax(error, z, prior, lam=7.0)
    for term in expected:
        assert terms[term].item() == pytest.approx(expected[term].item(), rel=1e-6)


def test_only_training_adds_noise_and_it_is_bounded():
    model = build("vimae-l", data_shape=(1, 4, 4), noise=0.01)
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.rand(100, 1, 4, 4)
    model.train().loss(x)
    model.eval().loss(x)
    noise = (seen[0] - x).abs()
    assert 0.009 < noise.max() <= 0.01 + 1e-6
    # The standard deviation of a normal distribution cut at one of its own: 0.5396 of it.
    assert (seen[0] - x).std().item() == pytest.approx(0.0054, rel=0.05)
    assert torch.equal(seen[1], x)
