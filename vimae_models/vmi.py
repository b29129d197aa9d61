"""Variational mutual information maximisation for VAEs, and its evaluation of fixed models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

import vimae_kernels as vk

from . import checks, densities, encoding, objectives
from .autoencoder import statistics_kept, with_frozen_parameters
from .data import ImageData
from .joint import JointAutoencoder
from .networks import NETWORKS
from .pixelcnn import Progress
from .vae import GaussianAutoencoder

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gaussian_log_q(outputs: Tensor, z: Tensor) -> Tensor:
    """log Q(z|x'), Q being a Gaussian with mean and log variance `outputs` (B, 2 k): (B,)."""
    mean, log_var = outputs.chunk(2, 1)
    return densities.normal_log_density(z, mean, log_var)


def categorical_log_q(outputs: Tensor, y: Tensor) -> Tensor:
    """sum_k y_k log Q_k(x'), Q having the logits `outputs` (B, K), for y (B, K): (B,)."""
    return (y * outputs.log_softmax(1)).sum(1)


def gaussian_entropy(
    z: Tensor, mean: Tensor, log_var: Tensor, group: ProcessGroup | None = None
) -> Tensor:
    """H of the aggregated posterior of samples z (B, k) of N(mean, exp(log_var)): (); `group` as of `objectives`."""
    return vk.latent_information(z, mean, log_var, group=group).joint_entropy


def categorical_entropy(log_p: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """H of the mean over the batch of the probabilities, from their logs (B, K): (); `group` as of `objectives`."""
    return densities.categorical_entropy(densities.mean_log_probability(log_p, group))


class VMIVAE(GaussianAutoencoder):
    """-E log p(x|z) + KL(q(z|x) || N(0, I)) - lam [E log Q(zhat|x') + H(zhat)].

    zhat are the first `informative` coordinates of z, x' = E p(x|z) the decoder's image and Q a
    Gaussian whose parameters an auxiliary network reads from x'. On every batch `auxiliary_loss`
    tightens the bound, then `loss` raises the information. lam = 0 is the VAE, with the bound measured.

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood: as `GaussianAutoencoder`; d is 32 in
            the paper.
        auxiliary: the network of Q, images -> (B, 2 * informative).
        lam: weight of the information, >= 0; the paper shows several and prints none, 1 is ours.
        informative: k, from 1 to d; 2 in the paper.
        entropy: "batch" takes the gradient of H(zhat), estimated from the batch, as eqs. 7 and 8 say.
            "constant" ignores it, as the paper says "for simplicity": then a code that is the same
            for every image raises E log Q most, and for lam > 1 by more than its KL costs.

    Raises:
        ValueError: a number out of range; a decoder that draws pixel by pixel, which has no gradient.

    Source: VMI-VAE, eqs. 1, 7 and 8.
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
        lam: float = 1.0,
        informative: int = 2,
        entropy: Literal["batch", "constant"] = "batch",
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
        checks.integer(1, informative=informative)
        if informative > latent_dim:
            raise ValueError(
                f"informative is {informative}; it must be at most latent_dim, {latent_dim}"
            )
        checks.one_of(("batch", "constant"), entropy=entropy)
        _require_images(self)
        self.lam = lam
        self.entropy = entropy
        self.informative = informative

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms of `objectives.elbo` and "information", the bound on I(zhat; x)."""
        mean, log_var = self.posterior(x)
        z = densities.draw_normal(mean, log_var)
        theta = self.decoder(z)
        terms = objectives.elbo(-self.p_x.log_prob(theta, x).mean(), mean, log_var)
        outputs = with_frozen_parameters(self.auxiliary, self.p_x.mean(theta))
        z, mean, log_var = (t[:, : self.informative] for t in (z, mean, log_var))
        entropy = gaussian_entropy(z, mean, log_var, self.group)
        if self.entropy == "constant":
            entropy = entropy.detach()
        bound = objectives.information_bound(gaussian_log_q(outputs, z), entropy)
        return terms | {"loss": terms["loss"] - self.lam * bound, "information": bound}

    def auxiliary_loss(self, x: Tensor) -> objectives.Terms:
        """The term "loss", -E log Q(zhat|x')."""
        with torch.no_grad(), statistics_kept(self.encoder), statistics_kept(self.decoder):
            z = self.sample_posterior(x)
            images = self.decode(z)
        log_q = gaussian_log_q(self.auxiliary(images), z[:, : self.informative])
        return {"loss": -log_q.mean()}


class VMIJointVAE(JointAutoencoder):
    """-E log p(x|z, c) + KL(q(z|x) || N(0, I)) + KL(q(c|x) || uniform) - lam [E log Q(c|x') + H(c)].

    As `VMIVAE`, with the information on a category c beside the Gaussian z.

    Args:
        encoder, decoder, data_shape, latent_dim, likelihood, categories, tau: as `JointAutoencoder`;
            d is 16 and K 10 in the paper, which prints no tau: 2/3 is that of JointVAE.
        auxiliary: the network of Q, images -> (B, K).
        lam: weight of the information, >= 0; the paper prints none, 5 is ours.
        entropy: as `VMIVAE`, of c.

    Raises: as `VMIVAE`.

    Source: VMI-VAE, eqs. 7 and 9 to 12.
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
        categories: int = 10,
        tau: float = 2 / 3,
        lam: float = 5.0,
        entropy: Literal["batch", "constant"] = "batch",
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            data_shape=data_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            categories=categories,
            tau=tau,
            auxiliary=auxiliary,
        )
        checks.not_negative(lam=lam)
        checks.one_of(("batch", "constant"), entropy=entropy)
        _require_images(self)
        self.lam = lam
        self.entropy = entropy

    def loss(self, x: Tensor) -> objectives.Terms:
        """The terms "loss", "reconstruction", "kl_z", "kl_y" and "information", the bound on I(c; x)."""
        mean, log_var, log_p = self.joint_posterior(x)
        z = densities.draw_normal(mean, log_var)
        y = densities.draw_category(log_p, self.tau)
        theta = self.decoder(torch.cat([z, y], 1))
        reconstruction = -self.p_x.log_prob(theta, x).mean()
        terms = objectives.hybrid_elbo(reconstruction, mean, log_var, log_p)
        del terms["vat"]
        outputs = with_frozen_parameters(self.auxiliary, self.p_x.mean(theta))
        entropy = categorical_entropy(log_p, self.group)
        if self.entropy == "constant":
            entropy = entropy.detach()
        bound = objectives.information_bound(categorical_log_q(outputs, y), entropy)
        return terms | {"loss": terms["loss"] - self.lam * bound, "information": bound}

    def auxiliary_loss(self, x: Tensor) -> objectives.Terms:
        """The term "loss", -E log Q(c|x')."""
        with torch.no_grad(), statistics_kept(self.encoder), statistics_kept(self.decoder):
            mean, log_var, log_p = self.joint_posterior(x)
            z = densities.draw_normal(mean, log_var)
            y = densities.draw_category(log_p, self.tau)
            images = self.decode(torch.cat([z, y], 1))
        return {"loss": -categorical_log_q(self.auxiliary(images), y).mean()}


def _require_images(model: GaussianAutoencoder) -> None:
    if model.autoregressive:
        raise ValueError(
            f"{type(model).__name__} needs the gradient of the decoded image; an autoregressive "
            "decoder, which draws pixel by pixel, has none"
        )


class MutualInformationBound(nn.Module):
    """A lower bound on the information between code and image of any fixed model with a posterior.

    E_{q(z|x) p(x'|z)} log Q(z|x') + H(z), in nats, with an auxiliary network for Q: the only thing
    that is trained. The code is the category of a joint model, and z of any other, or the first
    `informative` coordinates of z.

    Args:
        model: a system with a Gaussian posterior; it is put into evaluation mode and not changed.
        q: images (B, C, H, W) -> (B, q_outputs(model, informative)), e.g. the encoder of a network.
        informative: coordinates of z; None is the category of a joint model, all of z of another.

    Raises:
        TypeError: a model without a posterior: the information in its code has no bound.
        ValueError: `informative` out of range.

    Source: VMI-VAE, eqs. 4 and 5.
    """

    def __init__(
        self, model: GaussianAutoencoder, q: nn.Module, informative: int | None = None
    ) -> None:
        super().__init__()
        self.q = q
        self.informative = _coordinates(model, informative)
        # Not a submodule: its parameters are not this module's to train.
        self.__dict__["model"] = model.eval()

    def loss(self, x: Tensor) -> objectives.Terms:
        """The term "loss", -E log Q(code|x') on images x (B, C, H, W), for the parameters of Q."""
        return {"loss": -self._log_q(x)[0].mean()}

    def fit(self, batches: Iterable[Tensor], lr: float = 1e-3) -> Iterator[float]:
        """Train Q with Adam on batches of images, yielding the loss of every step."""
        optimizer = torch.optim.Adam(self.q.parameters(), lr)
        for x in batches:
            loss = self.loss(x)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    @torch.no_grad()
    def bound(self, x: Tensor) -> Tensor:
        """The bound (), in nats, estimated on images x (B, C, H, W): the more, the closer."""
        log_q, code = self._log_q(x)
        model: Any = self.__dict__["model"]
        if self.informative is None:
            entropy = categorical_entropy(model.joint_posterior(x)[2])
        else:
            mean, log_var = (t[:, : self.informative] for t in model.posterior(x))
            entropy = gaussian_entropy(code, mean, log_var)
        return objectives.information_bound(log_q, entropy)

    def _log_q(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log Q(code|x') of every image, and the drawn codes."""
        model: Any = self.__dict__["model"]
        with torch.no_grad():
            code = model.sample_posterior(x)
            images = model.draw(code)
        if self.informative is None:
            y = code[:, model.latent_dim :]
            return categorical_log_q(self.q(images), y), y
        z = code[:, : self.informative]
        return gaussian_log_q(self.q(images), z), z


def information_of_fixed(
    model: GaussianAutoencoder,
    data: ImageData,
    network: str,
    width: float,
    *,
    steps: int,
    informative: int | None = None,
    progress: Progress | None = None,
) -> float:
    """The bound of `MutualInformationBound` on the test images, Q being trained on the training images.

    Args:
        model: a system with a Gaussian posterior; it is not changed.
        data: the data set.
        network, width: those of Q, see `networks.NETWORKS`.
        steps: batches of 100 that Q is trained on.
        informative: as `MutualInformationBound`.
        progress: called with the steps done and all.

    Returns:
        In nats. First weights, batches and draws are the same for every model of one shape.

    Raises: as `MutualInformationBound`.

    Source: VMI-VAE, eq. 5.
    """
    from .training import Batches  # Lightning, which models in a loop of one's own do not need

    with torch.random.fork_rng():
        torch.manual_seed(0)
        q = NETWORKS[network].encoder(model.data_shape, [q_outputs(model, informative)], width)
        bound = MutualInformationBound(model, q, informative)
        at = next(model.parameters())
        q.to(at)
        epochs = Batches(data.train.images, min(100, len(data.train)), seed=0)
        batches = (x.to(at) for x in islice(chain.from_iterable(repeat(epochs)), steps))
        for done, _ in enumerate(bound.fit(batches), 1):
            if progress is not None:
                progress(done, steps)
        q.eval()
        parts = encoding.inputs(model, data.test.images)
        return sum(bound.bound(x).item() * len(x) for x in parts) / len(data.test)


def q_outputs(model: GaussianAutoencoder, informative: int | None = None) -> int:
    """The numbers per image a network of Q gives: K logits, or mean and log variance."""
    k = _coordinates(model, informative)
    return model.categories if k is None else 2 * k  # type: ignore[return-value]


def _coordinates(model: object, informative: int | None) -> int | None:
    """The number of coordinates of z a bound is about; None is the category of a joint model."""
    if not isinstance(model, GaussianAutoencoder):
        raise TypeError(
            f"model is of type {type(model).__name__}; it must have a posterior q(z|x): the "
            "information in a deterministic code has no bound"
        )
    if informative is None:
        return None if isinstance(model, JointAutoencoder) else model.latent_dim
    checks.integer(1, informative=informative)
    if informative > model.latent_dim:
        raise ValueError(
            f"informative is {informative}; it must be at most latent_dim, {model.latent_dim}"
        )
    return informative
