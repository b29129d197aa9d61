"""Several processes that train as one: what they share of a batch, and how they are started.

Each process of the group of `torch.distributed` has an equal share of every batch, in the order of
the ranks; without a group there is one process, and all here is as if this module were not.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def group() -> ProcessGroup | None:
    """The group of all processes; None of one process."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.group.WORLD if distributed.get_world_size() > 1 else None


def place(n: int) -> tuple[int, int]:
    """The row of the whole batch that the n rows of this process start at, and the rows of all."""
    if group() is None:
        return 0, n
    return n * torch.distributed.get_rank(), n * torch.distributed.get_world_size()


def rows(draw: Callable[[int], Tensor], n: int, generator: torch.Generator | None = None) -> Tensor:
    """draw(n), or this process's n rows of what one process would draw for the whole batch.

    The generators of all processes are in one state, and stay so as each draws for all: then noise
    is that of one process, whatever their number. What that costs is time and, for a moment,
    memory as for the noise of a whole batch, which is little beside a network's activations.

    Args:
        draw: makes noise (n, ...) with torch's generator.
        generator: where it is given `draw` uses it, and n rows are asked for as they are.
    """
    if generator is not None or group() is None:
        return draw(n)
    first, everything = place(n)
    return draw(everything)[first : first + n]


def share(x: Tensor) -> Tensor:
    """This process's part of rows (n, ...) that all have; their numbers differ by one at most."""
    if group() is None:
        return x
    return x.tensor_split(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, which have equally many, in the order of the ranks: no gradient."""
    if group() is None:
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def mean(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The mean of x over the processes of a group; x itself for None.

    The gradient is the mean over the processes too: where all have the same function of the result
    in their losses, averaging the gradients of parameters leaves what one process would have.
    """
    if group is None:
        return x
    return _Mean.apply(x, group)  # type: ignore[no-any-return]


class _Mean(torch.autograd.Function):
    # With a context set up by itself, as gradients of torch.func want it.
    @staticmethod
    def forward(x: Tensor, group: ProcessGroup) -> Tensor:
        y = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(y, group=group)
        return y / torch.distributed.get_world_size(group)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Mean.apply(g, ctx.group), None


@contextmanager
def normalised_together(module: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation in training mode takes mean and variance over the whole batch.

    `torch.nn.SyncBatchNorm` does so on GPUs alone, and its gradient is none for `torch.func.grad`,
    which virtual adversarial training takes. Here the layers stay what they are, and so do weights
    and checkpoints.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.__dict__["forward"] = partial(_normalised, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _normalised(layer: Any, x: Tensor) -> Tensor:
    """What a layer of batch normalisation makes of its part (B, C, ...) of the whole batch."""
    everyone = group()
    if everyone is None or not layer.training:
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    own = x.to(torch.promote_types(x.dtype, layer.weight.dtype))
    over = [0, *range(2, x.ndim)]
    centre = mean(own.mean(over, keepdim=True), everyone)
    variance = mean((own - centre).square().mean(over, keepdim=True), everyone)
    if layer.track_running_stats:
        n = x.numel() // x.shape[1] * torch.distributed.get_world_size()
        with torch.no_grad():
            layer.num_batches_tracked += 1
            layer.running_mean.lerp_(centre.flatten(), layer.momentum)
            layer.running_var.lerp_(variance.flatten() * (n / (n - 1)), layer.momentum)
    shape = (-1, *[1] * (x.ndim - 2))
    scale = layer.weight.view(shape) * (variance + layer.eps).rsqrt()
    normal: Tensor = (own - centre) * scale + layer.bias.view(shape)
    return normal.to(x.dtype)


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
