"""The targets by name."""

from __future__ import annotations

from . import imae, vimae
from .target import Target

_TARGETS: tuple[type[Target], ...] = (
    vimae.Figure1,
    vimae.MNIST,
    imae.FashionMNIST,
    imae.MNIST,
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
