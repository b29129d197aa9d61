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


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it that of x, at no cost where it is already."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device_of(x)
