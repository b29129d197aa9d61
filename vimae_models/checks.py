"""Hyperparameters out of range: errors that name the argument, what it was and what it must be."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Real


def finite(**values: float) -> None:
    """Raise for a value that is not a finite number."""
    for name, value in values.items():
        if not _finite(name, value):
            raise ValueError(f"{name} is {value!r}; it must be a finite number")


def not_negative(**values: float) -> None:
    """Raise for a value that is not a finite number >= 0."""
    for name, value in values.items():
        if not _finite(name, value) or value < 0:
            raise ValueError(f"{name} is {value!r}; it must be a finite number >= 0")


def positive(**values: float) -> None:
    """Raise for a value that is not a finite number > 0."""
    for name, value in values.items():
        if not _finite(name, value) or value <= 0:
            raise ValueError(f"{name} is {value!r}; it must be a finite number > 0")


def integer(least: int, **values: int) -> None:
    """Raise for a value that is not an integer >= `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer; got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")


def one_of(known: Collection[str], **values: object) -> None:
    """Raise for a value that is not one of `known`."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {list(known)}")


def _finite(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    return math.isfinite(value)
