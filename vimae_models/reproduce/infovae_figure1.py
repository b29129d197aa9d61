"""Figure 1 of InfoVAE: what a PixelCNN decoder leaves of the code."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from .. import figures, runs
from ..data import ImageData
from ..metrics import images, information, latent
from .infovae import NAMES, draw_curve, draw_images, images_trained_on, margin, shared_classifier
from .report import Page
from .statistics import difference, mean_and_spread
from .target import Results, Target, Trained, Values, config


class Figure1(Target):
    """Whether a decoder that can do without the code leaves it anything to say."""

    name = "infovae-figure1"
    title = "InfoVAE: mutual information and samples with a PixelCNN decoder"
    source = "InfoVAE, figure 1, sec. 3.1 and app. B.2"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    systems = ("vae", "ae", "mmd-vae")
    # Of the Markov chain, from an image drawn from p(z) p(x|z).
    steps = 5

    # The smaller an image is, the more of it such a decoder can model without a code.
    sizes: ClassVar[dict[str, tuple[int | None, ...]]] = {
        "smoke": (None,),
        "small": (14, 7),
        "paper": (None,),
    }

    def configs(self, scale: str) -> dict[str, runs.Config]:
        small = {"batch_size": 50, "lr": 2e-3}
        at: dict[tuple[str, int | None], dict[str, Any]] = {
            ("smoke", None): {"data": "digits", "epochs": 2, "width": 0.1, "images": 200},
            ("small", 14): {**small, "images": 5000, "epochs": 6, "width": 0.25},
            ("small", 7): {**small, "images": 8000, "epochs": 5, "width": 0.5},
            ("paper", None): {},
        }
        return {
            _sized(name, size): config(f"{name}/mnist-pixelcnn", **at[scale, size], image_size=size)
            for size in self.sizes[scale]
            for name in self.systems
        }

    def scaled(self, scale: str) -> list[str]:
        if scale != "small":
            return []
        return [
            "The claim is about a decoder that can do without a code, and what a PixelCNN becomes in a minute "
            "on one core is far from that on images of 28x28. It is tried on images of 14x14 and, where the "
            "decoder is stronger beside the images, of 7x7; the latter were added after it had been seen that the "
            "decoder does not do without a code on the former.",
            "The quality of samples is measured on 64 of every kind.",
        ]

    def prepare(self, folder: Path, data: ImageData) -> None:
        shared_classifier(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, data = trained.model, trained.data
        known = shared_classifier(data, trained.shared)
        part = images_trained_on(trained)
        n = 1000 if part is None else min(64, part // 10)
        real = data.test.images if part is None else data.test.images[: part // 2]
        distance = {}
        for kind, steps in (("ancestral", 0), ("chain", self.steps)):
            samples = draw_images(model, n, steps, trained.seed)
            np.save(trained.folder / f"{kind}.npy", samples[:64].numpy())
            distance[kind] = images.classifier_distance(known, real, samples)
        every = {
            "step": "step",
            "information": "validation/mutual_information",
            "reconstruction": "train/reconstruction",
        }
        return {
            **information.mutual_information(model, data.test.images, trained.seed),
            **latent.rate(model, data.test.images),
            "reconstruction": trained.history[-1]["validation/reconstruction"],
            "distance": distance,
            "history": {
                name: [row[column] for row in trained.history] for name, column in every.items()
            },
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        for size in self.sizes[scale]:
            self._report_of(page, results, size)
        page.text("The paper shows this as curves and pictures, and prints no figures.")
        for size in self.sizes[scale]:
            _claims_of_figure1(page, results, size)

    def _report_of(self, page: Page, results: Results, size: int | None) -> None:
        names = {name: _sized(name, size) for name in self.systems}
        shape = results.first(names["vae"]).data.shape
        of = "" if size is None else f" of images of {size}x{size}"
        with page.figure(
            "figure1" if size is None else f"figure1-{size}x{size}",
            f"As figure 1 of the paper{of}, with a row for MMD. Left: ancestral samples, z from the prior. "
            f"Middle: samples of the Markov chain x' ~ p(x|z), z ~ q(z|x) after {self.steps} steps. Right: I(x; z) of "
            "2000 validation images (log 2000 = 7.6 is the most that this estimate can be) and the "
            "reconstruction loss of the training images per pixel; mean and range over seeds.",
            3,
            3,
            (7.2, 6.6),
        ) as axes:
            right = []
            for row, name in zip(axes, self.systems, strict=True):
                run = results.first(names[name])
                for axis, kind in zip(row, ("ancestral", "chain"), strict=False):
                    samples = torch.from_numpy(np.load(run.folder / f"{kind}.npy"))
                    figures.show(axis, samples / 255, 8)
                row[0].text(-0.06, 0.5, NAMES[name], transform=row[0].transAxes, rotation=90,
                            ha="right", va="center")  # fmt: skip
                right.append(row[2].twinx())
                steps = run.values["history"]["step"]
                for axis, measure, factor, color in (
                    (row[2], "information", 1.0, "C0"),
                    (right[-1], "reconstruction", 1 / math.prod(shape), "C1"),
                ):
                    found = [
                        [factor * value for value in r.values["history"][measure]]
                        for r in results.of(names[name])
                    ]
                    draw_curve(axis, steps, list(zip(*found, strict=True)), color)
                    axis.tick_params(axis="y", colors=color)
                row[2].set_ylabel("I(x; z), nats", color="C0")
                right[-1].set_ylabel("nats per pixel", color="C1")
                right[-1].spines["right"].set_visible(True)
                row[2].set_xlim(left=0)
            axes[0, 0].set_title("ancestral samples")
            axes[0, 1].set_title("Markov chain samples")
            axes[0, 2].set_title("information and loss")
            axes[-1, 2].set_xlabel("iterations")
            most = max(
                max(run.values["history"]["information"])
                for name in names.values()
                for run in results.of(name)
            )
            for axis in axes[:, 2]:
                axis.set_ylim(-0.05, 1.1 * max(most, 1.0))
            limits = [axis.get_ylim() for axis in right]
            for axis in right:
                axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        bound = results.first(names["vae"]).values["bound"]
        page.table(
            f"Codes and samples{of}: I(x; z) of the test images (at most log M = {bound:.2f}) and rate "
            "KL(q(z|x) || p(z)), nats; "
            "reconstruction loss of the validation images at the mean code, nats; Fréchet distance of the "
            "samples to test images in the features of a classifier",
            ["", "I(x; z)", "rate", "loss", "distance, ancestral", "distance, chain"],
            [
                [
                    NAMES[name],
                    *(
                        mean_and_spread(results.values(names[name], *measure.split("/")), 2)
                        for measure in (
                            "information",
                            "kl_z",
                            "reconstruction",
                            "distance/ancestral",
                            "distance/chain",
                        )
                    ),
                ]
                for name in self.systems
            ],
        )


def _claims_of_figure1(page: Page, results: Results, size: int | None) -> None:
    names = {name: _sized(name, size) for name in Figure1.systems}
    where = "" if size is None else f", {size}x{size}"
    known = {name: results.values(names[name], "information") for name in Figure1.systems}
    first, last = (
        statistics.fmean(
            run.values["history"]["information"][i] for run in results.of(names["vae"])
        )
        for i in (0, -1)
    )
    under = margin(known["vae"], 1.0, below=True)
    page.claim(
        f"the ELBO leaves the code unused (I(x; z) < 1 nat{where})",
        "figure 1, top right",
        under.above(),
        f"1 minus I(x; z): {under}; on validation images it went from {first:.3g} after the first epoch to "
        f"{last:.3g} after the last",
    )
    for name, source in (("ae", "figure 1, bottom right"), ("mmd-vae", "sec. 4, proposition 2")):
        over = margin(known[name], 2.0)
        page.claim(
            f"{name} keeps the information in the code (I(x; z) > 2 nats{where})",
            source,
            over.above(),
            f"I(x; z) minus 2: {over}",
        )
    at = {
        (name, kind): results.values(names[name], "distance", kind)
        for name in Figure1.systems
        for kind in ("ancestral", "chain")
    }

    def times(factor: float, key: tuple[str, str]) -> list[float]:
        return [factor * value for value in at[key]]

    worse = difference(at["ae", "ancestral"], times(2, ("ae", "chain")))
    page.claim(
        "ancestral samples of ae make no sense (more than twice as far from the data as those of its "
        f"chain{where})",
        "figure 1, bottom left",
        worse.above(),
        f"distance of ancestral samples minus twice that of the chain's: {worse}",
    )
    for title, source, near, far in (
        ("the chain of ae gives samples of the quality of the ELBO's ancestral ones",
         "figure 1, bottom middle", ("vae", "ancestral"), ("ae", "chain")),
        ("of the ELBO, the chain and ancestral sampling give the same quality", "figure 1, top",
         ("vae", "ancestral"), ("vae", "chain")),
        ("ancestral samples of mmd-vae have the quality of the ELBO's", "sec. 4, proposition 2",
         ("vae", "ancestral"), ("mmd-vae", "ancestral")),
    ):  # fmt: skip
        gap = difference(times(1.5, near), at[far])
        page.claim(
            f"{title} (distance to the data at most 1.5 times as large{where})",
            source,
            gap.above(),
            f"1.5 times the distance of the ELBO's samples minus that of the others: {gap}",
        )


def _sized(name: str, size: int | None) -> str:
    return name if size is None else f"{name}, {size}x{size}"
