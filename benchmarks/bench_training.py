"""What training costs beside its arithmetic, and what of a step is the regulariser.

`python -m benchmarks.bench_training` prints two tables (`--write` keeps them): the loop of `vimae train` beside a
bare PyTorch loop, and, for every system with an operation of `vimae_kernels` in its loss, the share of it in a
training step with our kernels and with their definitions in eager PyTorch.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import vimae_kernels as vk
from vimae_kernels.ops.aggregate.op import LatentInformation
from vimae_models import build, data, names
from vimae_models.autoencoder import Autoencoder
from vimae_models.data import pixels
from vimae_models.training import fit, optimizers

from .harness import interleave, machine

BATCH = 100
SHAPE = (1, 28, 28)


def mnist_like(n: int) -> data.ImageData:
    """Random bytes: times do not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> data.Split:
        images = torch.randint(256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
        return data.Split(images, torch.randint(10, (n,), generator=generator))

    return data.ImageData("mnist", split(n), split(n // 5), split(n // 5))


def bare_loop(images: data.ImageData, epochs: int) -> float:
    """Seconds of the shortest loop that trains the 2-d model."""
    torch.manual_seed(0)
    model = build("vimae-l", data_shape=SHAPE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.5, 0.999), fused=True)
    start = time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(images.train)).split(BATCH):
            loss = model.loss(pixels(images.train.images[batch]))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start


def whole_loop(images: data.ImageData, epochs: int) -> float:
    """Seconds of what `vimae train` does from the model to the last checkpoint."""
    torch.manual_seed(0)
    model = build("vimae-l", data_shape=SHAPE)
    quiet = Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as run:
        start = time.perf_counter()
        fit(
            model,
            images,
            Path(run),
            epochs=epochs,
            batch_size=BATCH,
            lr=1e-3,
            seed=0,
            console=quiet,
        )
        return time.perf_counter() - start


def loops(n: int, epochs: int, rounds: int) -> tuple[float, float, float]:
    """Median ms per step of both loops, in turns, and the median of their ratios."""
    images = mnist_like(n)
    bare_loop(images, 1)
    whole_loop(images, 1)
    times = [(bare_loop(images, epochs), whole_loop(images, epochs)) for _ in range(rounds)]
    steps = epochs * (n // BATCH)
    bare, whole = (1e3 * statistics.median(t) / steps for t in zip(*times, strict=True))
    return bare, whole, statistics.median(w / b for b, w in times)


def _cheap_information(z: Tensor, mean: Tensor, log_var: Tensor, **_: object) -> LatentInformation:
    one, each = z.mean() + mean.mean() + log_var.mean(), z.mean(0) + log_var.mean(0)
    return LatentInformation(one, each, each, one, one, each)


CHEAP: dict[str, Callable[..., object]] = {
    "mmd": lambda z, *_, **__: z.mean(),
    "stein_loss": lambda z, *_, **__: z.mean(),
    "latent_information": _cheap_information,
    "gumbel_softmax": lambda logits, tau=1.0, **_: (logits / tau).softmax(-1),
}


@contextmanager
def cheap() -> Iterator[set[str]]:
    """Inside, a mean or a softmax stands for every operation; the value is who was called."""
    called: set[str] = set()
    before = {name: getattr(vk, name) for name in CHEAP}

    def note(name: str) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            called.add(name)
            return CHEAP[name](*args, **options)

        return call

    try:
        for name in CHEAP:
            setattr(vk, name, note(name))
        yield called
    finally:
        for name, operation in before.items():
            setattr(vk, name, operation)


def step(model: Autoencoder, x: Tensor) -> Callable[[], None]:
    """A training step, that of the auxiliary network included."""
    main, *auxiliary = optimizers(model, lr=1e-3)

    def run() -> None:
        for optimizer in auxiliary:
            optimizer.zero_grad()
            model.auxiliary_loss(x)["loss"].backward()
            optimizer.step()
        main.zero_grad()
        model.loss(x)["loss"].backward()
        main.step()

    return run


def shares(name: str, batch: int, seconds: float) -> tuple[set[str], dict[str, float]]:
    """The operations in the loss of a system, and ms of a step with "ours", "eager" and "without"."""
    torch.manual_seed(0)
    model = build(name, data_shape=SHAPE)
    ours = step(model, torch.rand(batch, *SHAPE))
    with cheap() as called:
        ours()

    def eager() -> None:
        with vk.use_backend("reference"):
            ours()

    def without() -> None:
        with cheap():
            ours()

    if not called:
        return called, {}
    return called, interleave({"ours": ours, "eager": eager, "without": without}, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=4, help="of each loop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per system")
    parser.add_argument("--write", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    bare, whole, ratio = loops(args.images, args.epochs, args.rounds)
    lines = [
        f"`python -m benchmarks.bench_training` on {machine()}.",
        "",
        f"The loop of `vimae train --model vimae-l --data mnist` (2-d codes, batches of {BATCH}, {args.images} images, "
        f"{args.epochs} epochs, with validation terms, TensorBoard and checkpoint) beside a bare PyTorch loop over the "
        f"same tensors; median of {args.rounds} turns.",
        "",
        "| bare loop, ms per step | `vimae train`, ms per step | ratio |",
        "|---|---|---|",
        f"| {bare:.3f} | {whole:.3f} | **{ratio:.2f}** |",
        "",
        "A training step of every system with an operation in its loss, 28x28 images, the system's default network, "
        "ms. The share is what the step costs more than with a mean of the codes in place of the operation; "
        '"eager" is the definition in PyTorch.',
        "",
        "| system | batch | operations | step, ours | step, eager | share, ours | share, eager |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name in names():
        for batch in (BATCH, 1000):
            called, ms = shares(name, batch, args.seconds)
            if not called:
                break
            share = {of: f"{max(0.0, 1 - ms['without'] / ms[of]):.0%}" for of in ("ours", "eager")}
            lines.append(
                f"| {name} | {batch} | {', '.join(sorted(called))} | {ms['ours']:.3g} | {ms['eager']:.3g} | "
                f"{share['ours']} | {share['eager']} |"
            )
            print(lines[-1], flush=True)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
