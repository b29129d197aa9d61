"""The sweeps of IMAE, four systems with codes (z, y) over a range of weights, and how they are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .. import evaluation, runs
from ..metrics import information, latent
from . import imae_figures
from .imae_figures import Curve
from .report import Page
from .statistics import Difference, all_hold, mean_and_spread
from .target import Results, Target, Trained, Values, config

METHODS = ("imae", "hybrid-infovae", "joint-vae", "hybrid-beta-vae")
OTHERS = METHODS[1:]
_IMAGES = 10_000  # that the estimates are made of

Ends = tuple[float, float]


class Sweep(Target):
    """The four systems over a range of weights, and joint-vae with other capacities.

    Attributes:
        data: name of the data set in the presets.
        swept: the weights, by scale.
        capacities: ends (C_y, C_z) of joint-vae in nats, by scale; the first are those of the
            comparison with the other systems.
        changes: of the presets, by scale.
        rise: steps in which the capacities of joint-vae rise, by scale; None is the default.
        axis: what is swept.
    """

    data: ClassVar[str]
    swept: ClassVar[dict[str, tuple[float, ...]]]
    capacities: ClassVar[dict[str, tuple[Ends, ...]]]
    changes: ClassVar[dict[str, dict[str, Any]]]
    rise: ClassVar[dict[str, int | None]]
    axis: ClassVar[str] = "β"
    varied = ("beta", "gamma")

    def configs(self, scale: str) -> dict[str, runs.Config]:
        found = {}
        usual, *others = self.capacities[scale]
        for value in self.swept[scale]:
            for method in METHODS:
                changes = self.weights(method, value) | self.changes[scale]
                if method == "joint-vae":
                    changes |= {"steps": self.rise[scale]} | _ends(usual)
                found[self.label(method, value)] = config(f"{method}/{self.data}", **changes)
                if method == "joint-vae":
                    for ends in others:
                        found[self.label(method, value, ends)] = config(
                            f"{method}/{self.data}", **changes | _ends(ends)
                        )
        return found

    def weights(self, method: str, value: float) -> dict[str, float]:
        """The hyperparameters of a point of the sweep, first the one that is swept."""
        return {"beta": value}

    def label(self, method: str, value: float, ends: Ends | None = None) -> str:
        """Of a point of the sweep; `ends` are capacities other than those of the comparison."""
        capacities = "" if ends is None else f" to {_nats(ends)}"
        swept = next(iter(self.weights(method, value)))
        return f"{method}{capacities}, {swept} {value:g}"

    def scaled(self, scale: str) -> list[str]:
        if scale == "paper":
            return []
        told = ", ".join(f"{value:g}" for value in self.swept[scale])
        return [
            f"{self.axis} is one of {told}; at the scale of the paper {len(self.swept['paper'])} values.",
            f"The paper has {self.seeds['paper']} seeds of each.",
            f"The capacities of joint-vae rise over {self.rise[scale]} steps, the share of the training "
            "that its 25,000 steps are of 100 epochs of MNIST.",
        ]

    def measure(self, trained: Trained) -> Values:
        model, images = trained.model, trained.data.test.images[: sample_size(trained)]
        of_z = information.coordinates(model, images)
        return {
            **evaluation.summary(model, images),
            "rate": latent.rate(model, images),
            "coordinates": of_z,
            "information": sum(of_z["information"]),
            "total_correlation": latent.total_correlation(model, images),
        }

    def curve(
        self, results: Results, scale: str, method: str, *path: str, ends: Ends | None = None
    ) -> Curve:
        """A measure of a system over the sweep."""
        return {
            value: results.values(self.label(method, value, ends), *path)
            for value in self.swept[scale]
        }

    def curves(self, results: Results, scale: str, *path: str) -> dict[str, Curve]:
        """A measure of every system over the sweep."""
        return {method: self.curve(results, scale, method, *path) for method in METHODS}

    def table(self, page: Page, title: str, curves: Mapping[str, Curve], digits: int) -> None:
        """A measure, a row for every system and a column for every weight."""
        weights = list(next(iter(curves.values())))
        page.table(
            title,
            [self.axis, *(f"{weight:g}" for weight in weights)],
            [
                [name, *(mean_and_spread(values, digits) for values in curve.values())]
                for name, curve in curves.items()
            ],
        )

    def others(self, page: Page, results: Results, scale: str, panels: Mapping[str, Any]) -> None:
        """Figure 8: joint-vae with every pair of ends; a panel for every path of a measure."""
        usual, *others = self.capacities[scale]
        with page.figure(
            "capacities",
            f"Figure 8: joint-vae with different ends (C_y, C_z) of its capacities, in nats, which "
            f"the paper does not print. {imae_figures.bands()}",
            1,
            len(panels),
            (7.0, 2.5),
        ) as axes:
            for axis, (title, path) in zip(axes, panels.items(), strict=True):
                for i, ends in enumerate((usual, *others)):
                    other = None if i == 0 else ends
                    curve = self.curve(results, scale, "joint-vae", *path, ends=other)
                    imae_figures.band(axis, curve, _nats(ends), f"C{i + 4}")
                axis.set(title=title, xlabel="β", xticks=list(curve))
            imae_figures.legend(axes[0])


def sample_size(trained: Trained) -> int:
    """Images to measure a run on: no more than it has seen, so that a smoke run stays short."""
    return int(min(_IMAGES, trained.config.get("images", _IMAGES)))


def _ends(ends: Ends) -> dict[str, float]:
    return {"capacity_y": ends[0], "capacity_z": ends[1]}


def _nats(ends: Ends) -> str:
    return f"({ends[0]:.2g}, {ends[1]:.2g}) nats"


def claim(
    page: Page,
    text: str,
    source: str,
    gaps: Mapping[str, Difference],
    threshold: float = 0.0,
) -> None:
    """A claim that is borne out if every one of the differences is above the threshold."""
    told = (f"{name}: {g.mean:+.3g} ({g.low:+.3g}, {g.high:+.3g})" for name, g in gaps.items())
    page.claim(
        text,
        source,
        all_hold(gap.above(threshold) for gap in gaps.values()),
        "difference (95 % one-sided bounds): " + "; ".join(told),
    )


def times(factor: float, values: Sequence[float]) -> list[float]:
    return [factor * value for value in values]


def rank_claim(
    page: Page, text: str, source: str, x: Sequence[float], y: Sequence[float], sign: int
) -> None:
    """A claim that y rises (sign 1) or falls (-1) with x, by Spearman's test at 95 %."""
    from scipy.stats import spearmanr

    found = spearmanr(x, y)
    rho, p = float(found.statistic) * sign, float(found.pvalue) / 2
    holds = None if not p < 0.05 else rho > 0
    page.claim(
        text, source, holds, f"rank correlation {sign * rho:+.2f} over {len(x)} runs (p = {p:.2g})"
    )
