"""Joint codes: the terms of IMAE and its rivals, virtual adversarial training, information bounds."""

import math

import pytest
import torch
from torch import nn

import vimae_kernels as vk
from vimae_models import build, densities, objectives
from vimae_models.joint import HybridBetaVAE
from vimae_models.vae import VAE
from vimae_models.vmi import MutualInformationBound, q_outputs

SHAPE = (1, 6, 6)
METHODS = ["imae", "hybrid-beta-vae", "hybrid-infovae", "joint-vae"]


def small(name, **given):
    torch.manual_seed(0)
    given = {"latent_dim": 3, "width": 0.1, "categories": 4} | given
    return build(name, data_shape=SHAPE, **given)


def batch(n=12, d=3, k=4):
    """Reconstruction, samples, means, log variances, log probabilities."""
    generator = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    log_p = torch.randn(n, k, dtype=torch.float64, generator=generator).log_softmax(1)
    z = densities.draw_normal(mean, log_var, generator)
    return torch.tensor(5.0, dtype=torch.float64), z, mean, log_var, log_p


ZERO = torch.tensor(0.0)


def test_information_of_the_category_by_hand():
    """Certain and balanced: log K. Uninformative: 0. Certain and always the same: 0."""
    reconstruction, z, mean, log_var, _ = batch(4)
    certain = torch.eye(4, dtype=torch.float64).log()
    uniform = torch.full((4, 4), 0.25, dtype=torch.float64).log()
    for log_p, information, entropy in (
        (certain, math.log(4), math.log(4)),
        (uniform, 0, math.log(4)),
        (certain[:1].expand(4, -1), 0, 0),
    ):
        terms = objectives.imae(reconstruction, z, mean, log_var, log_p, ZERO, beta=2.0, gamma=0.0)
        assert terms["information_y"].item() == pytest.approx(information, abs=1e-9)
        assert terms["entropy_y"].item() == pytest.approx(entropy, abs=1e-9)


def test_imae_is_equation_10():
    """Every entropy from a double loop over the batch, eq. 34."""
    reconstruction, z, mean, log_var, log_p = batch(7)
    n, d = z.shape
    joint, marginal = [], []
    for i in range(n):
        logs = torch.stack(
            [
                torch.distributions.Normal(mean[j], (0.5 * log_var[j]).exp()).log_prob(z[i])
                for j in range(n)
            ]
        )
        joint.append(logs.sum(1).exp().mean().log())
        marginal.append(logs.exp().mean(0).log())
    joint, marginal = torch.stack(joint), torch.stack(marginal)
    tc = (joint - marginal.sum(1)).mean()
    scale = 1.5
    cross = 0.5 * math.log(2 * math.pi * scale**2) + (mean**2 + log_var.exp()) / (2 * scale**2)
    marginal_kl = marginal.mean(0).sum() + cross.mean(0).sum()
    p = log_p.exp()
    information = -(p.mean(0) * p.mean(0).log()).sum() + (p * log_p).sum(1).mean()
    vat = torch.tensor(0.7, dtype=torch.float64)
    terms = objectives.imae(
        reconstruction, z, mean, log_var, log_p, vat, beta=2.0, gamma=3.0, scale=scale
    )
    assert terms["total_correlation"].item() == pytest.approx(tc.item())
    assert terms["marginal_kl"].item() == pytest.approx(marginal_kl.item())
    assert terms["information_y"].item() == pytest.approx(information.item())
    expected = reconstruction - 2 * (information - vat) + 2 * marginal_kl + 3 * tc
    assert terms["loss"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("weighting", ["mws", "mss"])
def test_imae_takes_the_weightings_of_beta_tcvae(weighting):
    reconstruction, z, mean, log_var, log_p = batch()
    terms = objectives.imae(
        reconstruction,
        z,
        mean,
        log_var,
        log_p,
        ZERO,
        beta=1.0,
        gamma=1.0,
        weighting=weighting,
        dataset_size=500,
    )
    expected = vk.total_correlation(z, mean, log_var, weighting=weighting, dataset_size=500)
    torch.testing.assert_close(terms["total_correlation"], expected, rtol=1e-12, atol=1e-12)
    model = small("imae", weighting=weighting, dataset_size=500)
    assert torch.isfinite(model.loss(torch.rand(9, *SHAPE))["loss"])


def test_hybrid_elbo_with_weight_1_is_the_elbo_of_both_codes():
    reconstruction, _, mean, log_var, log_p = batch()
    gaussian = objectives.elbo(reconstruction, mean, log_var)["loss"]
    category = (log_p.exp() * (log_p - math.log(1 / 4))).sum(1).mean()
    terms = objectives.hybrid_elbo(reconstruction, mean, log_var, log_p)
    assert terms["loss"].item() == pytest.approx((gaussian + category).item())
    heavy = objectives.hybrid_elbo(reconstruction, mean, log_var, log_p, 0.5, beta=4.0)
    kls = terms["kl_z"] + terms["kl_y"]
    assert heavy["loss"].item() == pytest.approx((reconstruction + 4 * (kls + 0.5)).item())


def test_hybrid_infovae_drops_exactly_the_information():
    reconstruction, z, mean, log_var, log_p = batch()
    terms = objectives.hybrid_info_vae(reconstruction, z, mean, log_var, log_p, ZERO, beta=1.0)
    full = objectives.hybrid_elbo(reconstruction, mean, log_var, log_p)
    of_z = vk.latent_information(z, mean, log_var).mutual_information
    of_y = objectives.imae(reconstruction, z, mean, log_var, log_p, ZERO, beta=0.0, gamma=0.0)
    assert (terms["kl_z"] + of_z).item() == pytest.approx(full["kl_z"].item())
    assert (terms["kl_y"] + of_y["information_y"]).item() == pytest.approx(full["kl_y"].item())
    assert (full["loss"] - terms["loss"]).item() == pytest.approx(
        (of_z + of_y["information_y"]).item()
    )


def test_joint_vae_by_hand():
    reconstruction, _, mean, log_var, log_p = batch()
    full = objectives.hybrid_elbo(reconstruction, mean, log_var, log_p, beta=3.0)
    terms = objectives.joint_vae(reconstruction, mean, log_var, log_p, ZERO, ZERO, ZERO, beta=3.0)
    assert terms["loss"].item() == pytest.approx(full["loss"].item())
    c_z, c_y = full["kl_z"] + 2, full["kl_y"] + 1
    terms = objectives.joint_vae(
        reconstruction, mean, log_var, log_p, torch.tensor(0.5), c_z, c_y, beta=3.0
    )
    assert terms["loss"].item() == pytest.approx(5 + 3 * (2 + 1 + 0.5))


def test_capacities_rise_in_training_only_and_are_kept():
    model = small("joint-vae", steps=4, capacity_z=8.0, capacity_y=99.0)
    x = torch.rand(6, *SHAPE)
    ends = torch.tensor([8.0, math.log(4)])

    def capacities():
        terms = model.loss(x)
        return torch.stack([terms["capacity_z"], terms["capacity_y"]])

    for share in (0, 0.25, 0.5):
        assert torch.allclose(capacities(), share * ends)
    model.eval()
    for _ in range(3):
        assert torch.allclose(capacities(), 0.75 * ends)
    assert model.state_dict()["step"] == 3
    model.train()
    for share in (0.75, 1, 1, 1):
        assert torch.allclose(capacities(), share * ends)


def test_codes_are_gaussian_beside_one_hot():
    model = small("imae").eval()
    x = torch.rand(9, *SHAPE)
    p = model.classify(x)
    assert p.shape == (9, 4) and torch.allclose(p.sum(1), torch.ones(9))
    code = model.encode(x)
    assert torch.equal(code[:, :3], model.posterior(x)[0])
    assert torch.equal(code[:, 3:].argmax(1), p.argmax(1))
    draws = model.sample_posterior(x[:1].expand(4000, *SHAPE))[:, 3:].mean(0)
    assert torch.allclose(draws, p[0], atol=0.04)
    prior = model.sample_prior(8000)
    assert torch.allclose(prior[:, 3:].mean(0), torch.full((4,), 0.25), atol=0.03)
    standard = densities.prior_log_density(prior[:, :3], "normal")
    assert torch.allclose(model.log_prior(prior), standard - math.log(4))


def test_decoder_sees_relaxed_categories_and_their_gradient():
    model = small("hybrid-beta-vae", vat=0.0, beta=0.0, tau=0.5)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.loss(torch.rand(50, *SHAPE))["loss"].backward()
    y = seen[0][:, 3:]
    assert torch.allclose(y.sum(1), torch.ones(50)) and ((y > 0.01) & (y < 0.99)).any()
    logits = model.encoder[-1][1][-1]
    assert logits.weight.grad.abs().sum() > 0


# Virtual adversarial training, eq. 11.


class Linear(nn.Module):
    """Two categories of logits 0 and w . x; the rest of the outputs constant."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        logit = x.flatten(1) @ self.w
        return torch.stack([0 * logit, 0 * logit, 0 * logit, logit], 1)


def linear_model(w, dtype):
    pixels = len(w)
    return HybridBetaVAE(
        Linear(w.to(dtype)),
        nn.Sequential(nn.Linear(3, pixels), nn.Unflatten(1, (1, 1, pixels))).to(dtype),
        data_shape=(1, 1, pixels),
        latent_dim=1,
        categories=2,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_adversarial_direction_of_a_linear_classifier_is_known(dtype, offset):
    """KL grows fastest along +-w, whatever the random start: eta = +-w / |w|."""
    torch.manual_seed(0)
    w = torch.randn(50, dtype=torch.float64)
    w = w - w.mean()  # so that the offset changes nothing but rounding
    w = 0.4 * w / w.norm()
    model = linear_model(w, dtype)
    x = (torch.randn(30, 1, 1, 50, dtype=torch.float64) + offset).to(dtype)
    _, _, log_p = model.joint_posterior(x)
    logit = x.double().flatten(1) @ w
    p = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)], 1)
    both = []
    for sign in (1, -1):
        moved = logit + sign * w.norm()
        there = torch.stack([-nn.functional.softplus(moved), -nn.functional.softplus(-moved)], 1)
        both.append(-(p * there).sum(1))
    low, high = (f(both[0], both[1]).mean() for f in (torch.minimum, torch.maximum))
    value = model.smoothness(x, log_p).item()
    tolerance = 1e-3 if offset and dtype == torch.float32 else 1e-5
    assert low.item() - tolerance <= value <= high.item() + tolerance
    entropy = densities.categorical_entropy(p.log()).mean().item()
    assert value > entropy + 0.9 * (low.item() - entropy) > entropy + 5e-3


@pytest.mark.parametrize("name", METHODS)
def test_smoothness_touches_no_statistics_and_no_gradients(name):
    model = small(name)
    x = torch.rand(20, *SHAPE)
    model.loss(x)["loss"].backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    assert any("running_mean" in key for key in before)
    log_p = model.classify(x).log()
    after_classify = {k: v.clone() for k, v in model.state_dict().items()}
    value = model.smoothness(x, log_p)
    assert all(torch.equal(v, after_classify[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    value.backward()
    with torch.no_grad():
        assert torch.isfinite(model.loss(x)["vat"])


@pytest.mark.parametrize("name", METHODS)
def test_weight_of_the_smoothness(name):
    """loss = the rest + beta * vat * smoothness, smoothness at least the entropy H(y|x)."""
    x = torch.rand(20, *SHAPE)
    rest, with_vat = small(name, vat=0.0, beta=3.0).eval(), small(name, vat=0.5, beta=3.0).eval()
    torch.manual_seed(1)
    a = rest.loss(x)
    torch.manual_seed(1)
    b = with_vat.loss(x)
    assert a["vat"] == 0
    assert (b["loss"] - a["loss"]).item() == pytest.approx(3 * b["vat"].item(), rel=1e-4)
    torch.manual_seed(1)
    whole = small(name, vat=1.0, beta=3.0).eval()
    torch.manual_seed(1)
    assert whole.loss(x)["vat"].item() == pytest.approx(2 * b["vat"].item(), rel=1e-4)
    entropy = densities.categorical_entropy(with_vat.classify(x).log()).mean()
    assert b["vat"] >= 0.5 * entropy - 1e-6


# Bounds on the information in a code, VMI-VAE.


class Channel(nn.Module):
    """The category is the first pixel."""

    def forward(self, x):
        first = x.flatten(1)[:, :1]
        return torch.cat([0 * first, 0 * first, 40 * (1 - first) - 20, 40 * first - 20], 1)


class Noisy(nn.Module):
    """The first pixel is 1 with probability 0.9 in category 1, 0.1 in the other."""

    def forward(self, code):
        logit = math.log(9) * (code[:, 2] - code[:, 1])
        return torch.stack([logit, 0 * logit], 1).view(-1, 1, 1, 2)


def test_bound_of_a_binary_symmetric_channel_is_its_capacity():
    """I(c; x') = log 2 - H(0.1), with a trained Q; the model is not touched."""
    model = HybridBetaVAE(Channel(), Noisy(), data_shape=(1, 1, 2), latent_dim=1, categories=2)
    torch.manual_seed(0)
    q = nn.Sequential(nn.Flatten(), nn.Linear(2, q_outputs(model)))
    measure = MutualInformationBound(model, q)
    assert set(measure.parameters()) == set(q.parameters())
    x = torch.rand(20_000, 1, 1, 2).round()
    exact = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    before = measure.bound(x).item()
    losses = list(measure.fit((x[:500] for _ in range(300)), lr=0.05))
    after = measure.bound(x).item()
    assert len(losses) == 300 and before < after
    assert after == pytest.approx(exact, abs=0.02)


class LinearGaussian(nn.Module):
    """q(z|x) = N(4 x - 2, s^2) of the one pixel."""

    def forward(self, x):
        pixel = x.flatten(1)
        return torch.cat([4 * pixel - 2, torch.full_like(pixel, math.log(0.2))], 1)


class Blur(nn.Module):
    """Bernoulli with probability sigmoid(z)."""

    def forward(self, z):
        return z.view(-1, 1, 1, 1)


def test_bound_of_a_gaussian_code_through_a_binary_image():
    """I(z; x') = H(x') - H(x'|z) <= log 2 by quadrature; a Gaussian Q stays below it."""
    model = VAE(
        LinearGaussian(), Blur(), data_shape=(1, 1, 1), latent_dim=1, likelihood="bernoulli"
    )
    torch.manual_seed(0)
    x = torch.rand(4000, 1, 1, 1)
    q = nn.Sequential(nn.Flatten(), nn.Linear(1, q_outputs(model)))
    measure = MutualInformationBound(model, q)
    list(measure.fit((x for _ in range(300)), lr=0.05))
    z = model.sample_posterior(torch.rand(200_000, 1, 1, 1))
    p = z.sigmoid().double()

    def entropy(p):
        return -(p * p.log() + (1 - p) * (1 - p).log())

    exact = (entropy(p.mean()) - entropy(p).mean()).item()
    bound = measure.bound(x).item()
    assert 0.6 * exact < bound < exact + 0.03


def test_bound_covers_the_coordinates_asked_for():
    torch.manual_seed(0)
    model = build("vae", data_shape=SHAPE, latent_dim=5, width=0.1)
    assert q_outputs(model) == 10 and q_outputs(model, 2) == 4
    joint = small("imae")
    assert q_outputs(joint) == 4 and q_outputs(joint, 3) == 6
    state = {k: v.clone() for k, v in joint.state_dict().items()}
    measure = MutualInformationBound(joint, nn.Sequential(nn.Flatten(), nn.Linear(36, 6)), 3)
    losses = list(measure.fit(torch.rand(30, *SHAPE).split(10)))
    assert len(losses) == 3 and measure.bound(torch.rand(9, *SHAPE)).shape == ()
    assert all(torch.equal(v, state[k]) for k, v in joint.state_dict().items())
    assert all(p.grad is None for p in joint.parameters())
    with pytest.raises(ValueError, match="informative is 6; it must be at most latent_dim, 5"):
        q_outputs(model, 6)
    point = build("vimae-n", data_shape=SHAPE, width=0.1)
    with pytest.raises(TypeError, match="VIMAE; it must have a posterior"):
        MutualInformationBound(point, nn.Identity())


def test_bound_in_the_objective_is_that_of_its_network():
    """VMI's "information" with the same Q, and what `auxiliary_loss` minimises."""
    torch.manual_seed(0)
    model = build("vmi-vae", data_shape=SHAPE, latent_dim=4, width=0.2, lam=2.0).eval()
    x = torch.rand(64, *SHAPE)
    torch.manual_seed(2)
    terms = model.loss(x)
    torch.manual_seed(2)
    cross = model.auxiliary_loss(x)["loss"]
    torch.manual_seed(2)
    mean, log_var = model.posterior(x)
    z = densities.draw_normal(mean, log_var)
    entropy = vk.latent_information(z[:, :2], mean[:, :2], log_var[:, :2]).joint_entropy
    assert terms["information"].item() == pytest.approx((entropy - cross).item(), rel=1e-4)
    rest = terms["reconstruction"] + terms["kl"]
    assert terms["loss"].item() == pytest.approx((rest - 2 * terms["information"]).item())


@pytest.mark.parametrize("name", ["vmi-vae", "vmi-joint-vae"])
def test_information_uses_the_gradient_of_the_entropy_or_holds_it_constant(name):
    """With a Q that sees nothing, all there is to gain is entropy."""
    x = torch.rand(64, *SHAPE)
    losses, gradients = [], []
    for lam, entropy in ((0.0, "batch"), (3.0, "batch"), (3.0, "constant")):
        torch.manual_seed(0)
        model = build(name, data_shape=SHAPE, width=0.2, lam=lam, entropy=entropy)
        with torch.no_grad():
            for weight in model.auxiliary.parameters():
                weight.zero_()
        torch.manual_seed(1)
        terms = model.loss(x)
        terms["loss"].backward()
        losses.append(terms["loss"].item())
        gradients.append(model.encoder[-1].bias.grad.clone())
    plain, batch, constant = gradients
    assert losses[1] == pytest.approx(losses[2])
    assert not torch.allclose(batch, constant, rtol=1e-3)
    if name == "vmi-joint-vae":  # log Q is -log K whatever the category: no gradient but that of H
        assert torch.allclose(constant, plain, atol=1e-5)
    else:  # log Q = -z^2 / 2: the first two coordinates alone are pulled
        of_mean = slice(2, 32)
        assert torch.allclose(constant[of_mean], plain[of_mean], atol=1e-5)
    with pytest.raises(ValueError, match="entropy is 'none'"):
        build(name, data_shape=SHAPE, width=0.1, entropy="none")
