"""The commands of `vimae`: their options, and what each prints."""

from __future__ import annotations

import io
import re
import sys
import typing
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from .autoencoder import Autoencoder

# Heavy imports live in the commands, so that --help answers at once.

_DATA = "digits, mnist, fashion_mnist, omniglot, cifar10, celeba, dsprites"
# Options of `train` that are not part of the configuration of a run.
_NOT_CONFIG = {"config", "output", "resume", "download"}
# What may be given beside the run that is resumed.
_WITH_RESUME = {"resume", "epochs", "devices", "sync_batchnorm"}


class _Formatter(DefaultHelpFormatter):
    """Help as it is written, without types and defaults of None."""

    def _get_help_string(self, action: Any) -> str:
        return action.help or ""


class _Parser(ArgumentParser):
    """Errors in one line, with the nearest name for an option that is unknown."""

    flags: typing.ClassVar[list[str]] = []

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)|option '(\w+)'", message)
        hint = ""
        if unknown is not None:
            from .runs import flag, nearest

            hint = nearest(unknown[1] or flag(unknown[2]), self.flags)
        from .distributed import rank_of_environment

        if rank_of_environment() == 0:
            print(
                f"{self.prog.replace(' [options]', '')}: error: {' '.join(message.split())}{hint}",
                file=sys.stderr,
            )
        raise SystemExit(2)


def run(arguments: list[str] | None = None) -> int:
    """Parse the command line (None is that of the process) and run the command.

    Returns:
        Exit status: 0; 1 for an error of the user's, told in one line; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(arguments[:1] == ["train"])
    try:
        options = parser.parse_args(arguments)
    except UnicodeDecodeError as error:
        parser.error(f"a file given with --config is no text: {error}")
    from . import distributed
    from .data import DataError
    from .files import FileError
    from .runs import RunError, out_of_memory

    told = DataError, FileError, RunError, FloatingPointError, ModuleNotFoundError, OSError
    try:
        return _COMMANDS[options.command](options[options.command])
    except told as error:
        why = " ".join(str(error).split())
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            why = "out of memory: smaller batches, images or networks take less"
        elif distributed.lost(error):
            why = f"another process has ended: {' '.join(str(error).split())}"
        else:
            distributed.first_to_fail()  # the traceback tells it
            raise
    except KeyboardInterrupt:
        return 130
    if distributed.first_to_fail():
        print(f"vimae {options.command}: error: {why}", file=sys.stderr)
    return 1


def _parser(systems: bool = True) -> ArgumentParser:
    """The parser; the options of `train` that need the systems imported only if asked for."""

    def new(description: str) -> _Parser:
        return _Parser(
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
            print_config=None,
        )

    parser = new("Train and judge autoencoders matched to a prior in latent space.")
    parser.prog = "vimae"
    commands = parser.add_subcommands(dest="command")

    train = new("Train a model; all results land in one run folder.")
    train.usage = "vimae train [options]"
    add = train.add_argument
    add("--preset", type=str, metavar="NAME", help="settings of a paper, e.g. vimae-l/mnist; "
        "`vimae info` lists them; options given beside it win")  # fmt: skip
    add("--config", action="config", metavar="FILE", help="YAML file of options, e.g. the "
        "config.yaml of a run; options after it win")  # fmt: skip
    add("--output", type=str, metavar="RUN", help="run folder (runs/<model>-<data>-<number>)")
    add("--resume", type=str, metavar="RUN", help="continue the run in this folder")
    add = train.add_argument_group("what is trained").add_argument
    add("--model", type=str, metavar="NAME", help="system; `vimae info` lists them (vimae-l)")
    add("--network", type=str, metavar="NAME", help="mlp, dcgan, ... (that of the system)")
    add("--width", type=PositiveFloat, metavar="X", help="factor on the width of the network (1)")
    add("--latent-dim", type=PositiveInt, metavar="N", help="dimension of z (that of the paper)")
    add(
        "--data",
        type=str,
        metavar="NAME",
        help=f"{_DATA}, or the path of a folder of images (digits)",
    )
    add("--data-dir", type=str, metavar="DIR", help="folder of the official files ($VIMAE_DATA)")
    add("--images", type=PositiveInt, metavar="N", help="train on N of the images (all)")
    add("--image-size", type=PositiveInt, metavar="N", help="for mnist, fashion_mnist, omniglot, "
        "celeba and folders")  # fmt: skip
    add(
        "--rotate",
        action="store_true",
        default=None,
        help="add all images turned by 90, 180, 270 degrees",
    )
    add(
        "--binarize",
        action="store_true",
        default=None,
        help="draw pixels as 0 or 1, anew in every epoch",
    )
    add("--download", action="store_true", help="get missing files of public data sets")
    add = train.add_argument_group("how it is trained").add_argument
    add("--epochs", type=PositiveInt, metavar="N", help="in all (80)")
    add("--batch-size", type=PositiveInt, metavar="N", help="over all devices; the images of an "
        "epoch that fill no batch are left out of it (100)")  # fmt: skip
    add("--optimizer", type=str, metavar="NAME", help="adam or sgd (adam)")
    add("--lr", type=PositiveFloat, metavar="X", help="learning rate (0.001)")
    add("--lr-decay", type=PositiveFloat, metavar="X", help="factor on it after an epoch (1)")
    add("--momentum", type=NonNegativeFloat, metavar="X", help="of sgd (0.9); beta_1 of adam (0.5)")
    add("--auxiliary-lr", type=PositiveFloat, metavar="X", help="learning rate of the network "
        "trained beside the model: a discriminator, Q (that of --lr)")  # fmt: skip
    add("--precision", type=str, metavar="NAME", help="32, 64, bf16-mixed or 16-mixed (32)")
    add("--devices", type=PositiveInt, metavar="N", help="accelerators of this machine, or processes "
        "on its CPU, which share every batch and train as one (1); those of torchrun or SLURM where "
        "one of them starts `python -m vimae_models train`")  # fmt: skip
    add(
        "--sync-batchnorm",
        action="store_true",
        default=None,
        help="batch normalisation over the images of all devices, not of each",
    )
    add("--seed", type=NonNegativeInt, metavar="N", help="(0)")
    if systems:
        _add_hyperparameters(train)
    commands.add_subcommand("train", train, help="train a model")

    sample = new("Draw images from a trained model, as a PNG and an array.")
    add = sample.add_argument
    add("run", help="run folder")
    add("-n", type=PositiveInt, default=64, metavar="N", help="number of images (64)")
    add("--seed", type=NonNegativeInt, default=0, metavar="N", help="(0)")
    add("--output", type=str, metavar="PATH", help="writes PATH.png, and PATH.npy: float32, "
        "(n, C, H, W), in [0, 1] (RUN/samples)")  # fmt: skip
    commands.add_subcommand("sample", sample, help="draw images from a trained model")

    traverse = new("What each coordinate of the code does, as PNGs: a row of images each, for "
        "every category of a joint model, and the plane of codes where it has two.")  # fmt: skip
    add = traverse.add_argument
    add("run", help="run folder")
    add("--range", dest="reach", type=PositiveFloat, default=3.0, metavar="X", help="from -X to X, "
        "in standard deviations of the prior (3)")  # fmt: skip
    add("--steps", type=PositiveInt, default=11, metavar="N", help="images in a row (11)")
    add("--image", type=NonNegativeInt, default=0, metavar="N", help="test image whose code is "
        "changed (0)")  # fmt: skip
    add("--output", type=str, metavar="DIR", help="(RUN/figures)")
    add("--data-dir", type=str, metavar="DIR", help="if the data moved")
    commands.add_subcommand("traverse", traverse, help="what the coordinates of the code do")

    evaluate = new("Every measure of the papers that applies to a trained model, and its figures. "
        "`vimae train` ends with those that take seconds; this takes minutes on a CPU, longer for "
        "large decoders and those that draw pixel by pixel: fewer --samples, --likelihood-images and "
        "--likelihood-samples are quicker. RUN/metrics.json has all results: null, with the reason, "
        "for those that do not apply. RUN/metrics.csv, the history of training, stays.")  # fmt: skip
    add = evaluate.add_argument
    add("run", help="run folder")
    add("--samples", type=PositiveInt, metavar="N", help="generated images to judge (10000; 64 if "
        "they are drawn pixel by pixel)")  # fmt: skip
    add("--likelihood-images", type=PositiveInt, default=500, metavar="N", help="test images whose "
        "log p(x) is estimated (500)")  # fmt: skip
    add("--likelihood-samples", type=PositiveInt, default=100, metavar="N", help="samples of z for "
        "each of them (100)")  # fmt: skip
    add("--classifier", type=str, metavar="FILE", help="classifier of the data set, to judge samples "
        "by; it is trained if there is no such file (RUN/classifier.pt)")  # fmt: skip
    add("--inception", type=str, metavar="FILE", help="also compute the FID, with torch-fidelity "
        "and its weights of Inception, pt_inception-2015-12-05-6726825d.pth")  # fmt: skip
    add("--mi-bound", action="store_true", help="train a network on the fixed model's images, for "
        "a lower bound on the information in its code, in nats")  # fmt: skip
    add("--mi-steps", type=PositiveInt, default=2000, metavar="N", help="of that training (2000)")
    add("--informative", type=PositiveInt, metavar="N", help="bound of the first N coordinates "
        "(of the category of a joint model, of all coordinates of another)")  # fmt: skip
    add("--data-dir", type=str, metavar="DIR", help="if the data moved")
    commands.add_subcommand("evaluate", evaluate, help="metrics and figures of a run")

    reproduce = new("Train, measure and report a table or figure of a paper beside the published "
        "numbers. What is finished is kept, so that a second run, or one after a stop, goes on where "
        "the last one ended.")  # fmt: skip
    add = reproduce.add_argument
    add("target", nargs="?", help="table or figure; none lists them; `summary` makes a page of all "
        "the reports in --output")  # fmt: skip
    add("--scale", type=str, default="small", metavar="NAME", help="smoke (seconds, says nothing of "
        "the paper), small (two CPU cores) or paper (a GPU) (small)")  # fmt: skip
    add("--seeds", type=PositiveInt, metavar="N", help="runs of each configuration (the target's)")
    add(
        "--output",
        type=str,
        metavar="DIR",
        help="(runs/<target>-<scale>; docs/results for summary)",
    )
    add("--data-dir", type=str, metavar="DIR", help="folder of the official files ($VIMAE_DATA)")
    add("--jobs", type=PositiveInt, metavar="N", help="runs at once (one a core; one with a GPU)")
    commands.add_subcommand("reproduce", reproduce, help="a table or figure of a paper")

    demo = new("Train VIMAE-l on the digits of scikit-learn and show what it learnt; about a "
        "minute, no downloads.")  # fmt: skip
    demo.add_argument("--output", type=str, metavar="RUN", help="(runs/vimae-l-digits-<number>)")
    commands.add_subcommand("demo", demo, help="see it work in about a minute")

    info = new("What this installation can run, or what a system or preset is.")
    info.add_argument("name", nargs="?", help="a system or preset, to be explained")
    commands.add_subcommand("info", info, help="backends, systems, presets, data sets")

    _Parser.flags = [
        flag
        for command in (parser, train, sample, traverse, evaluate, reproduce, demo, info)
        for action in command._actions
        for flag in action.option_strings
    ]
    return parser


def _add_hyperparameters(parser: ArgumentParser) -> None:
    """One option for every hyperparameter of any system, naming who has it, and the defaults."""
    from .runs import flag
    from .systems import hyperparameters, names, system

    users: dict[str, dict[Any, list[str]]] = {}
    types: dict[str, Any] = {}
    for name in names():
        hints = typing.get_type_hints(system(name).model.__init__)
        for key, default in hyperparameters(name).items():
            users.setdefault(key, {}).setdefault(default, []).append(name)
            types[key] = _option_type(hints[key])
    group = parser.add_argument_group("hyperparameters, with the systems that have them")
    for key, defaults in users.items():
        values = "; ".join(
            ", ".join(owners) if default is None else f"{_short(default)}: {', '.join(owners)}"
            for default, owners in defaults.items()
        )
        metavar = {float: "X", int: "N"}.get(types[key], "NAME")
        group.add_argument(flag(key), dest=key, type=types[key], metavar=metavar, help=values)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _option_type(hint: Any) -> Any:
    """The type of an option for an argument of this type; what is not a number is given by name."""
    choices = [t for t in typing.get_args(hint) if t is not type(None)] or [hint]
    return next((t for t in (bool, float, int) if t in choices), str)


def _train(options: Namespace) -> int:
    from rich.console import Console

    from . import distributed, evaluation, runs
    from .autoencoder import normalising
    from .training import Interrupted

    with distributed.joined() as processes:
        first = processes == 1 or distributed.rank_of_environment() == 0
        console = Console(quiet=not first)
        folder, config, data, model = distributed.agreed(lambda: _prepared(options, processes))
        shared = {key: value for key, value in config.items() if key not in ("data", "data_dir")}
        try:
            distributed.check_equal(images=(len(data.train), *data.shape), options=shared)
        except ValueError as error:
            raise runs.RunError(str(error)) from error
        with ExitStack() as stack:

            def run_folder() -> Path:
                if folder is not None:
                    runs.write_config(folder, config)
                    return folder
                output = Path(options.output) if options.output else None
                return stack.enter_context(runs.new(output, config))

            folder = distributed.of_first(run_folder)
            console.print(f"run folder: [bold]{folder}[/]", soft_wrap=True)
            _tell_partial(console, data)
            if config["devices"] > 1 and normalising(model) and not config.get("sync_batchnorm"):
                console.print(
                    "batch normalisation is over the images of each process by itself; "
                    "--sync-batchnorm takes it over those of all",
                    soft_wrap=True,
                )
            resume = options.resume is not None
            try:
                history = runs.train(folder, config, model, data, resume=resume)
            except ValueError as error:
                # What the loss makes of a number shows with the first batch.
                raise runs.RunError(str(error)) from error
            except Interrupted:
                console.print(
                    f"stopped; continue with  vimae train --resume {folder}", soft_wrap=True
                )
                return 130
    if first:
        test = evaluation.evaluate(model, data)
        _judge(console, folder, config, model, data, history, test)
        console.print(f"all measures: vimae evaluate {folder}", soft_wrap=True)
    return 0


def _prepared(
    options: Namespace, processes: int
) -> tuple[Path | None, dict[str, Any], Any, Autoencoder]:
    """The run to resume, if that is what is asked for; the configuration, the data and the model."""
    import torch

    from . import runs

    given = {
        key: runs.plain_number(value)
        for key, value in vars(options).items()
        if value is not None and key not in _NOT_CONFIG
    }
    if processes > 1 and given.setdefault("devices", processes) != processes:
        raise runs.RunError(
            f"--devices is {given['devices']}, but {processes} processes were started: leave it out"
        )
    if options.resume is not None:
        folder, config = _resumed(Path(options.resume), given, options.output)
    else:
        folder, config = None, _config(given)
        runs.check_config(config)
    runs.check_hardware(config)
    data = runs.load_data(config, download=options.download)
    _check_batches(config, data)
    torch.manual_seed(config["seed"])
    model = runs.build_model(config, data.shape, folder)
    # What training comes to last is looked at before any work: a checkpoint, which Lightning loads
    # again, and the test images, of which a file may be damaged.
    if folder is not None:
        runs.load_weights(model, runs.read_checkpoint(folder), folder)
    for start in range(0, len(data.test), 1000):
        data.test.images[start : start + 1000]
    return folder, runs.complete(config, model), data, model


def _config(given: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a new run: what is given, else the preset's, else the default."""
    from . import runs

    preset = runs.preset(given["preset"]) if "preset" in given else {}
    config: dict[str, Any] = runs.DEFAULTS | preset | given
    if config.get("data_dir") is not None:
        config["data_dir"] = str(Path(config["data_dir"]).resolve())
    from .data import names

    if config["data"] not in names() and Path(config["data"]).is_dir():
        config["data"] = str(Path(config["data"]).resolve())
    return config


def _check_batches(config: dict[str, Any], data: Any) -> None:
    from .runs import RunError

    size, devices = config["batch_size"], config["devices"]
    if not 2 * devices <= size <= len(data.train):
        raise RunError(
            f"--batch-size is {size}; it must be from {2 * devices} to the {len(data.train)} "
            f"training images of {data.name}, two for each device: batch normalisation and the MMD "
            "take two"
        )
    if size % devices:
        raise RunError(f"--batch-size is {size}; it must be a multiple of --devices, {devices}")


def _resumed(
    folder: Path, given: dict[str, Any], output: str | None
) -> tuple[Path, dict[str, Any]]:
    """The folder and configuration of the run to continue, with what may change of it."""
    from . import runs

    changed = [runs.flag(key) for key in given if key not in _WITH_RESUME]
    changed += ["--output"] if output is not None else []
    if changed:
        raise runs.RunError(
            f"--resume takes the settings of the run; {', '.join(changed)} cannot be given with it "
            "(--epochs, --devices and --sync-batchnorm can)"
        )
    config = runs.read_config(folder)
    done = len(runs.read_checkpoint(folder)["run"]["history"])
    config |= {key: given[key] for key in _WITH_RESUME if key in given and key != "resume"}
    if done >= config["epochs"]:
        raise runs.RunError(
            f"{folder} has all of its {done} epochs; --epochs N with N > {done} trains longer"
        )
    return folder, config


def _sample(options: Namespace) -> int:
    import numpy as np
    import torch

    from . import figures, files, runs

    folder = Path(options.run)
    _, model, _ = runs.load_model(folder)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(options.seed)
    parts = []
    with _progress() as report, torch.no_grad():
        step = partial(report, "sampling")
        for start in range(0, options.n, 256):
            n = min(256, options.n - start)
            parts.append(model.sample(n, generator, step).float().cpu())
    images = torch.cat(parts)
    stem = options.output or str(folder / "samples")
    paths = [Path(f"{stem}.png"), Path(f"{stem}.npy")]
    array = io.BytesIO()
    np.save(array, images.numpy())
    figures.save_grid(paths[0], images, min(options.n, 16))
    files.write(paths[1], array.getbuffer())
    _print_paths(paths)
    return 0


def _traverse(options: Namespace) -> int:
    from . import figures, runs

    folder = Path(options.run)
    config, model, _ = runs.load_model(folder)
    images = runs.load_data(config, options.data_dir).test.images
    if options.image >= len(images):
        raise runs.RunError(f"--image is {options.image}; there are {len(images)} test images")
    if options.steps < 2:
        raise runs.RunError(f"--steps is {options.steps}; it must be at least 2")
    with _progress() as report:
        paths = figures.traversals(
            model,
            images[options.image : options.image + 1],
            Path(options.output) if options.output else folder / "figures",
            reach=options.reach,
            steps=options.steps,
            progress=partial(report, "decoding"),
        )
    _print_paths(paths)
    return 0


def _print_paths(paths: list[Path]) -> None:
    from rich.console import Console

    for path in paths:
        Console().print(f"written: {path}", soft_wrap=True, highlight=False)


def _progress() -> Any:
    """A context whose value is called with what is going on, how much is done and all; 0 is unknown."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=None)
            yield lambda name, done, total: progress.update(
                task, description=name.replace("_", " "), completed=done, total=total or None
            )

    return bar()


def _evaluate(options: Namespace) -> int:
    from rich.console import Console

    from . import evaluation, runs
    from .metrics import images

    folder = Path(options.run)
    config, model, history = runs.load_model(folder)
    data = runs.load_data(config, options.data_dir)
    for flag, value in (
        ("--samples", options.samples),
        ("--likelihood-images", options.likelihood_images),
    ):
        if value == 1:
            raise runs.RunError(f"{flag} is 1; it must be at least 2")
    if options.informative is not None and not options.mi_bound:
        raise runs.RunError("--informative is an option of --mi-bound")
    inception = None
    if options.inception is not None:
        inception = images.load_inception(Path(options.inception))
        inception.to(next(model.parameters()).device)
    console = Console()
    _tell_partial(console, data)
    bound = {}
    if options.mi_bound:
        found = _information_bound(config, model, data, options.mi_steps, options.informative)
        bound = {"information_bound": found}
    with _progress() as report:
        test = evaluation.evaluate_all(
            model,
            data,
            Path(options.classifier) if options.classifier else folder / "classifier.pt",
            inception=inception,
            samples=options.samples,
            likelihood_images=options.likelihood_images,
            likelihood_samples=options.likelihood_samples,
            report=report,
        )
    _judge(console, folder, config, model, data, history, test | bound)
    return 0


def _tell_partial(console: Any, data: Any) -> None:
    if data.partial:
        console.print(f"{data.name} is {data.partial}", soft_wrap=True, highlight=False)
    for note in data.notes:
        console.print(f"{data.name}: {note}", soft_wrap=True, highlight=False, markup=False)


def _information_bound(
    config: dict[str, Any], model: Any, data: Any, steps: int, informative: int | None
) -> dict[str, Any]:
    """The bound on the test set, Q being trained on the training set."""
    from . import runs
    from .vmi import information_of_fixed

    network, width = config["network"], config["width"]
    try:
        with _progress() as report:
            nats = information_of_fixed(
                model,
                data,
                network,
                width,
                steps=steps,
                informative=informative,
                progress=lambda done, total: report("training Q", done, total),
            )
    except (TypeError, ValueError) as error:
        raise runs.RunError(f"--mi-bound: {error}") from error
    code = "z" if informative is None else f"z_1..z_{informative}"
    if informative is None and model.code_dim > model.latent_dim:
        code = "y"
    return {"of": code, "steps": steps, "nats": nats}


def _judge(
    console: Any,
    folder: Path,
    config: dict[str, Any],
    model: Any,
    data: Any,
    history: Any,
    test: dict[str, Any],
) -> None:
    """Store and print the measures of a trained model, and draw its figures."""
    from . import figures, report, runs

    results = {
        "model": config["model"],
        "data": config["data"],
        "epochs": len(history),
        **({"partial": data.partial} if data.partial else {}),
        "test": test,
    }
    runs.write_results(folder, results)
    paths = figures.save_all(model, data, history, folder / "figures")
    title = f"{config['model']} on {data.name}, {len(history)} epochs, {test['images']} test images"
    report.show(console, title, test, squared_error=model.likelihood == "l2")
    console.print(f"metrics: {folder / runs.RESULTS}", soft_wrap=True)
    for path in paths:
        console.print(f"figure:  {path}", soft_wrap=True)


def _reproduce(options: Namespace) -> int:
    from rich.console import Console

    from . import runs
    from .reproduce import engine, report, targets
    from .reproduce.target import SCALES
    from .training import Interrupted

    console = Console()
    if options.target is None:
        width = max(map(len, targets.names()))
        for name in targets.names():
            known = targets.target(name)
            print(f"{name:{width}} {known.title} ({known.source})")
        return 0
    if options.target == "summary":
        page = report.summary(Path(options.output or "docs/results"), targets.names())
        console.print(f"summary: {page}", soft_wrap=True)
        return 0
    target = targets.target(options.target)
    if options.scale not in SCALES:
        raise runs.RunError(f"--scale is {options.scale!r}; it must be one of {list(SCALES)}")
    folder = Path(options.output or engine.default_folder(target.name, options.scale))
    console.print(f"{target.title}, scale {options.scale}: [bold]{folder}[/]", soft_wrap=True)
    try:
        page = engine.reproduce(
            target,
            options.scale,
            folder,
            seeds=options.seeds,
            data_dir=options.data_dir,
            jobs=options.jobs,
        )
    except (Interrupted, KeyboardInterrupt):
        console.print("stopped; the same command goes on from here")
        return 130
    console.print(f"report: {page}", soft_wrap=True)
    return 0


def _info(options: Namespace) -> int:
    import importlib.metadata
    import inspect

    import yaml  # type: ignore[import-untyped]

    import vimae_kernels as vk

    from . import data as datasets
    from . import presets, runs
    from .networks import NETWORKS
    from .systems import hyperparameters, names, system

    if options.name in names():
        print(f"{options.name}\n\n{inspect.getdoc(system(options.name).model)}\n\nDefaults:")
        for key, default in hyperparameters(options.name).items():
            print(f"    {runs.flag(key)} {default}")
        return 0
    if options.name in presets.names():
        print(yaml.safe_dump(runs.preset(options.name), sort_keys=False), end="")
        print(f"# not printed in the paper: {', '.join(presets.preset(options.name)['unprinted'])}")
        return 0
    if options.name is not None:
        known = [*names(), *presets.names()]
        raise runs.RunError(
            f"{options.name!r} is neither a system nor a preset{runs.nearest(options.name, known)}"
        )
    vk.info()
    print(f"\nsystems    {', '.join(names())}")
    print(f"networks   {', '.join(NETWORKS)}")
    print(f"data sets  {', '.join(datasets.names())}")
    print(f"presets    {', '.join(presets.names())}")
    for package in ("lightning", "scikit-learn", "matplotlib"):
        print(f"{package:13} {importlib.metadata.version(package)}")
    return 0


def _demo(options: Namespace) -> int:
    from .demo import demo

    return demo(Path(options.output) if options.output else None)


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": _train,
    "sample": _sample,
    "traverse": _traverse,
    "evaluate": _evaluate,
    "reproduce": _reproduce,
    "demo": _demo,
    "info": _info,
}
