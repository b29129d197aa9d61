"""Encoders and decoders: the only layers of the package, with those of `pixelcnn`.

An encoder gives one row per image: the heads it was asked for, side by side (a code; the mean and
log variance of a posterior; the logits of a category). A decoder gives theta (B, channels, H, W)
from codes (B, code_dim), what `likelihoods` turns into an image. Weights start where PyTorch's
layers put them. `width` is a factor on all numbers of units and filters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, cat, nn

from . import pixelcnn

Shape = tuple[int, int, int]


class MakeEncoder(Protocol):
    def __call__(self, data_shape: Shape, heads: Sequence[int], width: float) -> nn.Module:
        """Images (B, *data_shape) -> (B, sum(heads))."""


class MakeDecoder(Protocol):
    def __call__(self, data_shape: Shape, channels: int, code_dim: int, width: float) -> nn.Module:
        """Codes (B, code_dim) -> theta (B, channels, H, W)."""


@dataclass(frozen=True)
class Network:
    """How the two sides of an autoencoder are made.

    Attributes:
        encoder: makes the encoder, also that of an auxiliary network on images.
        decoder: makes the decoder.
        latent_dim: the paper's dimension of the code for this network.
        likelihood: the one its decoder is made for; None is any.
    """

    encoder: MakeEncoder
    decoder: MakeDecoder
    latent_dim: int
    likelihood: str | None = None


def mlp_encoder(data_shape: Shape, heads: Sequence[int], width: float = 1.0) -> nn.Module:
    """Three hidden layers of 256 with ReLU, for images of any size.

    Source: VIMAE preprint, sec. 5.1; the activation is not printed there.
    """
    hidden = [_scaled(256, width)] * 3
    return nn.Sequential(
        nn.Flatten(),
        *_relu_layers(math.prod(data_shape), hidden),
        nn.Linear(hidden[-1], sum(heads)),
    )


def mlp_decoder(data_shape: Shape, channels: int, code_dim: int, width: float = 1.0) -> nn.Module:
    """Three hidden layers of 256 with ReLU, as `mlp_encoder`."""
    return _dense_decoder(data_shape, channels, code_dim, [_scaled(256, width)] * 3)


class DCGAN:
    """The convolutional networks of the image experiments.

        4x4: Conv128 - Conv256 - Conv512 - Conv1024; then linear
             FC H/4 x W/4 x 1024, ReLU; FSConv512; FSConv256; FSConv to theta
        5x5: the same encoder
             FC H/8 x W/8 x 1024, ReLU; FSConv512; FSConv256; FSConv128; FSConv to theta

    All but the last layer BN ReLU, stride 2, SAME. The tables leave out the linear layer that ends
    the encoder, the ReLU after FC and the stride 1 of the last layer, which the networks they were
    taken from (WAE) have. A layer before BN has no bias of its own: BN would subtract it again. The
    table of the 5x5 network is that of 64x64 images (FC 8x8x1024); smaller ones start smaller.

    Args:
        size: of the filters, 4 or 5.
        filters: of the decoder, from FC on.

    Raises (both functions):
        ValueError: H or W not a multiple of 4, with 5x5 filters of 8.

    Source: VIMAE (ICLR version), appendix, "MNIST and Omniglot" and "CelebA and CIFAR10".
    """

    def __init__(self, name: str, size: int, filters: tuple[int, ...]) -> None:
        self.name = name
        self.size = size
        self.filters = filters
        self.factor = 2 ** (len(filters) - 1)

    def encoder(self, data_shape: Shape, heads: Sequence[int], width: float = 1.0) -> nn.Module:
        self._check(data_shape)
        inputs, rows, columns = data_shape
        stack: list[nn.Module] = []
        for filters in (128, 256, 512, 1024):
            filters = _scaled(filters, width)
            stack += [
                nn.ZeroPad2d((*_same(columns, self.size), *_same(rows, self.size))),
                nn.Conv2d(inputs, filters, self.size, stride=2, bias=False),
                nn.BatchNorm2d(filters),
                nn.ReLU(),
            ]
            inputs, rows, columns = filters, -(-rows // 2), -(-columns // 2)
        return nn.Sequential(*stack, nn.Flatten(), nn.Linear(inputs * rows * columns, sum(heads)))

    def decoder(
        self, data_shape: Shape, channels: int, code_dim: int, width: float = 1.0
    ) -> nn.Module:
        self._check(data_shape)
        filters = [_scaled(f, width) for f in self.filters]
        start = (filters[0], data_shape[1] // self.factor, data_shape[2] // self.factor)
        stack = [nn.Linear(code_dim, math.prod(start)), nn.ReLU(), nn.Unflatten(1, start)]
        for inputs, outputs in zip(filters, filters[1:], strict=False):
            stack += [
                _doubling(inputs, outputs, self.size, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        # At stride 1 a fractionally strided convolution is a convolution.
        before = (self.size - 1) // 2
        after = self.size - 1 - before
        return nn.Sequential(
            *stack,
            nn.ZeroPad2d((before, after, before, after)),
            nn.Conv2d(filters[-1], channels, self.size),
        )

    def _check(self, data_shape: Shape) -> None:
        _, height, width = data_shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"network {self.name!r} takes images whose height and width are multiples of "
                f"{self.factor}; these are {height}x{width}"
            )


class IMAE:
    """The dense networks of the IMAE experiments.

        MNIST:    784 - 500 BN ReLU - one layer of 500 BN ReLU per head - the heads
                  code - 500 ReLU - 500 ReLU - 784
        dSprites: 4096 - 1200 ReLU - 1200 ReLU - one layer of 1200 ReLU per head - the heads
                  code - 1200 ReLU - 1200 ReLU - 1200 ReLU - 4096

    The tables print "2 x 500" and "20 (mu_z, log sigma_z) + 10 (p_y)": one hidden layer for z and
    one for y; and, for dSprites, an output of 28 x 28 where the images are 64 x 64. The heads give
    log variances here, twice log sigma.

    Args:
        units: of every hidden layer.
        shared: hidden layers before the heads part.
        normalise: batch normalisation in the encoder.
        hidden: hidden layers of the decoder.

    Source: IMAE, appendix G, tables 1 and 2.
    """

    def __init__(self, units: int, shared: int, hidden: int, normalise: bool) -> None:
        self.units = units
        self.shared = shared
        self.hidden = hidden
        self.normalise = normalise

    def encoder(self, data_shape: Shape, heads: Sequence[int], width: float = 1.0) -> nn.Module:
        units = _scaled(self.units, width)
        pixels = math.prod(data_shape)

        def head(outputs: int) -> nn.Module:
            last = nn.Linear(units, outputs)
            return nn.Sequential(*_relu_layers(units, [units], self.normalise), last)

        trunk = _relu_layers(pixels, [units] * self.shared, self.normalise)
        return nn.Sequential(nn.Flatten(), *trunk, Heads(head(outputs) for outputs in heads))

    def decoder(
        self, data_shape: Shape, channels: int, code_dim: int, width: float = 1.0
    ) -> nn.Module:
        hidden = [_scaled(self.units, width)] * self.hidden
        return _dense_decoder(data_shape, channels, code_dim, hidden)


class Heads(nn.ModuleList):
    """Modules on the same input, their outputs (B, *) side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return cat([head(x) for head in self], 1)


def infovae_encoder(data_shape: Shape, heads: Sequence[int], width: float = 1.0) -> nn.Module:
    """The discriminator of DCGAN: Conv64 - Conv128 - Conv256 - Conv512, 5x5, stride 2, SAME.

    Leaky ReLU of slope 0.2, BN in all but the first; then linear to the heads. The paper says "a
    convolutional encoder with the same architecture as" DCGAN.

    Source: InfoVAE, app. B.1; Radford et al., DCGAN (2016), sec. 3 and its code.
    """
    inputs, rows, columns = data_shape
    stack: list[nn.Module] = []
    for filters in (64, 128, 256, 512):
        filters = _scaled(filters, width)
        first = not stack
        stack += [
            nn.ZeroPad2d((*_same(columns, 5), *_same(rows, 5))),
            nn.Conv2d(inputs, filters, 5, stride=2, bias=first),
            *([] if first else [nn.BatchNorm2d(filters)]),
            nn.LeakyReLU(0.2),
        ]
        inputs, rows, columns = filters, -(-rows // 2), -(-columns // 2)
    return nn.Sequential(*stack, nn.Flatten(), nn.Linear(inputs * rows * columns, sum(heads)))


def discriminator(code_dim: int, width: float = 1.0) -> nn.Module:
    """Codes (B, code_dim) -> logits (B, 1) of being drawn from the prior: two layers of 1000, ReLU.

    Source: Makhzani et al., Adversarial Autoencoders (2015), app. A; InfoVAE prints none.
    """
    hidden = [_scaled(1000, width)] * 2
    return nn.Sequential(*_relu_layers(code_dim, hidden), nn.Linear(hidden[-1], 1))


def _relu_layers(inputs: int, units: Sequence[int], normalise: bool = False) -> list[nn.Module]:
    stack: list[nn.Module] = []
    for a, b in zip([inputs, *units], units, strict=False):
        # As in DCGAN: no bias before BN.
        stack += [nn.Linear(a, b, bias=not normalise)]
        stack += [nn.BatchNorm1d(b), nn.ReLU()] if normalise else [nn.ReLU()]
    return stack


def _dense_decoder(
    data_shape: Shape, channels: int, code_dim: int, hidden: Sequence[int]
) -> nn.Module:
    theta = (channels, *data_shape[1:])
    return nn.Sequential(
        *_relu_layers(code_dim, hidden),
        nn.Linear(hidden[-1], math.prod(theta)),
        nn.Unflatten(1, theta),
    )


def _same(size: int, kernel: int) -> tuple[int, int]:
    """Padding before and after, for stride 2 to keep ceil(size / 2)."""
    total = max(0, 2 * (-(-size // 2) - 1) + kernel - size)
    return total // 2, total - total // 2


def _doubling(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Module:
    return nn.ConvTranspose2d(
        inputs,
        outputs,
        kernel,
        stride=2,
        padding=(kernel - 1) // 2,
        output_padding=kernel % 2,
        bias=bias,
    )


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))


_DCGAN = DCGAN("dcgan", 4, (1024, 512, 256))
_DCGAN5 = DCGAN("dcgan5", 5, (1024, 512, 256, 128))
_IMAE = IMAE(500, shared=1, hidden=2, normalise=True)
_IMAE_DSPRITES = IMAE(1200, shared=2, hidden=3, normalise=False)

NETWORKS: dict[str, Network] = {
    "mlp": Network(mlp_encoder, mlp_decoder, 2),
    "dcgan": Network(_DCGAN.encoder, _DCGAN.decoder, 8),
    "dcgan5": Network(_DCGAN5.encoder, _DCGAN5.decoder, 64),
    "imae": Network(_IMAE.encoder, _IMAE.decoder, 10),
    "imae-dsprites": Network(_IMAE_DSPRITES.encoder, _IMAE_DSPRITES.decoder, 10),
    # InfoVAE's encoder with a decoder that gives all pixels at once; the paper has none.
    "infovae": Network(infovae_encoder, _DCGAN.decoder, 10),
    "pixelcnn": Network(infovae_encoder, pixelcnn.PixelCNN, 10, "bernoulli"),
    "pixelcnn++": Network(infovae_encoder, pixelcnn.PixelCNNPlusPlus, 10, "logistic-mixture"),
}
