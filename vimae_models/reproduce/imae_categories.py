"""The targets of IMAE about categories, on MNIST and Fashion-MNIST."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch

from .. import figures
from ..joint import JointAutoencoder
from ..metrics import labels
from . import imae_figures
from .imae import METHODS, OTHERS, Sweep, claim, rank_claim, times
from .imae_figures import Curve
from .report import Page
from .statistics import Difference, confidence_interval, difference
from .target import Results, Trained, Values

_LOG_10 = math.log(10)
_MOVED = 100  # images whose latents are moved


def _mean(curve: Curve) -> list[float]:
    """The mean over the weights, for every seed."""
    return [statistics.fmean(values) for values in zip(*curve.values(), strict=True)]


def _worst(curve: Curve) -> list[float]:
    """The values at the weight whose mean is lowest."""
    return min(curve.values(), key=statistics.fmean)


class _Categories(Sweep):
    """Sets of ten classes, and ten categories to find them with."""

    # The class whose category is moved along its angle; None is none.
    turned: ClassVar[int | None] = None
    figure4: ClassVar[str]

    def measure(self, trained: Trained) -> Values:
        model, test = trained.model, trained.data.test
        assert isinstance(model, JointAutoencoder)
        return {
            **super().measure(trained),
            "categories": labels.categories(model, test),
            "classes": labels.digits_per_category(model, test).tolist(),
            "movement": imae_figures.movement(model, test.images[:_MOVED]),
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        page.text(
            "The paper shows these results as curves and pictures alone; there are no numbers of its "
            "own to print beside ours."
        )
        accuracy = self.curves(results, scale, "categories", "accuracy")
        of_y = self.curves(results, scale, "categories", "information")
        error = self.curves(results, scale, "reconstruction")
        of_z = self.curves(results, scale, "information")
        self.table(
            page,
            "Unsupervised accuracy of y, %: every category gets a class of its own (the Hungarian "
            "algorithm)",
            {
                name: {weight: times(100, values) for weight, values in curve.items()}
                for name, curve in accuracy.items()
            },
            1,
        )
        self.table(page, "I(x; y), nats, at most 2.30", of_y, 2)
        self.table(page, "Reconstruction error -log p(x\\|y, z), nats", error, 1)
        self.table(page, "sum of I(x; z_k), nats", of_z, 2)
        correlation = self.curves(results, scale, "total_correlation")
        self.table(page, "Total correlation of z, nats", correlation, 2)
        self._figure3(page, results, scale, (accuracy, of_y, of_z, error, correlation))
        self._each_latent(page, results, scale)
        self._confusion(page, results, scale)
        self._figure4(page, results, scale)
        self._claims(page, accuracy, of_y, of_z, error)

    def _figure3(
        self, page: Page, results: Results, scale: str, measured: tuple[dict[str, Curve], ...]
    ) -> None:
        accuracy, of_y, of_z, error, correlation = measured
        entropy = self.curves(results, scale, "categories", "entropy")
        panels = (
            ("accuracy of y", accuracy),
            ("I(x; y), nats", of_y),
            ("H(y), nats", entropy),
            ("Σ I(x; $z_k$), nats", of_z),
            ("reconstruction error, nats", error),
            ("total correlation of z, nats", correlation),
        )
        with page.figure(
            "sweep",
            f"Figure 3: the key quantities on the test set over {self.axis}, with γ = 2β of imae. "
            f"{imae_figures.bands()} Dashed: log 10.",
            2,
            3,
            (7.0, 4.4),
        ) as axes:
            for axis, (title, curves) in zip(axes.flat, panels, strict=True):
                imae_figures.panel(axis, curves, title, self.axis)
            axes[0, 0].set_ylim(0, 1)
            for axis in axes[0, 1:]:
                axis.axhline(_LOG_10, color="0.5", ls="--", lw=0.8)
                axis.set_ylim(0, 2.5)
            axes[1, 2].set_ylim(bottom=0)
            imae_figures.legend(axes[0, 0])

    def _each_latent(self, page: Page, results: Results, scale: str) -> None:
        """I(x; z_k) of the most informative latent, the second, ..."""
        with page.figure(
            "latents",
            f"I(x; z_k) of every latent over {self.axis}, sorted in every run and averaged over "
            "seeds: the darkest line is the most informative latent.",
            1,
            len(METHODS),
            (7.0, 2.2),
        ) as axes:
            highest = 0.0
            for axis, method in zip(axes, METHODS, strict=True):
                curve = {}
                for value in self.swept[scale]:
                    found = results.of(self.label(method, value))
                    each = [sorted(r.values["coordinates"]["information"])[::-1] for r in found]
                    curve[value] = [statistics.fmean(k) for k in zip(*each, strict=True)]
                for k, line in enumerate(zip(*curve.values(), strict=True)):
                    axis.plot(
                        list(curve), line, color=imae_figures.shade(k, 10), marker="o", ms=2, lw=1
                    )
                    highest = max(highest, *line)
                axis.set(title=method, xlabel=self.axis, xticks=list(curve))
            for axis in axes:
                axis.set_ylim(-0.05, 1.05 * highest)
            axes[0].set_ylabel("I(x; $z_k$), nats")

    def _confusion(self, page: Page, results: Results, scale: str) -> None:
        """P(y | class), the categories in the order of the classes they are matched to."""
        value = _middle(self.swept[scale])
        with page.figure(
            "classes",
            f"Share of the test images of each class that each system puts into each of its "
            f"categories, {self.axis} = {value:g}, first seed; categories in the order of the classes "
            "they are matched to. White is 0, black is 1.",
            1,
            len(METHODS),
            (7.0, 2.2),
        ) as axes:
            for axis, method in zip(axes, METHODS, strict=True):
                counts = torch.tensor(
                    results.first(self.label(method, value)).values["classes"]
                ).double()
                share = counts[imae_figures.order(counts)] / counts.sum(0)
                axis.imshow(share.T.numpy(), cmap="gray_r", vmin=0, vmax=1)
                axis.set(title=method, xlabel="category", xticks=[], yticks=range(share.shape[1]))
                axis.tick_params(labelsize=6)
            axes[0].set_ylabel("class")

    def _figure4(self, page: Page, results: Results, scale: str) -> None:
        """What the categories look like, and one of them along its angle."""
        shown = _three(self.swept[scale])
        with page.figure(
            "categories",
            self.figure4,
            len(METHODS),
            len(shown),
            (7.0, 3.0 if self.turned is not None else 1.9),
        ) as axes:
            for row, method in zip(axes, METHODS, strict=True):
                for axis, value in zip(row, shown, strict=True):
                    run = results.first(self.label(method, value))
                    images = imae_figures.category_images(run, self.turned)
                    figures.show(axis, images, imae_figures.STEPS)
                row[0].text(-0.02, 0.5, method, transform=row[0].transAxes, ha="right", va="center")
            for axis, value in zip(axes[0], shown, strict=True):
                axis.set_title(f"{self.axis} = {value:g}")

    def _claims(
        self,
        page: Page,
        accuracy: dict[str, Curve],
        of_y: dict[str, Curve],
        of_z: dict[str, Curve],
        error: dict[str, Curve],
    ) -> None:
        source = "sec. 4.2.1, figure 3"
        weights = list(accuracy["imae"])
        first, last = weights[0], weights[-1]
        for other in OTHERS:
            gap = difference(_worst(accuracy["imae"]), _worst(accuracy[other]))
            claim(
                page,
                f"over the whole range of {self.axis} the accuracy of imae stays higher than that of "
                f"{other}: the lowest mean of the one is above that of the other",
                "sec. 4.2.1 (consistently performs well), figure 3",
                {"lowest": gap},
            )
        claim(
            page,
            f"hybrid-beta-vae struggles to learn categories: at every {self.axis} its accuracy is more "
            "than 0.2 below that of imae",
            source,
            self._gaps(accuracy["imae"], accuracy["hybrid-beta-vae"]),
            0.2,
        )
        half = {weight: times(0.5, values) for weight, values in of_y["imae"].items()}
        claim(
            page,
            f"hybrid-beta-vae sacrifices I(x; y): at every {self.axis} less than half of that of imae",
            source,
            self._gaps(half, of_y["hybrid-beta-vae"]),
        )
        claim(
            page,
            "joint-vae performs much better than hybrid-beta-vae: mean accuracy over the range more "
            "than 0.1 higher",
            source,
            {"mean": difference(_mean(accuracy["joint-vae"]), _mean(accuracy["hybrid-beta-vae"]))},
            0.1,
        )
        self._against_infovae(page, accuracy)
        for method, good, poor in (
            ("hybrid-infovae", last, first),
            ("joint-vae", first, last),
        ):
            claim(
                page,
                f"{method} learns better categories with a {'large' if good == last else 'small'} "
                f"{self.axis}: its accuracy at {good:g} is above that at {poor:g}",
                source,
                {
                    f"{good:g} - {poor:g}": difference(
                        accuracy[method][good], accuracy[method][poor]
                    )
                },
            )
        enough = difference(of_y["joint-vae"][last], times(0.75, of_y["imae"][last]))
        lower = difference(accuracy["imae"][last], accuracy["joint-vae"][last])
        claim(
            page,
            f"joint-vae gets stuck where I(x; y) is large and the accuracy is poor: at {self.axis} = "
            f"{last:g} more than 3/4 of the information of imae, and a lower accuracy",
            source,
            {"I(x; y) above 3/4 of imae's": enough, "accuracy below imae's": lower},
        )
        claim(
            page,
            f"with a large {self.axis} hybrid-beta-vae has the poorest decoding quality: at {last:g} "
            "its reconstruction error is above that of each of the others",
            source,
            {
                method: difference(error["hybrid-beta-vae"][last], error[method][last])
                for method in METHODS[:-1]
            },
        )
        claim(
            page,
            f"with a large {self.axis} hybrid-beta-vae has the least informative z: at {last:g} its sum of "
            "I(x; z_k) is below that of each of the others",
            source,
            {
                method: difference(of_z[method][last], of_z["hybrid-beta-vae"][last])
                for method in METHODS[:-1]
            },
        )

    def _against_infovae(self, page: Page, accuracy: dict[str, Curve]) -> None:
        raise NotImplementedError

    def _gaps(self, first: Curve, second: Curve) -> dict[str, Difference]:
        """The differences at every weight."""
        return {f"{self.axis} {w:g}": difference(first[w], second[w]) for w in first}


class FashionMNIST(_Categories):
    """Fashion-MNIST over beta."""

    name = "imae-fashion"
    title = "IMAE: categories of Fashion-MNIST over a range of β"
    source = "IMAE, sec. 4.2.1 and figure 3"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 10}
    data = "fashion_mnist"
    swept: ClassVar = {
        "smoke": (1.0, 5.0),
        "small": (1.0, 3.0, 5.0, 9.0),
        "paper": tuple(float(beta) for beta in range(1, 11)),
    }
    capacities: ClassVar = dict.fromkeys(("smoke", "small", "paper"), ((_LOG_10, 5.0),))
    changes: ClassVar = {
        "smoke": {"data": "digits", "epochs": 1, "width": 0.1, "images": 400},
        "small": {"epochs": 15, "images": 20_000, "width": 0.5},
        "paper": {},
    }
    rise: ClassVar = {"smoke": 2, "small": 1_400, "paper": None}
    figure4 = (
        "What the categories stand for, as in figure 4, first seed: the mean z of the test images of a "
        "category, decoded with that category; in the order of the classes they are matched to."
    )

    def _against_infovae(self, page: Page, accuracy: dict[str, Curve]) -> None:
        claim(
            page,
            "where classes are less distinctive hybrid-infovae struggles: at every β the accuracy of imae is "
            "above its own",
            "sec. 4.2.1, figure 3",
            self._gaps(accuracy["imae"], accuracy["hybrid-infovae"]),
        )
        claim(
            page,
            "where classes are less distinctive imae is much better than hybrid-infovae: accuracy more "
            "than 0.1 higher in the mean over the range",
            "sec. 4.2.1, figure 3",
            {"mean": difference(_mean(accuracy["imae"]), _mean(accuracy["hybrid-infovae"]))},
            0.1,
        )


class MNIST(_Categories):
    """MNIST over beta, and what y and z stand for."""

    name = "imae-mnist"
    title = "IMAE: categories and style of MNIST over a range of β"
    source = "IMAE, secs. 4.1 and 4.2.1, figures 2, 3, 4 and 8"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 10}
    data = "mnist"
    swept: ClassVar = {
        "smoke": (1.0, 5.0),
        "small": (1.0, 5.0, 9.0),
        "paper": tuple(float(beta) for beta in range(1, 11)),
    }
    # The paper varies these too, with the ten seeds of MNIST (figure 8), and prints no values; one is
    # changed at a time.
    capacities: ClassVar = {
        "smoke": ((_LOG_10, 5.0), (1.5, 5.0)),
        "small": ((_LOG_10, 5.0), (1.5, 5.0), (_LOG_10, 20.0)),
        "paper": ((_LOG_10, 5.0), (1.5, 5.0), (_LOG_10, 20.0)),
    }
    changes: ClassVar = {
        "smoke": {"data": "digits", "epochs": 1, "width": 0.1, "images": 400},
        "small": {"epochs": 10, "images": 20_000, "width": 0.5},
        "paper": {},
    }
    rise: ClassVar = {"smoke": 2, "small": 900, "paper": None}
    turned = 6
    figure4 = (
        "Figure 4, first seed. First row of each picture: the mean z of the test images of a category, "
        "decoded with that category, in the order of the digits they are matched to. Second row: the "
        "category of digit 6 with its angle in [-2, 2]: the latent that changes the slant of the "
        "decoded image most."
    )

    def report(self, page: Page, results: Results, scale: str) -> None:
        super().report(page, results, scale)
        self._figure2(page, results, scale)
        self.others(
            page,
            results,
            scale,
            {
                "accuracy of y": ("categories", "accuracy"),
                "I(x; y), nats": ("categories", "information"),
                "reconstruction error, nats": ("reconstruction",),
            },
        )

    def _against_infovae(self, page: Page, accuracy: dict[str, Curve]) -> None:
        last = max(accuracy["imae"])
        claim(
            page,
            "on distinctive classes hybrid-infovae performs well with a large β: no more than 0.1 below "
            "imae at the largest",
            "sec. 4.2.1, figure 3",
            {f"β {last:g}": difference(accuracy["hybrid-infovae"][last], accuracy["imae"][last])},
            -0.1,
        )

    def _figure2(self, page: Page, results: Results, scale: str) -> None:
        own = [run for value in self.swept[scale] for run in results.of(self.label("imae", value))]
        shown = results.first(self.label("imae", _middle(self.swept[scale])))
        imae_figures.proposition(page, shown, self.axis)
        imae_figures.informative(page, shown)
        ranked = sorted(own, key=lambda run: run.values["categories"]["information"])
        imae_figures.members(page, ranked[-1], ranked[0])

        over = [
            of_z["information"][k] - of_z["upper"][k]
            for run in results.trained
            for of_z in [run.values["coordinates"]]
            for k in range(len(of_z["upper"]))
        ]
        page.claim(
            "Proposition 1: I(x; z_k) is at most the bound of eq. 4 (0.05 nats are left to the error of "
            "its estimate), in every latent of every run",
            "eq. 4",
            max(over) <= 0.05,
            f"largest excess {max(over):+.4f} nats over {len(over)} latents",
        )
        source = "sec. 4.1, figure 2 (a)"
        for name, key, sign in (
            ("the means spread", "mean_spread", 1),
            ("the variances are small", "mean_variance", -1),
        ):
            _agreement_claim(
                page,
                f"in imae those latents are informative of which {name}: rank correlation of I(x; z_k) "
                f"with {'Var μ_k' if sign > 0 else '-E σ_k²'} above 0.8",
                source,
                [
                    (
                        run.values["coordinates"]["information"],
                        times(sign, run.values["coordinates"][key]),
                    )
                    for run in own
                ],
            )
        _agreement_claim(
            page,
            "informative latents change images, those without information do not: rank correlation of "
            "I(x; z_k) with the squared change of images from z_k = -2 to 2 above 0.8",
            "sec. 4.1, figure 2 (b) to (d)",
            [(run.values["coordinates"]["information"], run.values["movement"]) for run in own],
        )
        rank_claim(
            page,
            "the more informative y of imae is about the images, the better it matches the classes: "
            "over its runs accuracy rises with I(x; y)",
            "sec. 4.1, figure 2 (e) and (f)",
            [run.values["categories"]["information"] for run in own],
            [run.values["categories"]["accuracy"] for run in own],
            1,
        )


def _agreement_claim(
    page: Page, text: str, source: str, pairs: Iterable[tuple[Sequence[float], Sequence[float]]]
) -> None:
    """A claim that two figures of the latents of a run have the same order, in the mean over runs."""
    from scipy.stats import spearmanr

    found = [float(spearmanr(*pair).statistic) for pair in pairs]
    # Both ends of 90 % leave out 5 % each.
    low, high = confidence_interval(found, 0.9)
    holds = True if low > 0.8 else False if high < 0.8 else None
    page.claim(
        text,
        source,
        holds,
        f"mean {statistics.fmean(found):.2f}, 95 % one-sided bounds {low:.2f} and {high:.2f}, over "
        f"{len(found)} runs",
    )


def _middle(values: Sequence[float]) -> float:
    return values[len(values) // 2]


def _three(values: Sequence[float]) -> list[float]:
    """The first, the middle and the last."""
    return list(dict.fromkeys((values[0], _middle(values), values[-1])))
