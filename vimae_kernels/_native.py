"""The one gateway to the C++ core: the only file that touches pointers, streams, devices and threads."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path
from typing import Any

import torch  # before _C: both must share torch's OpenMP runtime
from torch import Tensor

_C: Any = None
_import_error: ImportError | None = None
try:
    _C = importlib.import_module("vimae_kernels._C")
except ImportError as error:
    _import_error = error


def build_report() -> dict[str, str]:
    """What the build of the native core wrote about itself: its compiler, or why there is none."""
    path = Path(__file__).with_name("_build.json")
    if not path.exists():
        return {
            "error": "the package was not installed with pip, so the native core was never built"
        }
    report: dict[str, str] = json.loads(path.read_text())
    return report


def unavailable(device_type: str) -> str | None:
    """Why the native core cannot run on tensors of this device type, or None if it can."""
    if _C is None:
        return build_report().get("error", f"the native core does not load: {_import_error}")
    if device_type == "cpu":
        return None
    architectures = build_report().get("cuda_architectures")
    if device_type != "cuda" or torch.version.hip is not None:
        return f"the native core has no code for {'ROCm' if device_type == 'cuda' else device_type} tensors"
    if not architectures:
        return "the native core was built without nvcc (put it on PATH, then pip install again)"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device or driver"
    oldest = min(int(a.split("-")[0]) for a in architectures.split(";"))
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < oldest:
        return f"the native core was built for {architectures}; this device has {major}{minor}"
    return None


def simd_levels() -> dict[str, Any]:
    """The SIMD levels of this build that the processor can run, and the one in use."""
    if _C is None:
        return {"runnable": [], "used": None}
    return {"runnable": _C.runnable_levels(), "used": _C.level_name()}


# What a function's name ends in, by the dtype of its data: one that reads no float has no ending.
_ENDINGS = {torch.float32: "_float32", torch.float64: "_float64"}


def call(kernel: str, x: Tensor, *arguments: Any) -> None:
    """Run `kernel` of the core on the device and in the dtype of x.

    Args:
        kernel: its name in csrc/*/*_python.cpp, without device and dtype.
        x: any of its tensors.
        arguments: the fields of its struct in csrc/*/*.h, in order, without the last three: tensors, contiguous
            as it expects them, in place of addresses.
    """
    fields = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    ending = _ENDINGS.get(x.dtype, "")
    if not x.is_cuda:
        _function(f"{kernel}_cpu{ending}")(*fields, torch.get_num_threads(), None, None)
        return
    # Launches go to the current device: it is made that of x, at no cost where it is already.
    here = x.device.index == torch.cuda.current_device()
    with contextlib.nullcontext() if here else torch.cuda.device_of(x):
        size = _function(f"{kernel}_cuda_workspace{ending}")(*fields, 0, None, None)
        scratch = x.new_empty(size, dtype=torch.uint8)
        stream = torch.cuda.current_stream(x.device).cuda_stream
        _function(f"{kernel}_cuda{ending}")(*fields, 0, scratch.data_ptr(), stream)


def _function(name: str) -> Any:
    try:
        return getattr(_C, name)
    except AttributeError:
        raise RuntimeError(
            f"the native core has no {name}: it was built from older sources; pip install again"
        ) from None


def check_scales(x: Tensor, scales: list[float]) -> None:
    """Raise if the kernel for x has more scales than its CUDA code was compiled for."""
    if x.is_cuda and len(scales) > _C.max_scales:
        raise ValueError(f"kernel has {len(scales)} scales; CUDA C++ takes at most {_C.max_scales}")
