"""Autoencoders with a Gaussian posterior q(z|x), by what they add to the reconstruction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from . import checks, densities, objectives
from .autoencoder import Autoencoder, memory_bank
from .objectives import Kernel
from .pixelcnn import Progress

DIVERGENCES = ("mmd", "kl", "stein")


class GaussianAutoencoder(Autoencoder):
    """An encoder that gives the mean and the log variance of q(z|x), and the prior N(0, I).

    Args:
        encoder: images (B, C, H, W) -> (B, 2 d): mean, then log variance.
        decoder, data_shape, latent_dim, auxiliary: as `Autoencoder`.
        likelihood: of images, see `likelihoods.LIKELIHOODS`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        auxiliary: nn.Module | None = None,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            auxiliary=auxiliary,
        )

    @staticmethod
    def heads(latent_dim: int, categories: int) -> tuple[int, ...]:
        return (2 * latent_dim,)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each (B, d), of q(z|x) for images x (B, C, H, W)."""
        mean, log_var = self._encoded(x).chunk(2, 1)
        return mean, log_var

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def sample_posterior(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return densities.draw_normal(*self.posterior(x), generator)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-E log p(x|z) with one draw per image, that draw, mean and log variance."""
        mean, log_var = self.posterior(x)
        z = densities.draw_normal(mean, log_var)
        return -self.log_likelihood(x, z).mean(), z, mean, log_var


class ProbabilisticAutoencoder(GaussianAutoencoder):
    """The unregularised autoencoder: -E log p(x|z), and nothing that ties q(z) to a prior.

    It is sampled by the Markov chain x' ~ p(x|z), z ~ q(z|x), which converges to the data.

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`.
        steps: of the chain, >= 0, from an image decoded from N(0, I); the paper prints none.

    Source: InfoVAE, eqs. 2 and 3, proposition 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        steps: int = 10,
    ) -> None:
        super().__init__(
            encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, likelihood=likelihood
        )
        checks.integer(0, steps=steps)
        self.steps = steps

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """n images (n, C, H, W): the means of p(x|z) at the end of n independent chains.

        `progress` is called for the pixels of every step anew.
        """
        z = self.sample_prior(n, generator)
        for _ in range(self.steps):
            z = self.sample_posterior(self.draw(z, generator, progress), generator)
        return self.decode(z, generator, progress)

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.autoencoding`."""
        return objectives.autoencoding(self._terms(x)[0])


class VAE(GaussianAutoencoder):
    """-E log p(x|z) + beta KL(q(z|x) || N(0, I)): the VAE (beta = 1) and the beta-VAEs.

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`.
        beta: weight of the rate, >= 0. "beta-vae-h" (Higgins) has 10, for CIFAR10 and CelebA 100;
            "beta-vae-a" (Alemi) 0.2, for CIFAR10 and CelebA 0.4.

    Raises:
        ValueError: `beta` negative or not finite.

    Source: VIMAE (ICLR version), eq. 2 and table 1; InfoVAE, sec. 2; Higgins et al. (2017).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "l2",
        beta: float = 1.0,
    ) -> None:
        super().__init__(
            encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, likelihood=likelihood
        )
        checks.not_negative(beta=beta)
        self.beta = beta

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.elbo`."""
        reconstruction, _, mean, log_var = self._terms(x)
        return objectives.elbo(reconstruction, mean, log_var, self.beta)


class MinimalRateVAE(GaussianAutoencoder):
    """-E log p(x|z) + beta |R0 - KL(q(z|x) || N(0, I))|.

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`.
        beta: weight, >= 0; the paper prints none, 1 is that of the VAE.
        rate: R0 >= 0, in nats; "the correct R0 is unknown", 10 is our choice.

    Raises:
        ValueError: `beta` or `rate` negative or not finite.

    Source: VIMAE (ICLR version), eq. 4; Alemi et al., Fixing a Broken ELBO (2017).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "l2",
        beta: float = 1.0,
        rate: float = 10.0,
    ) -> None:
        super().__init__(
            encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, likelihood=likelihood
        )
        checks.not_negative(beta=beta, rate=rate)
        self.beta = beta
        self.rate = rate

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.minimal_rate`."""
        reconstruction, _, mean, log_var = self._terms(x)
        return objectives.minimal_rate(
            reconstruction, mean, log_var, self.beta, self.rate, self.group
        )


class InfoVAE(GaussianAutoencoder):
    """-E log p(x|z) + alpha I_q(x; z) + lam D(q(z) || N(0, I)).

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`.
        alpha: weight of the information, any number; the papers drop it with 0.
        lam: weight of the divergence, >= 0; 10 as VIMAE's.
        divergence: "mmd", "kl" or "stein".
        kernel: of "mmd" and "stein": "imq", "rbf", "wae", "mmd-vae", "median" or an object.

    Raises:
        ValueError: a number not finite, a negative `lam`, an unknown divergence.

    Source: VIMAE preprint, eq. 4; InfoVAE, sec. 4.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "l2",
        alpha: float = 0.0,
        lam: float = 10.0,
        divergence: Literal["mmd", "kl", "stein"] = "mmd",
        kernel: Kernel = "imq",
    ) -> None:
        super().__init__(
            encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, likelihood=likelihood
        )
        checks.finite(alpha=alpha)
        checks.not_negative(lam=lam)
        checks.one_of(DIVERGENCES, divergence=divergence)
        self.alpha = alpha
        self.lam = lam
        self.divergence = divergence
        objectives.named_kernel(kernel, latent_dim)  # an unknown name raises
        self.kernel = kernel

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.info_vae`; B >= 2 images."""
        return objectives.info_vae(
            *self._terms(x),
            alpha=self.alpha,
            lam=self.lam,
            divergence=self.divergence,
            kernel=self.kernel,
            group=self.group,
        )


class MMDVAE(GaussianAutoencoder):
    """-E log p(x|z) + lam MMD^2(q(z), N(0, I)).

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`.
        lam: weight, >= 0. The paper prints none but wants both terms "on the same order of
            magnitude": 1000 brings an MMD^2 of 0.1 to the 100 nats of MNIST.
        kernel: "imq", "rbf", "wae", "mmd-vae" (that of the paper's code), "median" or an object.
        bank: number of earlier codes the MMD sees beside the batch, 0 for none: see
            `autoencoder.MemoryBank`.

    Raises:
        ValueError: `lam` negative or not finite, `bank` negative.

    Source: InfoVAE, sec. 4.1.3.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        lam: float = 1000.0,
        kernel: Kernel = "mmd-vae",
        bank: int = 0,
    ) -> None:
        super().__init__(
            encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, likelihood=likelihood
        )
        checks.not_negative(lam=lam)
        self.lam = lam
        objectives.named_kernel(kernel, latent_dim)  # an unknown name raises
        self.kernel = kernel
        self.bank = bank
        self.memory = memory_bank(bank, latent_dim)

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.infomax`; B >= 2 images."""
        reconstruction, z, _, _ = self._terms(x)
        memory = None if self.memory is None else self.memory(z)
        return objectives.infomax(
            reconstruction, z, "normal", self.lam, self.kernel, memory, self.group
        )


class SteinVAE(GaussianAutoencoder):
    """-E log p(x|z) + lam * Stein surrogate of KL(q(z) || N(0, I)).

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`.
        lam: weight, >= 0; the paper prints none, 100 is our choice.
        kernel: "imq", "rbf", "wae", "mmd-vae", "median" or an object.

    Raises:
        ValueError: `lam` negative or not finite.

    Source: InfoVAE, sec. 4.1.2.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        lam: float = 100.0,
        kernel: Kernel = "rbf",
    ) -> None:
        super().__init__(
            encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, likelihood=likelihood
        )
        checks.not_negative(lam=lam)
        self.lam = lam
        objectives.named_kernel(kernel, latent_dim)  # an unknown name raises
        self.kernel = kernel

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.stein`."""
        reconstruction, z, _, _ = self._terms(x)
        return objectives.stein(reconstruction, z, "normal", self.lam, self.kernel, self.group)
