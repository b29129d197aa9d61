"""The adversarial autoencoder (Makhzani et al. 2015, as InfoVAE compares it)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import checks, objectives
from .autoencoder import statistics_kept, with_frozen_parameters
from .vae import GaussianAutoencoder


class AdversarialAutoencoder(GaussianAutoencoder):
    """-E log p(x|z) + lam * a discriminator's view of q(z) against N(0, I).

    Two players: `auxiliary_loss` trains the discriminator to tell codes from samples of the prior,
    `loss` the encoder to deceive it.

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`.
        auxiliary: the discriminator, codes (B, d) -> logits (B, 1).
        lam: weight, >= 0; the paper prints none, 10 is our choice.

    Raises:
        ValueError: `lam` negative or not finite.

    Source: InfoVAE, sec. 4.1.1.
    """

    auxiliary: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        auxiliary: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        lam: float = 10.0,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            auxiliary=auxiliary,
        )
        checks.not_negative(lam=lam)
        self.lam = lam

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.adversarial`."""
        reconstruction, z, _, _ = self._terms(x)
        logits = with_frozen_parameters(self.auxiliary, z)
        return objectives.adversarial(reconstruction, logits, self.lam)

    def auxiliary_loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.discrimination`, of the codes and as many samples of the prior."""
        with torch.no_grad(), statistics_kept(self.encoder):
            z = self.sample_posterior(x)
        prior = self.sample_prior(len(z))
        return objectives.discrimination(self.auxiliary(prior), self.auxiliary(z))
