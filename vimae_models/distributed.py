"""Several processes that train as one: what they share of a batch, and how they are started.

Each process of the group of `torch.distributed` has an equal share of every batch, in the order of
the ranks; without a group there is one process, and all here is as if this module were not.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch.distributed import ProcessGroup

T = TypeVar("T")


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


def environment() -> ClusterEnvironment | None:
    """What started this process as one of several, torchrun or SLURM; None where nothing did."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    found: ClusterEnvironment | None = None
    if TorchElasticEnvironment.detect():
        found = TorchElasticEnvironment()
    elif SLURMEnvironment.detect():
        found = SLURMEnvironment(auto_requeue=False)
    return found if found is not None and found.world_size() > 1 else None


def nodes() -> int:
    """The machines that torchrun or SLURM uses, each with equally many processes."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ.get("SLURM_NNODES", 1))


_store: Any = None


@contextmanager
def joined() -> Iterator[int]:
    """Inside, this process is in the group of those that torchrun or SLURM started: their number."""
    global _store
    found = environment()
    if found is None:
        yield 1
        return
    from torch.distributed.rendezvous import rendezvous

    rank, world = found.global_rank(), found.world_size()
    os.environ |= {"MASTER_ADDR": found.main_address, "MASTER_PORT": str(found.main_port)}
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(found.local_rank())
        backend = "nccl"
    _store, _, _ = next(rendezvous("env://", rank, world))
    torch.distributed.init_process_group(backend, store=_store, rank=rank, world_size=world)
    yield world
    # Not after an error: it would wait for the others, which wait for this process.
    torch.distributed.destroy_process_group()


def agreed(function: Callable[[], T]) -> T:
    """function() of this process; what it raises in any process, the first one's, all raise."""
    result: Any = None
    error = None
    try:
        result = function()
    except Exception as raised:
        error = raised
    errors = [error]
    if group() is not None:
        errors *= torch.distributed.get_world_size()
        torch.distributed.all_gather_object(errors, error)
    for error in errors:
        if error is not None:
            raise error
    return result  # type: ignore[no-any-return]


def of_first(function: Callable[[], T]) -> T:
    """function() of the first process, on all."""
    first = group() is None or torch.distributed.get_rank() == 0
    found = [agreed(lambda: function() if first else None)]
    if group() is not None:
        torch.distributed.broadcast_object_list(found, 0)
    return found[0]  # type: ignore[return-value]


def check_equal(**values: Any) -> None:
    """Raise ValueError where processes have different values."""
    if group() is None:
        return
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, values)
    for rank, theirs in enumerate(found):
        for name, value in found[0].items():
            if theirs[name] != value:
                raise ValueError(
                    f"{name} is {theirs[name]} in process {rank}; in process 0 it is {value}"
                )


def first_to_fail() -> bool:
    """Whether an error of this process is the one to be told: those of the others follow from it."""
    if _store is None:
        return rank_of_environment() == 0
    try:
        return _store.add("failed", 1) == 1  # type: ignore[no-any-return]
    except RuntimeError:  # the store was in the process that died
        return True


def rank_of_environment() -> int:
    """The rank that torchrun or SLURM gave this process, known before there is a group."""
    variable = "RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_PROCID"
    return int(os.environ.get(variable, 0))


def lost(error: BaseException) -> bool:
    """Whether an error is of the connection to another process, which has then ended."""
    if isinstance(error, torch.distributed.DistError):
        return True
    words = "gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe"
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


GRACE = 5.0
"""Seconds the other processes get after one has failed."""


# Beside Lightning's launchers, which `--devices` could do with but for three things. The one that
# starts the script again trains in the process that was called: killed, it leaves the others waiting
# and says nothing, and called from Python there is no script to start. The one that forks passes on
# a traceback as text, not the error that is told in a line; and both end on Ctrl-C without a
# checkpoint that all processes took part in.


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
        errors = []
        while not failures.empty():
            errors.append(failures.get())
        for error in errors:
            if not lost(error):
                raise error
        for rank, process in enumerate(processes):
            if process.exitcode:
                raise ChildProcessError(f"training process {rank} {_end(process.exitcode)}")
        if errors:
            raise ChildProcessError("the training processes lost each other") from errors[0]
    finally:
        for process in processes:
            # Not SIGTERM, at which Lightning waits for the end of a step that may never come.
            process.kill()
            process.join()
        if main:
            signal.signal(signal.SIGINT, previous)


def _end(status: int) -> str:
    if status < 0:
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    return f"ended with status {status}"


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
    # Nobody would hear of what goes on after the death of the process that was called.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(*arguments)
    except Exception as error:
        failures.put(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
