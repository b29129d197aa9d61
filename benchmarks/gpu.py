"""Everything a machine with a GPU can say about the GPU kernels, in one command and under eight minutes.

`python -m benchmarks.gpu` builds the package, runs the tests that need a GPU, times mmd forward + backward (float32,
IMQ, gradient to z) against what people run today, and compares with the times predicted from machine code; then the
other operations against eager PyTorch and torch.compile. Everything is written as it comes to
benchmarks/results/<device>/. `--dry-run` does it at tiny sizes on CPU tensors: a test of this file, not a measurement.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import gpu_static

# vimae_kernels is imported after it is built: bench_mmd, which imports it, too.

ROOT = Path(__file__).resolve().parents[1]
SIZES = [(n, d) for n in (1024, 4096, 16384) for d in (8, 64, 512)]
TINY = [(40, 8), (50, 24)]
OURS = ("triton", "native")
# Of the loss (absolute) and the gradient (relative), against float64. Ours is not timed beyond them.
LIMITS = 2e-6, 2e-4


class Results:
    """One folder, up to date after every step."""

    def __init__(self, folder: Path, facts: dict[str, Any], seconds: float) -> None:
        self.folder = folder
        self.deadline = time.monotonic() + seconds
        self.data: dict[str, Any] = {**facts, "notes": [], "timings": [], "operations": []}
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.data["notes"].append(text)
        self.write()

    def add(self, table: str = "timings", **row: Any) -> None:
        print(", ".join(f"{k} {v}" for k, v in row.items() if v is not None), flush=True)
        self.data[table].append(row)
        self.write()

    def write(self) -> None:
        (self.folder / "results.json").write_text(json.dumps(self.data, indent=1) + "\n")
        (self.folder / "report.md").write_text(report(self.data))


def report(data: dict[str, Any]) -> str:
    rows = data["timings"]
    names = list(dict.fromkeys(r["provider"] for r in rows))
    lines = [
        f"# mmd on {data['device']}",
        "",
        f"`{data['command']}`: " + ", ".join(f"{k} {v}" for k, v in data["versions"].items()) + ".",
        "",
        "Forward + backward, float32, IMQ, gradient to z, n = m, median ms"
        + (
            " (graph replay in brackets)."
            if not data["dry_run"]
            else "; a dry run on CPU tensors, not a measurement."
        ),
        "",
        "| (n, d) | "
        + " | ".join(names)
        + " | fastest other / fastest of ours | predicted for triton | measured / predicted "
        "| gradient error of triton, native |",
        "|---" * (len(names) + 5) + "|",
    ]
    for n, d in dict.fromkeys((r["n"], r["d"]) for r in rows):
        at = {r["provider"]: r for r in rows if (r["n"], r["d"]) == (n, d)}
        cells = []
        for name in names:
            row = at.get(name, {})
            text = row.get("problem") or ("" if row.get("ms") is None else f"{row['ms']:.3g}")
            cells.append(text + (f" ({row['graph_ms']:.3g})" if row.get("graph_ms") else ""))
        ours = [r["ms"] for p, r in at.items() if p in OURS and r.get("ms")]
        others = [r["ms"] for p, r in at.items() if p not in OURS and r.get("ms")]
        cells.append(f"{min(others) / min(ours):.1f}" if ours and others else "")
        triton = at.get("triton", {})
        predicted = next((r["predicted_ms"] for r in at.values() if r.get("predicted_ms")), None)
        cells.append(
            f"{predicted:.3g} ({next(r['bound'] for r in at.values() if r.get('bound'))})"
            if predicted
            else ""
        )
        best = triton.get("graph_ms") or triton.get("ms")
        cells.append(f"{best / predicted:.2f}" if predicted and best else "")
        errors = (at.get(name, {}).get("gradient_error") for name in OURS)
        cells.append(", ".join("" if e is None else f"{e:.0e}" for e in errors))
        lines.append(f"| ({n}, {d}) | {' | '.join(cells)} |")
    if data["operations"]:
        from .gpu_operations import table

        lines += table(data["operations"])
    lines += ["", *(f"- {note}" for note in data["notes"])]
    return "\n".join(lines) + "\n"


def logged(
    results: Results, name: str, command: list[str], seconds: float, **environment: str
) -> None:
    """Run a command, its output going to a file of the folder as it comes."""
    start = time.monotonic()
    path = results.folder / name
    with path.open("w") as out:
        try:
            status = subprocess.run(
                command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=max(1, seconds),
                env={**os.environ, **environment},
            ).returncode  # fmt: skip
            end = f"exit code {status}"
        except subprocess.TimeoutExpired:
            end = "stopped at its share of the time"
    lines = path.read_text().strip().splitlines()
    last = lines[-1].strip(" =") if lines else "no output"
    results.note(f"{name}: {end} after {time.monotonic() - start:.0f} s; {last}")


def install(results: Results) -> None:
    """In place and without the network: only what is already there is used."""
    modules = ("pip", "setuptools", "pybind11")
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    missing += [t for t in ("cmake", "ninja", "c++") if shutil.which(t) is None]
    if missing:
        results.note(f"not built here, {', '.join(missing)} missing: the package is used as it is")
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-e",
        ".",
        "--no-deps",
        "--no-build-isolation",
    ]
    # CMake's own variable: code for this GPU alone takes a fraction of the time.
    major, minor = torch.cuda.get_device_capability()
    logged(
        results, "install.txt", command, min(180, results.left() / 2), CUDAARCHS=f"{major}{minor}"
    )


def test(results: Results) -> None:
    if importlib.util.find_spec("pytest") is None:
        results.note("pytest is not installed: no test was run")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--ignore=tests/models", "tests"]
    logged(results, "pytest.txt", command, min(180, results.left() / 2))


def providers(dry_run: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    import vimae_kernels as vk
    from vimae_kernels import _backend

    from .bench_mmd import by_cdist, by_keops, expanded, from_kernel_sums

    def scales(x: Tensor) -> tuple[float, ...]:
        return vk.IMQ().scales(x.shape[-1])

    def ours(backend: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: vk.mmd(x, y, backend=backend)

    device = "cpu" if dry_run else "cuda"
    found = {
        name: ours(name)
        for name in (*OURS, *(["reference"] if dry_run else []))
        if _backend.unavailable(name, device) is None
    }
    found["eager"] = lambda x, y: from_kernel_sums(x, y, expanded, scales(x))
    if not dry_run:
        found["compile"] = torch.compile(
            lambda x, y: from_kernel_sums(x, y, by_cdist, scales(x)), dynamic=False, fullgraph=True
        )
        if importlib.util.find_spec("pykeops"):
            found["keops"] = lambda x, y: by_keops(x, y, scales(x))
    return found


def milliseconds(run: Callable[[], object], cuda: bool, seconds: float = 0.5) -> float:
    """The median of calls timed one by one, by CUDA events or on the CPU by the clock."""
    times: list[float] = []
    for _ in range(3):
        run()
    if cuda:
        torch.cuda.synchronize()
    stop = time.monotonic() + seconds
    while len(times) < 5 or (time.monotonic() < stop and len(times) < 200):
        if cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """`run` captured once: a replay costs no Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def problem(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = 0.8 * torch.randn(n, d, generator=generator) + 0.2
    p = torch.randn(n, d, generator=generator)
    return z.to(device).requires_grad_(), p.to(device)


def known_device(name: str) -> gpu_static.Device | None:
    return next((d for key, d in gpu_static.DEVICES.items() if key in name), None)


def time_all(results: Results, dry_run: bool) -> bool:
    """Whether all of ours were right. Provider by provider, ours first: time that runs out costs the others."""
    from .bench_mmd import Blocked

    device = "cpu" if dry_run else "cuda"
    known = gpu_static.DEVICES["H100"] if dry_run else known_device(results.data["device"])
    kept = gpu_static.load()["kernels"]
    if known is None:
        results.note(
            "no data-sheet numbers of this device in benchmarks/gpu_static.py: nothing is predicted"
        )
    elif importlib.util.find_spec("triton") is None:
        known = None
        results.note("Triton is not installed: nothing is predicted")
    predicted = "native" if dry_run else "triton"
    # For what does not come back by itself: a provider that compiles, or hangs.
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(max(1, int(results.left())))
    right = True
    truths: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for name, loss in providers(dry_run).items():
        for n, d in TINY if dry_run else SIZES:
            if results.left() < 15:
                results.note(f"the time is up: {name} from n = {n}, d = {d} on is missing")
                break
            row: dict[str, Any] = {"provider": name, "n": n, "d": d}
            try:
                z, p = problem(n, d, device)
                if (n, d) not in truths:
                    exact = z.detach().double().requires_grad_()
                    value = Blocked.apply(exact, p.double(), (2.0 * d,))
                    truths[n, d] = value.detach(), torch.autograd.grad(value, exact)[0]
                value = loss(z, p)
                (gradient,) = torch.autograd.grad(value, z)
                true_value, true_gradient = truths[n, d]
                row["value_error"] = float((value.detach() - true_value).abs())
                row["gradient_error"] = float(
                    (gradient - true_gradient).norm() / true_gradient.norm()
                )
                if known is not None and name == predicted:
                    row["predicted_ms"], row["bound"] = gpu_static.predict(
                        kept, known, "one side", n, n, d
                    )
                if name in OURS and not (
                    row["value_error"] <= LIMITS[0] and row["gradient_error"] <= LIMITS[1]
                ):
                    right = False
                    results.add(**row, problem="WRONG")
                    continue

                def run(loss: Any = loss, z: Tensor = z, p: Tensor = p) -> object:
                    # Not .backward(): a leaf's own node stays on the stream it was made on, which no capture can use.
                    return torch.autograd.grad(loss(z, p), z)

                row["ms"] = milliseconds(run, not dry_run, 0.02 if dry_run else 0.5)
                if not dry_run and n <= 4096 and name != "keops":
                    try:
                        row["graph_ms"] = milliseconds(graphed(run), True)
                    except RuntimeError as error:
                        results.note(f"{name} at {n}, {d} does not capture: {first_line(error)}")
                results.add(**row)
            except torch.cuda.OutOfMemoryError:
                results.add(**row, problem="out of memory")
            except (
                Exception
            ) as error:  # a provider that fails must not cost the others their numbers
                right = right and name not in OURS
                results.add(**row, problem=f"failed: {first_line(error)}")
            torch._dynamo.reset()
    signal.alarm(0)
    return right


def time_operations(results: Results, dry_run: bool) -> bool:
    """The operations beside mmd; whether all of ours were right."""
    from vimae_kernels import _backend

    from . import gpu_operations

    device = "cpu" if dry_run else "cuda"
    ours = [b for b in OURS if _backend.unavailable(b, device) is None]
    right = True
    for problem in gpu_operations.problems(device, dry_run):
        runs: dict[str, Any] = {b: functools.partial(problem.ours, backend=b) for b in ours}
        runs["eager"] = problem.eager
        if not dry_run:
            runs["compile"] = torch.compile(problem.eager, dynamic=False, fullgraph=True)
        for name, run in runs.items():
            if results.left() < 15:
                results.note(f"the time is up: {name} of {problem.name} {problem.size} is missing")
                return right
            row = {"operation": problem.name, "size": problem.size, "provider": name}
            try:
                found = gpu_operations.error(problem, run)
                if name in OURS and found is not None and not found <= problem.limit:
                    right = False
                    results.add("operations", **row, error=found, problem="WRONG")
                    continue
                seconds = 0.02 if dry_run else 0.3
                ms = milliseconds(gpu_operations.step(problem, run), not dry_run, seconds)
                results.add("operations", **row, ms=ms, error=found)
            except torch.cuda.OutOfMemoryError:
                results.add("operations", **row, problem="out of memory")
            except Exception as error:  # one that fails must not cost the others their numbers
                right = right and name not in OURS
                results.add("operations", **row, problem=f"failed: {first_line(error)}")
        torch._dynamo.reset()
    return right


def out_of_time(*_: object) -> None:
    raise TimeoutError("the time is up")


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".splitlines()[0][:200].replace("|", "/")


def facts(dry_run: bool, command: str) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if importlib.util.find_spec("triton"):
        import triton

        versions["triton"] = triton.__version__
    if not dry_run:
        versions["CUDA"] = str(torch.version.cuda)
        if tool := shutil.which("nvidia-smi"):
            query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
            out = subprocess.run(query, text=True, capture_output=True).stdout.strip()
            versions["driver"] = out.splitlines()[0] if out else "unknown"
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True
    )
    versions["commit"] = git.stdout.strip() or "unknown"
    device = "a CPU (dry run)" if dry_run else torch.cuda.get_device_name()
    return {"device": device, "command": command, "dry_run": dry_run, "versions": versions}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on CPU tensors")
    parser.add_argument("--seconds", type=float, default=450.0, help="for everything together")
    parser.add_argument("--no-build", action="store_true", help="use the package as it is")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--out", type=Path, help="the results folder")
    args = parser.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            f"benchmarks.gpu needs a GPU, and torch {torch.__version__} sees none (--dry-run needs none)",
            file=sys.stderr,
        )
        return 1
    known = facts(args.dry_run, "python -m benchmarks.gpu" + (" --dry-run" if args.dry_run else ""))
    slug = re.sub(r"\W+", "-", known["device"].lower()).strip("-")
    folder = args.out or Path(__file__).with_name("results") / slug
    results = Results(folder, known, args.seconds)
    if not args.dry_run and not args.no_build:
        install(results)
    if not args.dry_run and not args.no_tests:
        test(results)
    # Each of the two has its share, so that what comes second is not left out.
    whole, results.deadline = results.deadline, results.deadline - 0.35 * results.left()
    right = time_all(results, args.dry_run)
    results.deadline = whole
    right = time_operations(results, args.dry_run) and right
    print(f"written to {folder}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
