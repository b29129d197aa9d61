"""What every system shares: encoding, decoding and sampling from the prior. No objective."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

import vimae_kernels as vk


class Autoencoder(nn.Module):
    """An encoder, a decoder and the prior p(z) their codes are matched to.

    Args:
        encoder: images (B, C, H, W) -> (B, outputs).
        decoder: codes (B, latent_dim) -> images (B, C, H, W).
        data_shape: (C, H, W).
        latent_dim: d, the dimension of the code.
        prior: "normal", N(0, I), or "logistic", independent coordinates of mean 0 and variance 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        prior: Literal["normal", "logistic"],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.data_shape = data_shape
        self.latent_dim = latent_dim
        self.prior: Literal["normal", "logistic"] = prior

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, d) of images x (B, C, H, W) with pixels in [0, 1]."""
        if x.shape[1:] != self.data_shape:
            channels, height, width = self.data_shape
            raise ValueError(
                f"x has shape {tuple(x.shape)}; it must be (B, {channels}, {height}, {width})"
            )
        return self.encoder(x)  # type: ignore[no-any-return]

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) with pixels in (0, 1) of codes z (B, d)."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z has shape {tuple(z.shape)}; it must be (B, {self.latent_dim})")
        return self.decoder(z)  # type: ignore[no-any-return]

    def reconstruct(self, x: Tensor) -> Tensor:
        """g(f(x)): images (B, C, H, W) from images of that shape."""
        return self.decode(self.encode(x))

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n codes (n, d) from p(z), on the device of the model."""
        at = next(self.parameters())
        shape = (n, self.latent_dim)
        if self.prior == "normal":
            return torch.randn(shape, dtype=at.dtype, device=at.device, generator=generator)
        loc = torch.zeros((), dtype=at.dtype, device=at.device)
        unit_variance = vk.Logistic(loc, math.sqrt(3) / math.pi)
        return unit_variance.rsample(shape, generator=generator)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images (n, C, H, W) decoded from fresh codes of the prior."""
        return self.decode(self.sample_prior(n, generator))

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """Named scalar terms of the objective on x (B, C, H, W); "loss" is to be minimised."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The same as `loss`."""
        return self.loss(x)
