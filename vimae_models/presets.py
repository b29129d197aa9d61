"""The experiments of the papers, by name: "<system>/<data>", with a variant behind a dash.

A preset is a plain dict:

    model, data, network, latent_dim, hyperparameters   what `build` takes, at width 1
    epochs, batch_size                                  of the training
    optimizer    {"name": "adam", "lr", "betas"}, or {"name": "sgd", "lr", "momentum", "decay"}, with
                 the learning rate multiplied by "decay" after every epoch
    binarize     whether every pixel x is to be 1 with probability x, drawn anew for every batch
    rotate       whether all images are also there turned by 90, 180 and 270 degrees
    seeds        how many runs the paper averages
    unprinted    the entries that the paper does not print, which are our choice
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

Preset = dict[str, Any]


def names() -> list[str]:
    """The names `preset` knows."""
    return list(_PRESETS)


def preset(name: str) -> Preset:
    """The preset of a name, as a copy of the caller's own.

    Raises:
        ValueError: an unknown name; the message has the nearest known ones.
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(str(name), _PRESETS, n=3, cutoff=0.0)
        raise ValueError(f"preset is {name!r}, which is unknown; the nearest are {near}")
    return copy.deepcopy(_PRESETS[name])


def _preset(
    model: str,
    data: str,
    network: str,
    latent_dim: int,
    optimizer: dict[str, Any],
    unprinted: tuple[str, ...],
    *,
    epochs: int,
    batch_size: int = 100,
    binarize: bool = False,
    rotate: bool = False,
    seeds: int = 1,
    **hyperparameters: Any,
) -> Preset:
    return {
        "model": model,
        "data": data,
        "network": network,
        "latent_dim": latent_dim,
        "hyperparameters": hyperparameters,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "binarize": binarize,
        "rotate": rotate,
        "seeds": seeds,
        "unprinted": unprinted,
    }


def _vimae() -> dict[str, Preset]:
    """VIMAE (ICLR version), sec. 5 and appendix."""
    adam = {"name": "adam", "lr": 1e-3, "betas": (0.5, 0.999)}
    table = {}
    for data in ("mnist", "omniglot", "cifar10", "celeba"):
        grey = data in ("mnist", "omniglot")
        network, latent_dim, epochs = ("dcgan", 8, 80) if grey else ("dcgan5", 64, 60)
        weight = 10.0 if grey else 100.0
        systems: dict[str, dict[str, Any]] = {
            "vae": {},
            "beta-vae-h": {"beta": weight},
            "beta-vae-a": {"beta": 0.2 if grey else 0.4},
            "vimae-n": {"lam": weight},
            "vimae-l": {"lam": weight},
        }
        for model, values in systems.items():
            table[f"{model}/{data}"] = _preset(
                model,
                data,
                network,
                latent_dim,
                adam,
                (),
                epochs=epochs,
                rotate=data == "omniglot",
                **values,
            )
    # Named in the text (eq. 4 of either version), without an experiment.
    missing: tuple[str, ...] = ("hyperparameters",)
    for model in ("min-rate-vae", "infovae"):
        table[f"{model}/mnist"] = _preset(model, "mnist", "dcgan", 8, adam, missing, epochs=80)
    missing = "epochs", "batch_size"
    flat: dict[str, dict[str, Any]] = {
        "vae": {},
        "beta-vae-h": {"beta": 10.0},
        "vimae-n": {"lam": 10.0},
        "vimae-l": {"lam": 10.0},
    }
    for model, values in flat.items():
        table[f"{model}/mnist-2d"] = _preset(
            model, "mnist", "mlp", 2, adam, missing, epochs=80, **values
        )
    return table


def _infovae() -> dict[str, Preset]:
    """InfoVAE, sec. 4.2 and appendix B; figure 4 has 10 dimensions, table 1 has 5."""
    adam = {"name": "adam", "lr": 1e-3, "betas": (0.9, 0.999)}
    missing = "hyperparameters", "epochs", "optimizer"
    table = {}
    for model in ("ae", "vae", "aae", "stein-vae", "mmd-vae"):
        for variant, latent_dim in (("pixelcnn", 10), ("nll", 5)):
            table[f"{model}/mnist-{variant}"] = _preset(
                model, "mnist", "pixelcnn", latent_dim, adam, missing, epochs=50, binarize=True
            )
        table[f"{model}/cifar10-pixelcnn"] = _preset(
            model, "cifar10", "pixelcnn++", 10, adam, missing, epochs=50
        )
    return table


def _vmi() -> dict[str, Preset]:
    """VMI-VAE, sec. 4, and the twins on the plain ELBO: the same models with lam = 0."""
    adam = {"name": "adam", "lr": 1e-3, "betas": (0.9, 0.999)}
    missing = "network", "hyperparameters", "epochs", "batch_size", "optimizer"
    table = {}
    for model, latent_dim, sets in (
        ("vmi-vae", 32, ("mnist",)),
        ("vmi-joint-vae", 16, ("mnist", "fashion_mnist")),
    ):
        for data in sets:
            twins: dict[str, dict[str, Any]] = {"": {}, "-elbo": {"lam": 0.0}}
            for variant, values in twins.items():
                # Between the networks that the other papers print, the one that trains faster.
                table[f"{model}/{data}{variant}"] = _preset(
                    model, data, "imae", latent_dim, adam, missing, epochs=50, **values
                )
    return table


def _imae() -> dict[str, Preset]:
    """IMAE, sec. 4 and appendix G; beta is swept there, from 1 to 10."""
    sgd = {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "decay": 0.98}
    adam = {"name": "adam", "lr": 1e-3, "betas": (0.9, 0.999)}
    missing = "epochs", "batch_size"
    table = {}
    for model in ("imae", "hybrid-beta-vae", "hybrid-infovae", "joint-vae"):
        for data in ("mnist", "fashion_mnist"):
            table[f"{model}/{data}"] = _preset(
                model,
                data,
                "imae",
                10,
                sgd,
                (*missing, "momentum"),
                epochs=100,
                seeds=10,
                categories=10,
            )
        table[f"{model}/dsprites"] = _preset(
            model, "dsprites", "imae-dsprites", 10, adam, missing, epochs=50, seeds=8, categories=3
        )
    return table


_PRESETS: dict[str, Preset] = _vimae() | _infovae() | _vmi() | _imae()
