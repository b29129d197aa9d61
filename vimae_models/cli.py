"""The commands of `vimae`: their options, and what each prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

# Heavy imports live in the commands, so that --help answers at once.

# What may differ from the run that is resumed.
_WITH_RESUME = {"resume", "epochs", "download"}
_DEFAULT_EPOCHS = 80
_DATA = "digits, mnist, fashion_mnist, omniglot, cifar10, celeba, dsprites"


def run(arguments: list[str] | None = None) -> int:
    """Parse the command line (None is that of the process) and run the command.

    Returns:
        Exit status: 0; 1 for an error of the user's, told in one line; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    from .data import DataError
    from .runs import RunError

    try:
        return _COMMANDS[options.command](options[options.command])
    except (DataError, RunError, FloatingPointError, OSError) as error:
        print(f"vimae {options.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vimae", description="Train and judge autoencoders matched to a prior in latent space."
    )
    subcommands = parser.add_subcommands(dest="command")

    train_parser = ArgumentParser(description="Train a model; all results land in one run folder.")
    add = train_parser.add_argument
    add("--config", action="config", help="YAML file of options, e.g. the config.yaml of a run")
    add("--model", default="vimae-l", help="system: vimae-n or vimae-l")
    add("--data", default="digits", help=f"{_DATA}, or the path of a folder of images")
    add("--data-dir", type=str, help="folder of the official files (default: $VIMAE_DATA)")
    add("--image-size", type=PositiveInt, help="for omniglot, celeba and folders")
    add("--rotate", action="store_true", help="add all images turned by 90, 180, 270 degrees")
    add("--binarize", action="store_true", help="draw pixels as 0 or 1, anew in every epoch")
    add("--download", action="store_true", help="get missing files of public data sets")
    add("--network", type=str, default="mlp", help="mlp or dcgan")
    add("--width", type=PositiveFloat, default=1.0, help="factor on the width of the network")
    add("--latent-dim", type=PositiveInt, help="dimension of z (default: 2 mlp, 8 dcgan)")
    add("--lambda", dest="lam", type=NonNegativeFloat, help="weight of the MMD (default: 10)")
    add("--noise", type=NonNegativeFloat, help="bound of the input noise (default: 0.01)")
    add("--epochs", type=PositiveInt, help=f"(default: {_DEFAULT_EPOCHS})")
    add("--batch-size", type=PositiveInt, default=100)
    add("--lr", type=PositiveFloat, default=1e-3, help="learning rate of Adam")
    add("--seed", type=NonNegativeInt, default=0)
    add("--output", type=str, help="run folder (default: runs/<model>-<data>-<number>)")
    add("--resume", type=str, metavar="RUN", help="continue the run in this folder")
    subcommands.add_subcommand("train", train_parser, help="train a model")

    evaluate_parser = ArgumentParser(description="Metrics and figures of a trained model.")
    evaluate_parser.add_argument("run", help="run folder")
    evaluate_parser.add_argument("--data-dir", type=str, help="if the data moved")
    subcommands.add_subcommand("evaluate", evaluate_parser, help="metrics and figures of a run")

    demo_parser = ArgumentParser(
        description="Train VIMAE-l on the digits of scikit-learn and show what it learnt; "
        "about a minute, no downloads."
    )
    demo_parser.add_argument(
        "--output", type=str, help="run folder (default: runs/vimae-l-digits-<number>)"
    )
    subcommands.add_subcommand("demo", demo_parser, help="see it work in about a minute")

    info_parser = ArgumentParser(description="What this installation can run.")
    subcommands.add_subcommand("info", info_parser, help="backends, systems, data sets")
    return parser


def _train(options: Namespace) -> int:
    import torch
    from rich.console import Console

    from . import runs
    from .training import Interrupted, fit

    console = Console()
    if options.resume is not None:
        folder, config = _resumed(options)
    else:
        folder, config = None, _config(options)
        runs.check_config(config)
    data = runs.load_data(config, download=options.download)
    if not 2 <= config["batch_size"] <= len(data.train):
        raise runs.RunError(
            f"--batch-size is {config['batch_size']}; it must be from 2 to the {len(data.train)} "
            f"training images of {data.name}"
        )
    torch.manual_seed(config["seed"])
    model = runs.build_model(config, data.shape, folder)
    if folder is not None:
        # Lightning loads them again; this is to find out before any work.
        runs.load_weights(model, runs.read_checkpoint(folder), folder)
    # What was left to the defaults is written down too.
    config["latent_dim"] = model.latent_dim
    config |= {key: getattr(model, key) for key in runs.HYPERPARAMETERS}
    if folder is None:
        folder = runs.create(Path(options.output) if options.output else None, config)
    else:
        runs.write_config(folder, config)
    console.print(f"run folder: [bold]{folder}[/]", soft_wrap=True)
    _tell_partial(console, data)
    try:
        history = fit(
            model,
            data,
            folder,
            epochs=config["epochs"],
            batch_size=config["batch_size"],
            lr=config["lr"],
            seed=config["seed"],
            resume=options.resume is not None,
        )
    except Interrupted:
        console.print(f"stopped; continue with  vimae train --resume {folder}", soft_wrap=True)
        return 130
    _judge(console, folder, config, model, data, history)
    return 0


def _config(options: Namespace) -> dict[str, Any]:
    skipped = {"config", "output", "resume", "download"}
    config = {key: value for key, value in vars(options).items() if key not in skipped}
    config["epochs"] = config["epochs"] or _DEFAULT_EPOCHS
    if config["data_dir"] is not None:
        config["data_dir"] = str(Path(config["data_dir"]).resolve())
    from .data import names

    if config["data"] not in names() and Path(config["data"]).is_dir():
        config["data"] = str(Path(config["data"]).resolve())
    return config


def _resumed(options: Namespace) -> tuple[Path, dict[str, Any]]:
    """The folder and configuration of the run to continue; only the number of epochs may change."""
    from . import runs

    defaults = _parser().parse_args(["train"])["train"]
    changed = [
        "--" + {"lam": "lambda"}.get(key, key).replace("_", "-")
        for key, value in vars(options).items()
        if key not in _WITH_RESUME and value != defaults[key]
    ]
    if changed:
        raise runs.RunError(
            f"--resume takes the settings of the run; {', '.join(changed)} cannot be given with it "
            "(--epochs can)"
        )
    folder = Path(options.resume)
    config = runs.read_config(folder)
    done = len(runs.read_checkpoint(folder)["run"]["history"])
    config["epochs"] = options.epochs or config["epochs"]
    if done >= config["epochs"]:
        raise runs.RunError(
            f"{folder} has all of its {done} epochs; --epochs N with N > {done} trains longer"
        )
    return folder, config


def _evaluate(options: Namespace) -> int:
    from rich.console import Console

    from . import runs

    folder = Path(options.run)
    config, model, data, history = runs.load(folder, options.data_dir)
    console = Console()
    _tell_partial(console, data)
    _judge(console, folder, config, model, data, history)
    return 0


def _tell_partial(console: Any, data: Any) -> None:
    if data.partial:
        console.print(f"{data.name} is {data.partial}", soft_wrap=True, highlight=False)


def _judge(
    console: Any, folder: Path, config: dict[str, Any], model: Any, data: Any, history: Any
) -> None:
    """Compute, store and print the metrics of a trained model, and draw its figures."""
    from rich.table import Table

    from . import evaluation, figures, runs

    results = {
        "model": config["model"],
        "data": config["data"],
        "epochs": len(history),
        **({"partial": data.partial} if data.partial else {}),
        "test": evaluation.evaluate(model, data),
    }
    runs.write_results(folder, results)
    paths = figures.save_all(model, data, history, folder / "figures")

    test = results["test"]
    table = Table(
        title=f"{config['model']} on {data.name}, {len(history)} epochs, "
        f"{test['images']} test images",
        title_justify="left",
        min_width=56,
    )
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("MMD² to the prior", f"{test['mmd']:.5f}")
    table.add_row("reconstruction ‖x - g(z)‖²", f"{test['reconstruction']:.2f}")
    for name, accuracy in test["svm"].items():
        table.add_row(f"SVM accuracy on z, {name}", f"{100 * accuracy:.1f} %")
    console.print(table)
    console.print(f"metrics: {folder / runs.RESULTS}", soft_wrap=True)
    for path in paths:
        console.print(f"figure:  {path}", soft_wrap=True)


def _info(options: Namespace) -> int:
    import importlib.metadata

    import vimae_kernels as vk

    from . import data as datasets
    from .systems import names

    vk.info()
    print(f"\nsystems    {', '.join(names())}")
    print(f"data sets  {', '.join(datasets.names())}")
    for package in ("lightning", "scikit-learn", "matplotlib"):
        print(f"{package:13} {importlib.metadata.version(package)}")
    return 0


def _demo(options: Namespace) -> int:
    from .demo import demo

    return demo(Path(options.output) if options.output else None)


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "demo": _demo,
    "info": _info,
}
