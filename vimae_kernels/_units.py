"""Kernels of any scale: where float32 would not hold the powers of a scale, its unit is changed.

A kernel is a function of ||x - y||^2 / c, so points times 2^k and scales times 4^k give the same one, and a power of
two rounds nothing. Points in float32 are computed in float64 then, which holds whatever they are in the new unit; so
data far below or above the scale come out as the limit they are.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from ._autograd import accumulator

# Scales that need no other unit: of them float32 holds c^3 and its reciprocal, and what data of that size add to it.
LEAST, MOST = 2.0**-32, 2.0**32
# Beyond these all points in float32 lie at one place, or those that differ infinitely far apart.
LEAST_FLOAT32, MOST_FLOAT32 = 2.0**-600, 2.0**400


Function = TypeVar("Function", bound=Callable[..., Any])


class Unit(NamedTuple):
    """Of points times `factor`, a power of two, and of scales times its square."""

    factor: float
    scales: list[float]


def unit_of(scales: list[float] | tuple[float, ...], dtype: torch.dtype) -> Unit | None:
    """The unit that these scales want for points of this dtype; None is the one they have."""
    least, most = min(scales), max(scales)
    if least >= LEAST and most <= MOST:
        return None
    if dtype == torch.float32:
        scales = [min(max(c, LEAST_FLOAT32), MOST_FLOAT32) for c in scales]
        least, most = min(scales), max(scales)
    middle = (math.frexp(least)[1] + math.frexp(most)[1]) // 2
    k = -(middle // 2)
    return Unit(math.ldexp(1.0, k), [math.ldexp(c, 2 * k) for c in scales])


def scale_free(
    *powers: int, returns: int | tuple[int | None, ...] | None
) -> Callable[[Function], Function]:
    """Makes a function of points and `scales` right for all scales.

    Args:
        powers: of the unit of length, in the function's first arguments: 1 for points and directions, -1 for scores.
        returns: the same of the tensors it returns, with the reciprocal of the unit: 1 for gradients, 0 for what
            has no unit. None: it has none, and keeps the dtype it comes in.
    """

    def decorate(function: Function) -> Function:
        at = list(inspect.signature(function).parameters).index("scales")

        @functools.wraps(function)
        def run(*arguments: Any) -> Any:
            x, scales = arguments[0], arguments[at]
            unit = unit_of(scales, accumulator(x))
            if unit is None:
                return function(*arguments)
            if -1 in powers and arguments[1] is None:
                return _of_the_normal(run, *arguments)
            measured = [
                t.double() * (unit.factor if power > 0 else 1 / unit.factor)
                for t, power in zip(arguments, powers, strict=False)
            ]
            rest = arguments[len(powers) : at] + (unit.scales,) + arguments[at + 1 :]
            out = function(*measured, *rest)
            if returns is None:
                return out
            if isinstance(returns, int):
                return _restored(out, unit.factor, returns, x)
            return tuple(_restored(t, unit.factor, p, x) for t, p in zip(out, returns, strict=True))

        return cast(Function, run)

    return decorate


def _restored(t: Tensor, factor: float, power: int | None, like: Tensor) -> Tensor:
    if power is None:
        return t
    # Step by step: a power of the factor may be beyond float64.
    for _ in range(power):
        t = t * factor
    return t.to(accumulator(like))


def _of_the_normal(run: Callable[..., Any], z: Tensor, _: None, *rest: Any) -> Any:
    """The score of the standard normal has not the unit of a score: it is made an argument."""
    if rest[0] is not False:
        return run(z, -z, *rest)
    value, dz, dscore = run(z, -z, True, *rest[1:])
    return value, dz - dscore, dscore.new_empty(0)
