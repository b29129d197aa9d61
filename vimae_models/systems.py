"""The systems by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from .autoencoder import Autoencoder
from .networks import LATENT_DIM, NETWORKS
from .vimae import VIMAE

# name: (class, what the name fixes)
_SYSTEMS: dict[str, tuple[type[Autoencoder], dict[str, Any]]] = {
    "vimae-n": (VIMAE, {"prior": "normal"}),
    "vimae-l": (VIMAE, {"prior": "logistic"}),
}
# Constructor arguments that `build` itself provides.
_PROVIDED = {"self", "encoder", "decoder", "data_shape", "latent_dim"}


def names() -> list[str]:
    """The names `build` knows."""
    return list(_SYSTEMS)


def build(
    name: str,
    *,
    data_shape: tuple[int, int, int],
    latent_dim: int | None = None,
    network: str | None = None,
    width: float = 1.0,
    **hyperparameters: Any,
) -> Autoencoder:
    """A freshly initialised model.

    Args:
        name: one of `names()`.
        data_shape: (C, H, W) of the images.
        latent_dim: dimension of the code; None is that of the paper for the network (2 for "mlp", 8
            for "dcgan").
        network: "mlp", three hidden layers of 256 on both sides, or "dcgan", the convolutional
            network of the MNIST experiments; None is "mlp".
        width: factor on the numbers of units and filters of the network.
        hyperparameters: those of the system, e.g. `lam` and `noise` for VIMAE; see its class.

    Raises:
        TypeError: `data_shape` or `latent_dim` that are not integers.
        ValueError: an unknown name or hyperparameter (the known ones are listed), a number out of
            range, a `data_shape` the network cannot take, a network larger than the memory.
    """
    if name not in _SYSTEMS:
        raise ValueError(f"name is {name!r}; known systems are {names()}")
    system, fixed = _SYSTEMS[name]
    network = network if network is not None else "mlp"
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}; known networks are {list(NETWORKS)}")
    known = [
        argument
        for argument in inspect.signature(system.__init__).parameters
        if argument not in _PROVIDED and argument not in fixed
    ]
    for given in hyperparameters:
        if given not in known:
            raise ValueError(f"{name} has no hyperparameter {given!r}; it has {known}")
    shape = _shape(data_shape)
    if latent_dim is None:
        latent_dim = LATENT_DIM[network]
    _positive_integer("latent_dim", latent_dim)
    if not 0 < width < float("inf"):
        raise ValueError(f"width is {width!r}; it must be positive and finite")

    sizes = (shape, latent_dim, latent_dim, width)
    try:
        # All of its memory at once, untouched: too much is refused before any of it is filled.
        with torch.device("meta"):
            parts = nn.ModuleList(NETWORKS[network](*sizes))
        torch.empty(sum(weights.numel() for weights in parts.parameters()))
        encoder, decoder = NETWORKS[network](*sizes)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        # What torch raises depends on how far beyond the memory, or beyond 64 bits, a size is.
        raise ValueError(
            f"network {network!r} of width {width} with latent_dim {latent_dim} cannot be "
            "allocated: it is too large"
        ) from error
    return system(
        encoder, decoder, data_shape=shape, latent_dim=latent_dim, **fixed, **hyperparameters
    )


def _shape(data_shape: object) -> tuple[int, int, int]:
    if not isinstance(data_shape, tuple | list) or len(data_shape) != 3:
        raise ValueError(f"data_shape is {data_shape!r}; it must be (C, H, W)")
    for size in data_shape:
        _positive_integer("every entry of data_shape", size)
    channels, height, width = data_shape
    return channels, height, width


def _positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
