"""Timing that survives a noisy machine: providers interleaved in one process, medians, and ratios of them."""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import vimae_kernels as vk


def interleave(
    providers: dict[str, Callable[[], object]], seconds: float = 3.0, most: int = 3000
) -> dict[str, float]:
    """Median milliseconds of each provider, called in turn so that all see the same machine.

    Each gets the same share of `seconds`, at least three calls and at most `most`; the first calls, which
    compile and fill caches, are not counted.
    """
    estimate = {}
    for name, run in providers.items():
        run()
        run()
        start = time.perf_counter()
        run()
        estimate[name] = time.perf_counter() - start
    share = seconds / len(providers)
    left = {name: int(min(most, max(3, share / t))) for name, t in estimate.items()}
    times: dict[str, list[float]] = {name: [] for name in providers}
    rounds = max(left.values())
    for i in range(rounds):
        for name, run in providers.items():
            # Slow providers take part in evenly spread rounds.
            if i * left[name] // rounds == (i - 1) * left[name] // rounds and i:
                continue
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(t) for name, t in times.items()}


def fma_ceiling(threads: int) -> float | None:
    """GFLOP/s of fused multiply-adds on `threads` threads, from a loop of nothing else; None without a compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fma"
        source = Path(__file__).with_name("fma_ceiling.cpp")
        command = [compiler, "-O3", "-march=native", "-fopenmp", "-std=c++17", str(source), "-o"]
        subprocess.run([*command, str(program)], check=True)
        out = subprocess.run(
            [str(program), str(threads)], check=True, capture_output=True, text=True
        )
    return float(out.stdout)


def machine() -> str:
    """One line on where the numbers come from."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), model
        )
    return (
        f"{model}, {torch.get_num_threads()} threads, SIMD {vk._native.simd_levels()['used']}, "
        f"torch {torch.__version__}, vimae_kernels {vk.__version__}"
    )
