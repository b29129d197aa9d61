"""Which backend runs an operation: the only dispatch rule."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from . import _native

__all__ = ["Backend", "resolve", "unavailable", "use_backend"]

Backend = Literal["triton", "native", "reference"]
BACKENDS: tuple[Backend, ...] = ("triton", "native", "reference")


class _Choice(threading.local):
    """What use_backend chose in the running thread."""

    backend: Backend | None = None


_choice = _Choice()
# The same for compiled code, in any thread: torch.compile looks again at a global, not at a thread's own.
_choice_under_compile: Backend | None = None


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Every operation called inside the block runs on `backend`, unless its own `backend=` says otherwise.

    Args:
        backend: "triton", "native" or "reference". A choice that cannot run raises when an operation
            is called, with the reason.
    """
    _check_name(backend)
    global _choice_under_compile
    before = _choice.backend, _choice_under_compile
    _choice.backend = _choice_under_compile = backend
    try:
        yield
    finally:
        _choice.backend, _choice_under_compile = before


def resolve(backend: Backend | None, device: torch.device) -> Backend:
    """The backend for tensors on `device`. An explicit choice that cannot run raises; only None falls back."""
    if backend is None:
        backend = _choice_under_compile if torch.compiler.is_compiling() else _choice.backend
    if backend is None:
        return _default(device.type)
    _check_name(backend)
    reason = unavailable(backend, device.type)
    if reason is not None:
        raise RuntimeError(
            f"backend {backend!r} cannot run on {device.type} tensors here: {reason}"
        )
    return backend


def _check_name(backend: object) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; known backends are {list(BACKENDS)}")


def _default(device_type: str) -> Backend:
    return next(backend for backend in BACKENDS if unavailable(backend, device_type) is None)


def unavailable(backend: Backend, device_type: str) -> str | None:
    """Why `backend` cannot run on tensors of this device type, or None if it can."""
    key = backend, device_type
    if key not in _reasons:
        _reasons[key] = None
        if backend == "native":
            _reasons[key] = _native.unavailable(device_type)
        elif backend == "triton":
            _reasons[key] = _triton_unavailable(device_type)
    return _reasons[key]


_reasons: dict[tuple[Backend, str], str | None] = {}
# What torch.compiler.assume_constant_result sets; calling it would import torch._dynamo, which takes a second.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _triton_unavailable(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        if sys.platform != "linux":
            return f"Triton has no release for {sys.platform}"
        return "the package triton is not installed (pip install triton)"
    if device_type == "cpu":
        # Triton's own interpreter runs kernels on CPU tensors: for tests, far too slow for use.
        from triton import knobs

        return None if knobs.runtime.interpret else "Triton needs CUDA or ROCm tensors"
    if device_type != "cuda":
        return f"Triton needs CUDA or ROCm tensors, not {device_type}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        major, minor = torch.cuda.get_device_capability()
        return f"Triton needs compute capability 8.0 or newer; this device has {major}.{minor}"
    return None
