"""The two families of kernels, as immutable values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from . import _checks

__all__ = ["IMQ", "RBF", "Kernel"]

_ARRAYS = (np.ndarray, np.generic, torch.Tensor)


# The scales of a sum are computed in one unit, in which the least and the largest of them have to be numbers.
SPAN = 2.0**200
# Of bandwidths between these the square, doubled, is a float64 of full precision.
SQUARED = 1.1e-154, 9.4e153


def _positive(
    owner: str, name: str, value: object, squared: bool = False
) -> float | tuple[float, ...]:
    """`value` as one positive float or a tuple of them; anything else is refused by name."""
    if isinstance(value, torch.Tensor):
        _refuse_derivative(owner, name, value)
    if isinstance(value, _ARRAYS):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        if not value:
            raise ValueError(
                f"{owner}: {name} is an empty sequence; give at least one positive number"
            )
        numbers = tuple(_positive_number(owner, name, v, squared) for v in value)
        span = math.sqrt(SPAN) if squared else SPAN
        if max(numbers) / span > min(numbers):
            raise ValueError(
                f"{owner}: {name} has {min(numbers)!r} and {max(numbers)!r}; the largest must be at most "
                f"{span:.2g} times the least"
            )
        return numbers
    return _positive_number(owner, name, value, squared)


def _refuse_derivative(owner: str, name: str, value: torch.Tensor) -> None:
    if _checks.is_differentiated(value):
        raise ValueError(
            f"{owner}: {name} is a tensor that needs a gradient, and scales are constants: give "
            f"{name}.detach() or a number"
        )
    if _checks.is_mapped(value):
        raise ValueError(
            f"{owner}: {name} is a tensor that vmap runs over, and scales are the same for all: give a number"
        )


def _positive_number(owner: str, name: str, value: object, squared: bool) -> float:
    if isinstance(value, torch.Tensor):
        _refuse_derivative(owner, name, value)
    # The types come first, for torch.compile, which knows no attributes of numbers.
    if isinstance(value, bool) or not (
        isinstance(value, float | int) or hasattr(value, "__float__")
    ):
        raise TypeError(
            f"{owner}: {name} is {value!r}; it must be a positive number or a sequence of them"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    least, most = SQUARED if squared else (0.0, math.inf)
    if not (0 < number < math.inf and least <= number <= most):
        limits = f", and between {least} and {most}, for it is squared" if squared else ""
        raise ValueError(f"{owner}: {name} is {value!r}; it must be positive and finite{limits}")
    return number


# Both families are functions of s = ||x - y||^2 and one scale c in the same units as s; that is the
# form the backends take: imq(s) = c / (c + s), rbf(s) = exp(-s / c).


@dataclass(frozen=True)
class IMQ:
    """Inverse multiquadratic kernel k(x, y) = c / (c + ||x - y||^2).

    Args:
        c: the scale, in units of squared distance; `None` means 2 d, the expected squared distance
            of two standard normal points in d dimensions. A sequence gives the sum of the kernels.

    Source: Tolstikhin et al., Wasserstein Auto-Encoders (2018), sec. 4; VIMAE preprint, eq. 15.
    """

    c: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.c is not None:
            object.__setattr__(self, "c", _positive("IMQ", "c", self.c))

    @staticmethod
    def wae(d: int) -> IMQ:
        """The seven scales of the WAE code, c = 2 d {0.1, 0.2, 0.5, 1, 2, 5, 10}, summed."""
        return IMQ(tuple(2 * d * factor for factor in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)))

    @property
    def family(self) -> str:
        return "imq"

    def scales(self, d: int) -> tuple[float, ...]:
        """The scales c in d dimensions."""
        if self.c is None:
            return (2.0 * d,)
        return self.c if isinstance(self.c, tuple) else (self.c,)  # type: ignore[return-value]


@dataclass(frozen=True)
class RBF:
    """Gaussian kernel k(x, y) = exp(-||x - y||^2 / (2 bandwidth^2)).

    Args:
        bandwidth: in units of distance; `None` means sqrt(d). A sequence gives the sum of the kernels.
            `"median"` is the median heuristic: the median of the distances between two of the pooled
            samples that are not zero (the lower of the two middle ones if their number is even), a
            constant for the gradient. Where all of them are zero the kernel is 1: the MMD is 0, and so is
            its gradient.

    Source: Gretton et al., A Kernel Two-Sample Test (2012), sec. 8 for the median heuristic.
    """

    bandwidth: float | Sequence[float] | Literal["median"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bandwidth, str):
            if self.bandwidth != "median":
                raise ValueError(
                    f"RBF: bandwidth is {self.bandwidth!r}; the only name known is 'median', "
                    "otherwise it must be a positive number or a sequence of them"
                )
        elif self.bandwidth is not None:
            object.__setattr__(
                self, "bandwidth", _positive("RBF", "bandwidth", self.bandwidth, True)
            )

    @staticmethod
    def mmd_vae(d: int) -> RBF:
        """exp(-||x - y||^2 / d^2), the kernel of the MMD-VAE code (InfoVAE)."""
        return RBF(d / math.sqrt(2))

    @property
    def family(self) -> str:
        return "rbf"

    def scales(self, d: int) -> tuple[float, ...]:
        """The scales c = 2 bandwidth^2 in d dimensions; "median" has none before the data are seen."""
        if self.bandwidth is None:
            return (2.0 * d,)
        bandwidths = self.bandwidth if isinstance(self.bandwidth, tuple) else (self.bandwidth,)
        return tuple(2.0 * float(b) ** 2 for b in bandwidths)


Kernel = IMQ | RBF | Literal["imq", "rbf"]
"""What is accepted wherever a kernel is taken; the strings stand for the defaults."""

_NAMED: dict[str, IMQ | RBF] = {"imq": IMQ(), "rbf": RBF()}


def resolve_kernel(kernel: object) -> IMQ | RBF:
    if isinstance(kernel, IMQ | RBF):
        return kernel
    if isinstance(kernel, str):
        if kernel in _NAMED:
            return _NAMED[kernel]
        raise ValueError(f"kernel is {kernel!r}; known names are {sorted(_NAMED)}")
    raise TypeError(
        f"kernel is of type {type(kernel).__name__}; it must be vimae_kernels.IMQ, vimae_kernels.RBF, "
        f"or one of {sorted(_NAMED)}"
    )
