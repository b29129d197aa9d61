"""What this installation can run, and why not the rest."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from . import _native
from ._backend import BACKENDS, _default, unavailable

_COST = {
    "native": "CPU tensors fall back to the reference: n x m x d memory, and many times slower",
    "triton": "CUDA tensors fall back to the native core, or to the reference without one",
}


def info() -> dict[str, Any]:
    """Print every backend, whether it can run here and if not why; the build and the versions.

    Returns:
        The same facts as a dictionary.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    facts: dict[str, Any] = {
        "versions": {
            "vimae_kernels": _version("vimae-kernels"),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "python": platform.python_version(),
        },
        "default": {device: _default(device) for device in devices},
        "unavailable": {
            backend: {device: unavailable(backend, device) for device in ("cpu", "cuda")}
            for backend in BACKENDS
        },
        "build": _native.build_report(),
        "simd": _native.simd_levels(),
        "threads": torch.get_num_threads(),
    }
    print(_report(facts))
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _report(facts: dict[str, Any]) -> str:
    lines = [", ".join(f"{k} {v or 'not installed'}" for k, v in facts["versions"].items()), ""]
    for device, backend in facts["default"].items():
        lines.append(f"default on {device} tensors: {backend}")
    for backend, reasons in facts["unavailable"].items():
        lines.append(f"\n{backend}")
        for device, reason in reasons.items():
            lines.append(f"  {device:5} {'ready' if reason is None else 'no: ' + reason}")
        if backend == "native" and reasons["cpu"] or backend == "triton" and "cuda" in facts["default"]:
            if any(reasons[device] for device in facts["default"]):
                lines.append(f"  cost  {_COST[backend]}")
    build, simd = facts["build"], facts["simd"]
    lines.append("\nnative build")
    for key in ("compiler", "openmp", "cuda_architectures"):
        lines.append(f"  {key.replace('_', ' '):18} {build.get(key) or 'none'}")
    lines.append(f"  {'SIMD levels':18} {', '.join(simd['compiled']) or 'none'}; in use: {simd['used'] or 'none'}")
    lines.append(f"  {'threads':18} {facts['threads']} (torch.set_num_threads)")
    return "\n".join(lines)
