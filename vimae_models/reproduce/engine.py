"""Training, measuring and reporting of a target; what is done already is not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import vimae_kernels as vk

from .. import files, runs
from ..training import CHECKPOINT, METRICS, Interrupted
from .report import REPORT, Page
from .target import MEASURES, Results, Target, Trained

TRAINING = "training.json"
LOCK = ".lock"
_PRELOAD = [
    "vimae_models.reproduce.targets",
    "lightning.pytorch",
    "sklearn.model_selection",
    "sklearn.svm",
    "torchmetrics.image.fid",
]
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
    checkpoint to the same numbers. Runs go on side by side in processes of their own, and one that
    fails does not stop the others.

    Args:
        target: what to reproduce.
        scale: one of `target.SCALES`.
        folder: of the results: the report, and runs/ with a run folder for each.
        seeds: number of runs of each configuration; None is the target's.
        data_dir: folder of the official data files; None is $VIMAE_DATA.
        jobs: processes at once; None is the number of cores, or one where there is a GPU.
        console: where progress goes; None is standard error.

    Raises:
        RunError: a folder that has other settings, or that another command is at work in; runs that
            failed, with their names.
        DataError: the data are missing or damaged.
        Interrupted: Ctrl-C; the checkpoints are there.
        KeyboardInterrupt: a second Ctrl-C, or one before or after the runs.
    """
    console = console if console is not None else Console(stderr=True)
    count = seeds if seeds is not None else target.seeds[scale]
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    if jobs is None:
        jobs = 1 if torch.cuda.is_available() else cores
    threads = max(1, cores // jobs)
    planned = plan(target, scale, folder, count, data_dir)
    # Found out before any work: data that are missing, a model that cannot be built, other settings.
    complete: dict[str, runs.Config] = {}
    for run in planned:
        if run.label not in complete:
            complete[run.label] = runs.complete(
                run.config, runs.build_model(run.config, run.data.shape)
            )
        _check(run, complete[run.label])
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a folder that another process is in; the system lets go of those of a process that is killed."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise runs.RunError(f"another command is at work in {folder}") from None
    try:
        yield
    finally:
        lock.release()


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


def _check(run: Trained, complete: runs.Config) -> None:
    """Refuse a folder whose run has other settings than the complete configuration of its label."""
    if not (run.folder / runs.CONFIG).is_file():
        return
    there = runs.read_config(run.folder)
    complete = complete | {"seed": run.seed}
    # A default that was not written down then is none to differ from now.
    for key in [*there, *run.config]:
        was, now = there.get(key), runs.plain_number(complete.get(key))
        if was != now:
            raise runs.RunError(
                f"{run.folder} was made with {key} {was!r}, which is now {now!r}: give another "
                "--output, or remove that folder"
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
    context.set_forkserver_preload(_PRELOAD)
    done = context.Array("d", [_share_done(run) for run in todo])
    stop = context.Value("b", False)
    interrupts = 0

    def interrupt(*_: Any) -> None:
        nonlocal interrupts
        interrupts += 1

    main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT)
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
    processes: dict[int, tuple[Any, Connection]] = {}
    waiting = list(range(len(todo)))
    finished = 0
    failed: dict[str, str] = {}
    try:
        with progress:
            bar = progress.add_task(target.name, total=len(todo), completed=sum(done[:]))
            while processes or (waiting and not interrupts):
                while waiting and len(processes) < jobs and not interrupts:
                    index = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    arguments = (target, todo[index], index, threads, done, stop, sender)
                    process = context.Process(target=_one, args=arguments, daemon=True)
                    # Its process inherits that Ctrl-C is ignored: it is for this one to see to.
                    if main:
                        signal.signal(signal.SIGINT, signal.SIG_IGN)
                    process.start()
                    if main:
                        signal.signal(signal.SIGINT, interrupt)
                    sender.close()
                    processes[index] = process, receiver
                wait([process.sentinel for process, _ in processes.values()], 0.2)
                if interrupts > 1:
                    raise KeyboardInterrupt
                stop.value = interrupts > 0
                progress.update(bar, completed=sum(done[:]))
                for index, (process, receiver) in list(processes.items()):
                    # One that trains stops by itself, with a checkpoint; others have nothing to keep.
                    if interrupts and not 0 < done[index] < _TRAINING:
                        process.kill()
                        process.join()
                    if process.is_alive():
                        continue
                    del processes[index]
                    name = todo[index].folder.name
                    if process.exitcode == 0:
                        finished += 1
                        told = f"{finished} of {len(todo)}: {name}"
                    elif interrupts:
                        continue
                    else:
                        try:
                            failed[name] = receiver.recv()
                        except EOFError:  # killed before it could say why
                            failed[name] = f"it ended with status {process.exitcode}"
                        told = f"{name} failed: {failed[name]}"
                    seconds = progress.tasks[bar].time_remaining
                    if seconds:
                        told += f"; about {timedelta(seconds=round(seconds))} left"
                    if name in failed or not console.is_terminal:
                        console.print(told, highlight=False, markup=False, soft_wrap=True)
                going = ", ".join(todo[index].folder.name for index in processes)
                progress.update(bar, description=f"{target.name}: {going}")
    finally:
        for process, _ in processes.values():
            process.kill()
            process.join()
        if main:
            signal.signal(signal.SIGINT, previous)
    if interrupts:
        raise Interrupted
    if failed:
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise runs.RunError(f"{len(failed)} of {len(todo)} runs failed, the others are kept: {why}")


def _share_done(run: Trained) -> float:
    """How much of a run was done before, for the progress."""
    metrics = run.folder / METRICS
    if not metrics.is_file():
        return 0.0
    epochs = len(metrics.read_text().splitlines()) - 1
    return _TRAINING * epochs / int(run.config["epochs"])


def _one(
    target: Target,
    run: Trained,
    index: int,
    threads: int,
    done: Any,
    stop: Any,
    failure: Connection,
) -> None:  # in a process of its own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def tell(fraction: float) -> bool:
        done[index] = fraction
        return bool(stop.value)

    try:
        train_and_measure(target, run, tell)
    except Interrupted:
        raise SystemExit(130) from None
    except Exception as error:
        failure.send(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


def _end_with_parent() -> None:
    """However the command ends, none of its processes goes on writing into the folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def train_and_measure(
    target: Target, run: Trained, tell: Callable[[float], bool] = lambda fraction: False
) -> None:
    """Bring one run, at whatever point it is, to its `MEASURES` file."""
    if _epochs_done(run.folder) < run.config["epochs"] or not (run.folder / TRAINING).is_file():
        train(run, tell)
    tell(_TRAINING)
    torch.manual_seed(run.config["seed"])
    found = {"values": target.measure(run)}
    tell(1.0)
    files.write(run.folder / MEASURES, (json.dumps(found, indent=1) + "\n").encode())


def train(run: Trained, tell: Callable[[float], bool] = lambda fraction: False) -> None:
    """Train one run to its end, from its checkpoint if it has one, and note how long it took.

    `tell` is given the share of the run that is done, and returns whether to stop.
    """
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
