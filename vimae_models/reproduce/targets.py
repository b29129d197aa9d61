"""The targets by name."""

from __future__ import annotations

from . import (
    imae_categories,
    imae_dsprites,
    infovae_figure1,
    infovae_figure3,
    infovae_table1,
    vimae,
    vimae_figure1,
    vmi_gaussian,
    vmi_joint,
)
from .target import Target

_TARGETS: tuple[type[Target], ...] = (
    infovae_table1.Table1,
    infovae_figure3.Figure3,
    infovae_figure1.Figure1,
    vimae_figure1.Figure1,
    vimae.MNIST,
    vimae.CIFAR10,
    vimae.Omniglot,
    vmi_gaussian.Gaussian,
    vmi_joint.Joint,
    imae_categories.MNIST,
    imae_categories.FashionMNIST,
    imae_dsprites.DSprites,
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
