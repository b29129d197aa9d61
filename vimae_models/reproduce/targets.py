"""The targets by name."""

from __future__ import annotations

from . import imae, infovae, vimae, vmi
from .target import Target

_TARGETS: tuple[type[Target], ...] = (
    infovae.Table1,
    infovae.Figure3,
    infovae.Figure1,
    vimae.Figure1,
    vimae.MNIST,
    vimae.CIFAR10,
    vimae.Omniglot,
    vmi.Gaussian,
    vmi.Joint,
    imae.MNIST,
    imae.FashionMNIST,
    imae.DSprites,
)


def names() -> list[str]:
    """The names `target` knows."""
    return [known.name for known in _TARGETS]


def target(name: str) -> Target:
    """The target of a name.

    Raises:
        RunError: an unknown name.
    """
    from ..runs import RunError, nearest

    for known in _TARGETS:
        if known.name == name:
            return known()
    raise RunError(f"target is {name!r}; known targets are {names()}{nearest(name, names())}")
