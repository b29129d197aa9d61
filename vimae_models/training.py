"""Training on images: Lightning's loop, and what a run records on the way."""

from __future__ import annotations

import csv
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from . import evaluation
from .autoencoder import Autoencoder
from .data import ImageData, Images, pixels

CHECKPOINT = "checkpoint.ckpt"
METRICS = "metrics.csv"
VALIDATION_IMAGES = 2000
"""The validation terms of an epoch are computed on this many images, so that they cost little."""
SECONDS_BETWEEN_SAVES = 5.0

Row = dict[str, float]


class Interrupted(Exception):
    """Ctrl-C, after the checkpoint was written."""


class Batches:
    """Shuffled batches of images, each epoch in an order of its own; the rest is dropped.

    The order of an epoch depends on the seed and the epoch alone, and `state_dict` says which batch
    is next: a resumed run sees what the uninterrupted one would have seen.

    Args:
        images: (N, C, H, W).
        batch_size: at most N.
        seed: of the order.

    Raises:
        ValueError: `batch_size` larger than N.
    """

    def __init__(self, images: Images, batch_size: int, seed: int) -> None:
        if batch_size > len(images):
            raise ValueError(f"batch_size is {batch_size}, but there are {len(images)} images")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
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
            yield pixels(self.images[batch])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


class Module(L.LightningModule):
    """One step of a model, and the sums of its loss terms over the epoch so far.

    The sums stay on the device, so that a step never waits for it.
    """

    def __init__(self, model: Autoencoder, batches: Batches, lr: float) -> None:
        super().__init__()
        self.model = model
        self.batches = batches
        self.lr = lr
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.history: list[Row] = []
        self.random_state: dict[str, Any] | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        terms: dict[str, Tensor] = self.model(batch)
        for name, value in terms.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if self.steps else value
        self.steps += 1
        return terms["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # VIMAE (ICLR version), appendix: Adam with beta_1 = 0.5.
        return torch.optim.Adam(self.model.parameters(), self.lr, betas=(0.5, 0.999), fused=True)

    def means(self) -> Row:
        """The mean of every term over the steps since the last call."""
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        checkpoint["run"] = {
            "random_state": state,
            # Lightning keeps the state of a loader too, but does not restore it at the end of an
            # epoch.
            "batches": self.batches.state_dict(),
            "sums": self.sums,
            "steps": self.steps,
            "history": self.history,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint["run"]
        self.sums = {name: value.to(self.device) for name, value in run["sums"].items()}
        self.steps, self.history = run["steps"], run["history"]
        self.random_state = run["random_state"]
        self.batches.load_state_dict(run["batches"])

    def on_train_start(self) -> None:
        if self.random_state is not None:
            torch.set_rng_state(self.random_state["cpu"].cpu())
            if len(self.random_state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in self.random_state["cuda"]])


class Recorder(L.Callback):
    """Progress on the console; metrics, TensorBoard events and the checkpoint in the run folder."""

    def __init__(self, run: Path, validation: Tensor, total_steps: int, console: Console) -> None:
        self.run = run
        self.validation = validation
        self.console = console
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
        self.task = self.progress.add_task("training", total=total_steps, terms="")
        self.saved = self.printed = time.monotonic()

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: stop after the step that is running; a second Ctrl-C stops at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        self.writer = SummaryWriter(self.run / "tensorboard", purge_step=step + 1)
        self.progress.update(self.task, completed=step)
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.progress.advance(self.task)
        # After the last batch the epoch is closed first, so that it gets its row.
        if self.interrupted and not trainer.is_last_batch:
            self.save(trainer, pl_module)
            raise Interrupted

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Module)
        means = pl_module.means()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss was not finite in epoch {trainer.current_epoch + 1}; try a smaller "
                "learning rate"
            )
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {f"train/{name}": value for name, value in means.items()}
        checked = evaluation.summary(pl_module.model, self.validation)
        row |= {f"validation/{name}": value for name, value in checked.items()}
        pl_module.history.append(row)
        for name, value in row.items():
            if "/" in name:
                self.writer.add_scalar(name, value, trainer.global_step)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        self._show(row, last)
        stop = self.interrupted and not last
        if last or stop or time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            self.save(trainer, pl_module)
        if stop:
            raise Interrupted

    def _show(self, row: Row, last: bool) -> None:
        terms = (
            f"epoch {row['epoch']}  reconstruction {row['train/reconstruction']:.2f}  "
            f"MMD to prior {row['validation/mmd']:.5f}"
        )
        self.progress.update(self.task, terms=terms)
        # Where no bar can be drawn, a line now and then.
        if not self.console.is_terminal and (last or time.monotonic() - self.printed > 2):
            self.printed = time.monotonic()
            self.console.print(terms)

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the checkpoint and the metrics of all epochs up to it."""
        assert isinstance(module, Module)
        trainer.save_checkpoint(self.run / CHECKPOINT)
        if module.history:
            with open(self.run / METRICS, "w", newline="") as file:
                writer = csv.DictWriter(file, list(module.history[0]))
                writer.writeheader()
                writer.writerows(module.history)
        self.saved = time.monotonic()

    def close(self) -> None:
        self.progress.stop()
        if hasattr(self, "writer"):
            self.writer.close()


def fit(
    model: Autoencoder,
    data: ImageData,
    run: Path,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    resume: bool = False,
    console: Console | None = None,
) -> list[Row]:
    """Train `model` on `data.train` with Adam, recording into the folder `run`.

    Ctrl-C lets the running step finish, writes the checkpoint and raises `Interrupted`. A run
    resumed from any checkpoint continues bit for bit as the uninterrupted one on the same machine
    and number of CPU threads.

    Args:
        model: on any device; trained on the accelerator if there is one.
        data: the data set.
        run: folder for checkpoint, metrics and TensorBoard events.
        epochs: total number of epochs, those before a resumption included.
        batch_size: images per step, at most as many as there are.
        lr: learning rate.
        seed: of the order of the batches; the noise and the prior come from torch's generator.
        resume: start from the checkpoint in `run`.
        console: where progress goes; None is standard error.

    Returns:
        One row per epoch: "epoch", "step", "train/<term>" (mean over the epoch) and
        "validation/<metric>" (on the first 2000 validation images).

    Raises:
        Interrupted: Ctrl-C.
        ValueError: `batch_size` larger than the training set.
        FloatingPointError: the loss became NaN or infinite.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = console if console is not None else Console(stderr=True)
    with warnings.catch_warnings():
        # Written for DataLoaders with workers and for loggers, neither of which is used here.
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer = L.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        device = trainer.strategy.root_device
        batches = Batches(data.train.images.to(device), batch_size, seed)
        validation = data.validation.images[:VALIDATION_IMAGES].to(device)
        recorder = Recorder(run, validation, epochs * len(batches), console)
        trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
        module = Module(model, batches, lr)
        # Only the main thread may set, and will get, the signal.
        main = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGINT, recorder.interrupt) if main else None
        try:
            checkpoint = str(run / CHECKPOINT) if resume else None
            trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
        finally:
            if main:
                signal.signal(signal.SIGINT, previous)
            recorder.close()
    return module.history
