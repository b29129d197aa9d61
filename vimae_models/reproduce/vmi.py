"""The targets of VMI (variational mutual information maximisation for VAEs)."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import evaluation, runs
from .report import Page
from .target import Results, Target, Trained, Values, config

# Label, data and whether the information is maximised; a twin has the same first weights.
_JOINT = {
    "MNIST": "vmi-joint-vae/mnist",
    "MNIST, ELBO": "vmi-joint-vae/mnist-elbo",
    "Fashion": "vmi-joint-vae/fashion_mnist",
    "Fashion, ELBO": "vmi-joint-vae/fashion_mnist-elbo",
}
# The paper shows several weights and prints none; 0 is the ELBO.
_LAMBDAS = (0.0, 0.1, 1.0, 3.0, 10.0)


class Joint(Target):
    """A category that carries information, beside its twin on the plain ELBO."""

    name = "vmi-joint"
    title = "VMI: the categorical code with and without information maximisation"
    source = "VMI-VAE, sec. 5.2 and 7, figures 4 to 10"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 2, "width": 0.1, "images": 400},
            "small": {"epochs": 20, "images": 40_000, "width": 0.5},
            "paper": {},
        }
        found = {name: config(preset, **at[scale]) for name, preset in _JOINT.items()}
        if scale == "small":  # shown in pictures alone
            for name in ("Fashion", "Fashion, ELBO"):
                found[name] |= {"epochs": 8}
        return found

    def measure(self, trained: Trained) -> Values:
        test = trained.data.test
        return {
            **evaluation.summary(trained.model, test.images),
            "categories": evaluation.categories(trained.model, test),  # type: ignore[arg-type]
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        pass


class Gaussian(Target):
    """Two coordinates of a Gaussian code that carry information, for several weights of it."""

    name = "vmi-gaussian"
    title = "VMI: two informative coordinates of a Gaussian code"
    source = "VMI-VAE, sec. 5.1, figures 2 and 3, and eq. 5"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 2, "width": 0.1, "images": 400},
            "small": {"epochs": 12, "images": 40_000, "width": 0.5},
            "paper": {},
        }
        return {
            f"lambda {lam:g}": config("vmi-vae/mnist", **at[scale], lam=lam) for lam in _LAMBDAS
        }

    def measure(self, trained: Trained) -> Values:
        return evaluation.summary(trained.model, trained.data.test.images)

    def report(self, page: Page, results: Results, scale: str) -> None:
        pass
