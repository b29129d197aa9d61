"""Several processes on this machine, trained as one by `training.fit(devices=...)`."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import torch

GRACE = 5.0
"""Seconds the other processes get after one has failed."""


def launch(devices: int, function: Callable[..., object], *arguments: Any) -> None:
    """Call `function(*arguments)` in `devices` new processes, of which Lightning makes one group.

    Ctrl-C is passed on to all of them; a second one ends them.

    Args:
        devices: number of processes.
        function: of a module; it and its arguments can be pickled.

    Raises:
        What the first process to fail raised, after the others were ended; ChildProcessError if one died
        without raising.
    """
    # Forked by a server that has imported what takes long to import, and run none of it.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "torch.utils.tensorboard"])
    failures = context.SimpleQueue()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    interrupts = 0

    def interrupt(*_: Any) -> None:
        nonlocal interrupts
        interrupts += 1

    main = threading.current_thread() is threading.main_thread()
    # The server and its processes start with the signal ignored: none dies of it while it imports.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    processes = []
    try:
        for rank in range(devices):
            process = context.Process(
                target=_one, args=(rank, devices, port, failures, function, arguments), daemon=True
            )
            process.start()
            processes.append(process)
        if main:
            signal.signal(signal.SIGINT, interrupt)
        while any(process.is_alive() for process in processes) and failures.empty():
            processes[0].join(0.2)
            if interrupts > 1:
                raise KeyboardInterrupt
            if interrupts:
                # Again and again, as one that is not listening yet misses it.
                for process in processes:
                    if process.is_alive() and process.pid is not None:
                        os.kill(process.pid, signal.SIGINT)
            if any(process.exitcode for process in processes):
                break
        for process in processes:
            # Time to finish what it is writing; one that waits for the failed one never ends.
            process.join(GRACE)
        if not failures.empty():
            raise failures.get()
        for process in processes:
            if process.exitcode:
                raise ChildProcessError(f"a training process ended with status {process.exitcode}")
    finally:
        for process in processes:
            process.terminate()
            process.join()
        if main:
            signal.signal(signal.SIGINT, previous)


def _one(
    rank: int,
    devices: int,
    port: int,
    failures: Any,
    function: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    try:
        function(*arguments)
    except Exception as error:
        failures.put(error)
