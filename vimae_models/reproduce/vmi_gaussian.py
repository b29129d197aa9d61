"""The target of VMI about two informative coordinates."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import densities, encoding, evaluation, figures, runs, vmi
from ..autoencoder import Autoencoder
from ..data import ImageData, Images
from ..vae import GaussianAutoencoder
from .report import Page
from .statistics import difference
from .target import Results, Target, Trained, Values, config
from .vmi import (
    CHANGED,
    agreement,
    decoded,
    impact,
    negated,
    one_of_each,
    percent,
    shared_classifier,
    with_originals,
)

_STEPS = 7  # values from -3 to 3 that a coordinate is given


class Gaussian(Target):
    """Two coordinates of a Gaussian code that carry information, for several weights of it."""

    name = "vmi-gaussian"
    title = "VMI: two informative coordinates of a Gaussian code"
    source = "VMI-VAE, sec. 5.1, figures 2 and 3, and eq. 5"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    # The paper shows several weights and prints none; 0 is the ELBO, 1 that of the preset.
    lambdas = (0.0, 0.1, 1.0, 3.0, 10.0)

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 2, "width": 0.1, "images": 400},
            "small": {"epochs": 12, "images": 40_000, "width": 0.5},
            "paper": {},
        }
        return {_label(lam): config("vmi-vae/mnist", **at[scale], lam=lam) for lam in self.lambdas}

    def prepare(self, folder: Path, data: ImageData) -> None:
        shared_classifier(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, data = trained.model, trained.data
        assert isinstance(model, GaussianAutoencoder)
        images = data.test.images[:CHANGED]
        plane = _plane_changed(model, images)
        judge = shared_classifier(data, trained.shared)
        share, digit = agreement(judge, plane)
        with torch.no_grad():
            parts = [model.posterior(x) for x in encoding.inputs(model, data.test.images)]
        mean, log_var = (torch.cat(part) for part in zip(*parts, strict=True))
        kl = densities.normal_kl(mean, log_var).mean(0)
        return {
            **evaluation.summary(model, data.test.images),
            "kl": {"informative": float(kl[:2].sum()), "other": float(kl[2:].sum())},
            "bound": vmi.information_of_fixed(
                model,
                data,
                trained.config["network"],
                trained.config["width"],
                # Five times all training images.
                steps=5 * len(data.train) // 100,
                informative=2,
            ),
            "impact": impact(plane),
            "impact of z_1": impact(_line_changed(model, images, _STEPS)),
            "largest agreement": float(share.max()),
            "digits": len(digit[share >= 0.9].unique()),
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        page.comparison(
            "Information in (z_1, z_2) and its impact on decoded images, test set; nats where nothing "
            "else is said",
            (
                "lower bound on I(z_1, z_2; x')",
                "KL of (z_1, z_2)",
                "KL of the others",
                "impact of (z_1, z_2), %",
                "impact of z_1, %",
                "-log p(x\\|z)",
            ),
            {
                label: (
                    results.values(label, "bound"),
                    results.values(label, "kl", "informative"),
                    results.values(label, "kl", "other"),
                    percent(results.values(label, "impact")),
                    percent(results.values(label, "impact of z_1")),
                    results.values(label, "reconstruction"),
                )
                for label in map(_label, self.lambdas)
            },
            {},
            digits=2,
        )
        page.text(
            "The bound is that of eq. 5: the model is fixed, and only a network Q is trained, anew, on "
            "images x' that the model draws. It is one on I(z_1, z_2; x'); the KL is an upper bound on "
            "I(z_1, z_2; x) of the images of the data. *Impact* is the share "
            f"of the variance of decoded images that is due to the named coordinates: {CHANGED} test "
            f"images, decoded with each of {_STEPS} values from -3 to 3 of every one of them, the others "
            "being kept. The paper prints no numbers here."
        )
        self._claims(page, results)
        _show_plane(page, results, (_label(0.0), _label(1.0)))
        _show_line(page, results, [_label(lam) for lam in self.lambdas])
        _show_lambdas(page, results, self.lambdas)

    def _claims(self, page: Page, results: Results) -> None:
        vanilla, low, new = _label(0.0), _label(0.1), _label(1.0)
        double = difference(
            results.values(new, "impact"),
            [2 * value for value in results.values(vanilla, "impact")],
        )
        page.claim(
            "with information maximisation (lambda 1) (z_1, z_2) has a strong impact on decoded images, "
            "on the ELBO little: at least twice as much",
            "sec. 5.1 and figure 2",
            double.above(),
            f"impact minus twice that on the ELBO: {double}",
        )
        bound = difference(results.values(new, "bound"), results.values(vanilla, "bound"))
        page.claim(
            "information maximisation (lambda 1) raises the lower bound on I(z_1, z_2; x'), evaluated on "
            "the fixed models",
            "sec. 3.2 and 7, eq. 5",
            bound.above(),
            f"nats {bound}",
        )
        counts = {
            label: [int(count) for count in results.values(label, "digits")]
            for label in (new, vanilla)
        }
        page.claim(
            "there are values of (z_1, z_2) that turn images (at least 90 %) into one digit whatever "
            "they showed, and for another digit too (in every run with lambda 1)",
            "sec. 5.1 and figure 2: digits 1 and 6",
            _of_all([count >= 2 for count in counts[new]]),
            f"numbers of such digits in the runs: {counts[new]}; on the ELBO {counts[vanilla]}",
        )
        more = difference(
            results.values(low, "impact of z_1"), results.values(vanilla, "impact of z_1")
        )
        page.claim(
            "with a small lambda (0.1) the impact of z_1 is that on the ELBO (no more than 0.05 above)",
            "sec. 5.1 and figure 3",
            negated(more.above(0.05)),
            f"impact {more}",
        )
        rises = [
            difference(*(results.values(_label(lam), "impact of z_1") for lam in (high, low)))
            for low, high in zip(self.lambdas[1:], self.lambdas[2:], strict=False)
        ]
        page.claim(
            "the impact of z_1 increases with lambda (from 0.1 to 1, 3 and 10)",
            "sec. 5.1 and figure 3",
            _of_all([rise.above() for rise in rises]),
            "; ".join(map(str, rises)),
        )


def _label(lam: float) -> str:
    return f"lambda {lam:g}"


def _of_all(verdicts: Sequence[bool | None]) -> bool | None:
    """That of a statement which has several parts, or is about several runs."""
    return True if all(verdicts) else False if False in verdicts else None


def _coordinates_changed(model: Autoencoder, images: Images, values: Tensor) -> Tensor:
    """The same of a Gaussian code whose first k coordinates get each of the `values` (V, k)."""
    z = encoding.codes(model, images)
    codes = z[:, None].repeat(1, len(values), 1)
    codes[:, :, : values.shape[1]] = values.to(z)
    return decoded(model, codes)


def _plane_changed(model: Autoencoder, images: Images) -> Tensor:
    """With all pairs of values of (z_1, z_2), z_1 being the slower: (N, steps^2, C, H, W)."""
    values = torch.linspace(-3, 3, _STEPS)
    return _coordinates_changed(model, images, torch.cartesian_prod(values, values))


def _line_changed(model: Autoencoder, images: Images, steps: int) -> Tensor:
    return _coordinates_changed(model, images, torch.linspace(-3, 3, steps)[:, None])


def _show_plane(page: Page, results: Results, names: Sequence[str]) -> None:
    test = results.first(names[0]).data.test
    chosen = one_of_each(test)[[1, 4, 7]]
    with page.figure(
        "plane",
        "Three test images (alone in a row), and what is decoded from their codes with z_1 (rows) and z_2 "
        "(columns) changed from -3 to 3 and all other coordinates kept. Compare figure 2 of the paper.",
        len(names),
        len(chosen),
        (7.0, 5.4),
    ) as axes:
        axes[0, 0].figure.get_layout_engine().set(wspace=0.06)
        for row, name in zip(axes, names, strict=True):
            planes = _plane_changed(results.first(name).model, chosen)
            for axis, image, plane in zip(row, chosen, planes, strict=True):
                alone = torch.zeros_like(plane[:_STEPS])
                alone[_STEPS // 2] = image
                figures.show(axis, torch.cat([alone, plane]), _STEPS)
            axis = row[0]
            axis.text(
                -0.04, 0.45, name, transform=axis.transAxes, rotation=90, ha="right", va="center"
            )


def _show_line(page: Page, results: Results, names: Sequence[str]) -> None:
    steps = 10
    chosen = one_of_each(results.first(names[0]).data.test)[[2, 7]]
    lines = torch.stack([_line_changed(results.first(name).model, chosen, steps) for name in names])
    with page.figure(
        "lambda",
        "Two test images (the columns apart), and what is decoded from their codes with z_1 changed from -3 to "
        "3, for each lambda. Compare figure 3 of the paper.",
        1,
        len(chosen),
        (7.0, 1.6),
    ) as axes:
        for i, axis in enumerate(axes):
            original = chosen[i : i + 1].expand(len(names), -1, -1, -1)
            tiles = with_originals(original, lines[:, i])
            figures.show(axis, tiles, steps + 2)
        axis = axes[0]
        for i, name in enumerate(names):
            height = 1 - (i + 0.5) / len(names)
            axis.text(-0.02, height, name, transform=axis.transAxes, ha="right", va="center")


def _show_lambdas(page: Page, results: Results, lambdas: Sequence[float]) -> None:
    panels: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
        "information in $(z_1, z_2)$, nats": {
            "KL": (("kl", "informative"), "0.5"),
            "lower bound": (("bound",), "C0"),
        },
        "impact on decoded images, %": {
            "$(z_1, z_2)$": (("impact",), "C0"),
            "$z_1$": (("impact of z_1",), "C1"),
        },
        "$-\\log p(x|z)$, nats": {"": (("reconstruction",), "C0")},
    }
    with page.figure(
        "weights",
        "The measures of the table against lambda: means over seeds and standard deviations.",
        1,
        len(panels),
        (7.0, 2.2),
    ) as axes:
        at = range(len(lambdas))
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for label, (path, color) in lines.items():
                factor = 100 if "%" in title else 1
                cells = [
                    [factor * value for value in results.values(_label(lam), *path)]
                    for lam in lambdas
                ]
                means = [statistics.fmean(values) for values in cells]
                spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in cells]
                axis.errorbar(
                    at, means, spread, capsize=2, lw=1.2, marker="o", ms=3, color=color, label=label
                )
            axis.set_xticks(at, [f"{lam:g}" for lam in lambdas])
            axis.set(title=title, xlabel="lambda")
            axis.margins(y=0.15)
            if len(lines) > 1:
                axis.legend(frameon=False)
