"""What this installation can run, and why not the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pkgutil
import platform
from typing import Any

import torch

from . import _native, ops
from ._backend import BACKENDS, Backend, _default, unavailable

_COST = {
    "native": "CPU tensors take the reference instead: n x m x d memory, and many times slower",
    "triton": "CUDA tensors take the native core instead, or the reference without one",
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
        "operations": _operations(),
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


def _operations() -> dict[str, list[Backend]]:
    """Every folder of ops, and the backends there is code for."""
    folders = pkgutil.iter_modules(ops.__path__)
    return {f.name: [b for b in BACKENDS if _has_code(f.name, b)] for f in folders if f.ispkg}


def _has_code(operation: str, backend: Backend) -> bool:
    module = "reference" if backend == "reference" else f"{backend}_impl"
    return importlib.util.find_spec(f"{ops.__name__}.{operation}.{module}") is not None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _report(facts: dict[str, Any]) -> str:
    lines = [", ".join(f"{k} {v or 'not installed'}" for k, v in facts["versions"].items()), ""]
    lines += ["operations"]
    lines += [f"  {name:12} {', '.join(found)}" for name, found in facts["operations"].items()]
    lines += [""]
    lines += [f"{device} tensors run on: {backend}" for device, backend in facts["default"].items()]
    for backend, reasons in facts["unavailable"].items():
        lines += ["", backend]
        for device, reason in reasons.items():
            lines.append(f"  {device:4}  {'ready' if reason is None else 'no: ' + reason}")
        lost = "cpu" if backend == "native" else "cuda"
        if backend in _COST and lost in facts["default"] and reasons[lost]:
            lines.append(f"  cost  {_COST[backend]}")
    build, simd = facts["build"], facts["simd"]
    rows = {
        "compiler": build.get("compiler"),
        "OpenMP": build.get("openmp"),
        "CUDA architectures": build.get("cuda_architectures"),
        "SIMD levels": ", ".join(simd["runnable"]),
        "SIMD in use": simd["used"],
        "threads": f"{facts['threads']} (torch.set_num_threads)",
    }
    lines += [
        "",
        "native build",
        *(f"  {name:18}  {value or 'none'}" for name, value in rows.items()),
    ]
    return "\n".join(lines)
