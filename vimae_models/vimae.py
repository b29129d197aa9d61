"""The Variational InfoMax AutoEncoder (VIMAE preprint and ICLR version)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from . import checks, corruptions, objectives
from .autoencoder import Autoencoder, memory_bank
from .objectives import Kernel


class VIMAE(Autoencoder):
    """Deterministic encoder and decoder, trained on ||x - g(z)||^2 + lam MMD^2(q(z), p(z)).

    In training mode the encoder sees x plus pixel-wise Gaussian noise truncated at `noise`; what is
    to be reconstructed is the clean x. In evaluation mode nothing is added.

    Args:
        encoder: images (B, C, H, W) -> codes (B, d).
        decoder: codes (B, d) -> theta (B, C, H, W), of images g(z) = sigmoid(theta).
        data_shape: (C, H, W).
        latent_dim: d.
        prior: "normal" is VIMAE-n, "logistic" VIMAE-l.
        lam: weight of the divergence, >= 0; the paper's lambda, 10 for MNIST. The WAE code that
            the experiments follow weighs the squared error by 0.05, so that its 10 is 200 here.
        noise: bound of the noise in pixel units, >= 0; 0.01 in the paper.
        kernel: kernel of the MMD: "imq" is the paper's, "wae" that of the WAE code; see
            `objectives.named_kernel`.
        bank: number of earlier codes the MMD sees beside the batch, 0 for none: see
            `autoencoder.MemoryBank`.

    Raises:
        ValueError: `lam` or `noise` negative or not finite, `bank` negative.

    Source: VIMAE preprint, eqs. 9 and 15, sec. 5; ICLR version, eq. 7 and appendix.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        prior: Literal["normal", "logistic"],
        lam: float = 10.0,
        noise: float = 0.01,
        kernel: Kernel = "imq",
        bank: int = 0,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            prior=prior,
            likelihood="l2",
        )
        checks.not_negative(lam=lam, noise=noise)
        self.lam = lam
        self.noise = noise
        objectives.named_kernel(kernel, latent_dim)  # an unknown name raises
        self.kernel = kernel
        self.bank = bank
        self.memory = memory_bank(bank, latent_dim)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of `objectives.infomax` on images x (B, C, H, W), B >= 2."""
        noisy = corruptions.truncated_gaussian(x, self.noise) if self.training else x
        z = self.encode(noisy)
        error = -self.log_likelihood(x, z).mean()
        memory = None if self.memory is None else self.memory(z)
        return objectives.infomax(error, z, self.prior, self.lam, self.kernel, memory, self.group)
