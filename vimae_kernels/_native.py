"""The one gateway to the C++ core: the only file that touches pointers and threads."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
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
    if device_type != "cpu":
        return f"this build has no code for {device_type} tensors"
    return None


def simd_levels() -> dict[str, Any]:
    """The SIMD levels of this build that the processor can run, and the one in use."""
    if _C is None:
        return {"runnable": [], "used": None}
    return {"runnable": _C.runnable_levels(), "used": _C.level_name()}


def mmd(
    x: Tensor,
    y: Tensor,
    v: tuple[Tensor, Tensor] | None,
    family: str,
    scales: Sequence[float],
    unbiased: bool,
    value: Tensor | None,
    dx: Tensor | None,
    dy: Tensor | None,
) -> None:
    """Squared MMD into `value` and its gradients into `dx`, `dy`; with `v`, the Hessian-vector product.

    All are on the CPU, of one dtype, and contiguous; x and y, (B, n, d) and (B, m, d), may instead have
    any batch stride.
    """
    run = _C.mmd_cpu_float64 if x.dtype == torch.float64 else _C.mmd_cpu_float32
    n, d = x.shape[-2:]
    m = y.shape[-2]
    run(
        x.data_ptr(),
        y.data_ptr(),
        x.stride(0) if x.ndim == 3 else n * d,
        y.stride(0) if y.ndim == 3 else m * d,
        v[0].data_ptr() if v else 0,
        v[1].data_ptr() if v else 0,
        math.prod(x.shape[:-2]),
        n,
        m,
        d,
        family == "rbf",
        scales,
        unbiased,
        0 if value is None else value.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        0 if dy is None else dy.data_ptr(),
        torch.get_num_threads(),
    )


def median(x: Tensor, out: Tensor) -> None:
    """The median distance between the points of each x (..., N, d) into `out`; both contiguous, on the CPU."""
    run = _C.median_cpu_float64 if x.dtype == torch.float64 else _C.median_cpu_float32
    n, d = x.shape[-2:]
    run(x.data_ptr(), math.prod(x.shape[:-2]), n, d, out.data_ptr(), torch.get_num_threads())
