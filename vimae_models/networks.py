"""Encoders and decoders: the only layers of the package.

A network is a function that makes the pair for images of a shape. The encoder gives `outputs`
numbers per image (a code, or the parameters of a posterior), the decoder turns a code of
`latent_dim` numbers into an image with pixels in (0, 1). Weights start where PyTorch's layers put
them.
"""

from __future__ import annotations

import math
from typing import Protocol

from torch import nn

Shape = tuple[int, int, int]


class Network(Protocol):
    def __call__(
        self, data_shape: Shape, outputs: int, latent_dim: int, width: float = 1.0
    ) -> tuple[nn.Module, nn.Module]: ...


def mlp(
    data_shape: Shape, outputs: int, latent_dim: int, width: float = 1.0
) -> tuple[nn.Module, nn.Module]:
    """Three hidden layers of 256 with ReLU on both sides, for images of any size.

    Args:
        data_shape: (C, H, W).
        outputs: numbers per image the encoder gives.
        latent_dim: numbers per code the decoder takes.
        width: factor on the 256.

    Returns:
        encoder (B, C, H, W) -> (B, outputs) and decoder (B, latent_dim) -> (B, C, H, W).

    Source: VIMAE preprint, sec. 5.1; the activation is not printed there.
    """
    pixels = math.prod(data_shape)
    hidden = _scaled(256, width)

    def layers(inputs: int, results: int) -> list[nn.Module]:
        sizes = (inputs, hidden, hidden, hidden)
        stack: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            stack += [nn.Linear(a, b), nn.ReLU()]
        return [*stack, nn.Linear(hidden, results)]

    encoder = nn.Sequential(nn.Flatten(), *layers(pixels, outputs))
    decoder = nn.Sequential(*layers(latent_dim, pixels), nn.Sigmoid(), nn.Unflatten(1, data_shape))
    return encoder, decoder


def dcgan(
    data_shape: Shape, outputs: int, latent_dim: int, width: float = 1.0
) -> tuple[nn.Module, nn.Module]:
    """The convolutional network of the MNIST and Omniglot experiments, with 4x4 filters.

        encoder: Conv128 - Conv256 - Conv512 - Conv1024, each BN ReLU, stride 2, SAME; then linear
        decoder: FC H/4 x W/4 x 1024, ReLU; FSConv512 BN ReLU; FSConv256 BN ReLU; FSConv C

    The table leaves out the linear layer that ends the encoder, the ReLU after FC, the final
    sigmoid and the stride 1 of the last layer, which the network it was taken from (WAE) has. A
    layer before BN has no bias of its own: BN would subtract it again.

    Args:
        data_shape: (C, H, W) with H and W multiples of 4; 28x28 in the paper.
        outputs: numbers per image the encoder gives.
        latent_dim: numbers per code the decoder takes; 8 in the paper.
        width: factor on all numbers of filters.

    Returns:
        encoder (B, C, H, W) -> (B, outputs) and decoder (B, latent_dim) -> (B, C, H, W).

    Raises:
        ValueError: H or W not a multiple of 4.

    Source: VIMAE (ICLR version), appendix "MNIST and Omniglot".
    """
    channels, height, breadth = data_shape
    if height % 4 or breadth % 4:
        raise ValueError(
            "network 'dcgan' takes images whose height and width are multiples of 4; "
            f"these are {height}x{breadth}"
        )

    stack: list[nn.Module] = []
    inputs, rows, columns = channels, height, breadth
    for filters in (128, 256, 512, 1024):
        filters = _scaled(filters, width)
        # SAME at stride 2 keeps ceil(size / 2): one pixel before and one after an even size, two
        # after an odd one.
        padding = (1, 1 + columns % 2, 1, 1 + rows % 2)
        stack += [
            nn.ZeroPad2d(padding),
            nn.Conv2d(inputs, filters, 4, stride=2, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
        ]
        inputs, rows, columns = filters, -(-rows // 2), -(-columns // 2)
    encoder = nn.Sequential(*stack, nn.Flatten(), nn.Linear(inputs * rows * columns, outputs))

    first, second, third = (_scaled(filters, width) for filters in (1024, 512, 256))
    start = (first, height // 4, breadth // 4)
    decoder = nn.Sequential(
        nn.Linear(latent_dim, math.prod(start)),
        nn.ReLU(),
        nn.Unflatten(1, start),
        nn.ConvTranspose2d(first, second, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.ConvTranspose2d(second, third, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(third),
        nn.ReLU(),
        # At stride 1 a fractionally strided convolution is a convolution.
        nn.ZeroPad2d((1, 2, 1, 2)),
        nn.Conv2d(third, channels, 4),
        nn.Sigmoid(),
    )
    return encoder, decoder


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))


NETWORKS: dict[str, Network] = {"mlp": mlp, "dcgan": dcgan}
LATENT_DIM = {"mlp": 2, "dcgan": 8}
"""The papers' dimension of the code for each network."""
