"""The run folder: where the results of a command land."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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


# torch takes seeds below 2^64, and the order of the batches adds to this one in every epoch.
_LARGEST_SEED = 2**63 - 1


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


_TEXT = ("a string", lambda value: isinstance(value, str))
_COUNT = ("an integer >= 1", lambda value: _whole(value) and value >= 1)
_FLAG = ("true or false", lambda value: isinstance(value, bool))
_POSITIVE = ("a finite number > 0", lambda value: _finite(value) and value > 0)
_NOT_NEGATIVE = ("a finite number >= 0", lambda value: _finite(value) and value >= 0)
_SEED = (
    f"an integer from 0 to {_LARGEST_SEED}",
    lambda value: _whole(value) and 0 <= value <= _LARGEST_SEED,
)
_REQUIRED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": _TEXT,
    "data": _TEXT,
    "network": _TEXT,
    "width": _POSITIVE,
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "lr": _POSITIVE,
    "seed": _SEED,
}
_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "data_dir": _TEXT,
    "image_size": _COUNT,
    "rotate": _FLAG,
    "binarize": _FLAG,
    "latent_dim": _COUNT,
    "lam": _NOT_NEGATIVE,
    "noise": _NOT_NEGATIVE,
}
# What a checkpoint is read for, by this package and by Lightning.
_IN_CHECKPOINT = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "run")
_IN_CHECKPOINT_RUN = ("random_state", "batches", "sums", "steps", "history")


class RunError(Exception):
    """A run that cannot be made or used; the message is meant for the user."""


def create(output: Path | None, config: Config) -> Path:
    """A new run folder with its configuration: `output`, or runs/<model>-<data>-<number>."""
    # A folder of images is named by its path.
    data = Path(config["data"]).name
    run = output if output is not None else _free(f"{config['model']}-{data}")
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
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, float) else value


def check_config(config: Config, where: str = "") -> None:
    """Raise `RunError`, starting with `where`, for a value of a wrong type or out of range."""
    for key, (must_be, holds) in (_REQUIRED | _OPTIONAL).items():
        value = config.get(key)
        if not holds(value) and not (key in _OPTIONAL and value is None):
            raise RunError(f"{where}{key} is {value!r}; it must be {must_be}")


def read_config(run: Path) -> Config:
    """The configuration of a run, checked."""
    path = run / CONFIG
    if not path.is_file():
        raise RunError(f"{run} is not a run folder: it has no {CONFIG}")
    try:
        config = yaml.safe_load(path.read_text())
    except (UnicodeDecodeError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise RunError(f"{path} is not the configuration of a run")
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise RunError(f"{path} is not the configuration of a run: it has no {', '.join(missing)}")
    check_config(config, f"{path}: ")
    return config


def read_checkpoint(run: Path) -> dict[str, Any]:
    """The checkpoint of a run, loaded without executing code from it."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise RunError(f"{run} has no {CHECKPOINT}: its training never got as far as saving one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} is damaged: {why}") from error
    _require(path, "it", checkpoint, _IN_CHECKPOINT)
    _require(path, "its 'run'", checkpoint["run"], _IN_CHECKPOINT_RUN)
    return checkpoint  # type: ignore[no-any-return]


def _require(path: Path, what: str, found: Any, keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise RunError(f"{path} is not the checkpoint of a run: {what} has no {', '.join(missing)}")


def build_model(
    config: Config, shape: tuple[int, int, int], run: Path | None = None
) -> Autoencoder:
    """The freshly initialised model of a configuration, which was read from `run` if that is given.

    Raises:
        RunError: there is no such model.
    """
    given = {key: config[key] for key in HYPERPARAMETERS if config.get(key) is not None}
    try:
        return build(
            config["model"],
            data_shape=shape,
            latent_dim=config.get("latent_dim"),
            network=config["network"],
            width=config["width"],
            **given,
        )
    except (TypeError, ValueError) as error:
        raise RunError(f"{run / CONFIG}: {error}" if run is not None else str(error)) from error


def load_weights(model: Autoencoder, checkpoint: dict[str, Any], run: Path) -> None:
    """Give `model` the weights of the checkpoint of `run`."""
    try:
        weights = checkpoint["state_dict"].items()
        model.load_state_dict({name.removeprefix("model."): w for name, w in weights})
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{run / CHECKPOINT} does not hold the weights of the model that {run / CONFIG} "
            "describes"
        ) from error


def load_data(
    config: Config, data_dir: str | None = None, *, download: bool = False
) -> datasets.ImageData:
    """The data of a configuration, from `data_dir` if that is given."""
    given = {
        key: config[key]
        for key in ("image_size", "rotate", "binarize")
        if config.get(key) is not None
    }
    return datasets.load(
        config["data"], data_dir or config.get("data_dir"), download=download, **given
    )


def load(
    run: Path, data_dir: str | None = None
) -> tuple[Config, Autoencoder, datasets.ImageData, list[dict[str, float]]]:
    """The configuration of a run, its trained model, its data and its metrics per epoch."""
    config = read_config(run)
    checkpoint = read_checkpoint(run)
    data = load_data(config, data_dir)
    model = build_model(config, data.shape, run)
    load_weights(model, checkpoint, run)
    model.eval()
    return config, model, data, checkpoint["run"]["history"]


def write_results(run: Path, results: dict[str, Any]) -> None:
    (run / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
