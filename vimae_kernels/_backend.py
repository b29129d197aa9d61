"""Which backend runs an operation: the only dispatch rule."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch

from . import _native

__all__ = ["Backend", "resolve", "unavailable", "use_backend"]

Backend = Literal["triton", "native", "reference"]
BACKENDS: tuple[Backend, ...] = ("triton", "native", "reference")


# The blocks of use_backend around the running code, each a list of one, so that every block is itself.
_blocks: ContextVar[tuple[list[Backend], ...]] = ContextVar("use_backend", default=())
# The same for a block inside a function that torch.compile traces: None whenever code really runs.
_traced: Backend | None = None
_module = sys.modules[__name__]


def __getattr__(name: str) -> Any:
    # torch.compile traces no context variable, but it reads an attribute of a module as code would, and guards
    # compiled code by reading it again at every call: `_module.chosen`.
    if name == "chosen":
        return _chosen()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _chosen() -> Backend | None:
    blocks = _blocks.get()
    return blocks[-1][0] if blocks else None


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Every operation called inside the block runs on `backend`, unless its own `backend=` says otherwise.

    The block is that of the running thread or asyncio task (a context variable); compiled code that is called
    in it follows it too. As for every such block, what holds in a generator's holds for its caller between two
    values.

    Args:
        backend: "triton", "native" or "reference". A choice that cannot run raises when an operation
            is called, with the reason.
    """
    _check_name(backend)
    if torch.compiler.is_dynamo_compiling():
        global _traced
        before, _traced = _traced, backend
        try:
            yield
        finally:
            _traced = before
        return
    block = [backend]
    _blocks.set((*_blocks.get(), block))
    try:
        yield
    finally:
        # Not what was before: blocks of generators may end in any order, or in another context.
        _blocks.set(tuple(b for b in _blocks.get() if b is not block))


def resolve(backend: Backend | None, device: torch.device) -> Backend:
    """The backend for tensors on `device`. An explicit choice that cannot run raises; only None falls back."""
    if backend is None:
        if torch.compiler.is_dynamo_compiling():
            backend = _module.chosen if _traced is None else _traced
        else:
            backend = _chosen()
    if backend is None:
        return _default(device.type)
    _check_name(backend)
    reason = unavailable(backend, device.type)
    if reason is not None:
        raise RuntimeError(
            f"backend {backend!r} cannot run on {device.type} tensors here: {reason}"
        )
    return backend


def check_backend(backend: object) -> None:
    """`backend` must be None or known, whether it can run or not."""
    if backend is not None:
        _check_name(backend)


def _check_name(backend: object) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; known backends are {list(BACKENDS)}")


def _default(device_type: str) -> Backend:
    return next(backend for backend in BACKENDS if unavailable(backend, device_type) is None)


def unavailable(backend: Backend, device_type: str) -> str | None:
    """Why `backend` cannot run on tensors of this device type, or None if it can."""
    key = backend, device_type
    if key not in _reasons:
        reason = None
        if backend == "native":
            reason = _native.unavailable(device_type)
        elif backend == "triton":
            reason = _triton_unavailable(device_type)
        _reasons[key] = reason
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
