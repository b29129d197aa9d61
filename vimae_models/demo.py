"""`vimae demo`: VIMAE-l on the digits of scikit-learn, from nothing to figures in a minute."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import vimae_kernels as vk
from vimae_kernels._backend import resolve

from . import data as datasets
from . import encoding, evaluation, figures, runs
from .training import Interrupted

_CONFIG: runs.Config = runs.DEFAULTS | {"epochs": 200}


def demo(output: Path | None) -> int:
    """Train, measure, draw, and print one table; returns the exit status."""
    console = Console()
    started = time.perf_counter()
    data = datasets.load("digits")
    torch.manual_seed(_CONFIG["seed"])
    model = runs.build_model(_CONFIG, data.shape)
    config = runs.complete(_CONFIG, model)
    everything = torch.cat([part.images[:] for part in (data.train, data.validation, data.test)])
    before = evaluation.summary(model, everything)
    with runs.new(output, config) as folder:
        console.print(f"run folder: [bold]{folder}[/]", soft_wrap=True)
        # 0.3 million weights are too few to share out: one thread is no slower, and does not wait for
        # a second one where the machine is busy.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            history = runs.train(folder, config, model, data)
        except Interrupted:
            console.print(f"stopped; continue with  vimae train --resume {folder}", soft_wrap=True)
            return 130
        finally:
            torch.set_num_threads(threads)
    after = evaluation.summary(model, everything)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    z = encoding.codes(model, everything).to(device)
    backend, seconds = kernel_times(z, model.sample_prior(len(z)).to(device))
    results = {
        "model": _CONFIG["model"],
        "data": _CONFIG["data"],
        "epochs": len(history),
        "all images": {"images": len(everything), "before": before, "after": after},
        "test": evaluation.evaluate(model, data),
        "mmd seconds": {"samples": len(z), "device": device, "backend": backend, **seconds},
    }
    runs.write_results(folder, results)
    paths = figures.save_all(model, data, history, folder / "figures")

    table = Table(
        title=f"VIMAE-l, 2-d codes of {len(everything)} digits", title_justify="left", min_width=64
    )
    table.add_column("measure")
    table.add_column("untrained", justify="right")
    table.add_column("trained", justify="right")
    n = f"{len(everything)} images"
    table.add_row(f"MMD² to the prior, {n}", f"{before['mmd']:.5f}", f"{after['mmd']:.5f}")
    table.add_row(
        f"‖x - g(z)‖² per image, {n}",
        f"{before['reconstruction']:.2f}",
        f"{after['reconstruction']:.2f}",
        end_section=True,
    )
    for name, accuracy in results["test"]["svm"].items():
        table.add_row(f"SVM on z, {len(data.test)} test images, {name}", "", f"{accuracy:.1%}")
    table.add_section()
    size = f"{len(z)} x {len(z)}, {device}"
    table.add_row(
        f"MMD² + gradient, {size}, eager PyTorch", "", f"{1e3 * seconds['reference']:.2f} ms"
    )
    if backend != "reference":
        ratio = seconds["reference"] / seconds[backend]
        table.add_row(f"the same, fused ({backend})", "", f"{1e3 * seconds[backend]:.2f} ms")
        table.add_row("speed-up", "", f"{ratio:.0f}x")
    console.print(table)
    if backend == "reference":
        console.print("The kernel ran in eager PyTorch only; vimae info says what else can run.")
    for path in paths:
        console.print(f"figure: {path}", soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all")
    return 0


def kernel_times(z: Tensor, prior: Tensor, repeats: int = 15) -> tuple[str, dict[str, float]]:
    """Median seconds of `vimae_kernels.mmd(z, prior)` with its gradient, by backend.

    The default backend and eager PyTorch ("reference") take turns, so that both see the same
    machine.

    Args:
        z: codes (n, d).
        prior: samples (m, d).
        repeats: calls of each.

    Returns:
        The default backend, and the median of each by name; one entry if the default is
        "reference".
    """
    default = resolve(None, z.device)
    backends = list(dict.fromkeys([default, "reference"]))
    times: dict[str, list[float]] = {backend: [] for backend in backends}
    z = z.detach().requires_grad_()
    for _ in range(repeats + 2):
        for backend in backends:
            _synchronize(z)
            start = time.perf_counter()
            torch.autograd.grad(vk.mmd(z, prior, backend=backend), z)
            _synchronize(z)
            times[backend].append(time.perf_counter() - start)
    # The first two calls of each warm up.
    return default, {backend: statistics.median(t[2:]) for backend, t in times.items()}


def _synchronize(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
