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

BURST = 0.01


def interleave(
    providers: dict[str, Callable[[], object]], seconds: float = 3.0
) -> dict[str, float]:
    """Median milliseconds of a call of each provider.

    Providers take turns, so that all see the same machine; a turn is one call, or 10 ms of calls for short ones,
    after one that is not timed, so that none pays for the caches and the memory its predecessor left. Each gets
    an equal share of `seconds`, and at least three turns. Compilation and the first calls are not counted.
    """
    calls, turns = {}, {}
    for name, run in providers.items():
        run()
        run()
        once = _timed(run, 1)
        calls[name] = max(1, int(BURST / once))
        turns[name] = max(3, int(seconds / len(providers) / (once * (calls[name] + 1))))
    times: dict[str, list[float]] = {name: [] for name in providers}
    rounds = max(turns.values())
    for i in range(rounds):
        for name, run in providers.items():
            # Slow providers take part in evenly spread rounds.
            if i == 0 or i * turns[name] // rounds > (i - 1) * turns[name] // rounds:
                run()
                times[name].append(_timed(run, calls[name]))
    return {name: 1e3 * statistics.median(t) for name, t in times.items()}


def _timed(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


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
