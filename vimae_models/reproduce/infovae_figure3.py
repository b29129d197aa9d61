"""Figure 3 of InfoVAE: five regularisers against the dimension of the code."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.ticker import FixedLocator, NullLocator

from .. import runs
from ..data import ImageData, Split
from ..metrics import images, information, labels, latent
from .infovae import (
    NAMES,
    draw_curve,
    draw_images,
    images_trained_on,
    log_likelihood,
    margin,
    shared_classifier,
)
from .report import Page
from .statistics import difference, mean_and_spread
from .target import Results, Target, Trained, Values, config


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
        shared_classifier(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, data = trained.model, trained.data
        everything, test, n = data.train.images, data.test, 10_000
        likely, samples = 2000, 1000
        if (part := images_trained_on(trained)) is not None:
            n, likely, samples = part // 10, part // 100, 200
            test = Split(test.images[:n], test.labels[:n])
        known = shared_classifier(data, trained.shared)
        svm = labels.svm_accuracy(model, replace(data, test=test), trained.seed)
        return {
            "mmd": latent.mmd(model, everything, trained.seed),
            "log_det": latent.log_det_covariance(model, everything, trained.seed),
            "cross_entropy": images.class_cross_entropy(
                known, draw_images(model, n, seed=trained.seed), data.train.labels
            ),
            "svm_error": 1 - svm["clean"],
            "information": information.mutual_information(model, test.images)["information"],
            **log_likelihood(model, test.images[:likely], samples),
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
                    draw_curve(axis, dimensions, values, f"C{i}", shown)
                axis.set(title=f"({panel}) {title}", xlabel="latent dimension", xscale="log")
                axis.xaxis.set_major_locator(FixedLocator(dimensions))
                axis.xaxis.set_minor_locator(NullLocator())
                axis.xaxis.set_major_formatter("{x:.0f}")
            for i, name in enumerate(NAMES):
                own = results.of(_label(name, middle))
                steps = own[0].values["history"]["step"]
                found = [run.values["history"]["mmd"] for run in own]
                draw_curve(during, steps, list(zip(*found, strict=True)), f"C{i}")
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
    gap = margin(errors, 0.85)
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


def _label(name: str, d: int) -> str:
    return f"{name}, d = {d}"
