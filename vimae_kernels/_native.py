"""The one gateway to the C++ core: the only file that touches pointers, streams, devices and threads."""

from __future__ import annotations

import contextlib
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

    All are on one device, of one dtype, and contiguous; x and y, (B, n, d) and (B, m, d), may instead
    have any batch stride.
    """
    n, d = x.shape[-2:]
    m = y.shape[-2]
    batch = math.prod(x.shape[:-2])
    arguments = (
        x.data_ptr(),
        y.data_ptr(),
        x.stride(0) if x.ndim == 3 else n * d,
        y.stride(0) if y.ndim == 3 else m * d,
        v[0].data_ptr() if v else 0,
        v[1].data_ptr() if v else 0,
        batch,
        n,
        m,
        d,
        family == "rbf",
        scales,
        unbiased,
        0 if value is None else value.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        0 if dy is None else dy.data_ptr(),
    )
    wide = x.dtype == torch.float64
    if not x.is_cuda:
        (_C.mmd_cpu_float64 if wide else _C.mmd_cpu_float32)(*arguments, torch.get_num_threads())
        return
    if len(scales) > _C.max_scales:
        raise ValueError(
            f"kernel has {len(scales)} scales; the native CUDA backend takes up to {_C.max_scales}"
        )
    if batch == 0:
        return
    size = _C.mmd_cuda_workspace_float64 if wide else _C.mmd_cuda_workspace_float32
    with _on_device_of(x):
        need = size(batch, n, m, d, dx is not None, dy is not None, v is not None)
        workspace = x.new_empty(need, dtype=torch.uint8)
        run = _C.mmd_cuda_float64 if wide else _C.mmd_cuda_float32
        run(*arguments, workspace.data_ptr(), _stream(x))


def median(x: Tensor, out: Tensor) -> None:
    """The median distance between the points of each x (..., N, d) into `out`; both contiguous."""
    n, d = x.shape[-2:]
    batch = math.prod(x.shape[:-2])
    wide = x.dtype == torch.float64
    arguments = x.data_ptr(), batch, n, d, out.data_ptr()
    if not x.is_cuda:
        (_C.median_cpu_float64 if wide else _C.median_cpu_float32)(*arguments, torch.get_num_threads())
        return
    if batch == 0:
        return
    size = _C.median_cuda_workspace_float64 if wide else _C.median_cuda_workspace_float32
    with _on_device_of(x):
        workspace = x.new_empty(size(batch, n), dtype=torch.uint8)
        run = _C.median_cuda_float64 if wide else _C.median_cuda_float32
        run(*arguments, workspace.data_ptr(), _stream(x))


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device: make it that of x, at no cost where it is already."""
    if x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device_of(x)


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream
