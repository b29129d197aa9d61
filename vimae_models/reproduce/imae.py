"""The targets of IMAE: four systems with codes (z, y), over a range of weights."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from .. import evaluation, runs
from .report import Page
from .target import Results, Target, Trained, Values, config

METHODS = ("imae", "hybrid-infovae", "joint-vae", "hybrid-beta-vae")


class Sweep(Target):
    """The four systems over a range of weights, and joint-vae with other capacities.

    Attributes:
        data: name of the data set in the presets.
        swept: the weights, by scale.
        capacities: ends (C_y, C_z) of joint-vae in nats, by scale; the first are those of the
            comparison with the other systems.
    """

    data: ClassVar[str]
    swept: ClassVar[dict[str, tuple[float, ...]]]
    capacities: ClassVar[dict[str, tuple[tuple[float, float], ...]]]
    changes: ClassVar[dict[str, dict[str, Any]]]
    # Steps in which the capacities of joint-vae rise; None is the default, 25,000.
    rise: ClassVar[dict[str, int | None]]

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

    def label(self, method: str, value: float, ends: tuple[float, float] | None = None) -> str:
        """Of a point of the sweep; `ends` are capacities other than those of the comparison."""
        capacities = "" if ends is None else f" to ({ends[0]:.2g}, {ends[1]:.2g}) nats"
        swept = next(iter(self.weights(method, value)))
        return f"{method}{capacities}, {swept} {value:g}"

    def weights(self, method: str, value: float) -> dict[str, float]:
        """The hyperparameters of a point of the sweep, first the one that is swept."""
        return {"beta": value}

    def measure(self, trained: Trained) -> Values:
        return evaluation.summary(trained.model, trained.data.test.images[:10_000])

    def report(self, page: Page, results: Results, scale: str) -> None:
        pass


def _ends(ends: tuple[float, float]) -> dict[str, float]:
    return {"capacity_y": ends[0], "capacity_z": ends[1]}


_LOG_3, _LOG_10 = math.log(3), math.log(10)


class FashionMNIST(Sweep):
    """Fashion-MNIST over beta."""

    name = "imae-fashion"
    title = "IMAE: categories of Fashion-MNIST over a range of beta"
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


class MNIST(Sweep):
    """MNIST over beta, and what y and z stand for."""

    name = "imae-mnist"
    title = "IMAE: categories and style of MNIST over a range of beta"
    source = "IMAE, secs. 4.1 and 4.2.1, figures 2, 3, 4 and 8"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 10}
    data = "mnist"
    swept: ClassVar = {
        "smoke": (1.0, 5.0),
        "small": (1.0, 5.0, 9.0),
        "paper": tuple(float(beta) for beta in range(1, 11)),
    }
    # The paper sweeps these too (figure 8) and prints no values; one is changed at a time.
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


class DSprites(Sweep):
    """Disentanglement on dSprites over beta, or over gamma = 2 beta of imae."""

    name = "imae-dsprites"
    title = "IMAE: disentanglement on dSprites"
    source = "IMAE, sec. 4.2.2, apps. E and F, figures 5, 7 and 8"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 8}
    data = "dsprites"
    swept: ClassVar = {
        "smoke": (1.0, 10.0),
        "small": (1.0, 4.0, 10.0),
        "paper": tuple(float(weight) for weight in range(1, 11)),
    }
    # The capacity of z in the middle is that of Burgess et al. (2018) on dSprites; the paper prints
    # none.
    capacities: ClassVar = {
        "smoke": ((_LOG_3, 25.0), (_LOG_3, 10.0)),
        "small": ((_LOG_3, 25.0), (_LOG_3, 10.0)),
        "paper": ((_LOG_3, 25.0), (_LOG_3, 10.0), (_LOG_3, 40.0)),
    }
    changes: ClassVar = {
        "smoke": {"epochs": 1, "width": 0.02, "images": 400},
        "small": {"epochs": 2, "images": 80_000, "width": 0.125},
        "paper": {},
    }
    rise: ClassVar = {"smoke": 2, "small": 700, "paper": 160_000}

    def weights(self, method: str, value: float) -> dict[str, float]:
        if method == "imae":
            return {"gamma": value, "beta": value / 2}
        return super().weights(method, value)
