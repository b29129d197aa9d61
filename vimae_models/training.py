"""Training on images: Lightning's loop, and what a run records on the way."""

from __future__ import annotations

import csv
import io
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from . import distributed, encoding, evaluation, files
from .autoencoder import Autoencoder
from .data import ImageData, Images, pixels
from .metrics import information
from .vae import GaussianAutoencoder

CHECKPOINT = "checkpoint.ckpt"
METRICS = "metrics.csv"
VALIDATION_IMAGES = 2000
"""The validation terms of an epoch are computed on this many images, so that they cost little."""
SHOWN_IMAGES = 16
SHOWN_CODES = 500
SECONDS_BETWEEN_SAVES = 5.0
OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("32", "64", "bf16-mixed", "16-mixed")

Row = dict[str, float]


class Interrupted(Exception):
    """Ctrl-C, after the checkpoint was written."""


class Batches:
    """Shuffled batches of images, each epoch in an order of its own; the rest is dropped.

    The order of an epoch depends on the seed and the epoch alone, and `state_dict` says which batch
    is next: a resumed run sees what the uninterrupted one would have seen. Of several processes each
    gets its share of every batch, in the order of their ranks.

    Args:
        images: (N, C, H, W).
        batch_size: over all processes; at least two for each, as many for each, at most N.
        seed: of the order.
        rank, world: which process this is, and of how many.

    Raises:
        ValueError: `batch_size` out of range.
    """

    def __init__(
        self, images: Images, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size > len(images):
            raise ValueError(f"batch_size is {batch_size}, but there are {len(images)} images")
        if batch_size < 2 * world:
            raise ValueError(
                f"batch_size is {batch_size}; it must be at least {2 * world}, two images for each of "
                f"{world} process(es): batch normalisation and the MMD take two"
            )
        if batch_size % world:
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of {world} processes"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.next = 0

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for batch in order.split(self.batch_size)[self.next : len(self)]:
            self.next += 1
            if self.next == len(self):
                self.epoch, self.next = self.epoch + 1, 0
            yield pixels(self.images[batch.chunk(self.world)[self.rank]])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


class Module(L.LightningModule):
    """One step of a model, and the sums of its loss terms over the epoch so far.

    On each batch the auxiliary network, if there is one, takes its step first, then all others. The
    sums stay on the device, so that a step never waits for it.
    """

    def __init__(
        self, model: Autoencoder, batches: Batches, optimizers: list[torch.optim.Optimizer]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.batches = batches
        self.chosen = optimizers
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.total_steps = 0
        self.history: list[Row] = []
        self.random_state: dict[str, Any] | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        if self.model.auxiliary is None:
            terms = self._descend(self.model(batch), self.optimizers())
        else:
            main, auxiliary = self.optimizers()  # type: ignore[misc, attr-defined]
            terms = self._descend(self.model.auxiliary_loss(batch), auxiliary)
            terms = {f"auxiliary_{name}": value for name, value in terms.items()}
            terms |= self._descend(self.model(batch), main)
        for name, value in terms.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if self.steps else value
        self.steps += 1
        self.total_steps += 1

    def _descend(self, terms: dict[str, Tensor], optimizer: Any) -> dict[str, Tensor]:
        optimizer.zero_grad()
        self.manual_backward(terms["loss"])
        optimizer.step()
        return terms

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.chosen

    def decay(self, factor: float) -> None:
        """Multiply the learning rates; they are part of the states of the optimisers."""
        for optimizer in self.chosen:
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def means(self) -> Row:
        """The mean of every term over the steps since the last call, and over all processes."""
        values = torch.stack([value.double() for value in self.sums.values()]) / self.steps
        values = self.trainer.strategy.reduce(values, reduce_op="mean")
        means = dict(zip(self.sums, values.tolist(), strict=True))
        self.sums, self.steps = {}, 0
        return means

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {
            "cpu": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [],
            "sums": {name: value.cpu() for name, value in self.sums.items()},
        }
        processes = [own] * self.trainer.world_size
        if len(processes) > 1:
            torch.distributed.all_gather_object(processes, own)
        checkpoint["run"] = {
            "processes": processes,
            # Lightning keeps the state of a loader too, but does not restore it at the end of an
            # epoch.
            "batches": self.batches.state_dict(),
            "steps": self.steps,
            "total_steps": self.total_steps,
            "data_shape": list(self.model.data_shape),
            "history": self.history,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint["run"]
        states = run["processes"]
        if len(states) == self.trainer.world_size:
            own = states[self.trainer.global_rank]["sums"]
        else:
            # Of another number of processes: all that is reported of sums is their mean.
            sums = [state["sums"] for state in states]
            own = {name: torch.stack([s[name] for s in sums]).mean(0) for name in sums[0]}
        self.sums = {name: value.to(self.device) for name, value in own.items()}
        self.steps, self.total_steps = run["steps"], run["total_steps"]
        self.history = run["history"]
        self.random_state = states[0]  # all processes draw the same
        self.batches.load_state_dict(run["batches"])

    def on_train_start(self) -> None:
        if self.random_state is not None:
            torch.set_rng_state(self.random_state["cpu"].cpu())
            if self.device.type == "cuda" and self.random_state["cuda"]:
                torch.cuda.set_rng_state(self.random_state["cuda"][0].cpu(), self.device)


class _CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint so that the one before it is lost only when the new one is whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        files.write(Path(path), buffer.getbuffer())


class Recorder(L.Callback):
    """Progress on the console; metrics, TensorBoard events and the checkpoint in the run folder.

    All processes take part in the checkpoint; the first writes it and everything else.
    """

    def __init__(
        self,
        run: Path,
        data: ImageData,
        device: torch.device,
        lr_decay: float,
        console: Console,
        told: Callable[[int, int], bool | None] | None,
    ) -> None:
        self.run = run
        self.validation = data.validation.images[:VALIDATION_IMAGES].to(device)
        self.labels = data.validation.labels[:SHOWN_CODES]
        self.lr_decay = lr_decay
        self.console = console
        self.told = told
        self.total = 0
        self.interrupted = False
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("training", terms="")
        self.writer: SummaryWriter | None = None
        self.saved = self.printed = time.monotonic()

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: stop after the step that is running; a second Ctrl-C stops at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt_together(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler of one of several processes: their parent sees to a second Ctrl-C."""
        self.interrupted = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Module) and trainer.max_epochs is not None
        if trainer.is_global_zero:
            step = pl_module.total_steps
            self.writer = SummaryWriter(self.run / "tensorboard", purge_step=step + 1)
            self.total = trainer.max_epochs * len(pl_module.batches)
            self.progress.update(self.task, total=self.total, completed=step)
            self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Module)
        self.progress.advance(self.task)
        if self.told is not None and self.told(pl_module.total_steps, self.total):
            self.interrupted = True
        # After the last batch the epoch is closed first, so that it gets its row.
        if self._stop(trainer) and not trainer.is_last_batch:
            self.save(trainer, pl_module)
            raise Interrupted

    def _stop(self, trainer: L.Trainer) -> bool:
        """Whether any process was interrupted: all must stop after the same step."""
        return trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Module)
        epoch = trainer.current_epoch + 1
        means = pl_module.means()
        if not all(math.isfinite(value) for value in means.values()):
            raise FloatingPointError(
                f"the loss was not finite in epoch {epoch}; try a smaller learning rate"
            )
        pl_module.decay(self.lr_decay)
        last = epoch == trainer.max_epochs
        if trainer.is_global_zero:
            self._record(pl_module, epoch, means, last)
        stop = self._stop(trainer) and not last
        due = time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES
        if last or stop or trainer.strategy.broadcast(due):
            self.save(trainer, pl_module)
        if stop:
            raise Interrupted

    def _record(self, module: Module, epoch: int, means: Row, last: bool) -> None:
        """Metrics and pictures; with generators of their own, so that training is as without."""
        assert self.writer is not None
        row: Row = {"epoch": epoch, "step": module.total_steps}
        row |= {f"train/{name}": value for name, value in means.items()}
        checked = evaluation.summary(module.model, self.validation)
        if isinstance(module.model, GaussianAutoencoder):
            known = information.mutual_information(module.model, self.validation)
            checked["mutual_information"] = known["information"]
        row |= {f"validation/{name}": value for name, value in checked.items()}
        module.history.append(row)
        for name, value in row.items():
            if "/" in name:
                self.writer.add_scalar(name, value, module.total_steps)
        # After epochs 1, 2, 4, 8, ...
        if last or epoch & (epoch - 1) == 0:
            self._picture(module)
        terms = (
            f"epoch {epoch}  loss {row['train/loss']:.2f}  MMD to prior {row['validation/mmd']:.5f}"
        )
        self.progress.update(self.task, terms=terms)
        # Where no bar can be drawn, a line now and then.
        if not self.console.is_terminal and (last or time.monotonic() - self.printed > 2):
            self.printed = time.monotonic()
            self.console.print(terms)

    @torch.no_grad()
    def _picture(self, module: Module) -> None:
        """Reconstructions, samples and codes for TensorBoard."""
        assert self.writer is not None
        model, step = module.model, module.total_steps
        codes = encoding.codes(model, self.validation[:SHOWN_CODES])
        self.writer.add_embedding(
            codes.float(), [str(int(label)) for label in self.labels], tag="codes", global_step=step
        )
        if model.autoregressive:  # minutes, pixel by pixel
            return
        model.eval()
        x = pixels(self.validation[:SHOWN_IMAGES]).to(next(model.parameters()))
        generator = torch.Generator(x.device).manual_seed(0)
        pairs = torch.stack([x, model.reconstruct(x)], 1).flatten(0, 1)
        self.writer.add_images("reconstructions", pairs.float(), step)
        samples = model.sample(SHOWN_IMAGES, generator)
        self.writer.add_images("samples", samples.float(), step)
        model.train()

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the checkpoint and the metrics of all epochs up to it."""
        assert isinstance(module, Module)
        trainer.save_checkpoint(self.run / CHECKPOINT)
        if trainer.is_global_zero and module.history:
            table = io.StringIO(newline="")
            # A run that an earlier version began has fewer measures in its first rows.
            names = dict.fromkeys(name for row in module.history for name in row)
            writer = csv.DictWriter(table, list(names))
            writer.writeheader()
            writer.writerows(module.history)
            files.write(self.run / METRICS, table.getvalue().encode())
        self.saved = time.monotonic()

    def close(self) -> None:
        self.progress.stop()
        if self.writer is not None:
            self.writer.close()


def optimizers(
    model: Autoencoder,
    name: str = "adam",
    *,
    lr: float,
    momentum: float | None = None,
    auxiliary_lr: float | None = None,
) -> list[torch.optim.Optimizer]:
    """The optimiser of a model, and, where it has an auxiliary network, that of it.

    Args:
        model: any system.
        name: "adam" or "sgd".
        lr: learning rate.
        momentum: that of SGD, None is 0.9; beta_1 of Adam, None is 0.5. beta_2 is 0.999.
        auxiliary_lr: learning rate of the auxiliary network; None is `lr`.

    Source: VIMAE (ICLR version), appendix (Adam); IMAE, app. G (SGD).
    """

    def one(parameters: Iterator[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        if name == "sgd":
            first = 0.9 if momentum is None else momentum
            return torch.optim.SGD(parameters, lr, momentum=first, fused=True)
        first = 0.5 if momentum is None else momentum
        return torch.optim.Adam(parameters, lr, betas=(first, 0.999), fused=True)

    chosen = [one(model.main_parameters(), lr)]
    if model.auxiliary is not None:
        chosen.append(one(model.auxiliary.parameters(), auxiliary_lr or lr))
    return chosen


def fit(
    model: Autoencoder,
    data: ImageData,
    run: Path,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    optimizer: str = "adam",
    momentum: float | None = None,
    lr_decay: float = 1.0,
    auxiliary_lr: float | None = None,
    precision: str = "32",
    devices: int = 1,
    sync_batchnorm: bool = False,
    resume: bool = False,
    console: Console | None = None,
    progress: Callable[[int, int], bool | None] | None = None,
) -> list[Row]:
    """Train `model` on `data.train`, recording into the folder `run`.

    Ctrl-C lets the running step finish, writes the checkpoint and raises `Interrupted`. A run
    resumed from any checkpoint continues bit for bit as the uninterrupted one on the same machine
    and number of CPU threads and processes; with another number of processes, to rounding.

    Args:
        model: on any device; trained on the accelerator if there is one.
        data: the data set.
        run: folder for checkpoint, metrics and TensorBoard events.
        epochs: total number of epochs, those before a resumption included.
        batch_size: images per step over all processes, at most as many as there are; what is left
            over of an epoch is dropped, and is in another place of the next one.
        lr, optimizer, momentum, auxiliary_lr: as in `optimizers`.
        lr_decay: factor on the learning rates after every epoch.
        seed: of the order of the batches; the noise and the prior come from torch's generator.
        precision: one of `PRECISIONS`; "64" leaves the model in float64.
        devices: number of processes; with more than one this is called in each of them, on equal
            models and with torch's generators in equal states: by `distributed.launch`, or where
            torchrun or SLURM started them. They train as one process would, to rounding.
        sync_batchnorm: batch normalisation over the images of all processes, not of each.
        resume: start from the checkpoint in `run`.
        console: where progress goes; None is standard error.
        progress: called after every step with the steps done and all of them; if it returns True,
            training stops as after Ctrl-C.

    Returns:
        One row per epoch: "epoch", "step", "train/<term>" (mean over the epoch; the terms of the
        auxiliary loss as "train/auxiliary_<term>") and "validation/<metric>" (on the first 2000
        validation images: those of `evaluation.summary` and, where there is a posterior,
        "mutual_information", see `metrics.information`). Of several processes only the first has
        them.

    Raises:
        Interrupted: Ctrl-C, or `progress` said so.
        ValueError: `batch_size` larger than the training set, or less than two for each process.
        FloatingPointError: the loss became NaN or infinite.
        OSError: the folder cannot be written; the checkpoint before is whole.
    """
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    console = console if console is not None else Console(stderr=True)
    environment = distributed.environment() if devices > 1 else None
    nodes = distributed.nodes() if environment is not None else 1
    with warnings.catch_warnings():
        # Written for DataLoaders with workers and for loggers, neither of which is used here.
        warnings.filterwarnings("ignore", module="lightning.*")
        # Of convolutions; DDP is right all the same.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        trainer = L.Trainer(
            accelerator="auto",
            devices=devices // nodes,
            num_nodes=nodes,
            # Of two optimisers each leaves the parameters of the other without a gradient.
            strategy=DDPStrategy(find_unused_parameters=model.auxiliary is not None)
            if devices > 1
            else "auto",
            precision=precision,  # type: ignore[arg-type]
            plugins=[_CheckpointFile(), environment or LightningEnvironment()],
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if precision == "64":
            # Lightning would do it after it has read the checkpoint into float32.
            model.double()
        device = trainer.strategy.root_device
        rank = trainer.global_rank
        batches = Batches(data.train.images.to(device), batch_size, seed, rank, devices)
        chosen = optimizers(model, optimizer, lr=lr, momentum=momentum, auxiliary_lr=auxiliary_lr)
        module = Module(model, batches, chosen)
        if rank > 0:
            console = Console(quiet=True)
        recorder = Recorder(run, data, device, lr_decay, console, progress)
        trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
        # Only the main thread may set, and will get, the signal.
        main = threading.current_thread() is threading.main_thread()
        handler = recorder.interrupt if devices == 1 else recorder.interrupt_together
        # torchrun and SLURM pass on a Ctrl-C, or what else is to end a job, as SIGTERM.
        signals = [signal.SIGINT] if environment is None else [signal.SIGINT, signal.SIGTERM]
        previous = {each: signal.signal(each, handler) for each in signals} if main else {}
        normalisation = distributed.normalised_together(model) if sync_batchnorm else nullcontext()
        try:
            checkpoint = str(run / CHECKPOINT) if resume else None
            with normalisation:
                trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:
            # What Lightning makes of a second Ctrl-C.
            raise KeyboardInterrupt from error
        finally:
            for each, earlier in previous.items():
                signal.signal(each, earlier)
            recorder.close()
    return module.history
