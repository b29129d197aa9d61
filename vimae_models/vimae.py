"""The Variational InfoMax AutoEncoder (VIMAE preprint and ICLR version)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vimae_kernels.kernels import Kernel

from . import corruptions, objectives
from .autoencoder import Autoencoder


class VIMAE(Autoencoder):
    """Deterministic encoder and decoder, trained on ||x - g(z)||^2 + lam MMD^2(q(z), p(z)).

    In training mode the encoder sees x plus pixel-wise Gaussian noise truncated at `noise`; what is
    to be reconstructed is the clean x. In evaluation mode nothing is added.

    Args:
        encoder: images (B, C, H, W) -> codes (B, d).
        decoder: codes (B, d) -> images (B, C, H, W).
        data_shape: (C, H, W).
        latent_dim: d.
        prior: "normal" is VIMAE-n, "logistic" VIMAE-l.
        lam: weight of the divergence, >= 0; the paper's lambda, 10 for MNIST. The WAE code that
            the experiments follow weighs the squared error by 0.05, so that its 10 is 200 here.
        noise: bound of the noise in pixel units, >= 0; 0.01 in the paper.
        kernel: kernel of the MMD; `vimae_kernels.IMQ.wae(d)` is that of the WAE code.

    Raises:
        ValueError: `lam` or `noise` negative or not finite.

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
    ) -> None:
        super().__init__(
            encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, prior=prior
        )
        for name, value in (("lam", lam), ("noise", noise)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; it must be a finite number >= 0")
        self.lam = lam
        self.noise = noise
        self.kernel = kernel

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The terms of `objectives.infomax` on images x (B, C, H, W), B >= 2."""
        noisy = corruptions.truncated_gaussian(x, self.noise) if self.training else x
        z = self.encode(noisy)
        return objectives.infomax(x, self.decode(z), z, self.prior, self.lam, self.kernel)
