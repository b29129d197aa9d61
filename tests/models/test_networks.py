"""Networks against the tables of the papers, and `build`'s answers to wrong arguments."""

import pytest
import torch
from torch import nn

from vimae_models import build, names

SMALL = (1, 8, 8)


def layers(module, kind):
    return [m for m in module.modules() if isinstance(m, kind)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_mlp_has_three_hidden_layers_of_256_on_both_sides():
    model = build("vimae-l", data_shape=(1, 28, 28))
    sizes = [(m.in_features, m.out_features) for m in layers(model.encoder, nn.Linear)]
    assert sizes == [(784, 256), (256, 256), (256, 256), (256, 2)]
    sizes = [(m.in_features, m.out_features) for m in layers(model.decoder, nn.Linear)]
    assert sizes == [(2, 256), (256, 256), (256, 256), (256, 784)]
    assert count(model.encoder) == 784 * 256 + 256 + 2 * (256 * 256 + 256) + 256 * 2 + 2
    assert count(model.decoder) == 2 * 256 + 256 + 2 * (256 * 256 + 256) + 256 * 784 + 784


def test_dcgan_is_the_table_of_the_mnist_experiments():
    model = build("vimae-n", data_shape=(1, 28, 28), network="dcgan")
    assert model.latent_dim == 8
    convolutions = layers(model.encoder, nn.Conv2d)
    assert [m.out_channels for m in convolutions] == [128, 256, 512, 1024]
    assert {(m.kernel_size, m.stride) for m in convolutions} == {((4, 4), (2, 2))}
    assert [type(m) for m in model.encoder[:4]] == [
        nn.ZeroPad2d,
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
    ]
    transposed = layers(model.decoder, nn.ConvTranspose2d)
    assert [m.out_channels for m in transposed] == [512, 256]
    assert {(m.kernel_size, m.stride) for m in transposed} == {((4, 4), (2, 2))}
    (last,) = layers(model.decoder, nn.Conv2d)
    assert (last.out_channels, last.kernel_size, last.stride) == (1, (4, 4), (1, 1))
    assert model.decoder[0].out_features == 7 * 7 * 1024

    filters = [1, 128, 256, 512, 1024]
    pairs = list(zip(filters, filters[1:], strict=False))
    # 4x4 filters without bias, scale and shift of BN, and the final layer on 2x2x1024.
    assert count(model.encoder) == sum(16 * a * b + 2 * b for a, b in pairs) + 4096 * 8 + 8
    assert count(model.decoder) == (
        (8 + 1) * 7 * 7 * 1024
        + (16 * 1024 * 512 + 2 * 512)
        + (16 * 512 * 256 + 2 * 256)
        + (16 * 256 + 1)
    )


def test_dcgan_halves_with_same_padding():
    """28 - 14 - 7 - 4 - 2: SAME keeps ceil(size / 2), also of an odd size."""
    model = build("vimae-l", data_shape=(1, 28, 28), network="dcgan", width=0.02)
    x, sizes = torch.rand(2, 1, 28, 28), []
    for module in model.encoder:
        x = module(x)
        if isinstance(module, nn.ReLU):
            sizes.append(x.shape[-1])
    assert sizes == [14, 7, 4, 2]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("network", ["mlp", "dcgan"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 12, 20)])
def test_every_system_maps_images_to_codes_and_back(name, network, shape):
    torch.manual_seed(0)
    model = build(name, data_shape=shape, latent_dim=3, network=network, width=0.05)
    x = torch.rand(4, *shape)
    z = model.encode(x)
    assert z.shape == (4, model.code_dim)
    for images in (model.decode(z), model.reconstruct(x), model.sample(4)):
        assert images.shape == (4, *shape)
        assert images.min() > 0 and images.max() < 1
    terms = model(x)
    assert all(value.shape == () for value in terms.values())
    assert torch.isfinite(terms["loss"])


def test_samples_follow_the_generator():
    model = build("vimae-l", data_shape=SMALL)
    draws = [model.sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"name": "vimae"}, ValueError, "known systems are.*vimae-n.*vimae-l"),
        ({"network": "resnet"}, ValueError, "known networks are.*mlp.*dcgan"),
        ({"beta": 1.0}, ValueError, "no hyperparameter 'beta'.*lam.*noise"),
        ({"prior": "normal"}, ValueError, "no hyperparameter 'prior'"),
        ({"lam": -1.0}, ValueError, "lam is -1.0"),
        ({"noise": float("nan")}, ValueError, "noise is nan"),
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1"),
        ({"latent_dim": 2.5}, TypeError, "latent_dim must be an integer"),
        ({"data_shape": (8, 8)}, ValueError, r"must be \(C, H, W\)"),
        ({"data_shape": (1, 8, 8.0)}, TypeError, "data_shape"),
        ({"width": 0.0}, ValueError, "width is 0.0"),
        ({"network": "dcgan", "data_shape": (1, 9, 8)}, ValueError, "multiples of 4.*9x8"),
    ],
)
def test_build_refuses(arguments, error, words):
    arguments = {"name": "vimae-l", "data_shape": SMALL} | arguments
    with pytest.raises(error, match=words):
        build(arguments.pop("name"), **arguments)


def test_wrong_inputs_are_named():
    model = build("vimae-l", data_shape=SMALL)
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\)"):
        model.encode(torch.rand(5, 1, 7, 8))
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        model.decode(torch.rand(5, 3))
