"""The codes of all images of a set, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .data import Images, pixels

_AT_ONCE = 1000


@torch.no_grad()
def codes(
    model: Autoencoder, images: Images, corrupt: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Codes (N, code_dim) of images (N, C, H, W), bytes or floats, without training noise.

    `corrupt`, if given, is what is done to the pixels of every part before.
    """
    return torch.cat([model.encode(x) for x in inputs(model, images, corrupt)])


@torch.no_grad()
def draws(model: Autoencoder, images: Images, seed: int = 0) -> Tensor:
    """One draw (N, d) of z from the posterior of every image: samples of q(z)."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    parts = [model.sample_posterior(x, generator) for x in inputs(model, images)]
    return torch.cat(parts)[:, : model.latent_dim]


def inputs(
    model: nn.Module, images: Images, corrupt: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Tensor]:
    """Images part by part, as pixels on the device and in the type of the model, in evaluation mode."""
    at = next(model.parameters())
    training = model.training
    model.eval()
    for start in range(0, len(images), _AT_ONCE):
        x = pixels(images[start : start + _AT_ONCE])
        yield (corrupt(x) if corrupt is not None else x).to(at)
    model.train(training)
