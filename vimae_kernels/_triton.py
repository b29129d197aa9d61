"""What the Triton backends of the operations share."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """What a launch is compiled from, beside the types of its arguments."""

    kernel: Any
    constants: dict[str, Any]
    options: dict[str, Any]


class Loop(NamedTuple):
    """What an inner loop does, in units of work that can be counted in machine code.

    A pair with one exponential is one MUFU, a pair and coordinate whose difference is taken one FADD, a multiply-add
    one FFMA (DADD and DFMA in float64). Of a kernel's loops that with the most of `marker` is meant, an innermost one
    where it has at least half as many; only its own instructions count, not those of loops inside. Loops are looked
    for in the order they are listed, and what is found is out for those after it, with its copies, that have at least
    half as many markers and as large a part of them: list the loop around the others with its MUFUs first, that of
    distances with its FADDs second, and one that has FFMAs alone last.
    """

    name: str
    marker: str
    # Markers of one unit of work, and instructions of a unit by hand: subtractions, multiply-adds, exponentials and
    # what they are added to; no loads, no addresses, no loop. None: reported, and bound by nothing.
    per_unit: float
    plain: float | None
    # Instructions over `plain` that the tests let pass. A loop that is allowed more is a debt: say why beside it.
    limit: float = 1.25
    # An instruction that the loop does not have and others have, where the marker alone does not find it.
    without: str = ""


class Shipped(NamedTuple):
    """A configuration to compile ahead of time, the types of its arguments by name, and its inner loops."""

    name: str
    launch: Launch
    types: dict[str, Any]
    loops: tuple[Loop, ...] = ()
    # Compiled for every family of GPUs; the others for sm_90 alone, to keep the tests short.
    everywhere: bool = True


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it that of x, at no cost where it is already."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device_of(x)
