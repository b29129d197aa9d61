"""Joint codes: a Gaussian z and a category y (IMAE and what it is compared with)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checks, densities, distributed, objectives
from .autoencoder import statistics_kept
from .objectives import Weighting
from .vae import GaussianAutoencoder


class JointAutoencoder(GaussianAutoencoder):
    """q(z, y|x) = q(z|x) q(y|x), a Gaussian and K categories; priors N(0, I) and uniform.

    A code is (z, y) side by side, (B, d + K). In the objectives y is a relaxed sample (Gumbel-softmax
    of temperature tau); `encode` gives the mean of z and the most probable y as one-hot vector.

    Args:
        encoder: images (B, C, H, W) -> (B, 2 d + K): mean, log variance, logits of y.
        decoder: codes (B, d + K) -> theta.
        data_shape, likelihood, auxiliary: as `GaussianAutoencoder`.
        latent_dim: d.
        categories: K >= 2.
        tau: temperature > 0.

    Source: IMAE, sec. 3; VMI-VAE, eqs. 9 to 11.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str,
        categories: int,
        tau: float,
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
        checks.integer(2, categories=categories)
        checks.positive(tau=tau)
        self.categories = categories
        self.tau = tau
        self.code_dim = latent_dim + categories

    @staticmethod
    def heads(latent_dim: int, categories: int) -> tuple[int, ...]:
        return 2 * latent_dim, categories

    def joint_posterior(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance (B, d) of q(z|x) and log q(y|x) (B, K) of images x (B, C, H, W)."""
        of_z, logits = self._encoded(x).split((2 * self.latent_dim, self.categories), 1)
        mean, log_var = of_z.chunk(2, 1)
        return mean, log_var, logits.log_softmax(1)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each (B, d), of q(z|x); of y see `classify`."""
        return self.joint_posterior(x)[:2]

    def classify(self, x: Tensor) -> Tensor:
        """Probabilities q(y|x) (B, K) of images x (B, C, H, W)."""
        return self.joint_posterior(x)[2].exp()

    def encode(self, x: Tensor) -> Tensor:
        mean, _, log_p = self.joint_posterior(x)
        return self._code(mean, log_p.argmax(1))

    def sample_posterior(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_var, log_p = self.joint_posterior(x)
        z = densities.draw_normal(mean, log_var, generator)
        y = densities.draw_category(log_p, hard=True, generator=generator)
        return torch.cat([z, y], 1)

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        z = super().sample_prior(n, generator)

        def drawn(n: int) -> Tensor:
            source = densities.drawn_from(generator)
            return torch.randint(self.categories, (n,), device=z.device, **source)

        return self._code(z, distributed.rows(drawn, n, generator))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) - log K of codes (B, d + K): (B,), in nats."""
        self._check_codes(z)
        gaussian = densities.prior_log_density(z[:, : self.latent_dim], self.prior)
        return gaussian - math.log(self.categories)

    def smoothness(self, x: Tensor, log_p: Tensor) -> Tensor:
        """max over ||eta|| <= 1 of the cross entropy H(q(y|x); q(y|x + eta)), mean over images: ().

        Virtual adversarial training: eta is the direction, after one power iteration from a random
        one, in which q(y|x) changes most. As in its source q(y|x) is held constant, so that the
        gradient is that of KL(q(y|x) || q(y|x + eta)).

        Args:
            x: images (B, C, H, W).
            log_p: log q(y|x), (B, K).

        Source: IMAE, eq. 11 with epsilon = 1; Miyato et al. (2016), sec. 3.
        """
        log_p = log_p.detach()
        p = log_p.exp()
        # Far enough for the difference to stand above the rounding, near enough to be a derivative.
        xi = torch.finfo(x.dtype).eps ** (1 / 3)

        def divergence(step: Tensor) -> Tensor:
            there = self.joint_posterior(x + step)[2]
            return F.kl_div(there, log_p, log_target=True, reduction="sum")

        start = distributed.rows(lambda n: x.new_empty(n, *x.shape[1:]).normal_(), len(x))
        with statistics_kept(self.encoder):
            with torch.no_grad():
                direction = torch.func.grad(divergence)(xi * _unit(start))
            there = self.joint_posterior(x + _unit(direction))[2]
        return -(p * there).sum(1).mean()

    def _code(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.cat([z, F.one_hot(y, self.categories).to(z.dtype)], 1)

    def _joint_terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """-E log p(x|z, y) with one draw per image, the drawn z, mean, log variance, log q(y|x)."""
        mean, log_var, log_p = self.joint_posterior(x)
        z = densities.draw_normal(mean, log_var)
        y = densities.draw_category(log_p, self.tau)
        reconstruction = -self.log_likelihood(x, torch.cat([z, y], 1)).mean()
        return reconstruction, z, mean, log_var, log_p


def _unit(x: Tensor) -> Tensor:
    """Every image of x scaled to length 1; one of zeros stays."""
    length = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    unit: Tensor = x / length.clamp_min(torch.finfo(x.dtype).tiny)
    return unit


class _Smoothed(JointAutoencoder):
    """A joint code with a weight beta and virtual adversarial training beside y."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str,
        categories: int,
        tau: float,
        beta: float,
        vat: float,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            categories=categories,
            tau=tau,
        )
        checks.not_negative(beta=beta, vat=vat)
        self.beta = beta
        self.vat = vat

    def _vat(self, x: Tensor, log_p: Tensor) -> Tensor:
        """The smoothness, weighted."""
        return self.vat * self.smoothness(x, log_p) if self.vat else log_p.new_zeros(())


class HybridBetaVAE(_Smoothed):
    """-E log p(x|y, z) + beta [KL(q(z|x) || N(0, I)) + KL(q(y|x) || uniform) + vat * smoothness].

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood, categories, tau: as `JointAutoencoder`;
            the paper prints no tau, 2/3 is that of JointVAE.
        beta: weight, >= 0; the paper sweeps it from 1 to 10.
        vat: weight of the virtual adversarial term within beta, >= 0; 1 in the paper.

    Raises:
        ValueError: a number out of range.

    Source: IMAE, figure 1 ("beta-VAE") and eq. 11.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        categories: int = 10,
        tau: float = 2 / 3,
        beta: float = 5.0,
        vat: float = 1.0,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            categories=categories,
            tau=tau,
            beta=beta,
            vat=vat,
        )

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.hybrid_elbo`."""
        reconstruction, _, mean, log_var, log_p = self._joint_terms(x)
        smoothness = self._vat(x, log_p)
        return objectives.hybrid_elbo(reconstruction, mean, log_var, log_p, smoothness, self.beta)


class HybridInfoVAE(HybridBetaVAE):
    """-E log p(x|y, z) + beta [KL(q(z) || N(0, I)) + KL(q(y) || uniform) + vat * smoothness].

    q(z) and q(y) are the aggregated posteriors of the batch: of the rates only I(x; z) and I(x; y)
    are dropped. Arguments and errors are those of `HybridBetaVAE`.

    Source: IMAE, figure 1 ("InfoVAE") and eq. 11.
    """

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.hybrid_info_vae`; B >= 2 images."""
        terms = self._joint_terms(x)
        smoothness = self._vat(x, terms[-1])
        return objectives.hybrid_info_vae(*terms, smoothness, beta=self.beta, group=self.group)


class JointVAE(_Smoothed):
    """-E log p(x|y, z) + beta [|KL(z) - C_z| + |KL(y) - C_y| + vat * smoothness].

    The capacities C rise linearly from 0 to their ends, by a step with every loss in training mode;
    C_y ends at log K at most.

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood, categories, tau, beta, vat: as
            `HybridBetaVAE`.
        capacity_z, capacity_y: ends, >= 0, in nats; IMAE prints none, 5 and 5 are those of JointVAE
            on MNIST.
        steps: of the rise, >= 1; 25000 in JointVAE.

    Raises:
        ValueError: a number out of range.

    Source: IMAE, figure 1 and appendix F; Dupont, JointVAE (2018), eq. 7 and appendix.
    """

    step: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        categories: int = 10,
        tau: float = 2 / 3,
        beta: float = 5.0,
        vat: float = 1.0,
        capacity_z: float = 5.0,
        capacity_y: float = 5.0,
        steps: int = 25_000,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            categories=categories,
            tau=tau,
            beta=beta,
            vat=vat,
        )
        checks.not_negative(capacity_z=capacity_z, capacity_y=capacity_y)
        checks.integer(1, steps=steps)
        self.capacity_z = capacity_z
        self.capacity_y = capacity_y
        self.steps = steps
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.joint_vae`."""
        reconstruction, _, mean, log_var, log_p = self._joint_terms(x)
        raised = (self.step / self.steps).clamp(max=1)
        terms = objectives.joint_vae(
            reconstruction,
            mean,
            log_var,
            log_p,
            self._vat(x, log_p),
            self.capacity_z * raised,
            (self.capacity_y * raised).minimum(math.log(self.categories) * raised),
            beta=self.beta,
            group=self.group,
        )
        if self.training:
            self.step += 1
        return terms


class IMAE(_Smoothed):
    """-E log p(x|y, z) - beta L(y) - beta L(z) + gamma TC(z): information maximisation.

    L(y) is the information between image and category less vat * smoothness, L(z) minus the
    divergences of the marginals p(z_k) from N(0, scale^2), TC the total correlation of p(z).

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood, categories, tau, beta, vat: as
            `HybridBetaVAE`.
        gamma: weight of the total correlation, >= 0; None is 2 beta, as in the paper.
        scale: standard deviation of r(z_k), > 0; the paper says "scaled normal" and prints none.
        weighting: "uniform" (the paper's), "mws" or "mss", see
            `vimae_kernels.aggregate_log_density`.
        dataset_size: number of training images; "mws" and "mss" need it.

    Raises:
        ValueError: a number out of range, an unknown weighting, one without its `dataset_size`.

    Source: IMAE, eqs. 6 to 11 and 34.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        categories: int = 10,
        tau: float = 2 / 3,
        beta: float = 5.0,
        vat: float = 1.0,
        gamma: float | None = None,
        scale: float = 1.0,
        weighting: Weighting = "uniform",
        dataset_size: int | None = None,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            categories=categories,
            tau=tau,
            beta=beta,
            vat=vat,
        )
        self.gamma = 2 * beta if gamma is None else gamma
        checks.not_negative(gamma=self.gamma)
        checks.positive(scale=scale)
        checks.one_of(("uniform", "mws", "mss"), weighting=weighting)
        if dataset_size is not None:
            checks.integer(1, dataset_size=dataset_size)
        elif weighting != "uniform":
            raise ValueError(f"dataset_size is None; weighting {weighting!r} needs an integer")
        self.scale = scale
        self.weighting = weighting
        self.dataset_size = dataset_size

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.imae`; B >= 2 images."""
        terms = self._joint_terms(x)
        return objectives.imae(
            *terms,
            self._vat(x, terms[-1]),
            beta=self.beta,
            gamma=self.gamma,
            scale=self.scale,
            weighting=self.weighting,
            dataset_size=self.dataset_size,
            group=self.group,
        )
