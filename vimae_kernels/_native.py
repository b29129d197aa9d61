"""The one gateway to the C++ core: the only file that touches pointers and threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (before _C: both must share torch's OpenMP runtime)

try:
    from . import _C
except ImportError as error:
    _C = None
    _import_error = error


def build_report() -> dict[str, str]:
    """What the build of the native core wrote about itself: its compiler, or why there is none."""
    path = Path(__file__).with_name("_build.json")
    if not path.exists():
        return {"error": "the package was not installed with pip, so the native core was never built"}
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
        return {"compiled": [], "used": None}
    return {"compiled": _C.runnable_levels(), "used": _C.level_name()}
