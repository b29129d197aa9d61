"""The run folder: where the results of a command land."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from . import data as datasets
from .autoencoder import Autoencoder
from .systems import build
from .training import CHECKPOINT

CONFIG = "config.yaml"
RESULTS = "metrics.json"
HYPERPARAMETERS = ("lam", "noise")

Config = dict[str, Any]


class RunError(Exception):
    """A run folder that cannot be used; the message is meant for the user."""


def create(output: Path | None, config: Config) -> Path:
    """A new run folder with its configuration: `output`, or runs/<model>-<data>-<number>."""
    run = output if output is not None else _free(f"{config['model']}-{config['data']}")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RunError(
            f"{run} exists and is not an empty folder: give another --output, or continue that run "
            f"with --resume {run}"
        )
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, config)
    return run


def _free(stem: str) -> Path:
    number = 1
    while (run := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return run


def write_config(run: Path, config: Config) -> None:
    """Store a configuration, whose values are strings and numbers, for `read_config`; drop None."""
    plain = {key: _plain(value) for key, value in config.items() if value is not None}
    (run / CONFIG).write_text(yaml.safe_dump(plain, sort_keys=False))


def _plain(value: Any) -> Any:
    """A number of a subclass (those of the option parser) as one of the types YAML can hold."""
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else value


def read_config(run: Path) -> Config:
    """The configuration of a run."""
    path = run / CONFIG
    if not path.is_file():
        raise RunError(f"{run} is not a run folder: it has no {CONFIG}")
    try:
        config = yaml.safe_load(path.read_text())
    except (UnicodeDecodeError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict) or "model" not in config:
        raise RunError(f"{path} is not the configuration of a run")
    return config


def read_checkpoint(run: Path) -> dict[str, Any]:
    """The checkpoint of a run, loaded without executing code from it."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise RunError(f"{run} has no {CHECKPOINT}: its training never got as far as saving one")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    return checkpoint


def build_model(config: Config, shape: tuple[int, int, int]) -> Autoencoder:
    """The freshly initialised model of a configuration."""
    given = {key: config[key] for key in HYPERPARAMETERS if config.get(key) is not None}
    return build(
        config["model"],
        data_shape=shape,
        latent_dim=config.get("latent_dim"),
        network=config["network"],
        width=config["width"],
        **given,
    )


def load(
    run: Path, data_dir: str | None = None
) -> tuple[Config, Autoencoder, datasets.ImageData, list[dict[str, float]]]:
    """The configuration of a run, its trained model, its data and its metrics per epoch."""
    config = read_config(run)
    checkpoint = read_checkpoint(run)
    data = datasets.load(config["data"], data_dir or config.get("data_dir"))
    model = build_model(config, data.shape)
    weights = checkpoint["state_dict"]
    model.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
    model.eval()
    return config, model, data, checkpoint["run"]["history"]


def write_results(run: Path, results: dict[str, Any]) -> None:
    (run / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
