"""Autoregressive decoders: what a pixel's distribution may depend on, and drawing images."""

import math

import pytest
import torch

from vimae_models import build, data
from vimae_models.likelihoods import LIKELIHOODS
from vimae_models.networks import NETWORKS

DECODERS = [("pixelcnn", (1, 6, 5)), ("pixelcnn", (2, 5, 7)), ("pixelcnn++", (3, 8, 12))]


def decoder(network, shape, width=0.1):
    torch.manual_seed(0)
    channels = LIKELIHOODS[NETWORKS[network].likelihood].channels(shape[0])
    made = NETWORKS[network].decoder(shape, channels, 2, width).eval()
    return made.double()


@pytest.mark.parametrize("network, shape", DECODERS)
def test_a_pixel_depends_on_those_before_it_and_on_no_other(network, shape):
    """d theta_i / d x_j is exactly zero for j >= i; every pixel before but close matters."""
    made = decoder(network, shape)
    _, height, width = shape
    x = torch.rand(1, *shape, dtype=torch.float64).requires_grad_()
    z = torch.randn(1, 2, dtype=torch.float64)
    theta = made(z, x)
    theta = (theta * torch.randn_like(theta)).sum(1)[0]  # so that no two channels cancel
    for i in range(height * width):
        (g,) = torch.autograd.grad(theta[i // width, i % width], x, retain_graph=True)
        g = g[0].flatten(1)  # (C, pixels)
        assert (g[:, i:] == 0).all(), f"pixel {i} depends on one that is not before it"
        if i % width:
            assert (g[:, i - 1] != 0).all(), f"pixel {i} does not see the one to its left"
        if i >= width:
            assert (g[:, i - width] != 0).all(), f"pixel {i} does not see the one above"
            if i % width < width - 1:
                assert (g[:, i - width + 1] != 0).all(), f"pixel {i} has a blind spot"


@pytest.mark.parametrize("network, shape", DECODERS)
def test_every_pixel_depends_on_the_code(network, shape):
    made = decoder(network, shape)
    x = torch.rand(1, *shape, dtype=torch.float64)
    z = torch.randn(1, 2, dtype=torch.float64).requires_grad_()
    theta = made(z, x).sum(1)[0]
    for pixel in theta.flatten():
        (g,) = torch.autograd.grad(pixel, z, retain_graph=True)
        assert (g != 0).all()


@pytest.mark.parametrize("network, shape", [("pixelcnn", (1, 5, 4)), ("pixelcnn++", (3, 4, 8))])
def test_image_drawn_without_noise_is_what_its_own_theta_says(network, shape):
    """With the mean in place of a draw, x = mean(theta(z, x)) at every pixel."""

    class Mean:
        def __init__(self, p):
            self.p = p

        def sample(self, theta, generator=None):
            return self.p.mean(theta)

    made = decoder(network, shape)
    p = LIKELIHOODS[NETWORKS[network].likelihood]
    z = torch.randn(2, 2, dtype=torch.float64)
    calls = []
    x = made.sample(z, Mean(p), progress=lambda done, total: calls.append((done, total)))
    assert x.shape == (2, *shape)
    assert torch.allclose(x, p.mean(made(z, x)), atol=1e-12)
    pixels = shape[1] * shape[2]
    assert calls == [(i + 1, pixels) for i in range(pixels)]


def test_probabilities_of_all_images_add_up_to_one():
    """2 x 3 binary pixels: 64 images, also after training has moved the weights."""
    torch.manual_seed(0)
    model = build("vae", data_shape=(1, 2, 3), latent_dim=2, network="pixelcnn", width=0.1)
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(3)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6).view(64, 1, 2, 3).double()
    z = torch.randn(1, 2, dtype=torch.float64)
    log_p = model.log_likelihood(images, z.expand(64, -1))
    assert torch.logsumexp(log_p, 0).item() == pytest.approx(0, abs=1e-10)
    assert log_p.std() > 0.1
    # And draws follow them.
    draws = model.decode(z.expand(4000, -1), torch.Generator().manual_seed(0))
    codes = (draws.flatten(1) @ (2.0 ** torch.arange(5, -1, -1, dtype=torch.float64))).long()
    seen = torch.bincount(codes, minlength=64) / 4000
    error = (log_p.exp() * (1 - log_p.exp()) / 4000).sqrt()
    assert ((seen - log_p.exp()).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("network, shape", [("pixelcnn", (1, 8, 8)), ("pixelcnn++", (3, 4, 4))])
def test_model_with_an_autoregressive_decoder(network, shape):
    torch.manual_seed(0)
    model = build("vae", data_shape=shape, latent_dim=2, network=network, width=0.1)
    images = data.load("digits").train.images[:20].round()
    x = images if network == "pixelcnn" else images[:, :, 2:6, 2:6].expand(-1, 3, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2 if network == "pixelcnn" else 3e-3)
    losses = []
    for _ in range(30 if network == "pixelcnn" else 12):
        optimizer.zero_grad()
        terms = model.loss(x)
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    model.eval()
    assert model.autoregressive and model.likelihood == NETWORKS[network].likelihood
    a, b, c = (model.sample(2, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a.shape == (2, *shape) and torch.equal(a, b) and not torch.equal(a, c)
    assert not a.requires_grad and torch.equal(a, (a * 255).round() / 255)
    assert model.reconstruct(x[:2]).shape == (2, *shape)


def test_gates_are_tanh_times_sigmoid():
    """One layer against eq. 4 of Conditional PixelCNN, written with masked convolutions."""
    from torch.nn import functional as F

    made = decoder("pixelcnn", (1, 5, 5))
    layer = made.layers[0]
    x = torch.rand(1, 1, 5, 5, dtype=torch.float64)
    z = torch.randn(1, 2, dtype=torch.float64)
    v, h = layer(x, x, z)
    # The same as full 7x7 filters, zero where nothing may be seen.
    filters = layer.vertical.out_channels
    above = torch.zeros(filters, 1, 7, 7, dtype=torch.float64)
    above[:, :, :3] = layer.vertical.weight
    left = torch.zeros(filters, 1, 1, 7, dtype=torch.float64)
    left[..., :3] = layer.horizontal.weight
    up = F.conv2d(x, above, layer.vertical.bias, padding=3)
    beside = F.conv2d(x, left, layer.horizontal.bias, padding=(0, 3))
    of_v, of_h = layer.condition(z)[:, :, None, None].chunk(2, 1)

    def gate(y):
        half = y.shape[1] // 2
        return torch.tanh(y[:, :half]) * torch.sigmoid(y[:, half:])

    assert torch.allclose(v, gate(up + of_v))
    assert torch.allclose(h, layer.residual(gate(beside + layer.link(up) + of_h)))


def test_sizes_at_width_1():
    with torch.device("meta"):
        simple = NETWORKS["pixelcnn"].decoder((1, 28, 28), 1, 10, 1.0)
        big = NETWORKS["pixelcnn++"].decoder((3, 32, 32), 100, 10, 1.0)
    first, *rest = simple.layers
    assert [m.vertical.kernel_size for m in simple.layers] == [(3, 7)] + 6 * [(3, 5)]
    assert [m.horizontal.kernel_size for m in simple.layers] == [(1, 3)] + 6 * [(1, 3)]
    assert len(rest) == 6 and first.residual.out_channels == 64
    blocks = [m for m in big.modules() if type(m).__name__ == "_Block"]
    # 5 pairs in each of 6 stages, and one more pair after each of the 2 halvings.
    assert len(blocks) == 2 * (6 * 5 + 2)
    assert big.output.out_channels == 100 and big.output.in_channels == 160
    assert math.isclose(blocks[0].dropout.p, 0.5)
