"""Networks against the tables of the papers, and `build`'s answers to wrong arguments."""

import pytest
import torch
from torch import nn

from vimae_models import build, names
from vimae_models.networks import NETWORKS

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


def test_dcgan5_is_the_table_of_the_celeba_experiments():
    with torch.device("meta"):
        made = NETWORKS["dcgan5"]
        encoder = made.encoder((3, 64, 64), (64,), 1.0)
        decoder = made.decoder((3, 64, 64), 3, 64, 1.0)
    convolutions = layers(encoder, nn.Conv2d)
    assert [m.out_channels for m in convolutions] == [128, 256, 512, 1024]
    assert {(m.kernel_size, m.stride) for m in convolutions} == {((5, 5), (2, 2))}
    assert encoder[-1].in_features == 4 * 4 * 1024
    assert decoder[0].out_features == 8 * 8 * 1024
    transposed = layers(decoder, nn.ConvTranspose2d)
    assert [m.out_channels for m in transposed] == [512, 256, 128]
    assert {(m.kernel_size, m.stride) for m in transposed} == {((5, 5), (2, 2))}
    (last,) = layers(decoder, nn.Conv2d)
    assert (last.out_channels, last.kernel_size, last.stride) == (3, (5, 5), (1, 1))
    kinds = [type(m) for m in decoder[3:]]
    block = [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds == [*block, *block, *block, nn.ZeroPad2d, nn.Conv2d]

    def pairs(*filters):
        return list(zip(filters, filters[1:], strict=False))

    assert count(encoder) == (
        sum(25 * a * b + 2 * b for a, b in pairs(3, 128, 256, 512, 1024)) + 4 * 4 * 1024 * 64 + 64
    )
    assert count(decoder) == (
        (64 + 1) * 8 * 8 * 1024
        + sum(25 * a * b + 2 * b for a, b in pairs(1024, 512, 256, 128))
        + (25 * 128 * 3 + 3)
    )


def sizes(module):
    return [(m.in_features, m.out_features) for m in layers(module, nn.Linear)]


def test_imae_is_table_1():
    model = build("imae", data_shape=(1, 28, 28))
    # Past the first layer a hidden layer of 500 for z and one for y: "2 x 500".
    assert sizes(model.encoder) == [(784, 500), (500, 500), (500, 20), (500, 500), (500, 10)]
    assert [m.num_features for m in layers(model.encoder, nn.BatchNorm1d)] == [500, 500, 500]
    assert sizes(model.decoder) == [(20, 500), (500, 500), (500, 784)]
    assert not layers(model.decoder, nn.BatchNorm1d)
    assert [type(m) for m in model.encoder[:4]] == [
        nn.Flatten,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
    ]
    # No bias where BN follows, but its scale and shift.
    normalised = 784 * 500 + 2 * 500 * 500 + 3 * 2 * 500
    assert count(model.encoder) == normalised + 501 * 20 + 501 * 10
    assert count(model.decoder) == 21 * 500 + 501 * 500 + 501 * 784


def test_imae_dsprites_is_table_2():
    model = build("imae", data_shape=(1, 64, 64), network="imae-dsprites", categories=3)
    assert sizes(model.encoder) == [
        (4096, 1200),
        (1200, 1200),
        (1200, 1200),
        (1200, 20),
        (1200, 1200),
        (1200, 3),
    ]
    assert sizes(model.decoder) == [(13, 1200), (1200, 1200), (1200, 1200), (1200, 4096)]
    assert not layers(model, nn.BatchNorm1d)


def test_infovae_encoder_is_dcgans_discriminator():
    encoder = NETWORKS["infovae"].encoder((1, 28, 28), (20,), 1.0)
    convolutions = layers(encoder, nn.Conv2d)
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512]
    assert {(m.kernel_size, m.stride) for m in convolutions} == {((5, 5), (2, 2))}
    assert [m.num_features for m in layers(encoder, nn.BatchNorm2d)] == [128, 256, 512]
    assert {m.negative_slope for m in layers(encoder, nn.LeakyReLU)} == {0.2}
    assert encoder[-1].in_features == 2 * 2 * 512


def test_heads_do_not_share_their_last_layers():
    encoder = NETWORKS["imae"].encoder((1, 4, 4), (2, 3), 0.1)
    out = encoder(torch.rand(6, 1, 4, 4))
    assert out.shape == (6, 5)
    out[:, :2].sum().backward()
    z_head, y_head = encoder[-1]
    assert z_head[0].weight.grad.abs().sum() > 0 and y_head[0].weight.grad.abs().sum() == 0


@pytest.mark.parametrize("network", list(NETWORKS))
def test_width_scales_every_network(network):
    made = NETWORKS[network]
    with torch.device("meta"):
        narrow, wide = (
            count(made.encoder((3, 16, 16), (4,), w)) + count(made.decoder((3, 16, 16), 100, 2, w))
            for w in (0.2, 0.4)
        )
    assert 1.5 * narrow < wide < 4.5 * narrow


def test_dcgan_halves_with_same_padding():
    """28 - 14 - 7 - 4 - 2: SAME keeps ceil(size / 2), also of an odd size."""
    model = build("vimae-l", data_shape=(1, 28, 28), network="dcgan", width=0.02)
    x, sizes = torch.rand(2, 1, 28, 28), []
    for module in model.encoder:
        x = module(x)
        if isinstance(module, nn.ReLU):
            sizes.append(x.shape[-1])
    assert sizes == [14, 7, 4, 2]
    # What is odd goes to the right and below.
    assert [m.padding for m in layers(model.encoder, nn.ZeroPad2d)] == [
        (1, 1, 1, 1),
        (1, 1, 1, 1),
        (1, 2, 1, 2),
        (1, 1, 1, 1),
    ]
    wide = NETWORKS["dcgan5"].encoder((1, 32, 24), (2,), 0.02)
    paddings = [m.padding for m in layers(wide, nn.ZeroPad2d)]
    assert paddings == 3 * [(1, 2, 1, 2)] + [(2, 2, 1, 2)]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    "network, shape",
    [
        ("mlp", (1, 28, 28)),
        ("mlp", (3, 12, 20)),
        ("dcgan", (1, 28, 28)),
        ("dcgan", (1, 8, 8)),
        ("dcgan5", (3, 8, 24)),
        ("imae", (1, 7, 5)),
        ("imae-dsprites", (1, 9, 9)),
        ("infovae", (1, 28, 28)),
    ],
)
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
        ({"network": "dcgan5", "data_shape": (1, 8, 12)}, ValueError, "multiples of 8.*8x12"),
        ({"network": "pixelcnn"}, ValueError, "made for likelihood 'bernoulli'.*vimae-l is 'l2'"),
        (
            {"name": "vae", "network": "pixelcnn++", "data_shape": (3, 6, 8)},
            ValueError,
            "multiples of 4.*6x8",
        ),
        (
            {"name": "vae", "network": "pixelcnn++", "likelihood": "l2"},
            ValueError,
            "made for likelihood 'logistic-mixture'",
        ),
        ({"name": "vae", "likelihood": "poisson"}, ValueError, "likelihood is 'poisson'.*'l2'"),
        ({"name": "vae", "beta": 2.0}, ValueError, "vae has no hyperparameter 'beta'"),
        ({"name": "beta-vae-h", "beta": -2.0}, ValueError, "beta is -2.0"),
        ({"name": "beta-vae-h", "beta": "x"}, TypeError, "beta is 'x'; it must be a number"),
        ({"name": "ae", "steps": -1}, ValueError, "steps must be at least 0"),
        ({"name": "min-rate-vae", "rate": -1}, ValueError, "rate is -1"),
        ({"name": "infovae", "alpha": float("inf")}, ValueError, "alpha is inf"),
        ({"name": "infovae", "divergence": "js"}, ValueError, "divergence is 'js'.*'stein'"),
        ({"name": "mmd-vae", "bank": -1}, ValueError, "bank must be at least 0"),
        ({"name": "mmd-vae", "bank": 1.5}, TypeError, "bank must be an integer"),
        ({"name": "vmi-vae", "informative": 3, "latent_dim": 2}, ValueError, "at most latent_dim"),
        ({"name": "vmi-vae", "informative": 0}, ValueError, "informative must be at least 1"),
        ({"name": "vmi-vae", "network": "pixelcnn"}, ValueError, "draws pixel by pixel"),
        ({"name": "vmi-joint-vae", "lam": -1}, ValueError, "lam is -1"),
        ({"name": "imae", "categories": 1}, ValueError, "categories must be at least 2"),
        ({"name": "imae", "categories": 2.0}, TypeError, "categories must be an integer"),
        ({"name": "imae", "tau": 0}, ValueError, "tau is 0"),
        ({"name": "imae", "gamma": -1.0}, ValueError, "gamma is -1.0"),
        ({"name": "imae", "scale": 0.0}, ValueError, "scale is 0.0"),
        ({"name": "imae", "weighting": "mws"}, ValueError, "dataset_size is None"),
        ({"name": "imae", "weighting": "all"}, ValueError, "weighting is 'all'.*'mss'"),
        ({"name": "joint-vae", "steps": 0}, ValueError, "steps must be at least 1"),
        ({"name": "joint-vae", "capacity_z": -1.0}, ValueError, "capacity_z is -1.0"),
        ({"name": "hybrid-beta-vae", "vat": -0.5}, ValueError, "vat is -0.5"),
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
