"""The run folder: where the results of a command land."""

from __future__ import annotations

import difflib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from . import data as datasets
from . import distributed, files, presets
from .autoencoder import Autoencoder
from .systems import build, hyperparameters, names, system
from .training import CHECKPOINT, OPTIMIZERS, PRECISIONS, fit

DEFAULTS: dict[str, Any] = {
    "model": "vimae-l",
    "data": "digits",
    "width": 1.0,
    "epochs": 80,
    "batch_size": 100,
    "optimizer": "adam",
    "lr": 1e-3,
    "lr_decay": 1.0,
    "precision": "32",
    "devices": 1,
    "seed": 0,
}
CONFIG = "config.yaml"
RESULTS = "metrics.json"

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
_SEED = (
    f"an integer from 0 to {_LARGEST_SEED}",
    lambda value: _whole(value) and 0 <= value <= _LARGEST_SEED,
)


def _one_of(known: tuple[str, ...]) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {list(known)}", lambda value: value in known


_REQUIRED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": _TEXT,
    "data": _TEXT,
    "width": _POSITIVE,
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "optimizer": _one_of(OPTIMIZERS),
    "lr": _POSITIVE,
    "lr_decay": _POSITIVE,
    "precision": _one_of(PRECISIONS),
    "devices": _COUNT,
    "seed": _SEED,
}
_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "preset": _TEXT,
    "data_dir": _TEXT,
    "network": _TEXT,
    "latent_dim": _COUNT,
    "images": _COUNT,
    "image_size": _COUNT,
    "rotate": _FLAG,
    "binarize": _FLAG,
    "momentum": ("a number >= 0 and < 1", lambda value: _finite(value) and 0 <= value < 1),
    "auxiliary_lr": _POSITIVE,
    "sync_batchnorm": _FLAG,
}
# What `training.fit` takes as it is.
_FOR_FIT = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "lr_decay",
    "momentum",
    "auxiliary_lr",
    "precision",
    "devices",
    "sync_batchnorm",
    "seed",
)
# What a checkpoint is read for, by this package and by Lightning.
_IN_CHECKPOINT = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "run")
_IN_CHECKPOINT_RUN = ("processes", "batches", "steps", "total_steps", "data_shape", "history")


class RunError(Exception):
    """A run that cannot be made or used; the message is meant for the user."""


@contextmanager
def new(output: Path | None, config: Config) -> Iterator[Path]:
    """A new run folder with its configuration: `output`, or runs/<model>-<data>-<number>.

    After an error inside, before there is a checkpoint, everything is as it was.

    Raises:
        RunError: `output` is there and not an empty folder.
    """
    # A folder of images is named by its path.
    data = datasets.printable(Path(config["data"]).name)
    run = output if output is not None else _free(f"{config['model']}-{data}")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        way_out = "continue that run with --resume" if (run / CHECKPOINT).exists() else "remove"
        raise RunError(
            f"{run} exists and is not an empty folder: give another --output, or {way_out} {run}"
        )
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=run not in made)
    except OSError:
        _remove_empty(made[1:])
        raise
    try:
        write_config(run, config)
        yield run
    except BaseException:
        if not (run / CHECKPOINT).exists():
            for path in run.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            _remove_empty(made)
        raise


def _free(stem: str) -> Path:
    number = 1
    while (run := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return run


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        # One that was not made after all, or that another run has come to use, stays as it is.
        with suppress(OSError):
            folder.rmdir()


def preset(name: str) -> Config:
    """A preset as a configuration."""
    try:
        chosen = presets.preset(name)
    except ValueError as error:
        raise RunError(str(error)) from error
    keys = "model", "data", "network", "latent_dim", "epochs", "batch_size", "binarize", "rotate"
    optimizer = chosen["optimizer"]
    adam = optimizer["name"] == "adam"
    return {
        "preset": name,
        **{key: chosen[key] for key in keys},
        **chosen["hyperparameters"],
        "optimizer": optimizer["name"],
        "lr": optimizer["lr"],
        "lr_decay": optimizer.get("decay", 1.0),
        "momentum": optimizer["betas"][0] if adam else optimizer["momentum"],
    }


def write_config(run: Path, config: Config) -> None:
    """Store a configuration, whose values are strings and numbers, for `read_config`; drop None."""
    given = {key: plain_number(value) for key, value in config.items() if value is not None}
    files.write(run / CONFIG, yaml.safe_dump(given, sort_keys=False).encode())


def plain_number(value: Any) -> Any:
    """A number of a subclass (those of the option parser) as one of the types YAML and checkpoints can hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, float) else value


def flag(key: str) -> str:
    """The option of the command line for a key of a configuration."""
    return "--" + ("lambda" if key == "lam" else key.replace("_", "-"))


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" for a name that is nearly one of the known ones, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_config(config: Config, where: str = "") -> None:
    """Raise `RunError`, starting with `where`, for a value or a combination that cannot be.

    The hyperparameters of the model are checked by name alone: their values are the model's to
    refuse.
    """
    for key, (must_be, holds) in (_REQUIRED | _OPTIONAL).items():
        value = config.get(key)
        if not holds(value) and not (key in _OPTIONAL and value is None):
            raise RunError(f"{where}{key} is {value!r}; it must be {must_be}")
    model = config["model"]
    if model not in names():
        raise RunError(
            f"{where}model is {model!r}; known systems are {names()}{nearest(model, names())}"
        )
    own = hyperparameters(model)
    for key in config:
        if key not in _REQUIRED and key not in _OPTIONAL and key not in own:
            flags = [flag(name) for name in own]
            raise RunError(
                f"{where}{model} has no {flag(key)}; it has {', '.join(flags)}"
                f"{nearest(flag(key), flags)}"
            )


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
        checkpoint = files.load(path)
    except files.FileError as error:
        raise RunError(str(error)) from error
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
    given = {
        key: config[key] for key in hyperparameters(config["model"]) if config.get(key) is not None
    }
    try:
        model = build(
            config["model"],
            data_shape=shape,
            latent_dim=config.get("latent_dim"),
            network=config.get("network"),
            width=config["width"],
            **given,
        )
    except (TypeError, ValueError) as error:
        raise RunError(f"{run / CONFIG}: {error}" if run is not None else str(error)) from error
    if model.auxiliary is None and config.get("auxiliary_lr") is not None:
        raise RunError(f"{config['model']} has no auxiliary network, and no --auxiliary-lr")
    return model.double() if config["precision"] == "64" else model


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


def load_model(run: Path) -> tuple[Config, Autoencoder, list[dict[str, float]]]:
    """The configuration of a run, its trained model on the accelerator, its metrics per epoch."""
    config = read_config(run)
    checkpoint = read_checkpoint(run)
    model = build_model(config, tuple(checkpoint["run"]["data_shape"]), run)
    load_weights(model, checkpoint, run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return config, model.to(device).eval(), checkpoint["run"]["history"]


def load_data(
    config: Config, data_dir: str | None = None, *, download: bool = False
) -> datasets.ImageData:
    """The data of a configuration, from `data_dir` if that is given."""
    keys = "images", "image_size", "rotate", "binarize"
    given = {key: config[key] for key in keys if config.get(key)}
    if download:
        given["download"] = True
    return datasets.load(config["data"], data_dir or config.get("data_dir"), **given)


def check_hardware(config: Config) -> None:
    """Raise `RunError` for what this machine cannot train with."""
    gpus = torch.cuda.device_count()
    here = (
        config["devices"]
        if distributed.group() is None
        else config["devices"] // distributed.nodes()
    )
    if gpus and here > gpus:
        raise RunError(f"--devices is {here}; the GPUs here are {gpus}")
    if not gpus and config["precision"] == "16-mixed":
        raise RunError("--precision 16-mixed needs a GPU; bf16-mixed runs on a CPU too")


def out_of_memory(error: BaseException) -> bool:
    """Whether a failure is one of memory; that of a CPU torch tells in words alone."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def complete(config: Config, model: Autoencoder) -> Config:
    """A configuration with what was left to the defaults written down too."""
    name = config["model"]
    complete = config | {key: getattr(model, key) for key in hyperparameters(name)}
    complete["latent_dim"] = model.latent_dim
    complete["network"] = config.get("network") or system(name).network
    return complete


def train(
    run: Path,
    config: Config,
    model: Autoencoder,
    data: datasets.ImageData,
    *,
    resume: bool = False,
    **told: Any,
) -> list[dict[str, float]]:
    """Train the model of a complete configuration by `training.fit`; returns its metrics per epoch.

    `told` is what `training.fit` tells its progress to, where one process trains.
    """
    settings = {key: config[key] for key in _FOR_FIT if config.get(key) is not None}
    if config["devices"] == 1 or distributed.group() is not None:
        return fit(model, data, run, resume=resume, **settings, **told)
    distributed.launch(config["devices"], _train_in_group, run, config, resume, settings)
    checkpoint = read_checkpoint(run)
    load_weights(model, checkpoint, run)
    return checkpoint["run"]["history"]  # type: ignore[no-any-return]


def _train_in_group(run: Path, config: Config, resume: bool, settings: dict[str, Any]) -> None:
    data = load_data(config)
    torch.manual_seed(config["seed"])
    fit(build_model(config, data.shape, run), data, run, resume=resume, **settings)


def write_results(run: Path, results: dict[str, Any]) -> None:
    files.write(run / RESULTS, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
