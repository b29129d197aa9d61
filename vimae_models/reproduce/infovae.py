"""The targets of InfoVAE."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from .. import figures, runs
from ..autoencoder import Autoencoder
from ..data import ImageData, Images, Split
from ..metrics import classifier, images, information, labels, latent, likelihood
from .report import Page
from .statistics import Difference, difference, mean_and_spread
from .target import Results, Target, Trained, Values, config

# The paper's names of the systems.
NAMES = {
    "vae": "ELBO",
    "mmd-vae": "MMD",
    "stein-vae": "Stein",
    "aae": "adversarial",
    "ae": "unregularised",
}
# Factors on the standard deviations of q(z|x) among which the proposal of importance sampling is chosen.
WIDTHS = tuple(2 ** (k / 2) for k in range(11))
_AT_ONCE = 500


class Table1(Target):
    """The likelihood of test images, by importance sampling, of codes of five dimensions."""

    name = "infovae-table1"
    title = "InfoVAE: likelihood of binarised MNIST"
    source = "InfoVAE, table 1 and sec. 4.2.1 (5)"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    published: ClassVar = {"vae": 82.75, "mmd-vae": 80.76, "stein-vae": 81.47, "aae": 82.21}

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 1, "width": 0.1, "images": 200},
            "small": {
                "image_size": 14,
                "images": 10_000,
                "epochs": 3,
                "width": 0.25,
                "batch_size": 50,
                "lr": 2e-3,
            },
            "paper": {},
        }
        return {name: config(f"{name}/mnist-nll", **at[scale]) for name in self.published}

    def scaled(self, scale: str) -> list[str]:
        if scale != "small":
            return []
        return [
            "The decoder is a PixelCNN, as in the paper, with a quarter of the filters, on images of 14x14: "
            "their likelihoods are not on the scale of the published ones, of 28x28, and only their order can "
            "be compared.",
            "The likelihood is that of 100 test images, the same for all runs, by 400 importance samples each.",
        ]

    def measure(self, trained: Trained) -> Values:
        model, test = trained.model, trained.data.test.images
        part = _part(trained)
        n, samples = (2000, 1000) if part is None else (part // 100, 400)
        return {
            **_likelihood(model, test[:n], samples),
            "information": information.mutual_information(model, test)["information"],
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        page.comparison(
            "Negative log likelihood of test images in nats; the information in their codes, I(x; z) in "
            "nats; effective samples, and by how much the proposal was wider than q(z|x)",
            ("-log p(x)", "I(x; z)", "effective samples", "proposal"),
            {
                NAMES[name]: [
                    results.values(name, measure)
                    for measure in ("nll", "information", "effective_samples", "widen")
                ]
                for name in self.published
            },
            {NAMES[name]: (nll, None, None, None) for name, nll in self.published.items()},
            digits=2,
        )
        warnings = [
            f"- {NAMES[name]}, seed {run.seed}: {run.values['warning']}"
            for name in self.published
            for run in results.of(name)
            if run.values["warning"]
        ]
        if warnings:
            page.text("Of log p(x), so that -log p(x) is too high:\n\n" + "\n".join(warnings))
        with page.figure(
            "likelihood",
            "Negative log likelihood: left every seed of our runs and their mean, right as published.",
            1,
            2,
            (7.0, 2.4),
        ) as (ours, published):
            for i, (name, nll) in enumerate(self.published.items()):
                found = results.values(name, "nll")
                ours.plot([i] * len(found), found, "o", ms=4, color=f"C{i}", alpha=0.6)
                ours.hlines(statistics.fmean(found), i - 0.3, i + 0.3, color=f"C{i}", lw=1.5)
                published.hlines(nll, i - 0.3, i + 0.3, color=f"C{i}", lw=1.5)
            for axis, title in ((ours, "our runs"), (published, "published")):
                axis.set_xticks(
                    range(len(self.published)), [NAMES[name] for name in self.published]
                )
                axis.set(title=title, ylabel="-log p(x), nats")
                axis.margins(x=0.1, y=0.2)
        for other in ("vae", "stein-vae", "aae"):
            page.claim(
                f"the negative log likelihood of mmd-vae is below that of {other}",
                "table 1",
                *_less_likely(results, "mmd-vae", other),
            )
        for name in ("mmd-vae", "stein-vae", "aae"):
            page.claim(
                f"{name} is on par with the ELBO or better: its negative log likelihood is at most 2 % "
                "higher",
                "sec. 4.2.1 (5)",
                *_less_likely(results, name, "vae", slack=1.02),
            )


def _less_likely(
    results: Results, name: str, other: str, slack: float = 1.0
) -> tuple[bool | None, str]:
    """Whether the negative log likelihood of `name` is below `slack` times that of `other`."""
    ours, theirs = results.values(name, "nll"), results.values(other, "nll")
    gap = difference([slack * value for value in theirs], ours)
    holds = gap.above()
    times = "" if slack == 1 else f"{slack:g} times "
    evidence = f"{times}that of {other} minus that of {name}: {gap} nats"
    # With few effective samples an estimate is too high: such a system has not lost for certain.
    loser = other if holds else name
    if holds is not None and any(run.values["warning"] for run in results.of(loser)):
        return None, f"{evidence}; but that of {loser} is estimated too high"
    return holds, evidence


def _likelihood(model: Autoencoder, test: Images, samples: int) -> Values:
    """-log p(x) by importance sampling from q(z|x), widened by that factor which does best.

    All of the estimates are too low in expectation, so that the highest is the nearest. The factor is
    chosen on the first images.
    """

    def estimate(widen: float) -> float:
        found = likelihood.log_likelihood(model, test[:32], 32, widen=widen)
        return float(found["log_likelihood"])

    widen = max(WIDTHS, key=estimate)
    found = likelihood.log_likelihood(model, test, samples, widen=widen)
    return {"nll": -found.pop("log_likelihood"), **found, "widen": widen}


class Figure3(Target):
    """How well q(z) meets the prior, and what codes are good for, against their dimension."""

    name = "infovae-figure3"
    title = "InfoVAE: five regularisers of binarised MNIST against the dimension of the code"
    source = "InfoVAE, figure 3 and sec. 4.2.1"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    dimensions: ClassVar = {
        "smoke": (2, 5),
        "small": (2, 5, 10, 20, 40),
        "paper": (2, 5, 10, 20, 40),
    }
    # The names of the measures, and the panel of the figure they are in.
    panels: ClassVar = {
        "mmd": ("A", "MMD² to the prior"),
        "log_det": ("B", "log det cov / d, nats"),
        "cross_entropy": ("C", "class cross entropy, nats"),
        "svm_error": ("E", "SVM error, 1000 labels"),
        "nll": ("F", "-log p(x), nats"),
    }

    def configs(self, scale: str) -> dict[str, runs.Config]:
        dense = {"network": "imae", "likelihood": "bernoulli"}
        small = {"image_size": 14, "images": 20_000, "epochs": 10, "width": 0.5, "lr": 2e-3}
        at: dict[str, dict[str, Any]] = {
            "smoke": {**dense, "data": "digits", "epochs": 2, "width": 0.1, "images": 400},
            "small": {**dense, **small},
            "paper": {},
        }
        return {
            _label(name, d): config(f"{name}/mnist-pixelcnn", **at[scale], latent_dim=d)
            for d in self.dimensions[scale]
            for name in NAMES
        }

    def scaled(self, scale: str) -> list[str]:
        if scale != "small":
            return []
        return [
            "The networks are dense (those of IMAE), on images of 14x14. Given z the pixels are independent; the "
            "paper's decoder is a PixelCNN. A decoder that needs the code cannot show what the ELBO does to one "
            "that does not: of that see infovae-figure1.",
            "Measured on: the training images of the run (A, B), 2000 generated images (C), 2000 test images "
            "(E), 200 test images with 200 importance samples (F, which the paper's figure does not have).",
        ]

    def prepare(self, folder: Path, data: ImageData) -> None:
        _judge(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, data = trained.model, trained.data
        everything, test, n = data.train.images, data.test, 10_000
        likely, samples = 2000, 1000
        if (part := _part(trained)) is not None:
            n, likely, samples = part // 10, part // 100, 200
            test = Split(test.images[:n], test.labels[:n])
        known = _judge(data, trained.shared)
        svm = labels.svm_accuracy(model, replace(data, test=test), trained.seed)
        return {
            "mmd": latent.mmd(model, everything, trained.seed),
            "log_det": latent.log_det_covariance(model, everything, trained.seed),
            "cross_entropy": images.class_cross_entropy(
                known, _drawn(model, n, seed=trained.seed), data.train.labels
            ),
            "svm_error": 1 - svm["clean"],
            "information": information.mutual_information(model, test.images)["information"],
            **_likelihood(model, test.images[:likely], samples),
            "history": {
                "step": [row["step"] for row in trained.history],
                "mmd": [row["validation/mmd"] for row in trained.history],
            },
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        dimensions = self.dimensions[scale]
        middle = 10 if 10 in dimensions else dimensions[-1]
        with page.figure(
            "figure3",
            "As figure 3 of the paper, mean and range over seeds. (A) squared MMD between q(z) "
            "and the prior; (B) log determinant of the covariance of q(z) per dimension; (C) cross entropy "
            "of the classes of images drawn from p(z) p(x|z); (D) MMD² on validation images during training, "
            f"d = {middle}; (E) error of an SVM on z; (F) negative log likelihood, beside the paper's "
            "panels. A and D are linear between ±0.001, and logarithmic beyond.",
            2,
            3,
            (7.2, 4.9),
        ) as axes:
            over, during = axes.flat[[0, 1, 2, 4, 5]], axes[1, 0]
            for axis, (measure, (panel, title)) in zip(over, self.panels.items(), strict=True):
                for i, (name, shown) in enumerate(NAMES.items()):
                    values = [results.values(_label(name, d), measure) for d in dimensions]
                    _curve(axis, dimensions, values, f"C{i}", shown)
                axis.set(title=f"({panel}) {title}", xlabel="latent dimension", xscale="log")
                axis.xaxis.set_major_locator(FixedLocator(dimensions))
                axis.xaxis.set_minor_locator(NullLocator())
                axis.xaxis.set_major_formatter("{x:.0f}")
            for i, name in enumerate(NAMES):
                own = results.of(_label(name, middle))
                steps = own[0].values["history"]["step"]
                found = [run.values["history"]["mmd"] for run in own]
                _curve(during, steps, list(zip(*found, strict=True)), f"C{i}")
            during.set(title=f"(D) MMD², d = {middle}", xlabel="iterations")
            for axis in (over[0], during):
                axis.set_yscale("symlog", linthresh=1e-3)
                axis.axhline(0, color="0.7", lw=0.6, zorder=0)
                axis.set_ylim(bottom=min(-1e-3, axis.dataLim.y0))
            over[1].axhline(0, color="0.7", lw=0.6, zorder=0)
            over[2].set_yscale("log")
            over[4].set_yscale("log")
            over[3].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
            axes.flat[0].figure.legend(
                *over[0].get_legend_handles_labels(),
                loc="outside upper center",
                ncols=len(NAMES),
                frameon=False,
            )
        digits = {"mmd": 4, "log_det": 2, "cross_entropy": 3, "svm_error": 3, "nll": 1}
        for measure, (panel, title) in self.panels.items():
            rows = [
                [
                    shown,
                    *(
                        mean_and_spread(results.values(_label(name, d), measure), digits[measure])
                        for d in dimensions
                    ),
                ]
                for name, shown in NAMES.items()
            ]
            page.table(f"({panel}) {title}", ["d", *map(str, dimensions)], rows)
        few = [
            label
            for label in dict.fromkeys(run.label for run in results.trained)
            if any(run.values["warning"] for run in results.of(label))
        ]
        if few:
            page.text(
                "The estimates of -log p(x) have too few effective samples, and are too high, of: "
                f"{'; '.join(few)}."
            )
        _claims_of_figure3(page, results, dimensions, middle)


def _claims_of_figure3(
    page: Page, results: Results, dimensions: Sequence[int], middle: int
) -> None:
    def mean(name: str, measure: str, over: Sequence[int]) -> list[float]:
        """By seed, the mean over dimensions."""
        found = [results.values(_label(name, d), measure) for d in over]
        return [statistics.fmean(values) for values in zip(*found, strict=True)]

    low, high = dimensions[0], dimensions[-1]
    for other in ("stein-vae", "aae"):
        gap = difference(mean(other, "mmd", dimensions), mean("mmd-vae", "mmd", dimensions))
        page.claim(
            f"(A) q(z) of mmd-vae is nearer to the prior than that of {other} (MMD², mean over d)",
            "sec. 4.2.1 (1)",
            gap.above(),
            f"MMD² of {other} minus that of mmd-vae: {gap}",
        )
    for name in ("mmd-vae", "stein-vae"):
        gap = difference(mean(name, "mmd", [high]), mean(name, "mmd", [low]))
        page.claim(
            f"(A) the match of {name} degrades as the dimension grows (MMD², d = {high} above d = {low})",
            "sec. 4.2.1 (1)",
            gap.above(),
            f"MMD² at d = {high} minus that at {low}: {gap}",
        )
    gap = difference(mean("stein-vae", "log_det", [low]), mean("stein-vae", "log_det", [high]))
    page.claim(
        "(B) Stein under-estimates the entropy more and more with the dimension (log det / d falls from "
        f"d = {low} to d = {high})",
        "sec. 4.2.1 (1)",
        gap.above(),
        f"log det / d at d = {low} minus that at {high}: {gap}",
    )
    gap = difference(mean("mmd-vae", "log_det", [high]), mean("stein-vae", "log_det", [high]))
    page.claim(
        f"(B) MMD is more stable than Stein (log det / d of mmd-vae higher at d = {high})",
        "sec. 4.2.1 (1)",
        gap.above(),
        f"log det / d of mmd-vae minus that of stein-vae: {gap}",
    )
    gap = difference(_range(results, "stein-vae", dimensions), _range(results, "aae", dimensions))
    page.claim(
        "(B) adversarial training is consistent across dimensions (log det / d ranges over less than "
        "that of Stein)",
        "sec. 4.2.1 (1)",
        gap.above(),
        f"range over d of stein-vae minus that of aae: {gap}",
    )
    moderate = [d for d in dimensions if d <= middle]
    for other in ("vae", "stein-vae", "aae"):
        gap = difference(
            mean(other, "cross_entropy", moderate), mean("mmd-vae", "cross_entropy", moderate)
        )
        page.claim(
            f"(C) unless the dimension is large, the classes of the samples of mmd-vae are nearer to those of "
            f"the data than those of {other} (cross entropy, mean over d <= {middle})",
            "sec. 4.2.1 (2)",
            gap.above(),
            f"cross entropy of {other} minus that of mmd-vae: {gap}",
        )
    for other in ("mmd-vae", "stein-vae"):
        ours, theirs = (
            [
                statistics.fmean(run.values["history"]["mmd"])
                for run in results.of(_label(name, middle))
            ]
            for name in ("aae", other)
        )
        gap = difference(ours, [2 * value for value in theirs])
        page.claim(
            f"(D) aae takes much longer to converge than {other} (MMD² averaged over training more than "
            f"twice as high, d = {middle})",
            "sec. 4.2.1 (3)",
            gap.above(),
            f"average of aae minus twice that of {other}: {gap}",
        )
    for other in ("mmd-vae", "stein-vae", "aae"):
        gap = difference(mean(other, "svm_error", [low]), mean("ae", "svm_error", [low]))
        page.claim(
            f"(E) at low dimension the codes of ae are better for an SVM than those of {other} (error, "
            f"d = {low})",
            "sec. 4.2.1 (4)",
            gap.above(),
            f"error of {other} minus that of ae: {gap}",
        )
    gap = difference(mean("ae", "svm_error", [high]), mean("mmd-vae", "svm_error", [high]))
    page.claim(
        f"(E) MMD catches up at high dimension (error at d = {high} no more than 0.02 above that of ae)",
        "sec. 4.2.1 (4)",
        gap.above(-0.02),
        f"error of ae minus that of mmd-vae: {gap}",
    )
    errors = mean("vae", "svm_error", dimensions)
    gap = _above(errors, 0.85)
    page.claim(
        "(E) an SVM on the codes of the ELBO is no better than guessing (error above 0.85, mean over d)",
        "sec. 4.2.1 (4)",
        gap.above(),
        f"error minus 0.85: {gap}",
    )


def _range(results: Results, name: str, dimensions: Sequence[int]) -> list[float]:
    """By seed, how far apart the largest and the smallest log det / d are."""
    found = zip(*(results.values(_label(name, d), "log_det") for d in dimensions), strict=True)
    return [max(values) - min(values) for values in found]


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
        _judge(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, data = trained.model, trained.data
        known = _judge(data, trained.shared)
        part = _part(trained)
        n = 1000 if part is None else min(64, part // 10)
        real = data.test.images if part is None else data.test.images[: part // 2]
        distance = {}
        for kind, steps in (("ancestral", 0), ("chain", self.steps)):
            samples = _drawn(model, n, steps, trained.seed)
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
                    _curve(axis, steps, list(zip(*found, strict=True)), color)
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
    under = _above(known["vae"], 1.0, below=True)
    page.claim(
        f"the ELBO leaves the code unused (I(x; z) < 1 nat{where})",
        "figure 1, top right",
        under.above(),
        f"1 minus I(x; z): {under}; on validation images it went from {first:.3g} after the first epoch to "
        f"{last:.3g} after the last",
    )
    for name, source in (("ae", "figure 1, bottom right"), ("mmd-vae", "sec. 4, proposition 2")):
        over = _above(known[name], 2.0)
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


def _above(values: list[float], threshold: float, below: bool = False) -> Difference:
    """How far values are above a number, or below it."""
    constant = [threshold] * len(values)
    return difference(constant, values) if below else difference(values, constant)


def _label(name: str, d: int) -> str:
    return f"{name}, d = {d}"


def _judge(data: ImageData, folder: Path) -> classifier.Classifier:
    """The classifier that the runs on images of a size share, trained on fewer batches if there are few images."""
    steps = min(classifier.STEPS, len(data.train) // 4)
    return classifier.load_or_train(data, folder / f"classifier-{data.shape[1]}.pt", steps=steps)


def _sized(name: str, size: int | None) -> str:
    return name if size is None else f"{name}, {size}x{size}"


def _part(trained: Trained) -> int | None:
    """How many images a run was trained on, if it was a part: then it is judged on few images too."""
    images: int | None = trained.config.get("images")
    return images


@torch.no_grad()
def _drawn(model: Autoencoder, n: int, steps: int = 0, seed: int = 0) -> Tensor:
    """n images x ~ p(x|z), z from the prior and then `steps` times from q(z|x): bytes, on the CPU."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    parts = []
    for start in range(0, n, _AT_ONCE):
        x = model.draw(model.sample_prior(min(_AT_ONCE, n - start), generator), generator)
        for _ in range(steps):
            x = model.draw(model.sample_posterior(x, generator), generator)
        parts.append(images.to_bytes(x))
    return torch.cat(parts)


def _curve(
    axis: Any, at: Sequence[float], values: Sequence[Sequence[float]], color: str, label: str = ""
) -> None:
    """Mean and range over seeds, at each of some points."""
    axis.plot(at, [statistics.fmean(v) for v in values], color=color, lw=1.2, marker="o", ms=2.5,
              label=label or None)  # fmt: skip
    axis.fill_between(
        at, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, lw=0
    )
