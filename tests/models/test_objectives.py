"""The objective on cases small enough to work out by hand."""

import pytest
import torch

from vimae_models import build, objectives


def test_squared_error_sums_pixels_and_averages_images():
    x = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 0.5]]]])
    reconstruction = torch.tensor([[[[0.0, 2.0]]], [[[0.5, 0.0]]]])
    # (1 + 4) and 0.25, averaged.
    assert objectives.squared_error(x, reconstruction).item() == 2.625


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


@pytest.mark.parametrize("name, variance_ratio", [("vimae-n", 3.0), ("vimae-l", 4.2)])
def test_prior_of_each_system_by_its_moments(name, variance_ratio):
    model = build(name, data_shape=(1, 4, 4), latent_dim=2)
    z = model.sample_prior(400_000, torch.Generator().manual_seed(0)).double()
    assert z.mean().item() == pytest.approx(0, abs=0.01)
    assert z.var().item() == pytest.approx(1, abs=0.02)
    # The kurtosis tells the two apart: 3 for the normal, 4.2 for the logistic distribution.
    assert z.pow(4).mean().item() == pytest.approx(variance_ratio, abs=0.1)


@pytest.mark.parametrize("name, prior", [("vimae-n", "normal"), ("vimae-l", "logistic")])
def test_loss_is_the_objective_on_the_systems_prior(name, prior):
    torch.manual_seed(0)
    model = build(name, data_shape=(1, 6, 6), lam=7.0).eval()
    x = torch.rand(50, 1, 6, 6)
    torch.manual_seed(3)
    terms = model(x)
    torch.manual_seed(3)
    z = model.encode(x)
    error = objectives.squared_error(x, model.decode(z))
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


@pytest.mark.parametrize("name", ["vimae-n", "vimae-l"])
def test_gradients_reach_every_parameter(name):
    model = build(name, data_shape=(1, 8, 8), network="dcgan", width=0.05)
    model.loss(torch.rand(20, 1, 8, 8))["loss"].backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0 or parameter_name.endswith("bias"), parameter_name
