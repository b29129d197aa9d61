"""Training, measuring and reporting of a target; what is done already is not done again."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import vimae_kernels as vk

from .. import files, runs
from ..training import CHECKPOINT, Interrupted
from .report import REPORT, Page
from .target import Results, Target, Trained

MEASURES = "measures.json"
TRAINING = "training.json"
# Of the progress of a run, what is training; the rest is measuring.
_TRAINING = 0.9


def reproduce(
    target: Target,
    scale: str,
    folder: Path,
    *,
    seeds: int | None = None,
    data_dir: str | None = None,
    jobs: int | None = None,
    console: Console | None = None,
) -> Path:
    """Everything of a target; returns the path of its report.

    A run that is finished is kept; one that was stopped, in whatever way, continues from its
    checkpoint to the same numbers. Runs go on side by side in processes of their own.

    Args:
        target: what to reproduce.
        scale: one of `target.SCALES`.
        folder: of the results: the report, and runs/ with a run folder for each.
        seeds: number of runs of each configuration; None is the target's.
        data_dir: folder of the official data files; None is $VIMAE_DATA.
        jobs: processes at once; None is the number of cores, or one where there is a GPU.
        console: where progress goes; None is standard error.

    Raises:
        RunError: a folder that has other settings; a run that failed, with its name.
        DataError: the data are missing or damaged.
        Interrupted: Ctrl-C; the checkpoints are there.
    """
    console = console if console is not None else Console(stderr=True)
    count = seeds if seeds is not None else target.seeds[scale]
    cores = len(os.sched_getaffinity(0))
    if jobs is None:
        jobs = 1 if torch.cuda.is_available() else cores
    threads = max(1, cores // jobs)
    planned = plan(target, scale, folder, count, data_dir)
    for run in planned:
        _check(run)
    shapes = {}
    for run in planned:
        # Found out before any work: data that are missing, a model that cannot be built.
        which = tuple(run.config.get(key) for key in ("data", "image_size"))
        if which not in shapes:
            shapes[which] = run.data.shape
        runs.build_model(run.config, shapes[which])
    folder.mkdir(parents=True, exist_ok=True)
    target.prepare(folder, planned[0].data)
    todo = [run for run in planned if not (run.folder / MEASURES).is_file()]
    if todo:
        _run_all(target, todo, jobs, threads, console)
    finished = [_with_values(run) for run in planned]
    console.print("writing the report")
    page = Page(folder)
    results = Results(finished)
    target.report(page, results, scale)
    page.write(target, scale, results, _machine(finished))
    return folder / REPORT


def plan(
    target: Target, scale: str, folder: Path, seeds: int, data_dir: str | None = None
) -> list[Trained]:
    """The runs of a target, all configurations with the first seed first."""
    configs = target.configs(scale)
    planned = []
    for seed in range(seeds):
        for label, config in configs.items():
            runs.check_config(config | {"seed": seed}, f"{label}: ")
            name = re.sub(r"[^\w.=]+", "-", f"{label}-seed-{seed}")
            planned.append(
                Trained(
                    label,
                    seed,
                    config | {"seed": seed},
                    folder / "runs" / name,
                    folder,
                    data_dir,
                    {},
                )
            )
    return planned


def _check(run: Trained) -> None:
    """Refuse a folder whose run has other settings."""
    if not (run.folder / runs.CONFIG).is_file():
        return
    there = runs.read_config(run.folder)
    for key, value in run.config.items():
        if there.get(key) != runs.plain_number(value):
            raise runs.RunError(
                f"{run.folder} was made with {key} {there.get(key)!r}, which is now {value!r}: give "
                "another --output, or remove that folder"
            )


def _with_values(run: Trained) -> Trained:
    found = json.loads((run.folder / MEASURES).read_text())
    config = runs.read_config(run.folder)
    return Trained(
        run.label, run.seed, config, run.folder, run.shared, run.data_dir, found["values"]
    )


def _machine(finished: list[Trained]) -> dict[str, Any]:
    """Where the runs were trained, by what, and how long that took."""
    found = [json.loads((run.folder / TRAINING).read_text()) for run in finished]
    machines = list(dict.fromkeys(result["machine"] for result in found))
    minutes = sum(result["seconds"] for result in found) / 60
    return {"trained on": "; ".join(machines), "in": f"{minutes:.0f} minutes of runs"}


def machine() -> str:
    """Processor or GPU, threads and versions, in one line."""
    processor = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        name = re.search(r"^model name\s*:\s*(.+)$", cpu_info.read_text(), re.MULTILINE)
        processor = name[1] if name is not None else processor
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    return (
        f"{processor}, {torch.get_num_threads()} thread(s) a run, torch {torch.__version__}, "
        f"vimae_kernels {vk.__version__}"
    )


def _run_all(
    target: Target, todo: list[Trained], jobs: int, threads: int, console: Console
) -> None:
    """Train and measure the runs, `jobs` at a time."""
    # Forked by a server that has imported what takes long to import, and run none of it.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vimae_models.reproduce.targets", "lightning.pytorch"])
    done = context.Array("d", len(todo))
    failures = context.SimpleQueue()
    interrupts = 0

    def interrupt(*_: Any) -> None:
        nonlocal interrupts
        interrupts += 1

    main = threading.current_thread() is threading.main_thread()
    # The server and its processes start with the signal ignored: none dies of it while it imports.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=3600,
    )
    processes: dict[int, Any] = {}
    waiting = list(range(len(todo)))
    finished = 0
    try:
        with progress:
            bar = progress.add_task(target.name, total=len(todo))
            while (waiting and not interrupts) or processes:
                while waiting and len(processes) < jobs and not interrupts:
                    index = waiting.pop(0)
                    arguments = (target.name, todo[index], index, threads, done, failures)
                    if main:
                        signal.signal(signal.SIGINT, signal.SIG_IGN)
                    process = context.Process(target=_one, args=arguments, daemon=True)
                    process.start()
                    if main:
                        signal.signal(signal.SIGINT, interrupt)
                    processes[index] = process
                next(iter(processes.values())).join(0.2)
                if interrupts > 1:
                    raise KeyboardInterrupt
                for index, process in list(processes.items()):
                    if process.is_alive():
                        if interrupts:
                            os.kill(process.pid, signal.SIGINT)
                        continue
                    del processes[index]
                    name = todo[index].folder.name
                    if not failures.empty():
                        raise failures.get()
                    if process.exitcode and not interrupts:
                        raise runs.RunError(f"{name} ended with status {process.exitcode}")
                    finished += not process.exitcode
                    if not interrupts and not console.is_terminal:
                        console.print(f"{finished} of {len(todo)}: {name}", highlight=False)
                going = ", ".join(todo[index].folder.name for index in processes)
                progress.update(bar, completed=sum(done[:]), description=f"{target.name}: {going}")
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
        if main:
            signal.signal(signal.SIGINT, previous)
    if interrupts:
        raise Interrupted


def _one(
    name: str, run: Trained, index: int, threads: int, done: Any, failures: Any
) -> None:  # in a process of its own
    from .targets import target

    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(threads)

    def tell(fraction: float) -> None:
        done[index] = fraction

    try:
        train_and_measure(target(name), run, tell)
    except (Interrupted, KeyboardInterrupt):
        raise SystemExit(130) from None
    except Exception as error:
        failures.put(runs.RunError(f"{run.folder.name}: {type(error).__name__}: {error}"))
        raise SystemExit(1) from error


def train_and_measure(
    target: Target, run: Trained, tell: Callable[[float], None] = lambda fraction: None
) -> None:
    """Bring one run, at whatever point it is, to its `MEASURES` file."""
    if _epochs_done(run.folder) < run.config["epochs"]:
        train(run, tell)
    tell(_TRAINING)
    torch.manual_seed(run.config["seed"])
    found = {
        "values": target.measure(run),
        "training": json.loads((run.folder / TRAINING).read_text()),
    }
    tell(1.0)
    files.write(run.folder / MEASURES, (json.dumps(found, indent=1) + "\n").encode())


def train(run: Trained, tell: Callable[[float], None] = lambda fraction: None) -> None:
    """Train one run to its end, from its checkpoint if it has one, and note how long it took."""
    start = time.perf_counter()
    noted = run.folder / TRAINING
    before = json.loads(noted.read_text())["seconds"] if noted.is_file() else 0.0
    torch.manual_seed(run.config["seed"])
    model = runs.build_model(run.config, run.data.shape)
    config = runs.complete(run.config, model)
    run.folder.mkdir(parents=True, exist_ok=True)
    runs.write_config(run.folder, config)
    try:
        runs.train(
            run.folder,
            config,
            model,
            run.data,
            resume=(run.folder / CHECKPOINT).is_file(),
            console=Console(quiet=True),
            progress=lambda step, total: tell(_TRAINING * step / total),
        )
    finally:
        told = {"seconds": before + time.perf_counter() - start, "machine": machine()}
        files.write(noted, (json.dumps(told) + "\n").encode())


def _epochs_done(folder: Path) -> int:
    if not (folder / CHECKPOINT).is_file():
        return 0
    return len(runs.read_checkpoint(folder)["run"]["history"])


def default_folder(name: str, scale: str) -> Path:
    """Where the results of a target go if nothing else is said: a second run must find them."""
    return Path("runs") / f"{name}-{scale}"
