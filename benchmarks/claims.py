"""What the papers say of their systems, checked on MNIST at a small scale.

`python -m benchmarks.claims` trains a pair of systems for every claim, by the presets and the training of
`vimae train`, and prints a table of what the claim is about (`--write` keeps it). It takes minutes on two
cores and needs MNIST ($VIMAE_DATA). A run that is finished is kept in --output and not trained again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vimae_models import data, evaluation, files, runs
from vimae_models.data.base import Binarized
from vimae_models.joint import JointAutoencoder
from vimae_models.metrics import labels
from vimae_models.metrics.information import mutual_information
from vimae_models.metrics.latent import rate
from vimae_models.training import CHECKPOINT
from vimae_models.vae import GaussianAutoencoder

from .harness import machine

VALUES = "claims.json"

Values = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A training: a preset, what is changed in it, and the images it sees.

    `half` halves height and width, by the mean of 2 x 2 pixels. `variant` tells runs of a preset apart.
    """

    preset: str
    images: int
    changes: dict[str, Any]
    half: bool = False
    variant: str = ""

    @property
    def name(self) -> str:
        return self.preset + self.variant


@dataclass(frozen=True)
class Claim:
    """What is claimed of two runs, the new system and what it is compared with."""

    text: str
    source: str
    expected: str
    runs: tuple[Run, Run]
    measures: dict[str, str]
    holds: Callable[[Values, Values], bool]


_VMI = {"epochs": 6}
_IMAE = {"epochs": 10}
_FLAT = {"epochs": 8}
_PIXELCNN = {"epochs": 5, "width": 0.25, "batch_size": 50}

CLAIMS = (
    Claim(
        "the categorical code of vmi-joint-vae is used; that of its twin on the plain ELBO is not",
        "VMI-VAE, sec. 4",
        "KL(c) > 1.5 nats, and more than twice that of the twin",
        (
            Run("vmi-joint-vae/mnist", 20_000, _VMI),
            Run("vmi-joint-vae/mnist-elbo", 20_000, _VMI),
        ),
        {"kl_c": "KL(c), nats", "accuracy": "accuracy of c"},
        lambda new, old: new["kl_c"] > 1.5 and new["kl_c"] > 2 * old["kl_c"],
    ),
    Claim(
        "at beta = 5 the unsupervised accuracy of imae is far above that of hybrid-beta-vae",
        "IMAE, sec. 5",
        "accuracy higher by more than 0.2",
        (
            Run("imae/mnist", 20_000, _IMAE | {"beta": 5.0}),
            Run("hybrid-beta-vae/mnist", 20_000, _IMAE | {"beta": 5.0}),
        ),
        {"accuracy": "accuracy of y", "kl_c": "KL(y), nats"},
        lambda new, old: new["accuracy"] > old["accuracy"] + 0.2,
    ),
    Claim(
        "the codes of vimae-n are nearer to the prior than those of vae",
        "VIMAE, sec. 5",
        "MMD² to the prior less than a third",
        (Run("vimae-n/mnist-2d", 50_000, _FLAT), Run("vae/mnist-2d", 50_000, _FLAT)),
        {"mmd": "MMD² to the prior"},
        lambda new, old: old["mmd"] > 3 * max(new["mmd"], 0.0),
    ),
    Claim(
        "the same with the weight that the WAE code, which the experiments follow, gives the MMD",
        "VIMAE, sec. 5, whose lambda of 10 is 200 if that code's 0.05 before the squared error is meant",
        "MMD² to the prior less than a third",
        (
            Run("vimae-n/mnist-2d", 50_000, _FLAT | {"lam": 200.0}, variant=", lam 200"),
            Run("vae/mnist-2d", 50_000, _FLAT),
        ),
        {"mmd": "MMD² to the prior"},
        lambda new, old: old["mmd"] > 3 * max(new["mmd"], 0.0),
    ),
    Claim(
        "with a PixelCNN decoder mmd-vae keeps the information in its code, vae loses it",
        "InfoVAE, sec. 4.2 and app. B.2",
        "I(x; z) > 2 nats, that of vae < 1",
        (
            Run("mmd-vae/mnist-pixelcnn", 10_000, _PIXELCNN, half=True),
            Run("vae/mnist-pixelcnn", 10_000, _PIXELCNN, half=True),
        ),
        {"information": "I(x; z), nats", "kl_z": "KL(z), nats"},
        lambda new, old: new["information"] > 2 and old["information"] < 1,
    ),
)


def measure(model: Any, test: data.Split) -> Values:
    """What the claims are about, on the test set."""
    values = evaluation.summary(model, test.images)
    if isinstance(model, JointAutoencoder):
        found = labels.categories(model, test)
        values |= {"accuracy": found["accuracy"], "kl_c": found["kl"]}
    elif isinstance(model, GaussianAutoencoder):
        values["information"] = mutual_information(model, test.images)["information"]
        values |= rate(model, test.images)
    return values


def _images(run: Run, config: dict[str, Any]) -> data.ImageData:
    """The data of a run: the first `run.images` training images, halved and binarised as it says."""
    whole = data.load(config["data"], config.get("data_dir"))
    splits = {}
    for part in ("train", "validation", "test"):
        split = getattr(whole, part)
        n = run.images if part == "train" else len(split)
        images = split.images[:n]
        if run.half:
            images = torch.nn.functional.avg_pool2d(data.pixels(images), 2)
        if config["binarize"]:
            images = Binarized(images, fixed=part != "train")
        splits[part] = data.Split(images, split.labels[:n])
    return replace(whole, **splits)


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Train and measure a run, or take what its finished folder holds."""
    torch.set_num_threads(1)
    base = {"width": 1.0, "precision": "32", "devices": 1, "seed": 0}
    config = runs.preset(run.preset) | base | run.changes
    settings = {**config, "images": run.images, "half": run.half}
    done = folder / VALUES
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        if found["settings"] != settings:
            raise runs.RunError(f"{folder} has other settings: give another --output")
        return found
    images = _images(run, config)
    torch.manual_seed(config["seed"])
    model = runs.build_model(config, images.shape)
    config = runs.complete(config, model)
    resume = (folder / CHECKPOINT).is_file()
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        runs.write_config(folder, config)
    start = time.perf_counter()
    runs.train(folder, config, model, images, resume=resume)
    seconds = time.perf_counter() - start
    found = {
        "settings": settings,
        "config": config,
        "seconds": seconds,
        "values": measure(model, images.test),
    }
    files.write(done, (json.dumps(found, indent=2) + "\n").encode())
    return found


_UNTOLD = ("preset", "model", "data", "devices", "precision", "seed")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(claim: Claim, found: list[dict[str, Any]]) -> str:
    """The claim, its two runs in a table, and whether it holds."""
    new, old = (result["values"] for result in found)
    lines = [
        f"### {claim.text}",
        "",
        f"{claim.source}. Expected: {claim.expected}. "
        f"**{'Holds' if claim.holds(new, old) else 'Does not hold'}.**",
        "",
        "| run | " + " | ".join(claim.measures.values()) + " | training |",
        "|---|" + "---:|" * (len(claim.measures) + 1),
    ]
    for run, result in zip(claim.runs, found, strict=True):
        cells = [f"{result['values'][key]:.4g}" for key in claim.measures]
        lines.append(f"| `{run.name}` | {' | '.join(cells)} | {result['seconds']:.0f} s |")
    lines.append("")
    for run, result in zip(claim.runs, found, strict=True):
        given = [f"{k} {_short(v)}" for k, v in result["config"].items() if k not in _UNTOLD]
        lines.append(f"- `{run.name}`: {', '.join(given)}")
    settings = found[0]["settings"]
    lines += [
        "",
        f"Scaled down: {settings['epochs']} epochs of {settings['images']} images, width "
        f"{settings['width']:g}{', images of half the height and width' if settings['half'] else ''}"
        f"; the preset has {runs.preset(claim.runs[0].preset)['epochs']} epochs of all training "
        "images at width 1.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    numbers = range(1, len(CLAIMS) + 1)
    add("--only", type=int, choices=numbers, metavar="N", help=f"one claim, 1 to {len(CLAIMS)}")
    add("--output", type=Path, default=Path("runs/claims"), help="folder of the runs (runs/claims)")
    add("--write", type=Path, metavar="FILE", help="write the tables there, as Markdown")
    add("--data", default="mnist", help="another data set of the package (mnist)")
    add("--images", type=int, help="number of training images, instead of the claim's")
    add("--epochs", type=int, help="instead of the claim's")
    add("--jobs", type=int, default=2, help="processes of one thread each (2)")
    options = parser.parse_args(arguments)
    changes: dict[str, Any] = {"data": options.data}
    if options.epochs is not None:
        changes["epochs"] = options.epochs
    chosen = []
    for claim in CLAIMS if options.only is None else [CLAIMS[options.only - 1]]:
        first, second = (
            replace(run, changes=run.changes | changes, images=options.images or run.images)
            for run in claim.runs
        )
        chosen.append(replace(claim, runs=(first, second)))
    # The long ones, which are last, first.
    named = {run.name: run for claim in reversed(chosen) for run in claim.runs}
    todo = list(named.values())
    folders = [options.output / re.sub(r"\W+", "-", name) for name in named]
    if options.jobs > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            found = list(pool.map(train, todo, folders))
    else:
        found = [train(run, folder) for run, folder in zip(todo, folders, strict=True)]
    by_name = dict(zip(named, found, strict=True))
    parts = [report(claim, [by_name[run.name] for run in claim.runs]) for claim in chosen]
    text = (
        f"# The papers' claims on {options.data}, at a small scale\n\n"
        f"From `python -m benchmarks.claims`: one run each with seed 0, measured on the test set.\n"
        f"{machine()}; the runs by {options.jobs} processes of one thread. Training is wall time, with\n"
        "whatever else the machine was doing.\n\n" + "\n\n".join(parts) + "\n"
    )
    if options.write is not None:
        files.write(options.write, text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
