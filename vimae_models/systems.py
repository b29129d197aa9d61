"""The systems by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import checks, networks
from .aae import AdversarialAutoencoder
from .autoencoder import Autoencoder
from .joint import IMAE, HybridBetaVAE, HybridInfoVAE, JointVAE
from .likelihoods import LIKELIHOODS
from .networks import NETWORKS, Network, Shape
from .vae import MMDVAE, VAE, InfoVAE, MinimalRateVAE, ProbabilisticAutoencoder, SteinVAE
from .vimae import VIMAE
from .vmi import VMIVAE, VMIJointVAE


@dataclass(frozen=True)
class System:
    """What a name stands for.

    Attributes:
        model: its class.
        fixed: constructor arguments the name fixes.
        defaults: hyperparameters for which the name has a default of its own.
        latent_dim: the paper's dimension of the code; None leaves it to the network.
        network: the network that is taken when none is named.
        auxiliary: makes the auxiliary network, from the network, the shape of the images, the
            dimension of the code, the width and the hyperparameters.
    """

    model: type[Autoencoder]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    latent_dim: int | None = None
    network: str = "mlp"
    auxiliary: Callable[[Network, Shape, int, float, dict[str, Any]], nn.Module] | None = None


def _discriminator(
    network: Network, shape: Shape, latent_dim: int, width: float, values: dict[str, Any]
) -> nn.Module:
    return networks.discriminator(latent_dim, width)


def _gaussian_q(
    network: Network, shape: Shape, latent_dim: int, width: float, values: dict[str, Any]
) -> nn.Module:
    return network.encoder(shape, (2 * values["informative"],), width)


def _categorical_q(
    network: Network, shape: Shape, latent_dim: int, width: float, values: dict[str, Any]
) -> nn.Module:
    return network.encoder(shape, (values["categories"],), width)


_SYSTEMS: dict[str, System] = {
    "ae": System(ProbabilisticAutoencoder),
    "vae": System(VAE, {"beta": 1.0}),
    "aae": System(AdversarialAutoencoder, auxiliary=_discriminator),
    "stein-vae": System(SteinVAE),
    "mmd-vae": System(MMDVAE),
    "vimae-n": System(VIMAE, {"prior": "normal"}),
    "vimae-l": System(VIMAE, {"prior": "logistic"}),
    "beta-vae-h": System(VAE, defaults={"beta": 10.0}),
    "beta-vae-a": System(VAE, defaults={"beta": 0.2}),
    "min-rate-vae": System(MinimalRateVAE),
    "infovae": System(InfoVAE),
    "vmi-vae": System(VMIVAE, latent_dim=32, auxiliary=_gaussian_q),
    "vmi-joint-vae": System(VMIJointVAE, latent_dim=16, auxiliary=_categorical_q),
    "imae": System(IMAE, latent_dim=10, network="imae"),
    "hybrid-beta-vae": System(HybridBetaVAE, latent_dim=10, network="imae"),
    "hybrid-infovae": System(HybridInfoVAE, latent_dim=10, network="imae"),
    "joint-vae": System(JointVAE, latent_dim=10, network="imae"),
}
# Constructor arguments that `build` itself provides.
_PROVIDED = {"self", "encoder", "decoder", "auxiliary", "data_shape", "latent_dim"}


def names() -> list[str]:
    """The names `build` knows."""
    return list(_SYSTEMS)


def system(name: str) -> System:
    """What a name stands for.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _SYSTEMS:
        raise ValueError(f"name is {name!r}; known systems are {names()}")
    return _SYSTEMS[name]


def hyperparameters(name: str) -> dict[str, Any]:
    """The hyperparameters of a system, beside those of `build` itself, with their defaults.

    Every one of them is an attribute of the built model. A network that is made for one likelihood
    (`networks.NETWORKS`) changes the default of "likelihood".

    Raises:
        ValueError: an unknown name.
    """
    chosen = system(name)
    signature = inspect.signature(chosen.model.__init__).parameters
    free = {
        argument: parameter.default
        for argument, parameter in signature.items()
        if argument not in _PROVIDED and argument not in chosen.fixed
    }
    return free | dict(chosen.defaults)


def build(
    name: str,
    *,
    data_shape: tuple[int, int, int],
    latent_dim: int | None = None,
    network: str | None = None,
    width: float = 1.0,
    **given: Any,
) -> Autoencoder:
    """A freshly initialised model.

    Args:
        name: one of `names()`.
        data_shape: (C, H, W) of the images.
        latent_dim: dimension of the code; None is that of the system's paper, or, where it names
            none, that of the network's.
        network: one of `networks.NETWORKS`; None is that of the system, "mlp" for most.
        width: factor on the numbers of units and filters of the network.
        given: hyperparameters of the system, e.g. `lam` and `noise` for VIMAE; `hyperparameters`
            lists them, the class explains them.

    Raises:
        TypeError: `data_shape` or `latent_dim` that are not integers, a hyperparameter of a wrong
            type.
        ValueError: an unknown name or hyperparameter (the known ones are listed), a number out of
            range, a `data_shape` or likelihood the network cannot take, a network larger than the
            memory.
    """
    chosen = system(name)
    network = network if network is not None else chosen.network
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}; known networks are {list(NETWORKS)}")
    parts = NETWORKS[network]
    values = hyperparameters(name)
    for hyperparameter in given:
        if hyperparameter not in values:
            raise ValueError(
                f"{name} has no hyperparameter {hyperparameter!r}; it has {list(values)}"
            )
    if parts.likelihood is not None and "likelihood" in values:
        values["likelihood"] = parts.likelihood
    values |= given
    likelihood = values.get("likelihood", "l2")
    checks.one_of(LIKELIHOODS, likelihood=likelihood)
    if parts.likelihood not in (None, likelihood):
        raise ValueError(
            f"network {network!r} is made for likelihood {parts.likelihood!r}; that of {name} is "
            f"{likelihood!r}"
        )
    shape = _shape(data_shape)
    if latent_dim is None:
        latent_dim = chosen.latent_dim or parts.latent_dim
    checks.integer(1, latent_dim=latent_dim)
    checks.positive(width=width)
    # The heads are made before the model checks them.
    for count, least in (("categories", 2), ("informative", 1)):
        if count in values:
            checks.integer(least, **{count: values[count]})
    categories = values.get("categories", 0)
    heads = chosen.model.heads(latent_dim, categories)
    channels = LIKELIHOODS[likelihood].channels(shape[0])

    def modules() -> dict[str, Any]:
        made = {
            "encoder": parts.encoder(shape, heads, width),
            "decoder": parts.decoder(shape, channels, latent_dim + categories, width),
        }
        if chosen.auxiliary is not None:
            made["auxiliary"] = chosen.auxiliary(parts, shape, latent_dim, width, values)
        return made

    try:
        # All of its memory at once, untouched: too much is refused before any of it is filled.
        with torch.device("meta"):
            weights = nn.ModuleDict(modules()).parameters()
        torch.empty(sum(weight.numel() for weight in weights))
        made = modules()
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        # What torch raises depends on how far beyond the memory, or beyond 64 bits, a size is.
        raise ValueError(
            f"network {network!r} of width {width} with latent_dim {latent_dim} cannot be "
            "allocated: it is too large"
        ) from error
    made |= {"data_shape": shape, "latent_dim": latent_dim}
    return chosen.model(**made, **chosen.fixed, **values)


def _shape(data_shape: object) -> Shape:
    if not isinstance(data_shape, tuple | list) or len(data_shape) != 3:
        raise ValueError(f"data_shape is {data_shape!r}; it must be (C, H, W)")
    for size in data_shape:
        checks.integer(1, **{"every entry of data_shape": size})
    channels, height, width = data_shape
    return channels, height, width
