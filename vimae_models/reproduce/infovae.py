"""The targets of InfoVAE."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import runs
from .target import Target, config

# The paper's names of the systems.
NAMES = {
    "vae": "ELBO",
    "mmd-vae": "MMD",
    "stein-vae": "Stein",
    "aae": "adversarial",
    "ae": "unregularised",
}


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

    def configs(self, scale: str) -> dict[str, runs.Config]:
        dense = {"network": "mlp", "likelihood": "bernoulli"}
        at: dict[str, dict[str, Any]] = {
            "smoke": {**dense, "data": "digits", "epochs": 2, "width": 0.1, "images": 400},
            "small": {**dense, "images": 10_000, "epochs": 10, "width": 0.5},
            "paper": {},
        }
        return {
            _label(name, d): config(f"{name}/mnist-pixelcnn", **at[scale], latent_dim=d)
            for d in self.dimensions[scale]
            for name in NAMES
        }


class Figure1(Target):
    """Whether a decoder that can do without the code leaves it anything to say."""

    name = "infovae-figure1"
    title = "InfoVAE: mutual information and samples with a PixelCNN decoder"
    source = "InfoVAE, figure 1, sec. 3.1 and app. B.2"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    systems = ("vae", "ae", "mmd-vae")

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 2, "width": 0.1, "images": 200},
            "small": {
                "image_size": 14,
                "images": 4000,
                "epochs": 5,
                "width": 0.5,
                "batch_size": 50,
                "lr": 2e-3,
            },
            "paper": {},
        }
        return {name: config(f"{name}/mnist-pixelcnn", **at[scale]) for name in self.systems}


def _label(name: str, d: int) -> str:
    return f"{name}, d = {d}"
