"""The command `vimae`, as a user runs it."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import vimae_kernels as vk
from vimae_models import cli, runs

ROOT = Path(__file__).parents[2]
QUICK = ["train", "--width", "0.1"]
EVALUATE = ["evaluate", "run", "--samples", 40, "--likelihood-images", 9, "--likelihood-samples", 5]


def vimae(*arguments):
    return cli.run([str(a) for a in arguments])


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIMAE_DATA", raising=False)


def test_train_leaves_a_complete_run_folder(tmp_path, capsys):
    assert vimae(*QUICK, "--model", "vimae-n", "--epochs", 3, "--lambda", 5, "--seed", 7) == 0
    run = Path("runs/vimae-n-digits-1")
    printed = capsys.readouterr()
    assert f"run folder: {run}" in printed.out
    assert "Traceback" not in printed.err and "Warning" not in printed.err

    config = yaml.safe_load((run / "config.yaml").read_text())
    given = {"model": "vimae-n", "epochs": 3, "lam": 5.0, "seed": 7, "width": 0.1}
    assert {key: config[key] for key in given} == given
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])
    assert {"train/reconstruction", "train/mmd", "validation/mmd"} <= set(rows[0])
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert set(test["svm"]) == {
        "clean",
        "gaussian 0.2",
        "gaussian 0.3",
        "gaussian 0.4",
        "mask 0.2",
        "mask 0.5",
    }
    assert list((run / "tensorboard").glob("events.*"))
    for name in ("latent", "reconstructions", "samples", "training"):
        assert (run / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"

    # The same run again gets a folder of its own and the same numbers.
    assert vimae("train", "--config", run / "config.yaml") == 0
    again = Path("runs/vimae-n-digits-2")
    assert (again / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


@pytest.mark.parametrize("options", [["--latent-dim", 1], ["--network", "dcgan"]])
def test_train_and_evaluate_other_networks_and_dimensions(options):
    assert vimae("train", "--width", "0.02", "--epochs", 1, "--output", "run", *options) == 0
    assert vimae(*EVALUATE) == 0
    assert Path("run/figures/latent.png").exists()


def test_tensorboard_has_every_term_by_name():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert vimae(*QUICK, "--epochs", 2, "--output", "run") == 0
    events = EventAccumulator("run/tensorboard").Reload()
    with open("run/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "train/reconstruction", "train/mmd", "validation/mmd"):
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx([float(row[name]) for row in rows], rel=1e-6)
    assert set(events.Tags()["images"]) >= {"samples", "reconstructions"}
    codes = Path("run/tensorboard/00024/codes/tensors.tsv").read_text().splitlines()
    assert len(codes) == 197 and len(codes[0].split()) == 2


def test_evaluate_gives_the_results_of_training_again(capsys):
    assert vimae(*QUICK, "--epochs", 2, "--output", "run") == 0
    first = json.loads(Path("run/metrics.json").read_text())
    Path("run/metrics.json").unlink()
    Path("run/figures/latent.png").unlink()
    assert vimae(*EVALUATE) == 0
    again = json.loads(Path("run/metrics.json").read_text())
    assert again["test"].items() >= first.pop("test").items()
    assert again.items() >= first.items()
    assert Path("run/figures/latent.png").exists()


def interrupted(arguments):
    """A run in the folder run, stopped by Ctrl-C once it had trained an epoch."""
    command = [sys.executable, "-m", "vimae_models", *QUICK, "--output", "run", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        # The first line of progress: the loop is running.
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 130, rest
    assert "vimae train --resume run" in rest
    assert "Traceback" not in rest


def test_ctrl_c_leaves_a_checkpoint_that_resume_takes():
    interrupted(["--epochs", "100000"])
    done = len(runs.read_checkpoint(Path("run"))["run"]["history"])
    assert vimae("train", "--resume", "run", "--epochs", done + 2) == 0
    with open("run/metrics.csv") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, done + 3))


def test_two_processes_train_as_one_and_resume_bit_for_bit():
    """Two gloo processes; an auxiliary network and batch normalisation."""
    train = ["train", "--model", "aae", "--network", "dcgan", "--width", 0.02, "--devices", 2]
    folder, parts = Path("whole"), Path("parts")
    assert vimae(*train, "--epochs", 2, "--output", folder) == 0
    assert vimae(*train, "--epochs", 1, "--output", parts) == 0
    assert vimae("train", "--resume", parts, "--epochs", 2) == 0
    assert (folder / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
    one, other = (runs.read_checkpoint(run) for run in (folder, parts))
    for key, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][key]), key
    states = [process["cpu"] for process in one["run"]["processes"]]
    assert len(states) == 2 and torch.equal(*states)
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2


def test_an_error_in_one_of_several_processes_is_one_line(capsys):
    assert vimae(*QUICK, "--devices", 2, "--lr", "1e30", "--epochs", 3) == 1
    printed = capsys.readouterr().err
    assert "error: the loss was not finite in epoch" in printed and "Traceback" not in printed


def test_ctrl_c_in_several_processes_leaves_a_checkpoint_of_both():
    interrupted(["--devices", "2", "--epochs", "100000"])
    run = runs.read_checkpoint(Path("run"))["run"]
    assert len(run["processes"]) == 2 and len(run["history"]) >= 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model", "gan"], "known systems are ['ae', 'vae'"),
        (["--model", "beta-vae"], "did you mean beta-vae-"),
        (
            ["--model", "beta-vae-h", "--gamma", "1"],
            "beta-vae-h has no --gamma; it has --likelihood, --beta",
        ),
        (["--lambda", "-1"], "lam is -1.0; it must be a finite number >= 0"),
        (["--model", "imae", "--weighting", "all"], "weighting is 'all'; it must be one of"),
        (["--auxiliary-lr", "0.1"], "vimae-l has no auxiliary network"),
        (["--preset", "vimae-l/mnits"], "nearest are ['vimae-l/mnist'"),
        (["--optimizer", "lbfgs"], "optimizer is 'lbfgs'; it must be one of ['adam', 'sgd']"),
        (["--precision", "8"], "precision is '8'; it must be one of"),
        pytest.param(
            ["--precision", "16-mixed"],
            "16-mixed needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--devices", "3"], "it must be a multiple of --devices, 3"),
        (["--devices", "60"], "it must be from 120 to the 1200"),
        (["--network", "vgg"], "known networks are"),
        (["--data", "imagenet"], "known data sets are"),
        (["--data", "mnist"], "--data-dir"),
        (["--data", "mnist", "--data-dir", "nowhere"], "nowhere"),
        (["--batch-size", "5000"], "1200 training images"),
        (["--batch-size", "1"], "from 2 to"),
        (["--seed", str(2**63)], f"from 0 to {2**63 - 1}"),
        (["--width", "1e5"], "of width 100000.0 with latent_dim 2 cannot be allocated"),
        (["--width", "1e300"], "too large"),
        (["--width", "1e308", "--network", "dcgan"], "too large"),
        (["--latent-dim", str(10**20)], "too large"),
        (["--lr", "inf"], "lr is inf; it must be a finite number"),
        (["--resume", "nowhere"], "not a run folder"),
        (["--output", "."], "not an empty folder"),
    ],
)
def test_errors_are_one_clear_line(arguments, words, capsys):
    Path("something").touch()
    assert vimae("train", *arguments) == 1
    printed = capsys.readouterr().err
    assert words in printed and printed.startswith("vimae train: error: ")
    assert printed.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--epochs", "0"], "epochs"),
        (["--lr", "-1"], "lr"),
        (["--lambda", "x"], "lam"),
        (["--nonsense", "1"], "--nonsense"),
        (["--lamda", "1"], "did you mean --lambda?"),
        (["--config", "typo.yaml"], "'batchsize'; did you mean --batch-size?"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "broken.yaml"], "parsing"),
    ],
)
def test_options_that_cannot_be_are_refused_by_the_parser(arguments, words, capsys):
    Path("typo.yaml").write_text("batchsize: 3\n")
    Path("broken.yaml").write_text("lr: [\n")
    with pytest.raises(SystemExit) as caught:
        vimae("train", *arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


@pytest.mark.parametrize("what", ["checkpoint", "everything"])
def test_a_full_disk_is_one_line_and_costs_no_earlier_checkpoint(trained, what, capsys):
    shutil.copytree(trained, "run")
    before = Path("run/checkpoint.ckpt").read_bytes()
    config = Path("run/config.yaml").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = 20_000 if what == "checkpoint" else 10
    assert len(before) > room
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        assert vimae("train", "--resume", "run", "--epochs", 2) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    errors = [line for line in printed.splitlines() if "error: " in line]
    assert len(errors) == 1 and "File too large: 'run/" in errors[0]
    assert Path("run/checkpoint.ckpt").read_bytes() == before
    assert yaml.safe_load(config)["epochs"] == 1
    assert not list(Path("run").glob(".*"))
    assert vimae("train", "--resume", "run", "--epochs", 2) == 0


def test_a_changed_byte_in_a_checkpoint_is_noticed(trained, capsys):
    shutil.copytree(trained, "run")
    path = Path("run/checkpoint.ckpt")
    content = bytearray(path.read_bytes())
    # Among the weights, which are most of it.
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_refused_in_one_line("checkpoint.ckpt is damaged: the checksum of ", capsys)


def test_a_checkpoint_runs_no_code(trained, capsys):
    shutil.copytree(trained, "run")

    class Malicious:
        def __reduce__(self):
            return Path.touch, (Path("executed"),)

    checkpoint = torch.load("run/checkpoint.ckpt", weights_only=True)
    torch.save(checkpoint | {"extra": Malicious()}, "run/checkpoint.ckpt")
    assert_refused_in_one_line("checkpoint.ckpt is damaged: Weights only load failed", capsys)
    assert not Path("executed").exists()


def test_resume_keeps_the_settings_of_the_run(capsys):
    assert vimae(*QUICK, "--epochs", 1, "--output", "run") == 0
    assert vimae("train", "--resume", "run", "--lambda", 3) == 1
    assert "--lambda cannot be given" in capsys.readouterr().err
    assert vimae("train", "--resume", "run") == 1
    assert "--epochs N with N > 1" in capsys.readouterr().err
    Path("run/checkpoint.ckpt").write_bytes(b"damaged")
    Path("odd").mkdir()
    Path("odd/config.yaml").write_text("{")
    assert vimae("train", "--resume", "odd") == 1
    assert "odd/config.yaml is not the configuration" in capsys.readouterr().err
    assert vimae("train", "--resume", "run", "--epochs", 2) == 1
    assert "checkpoint.ckpt is damaged" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert vimae(*QUICK, "--epochs", 1, "--output", folder) == 0
    return folder


def without(*keys):
    """What takes `checkpoint[keys[0]][keys[1]]...` out of a checkpoint."""

    def change(checkpoint):
        inner = checkpoint
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return checkpoint

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (None, "checkpoint.ckpt is damaged: "),
        (lambda checkpoint: [1], "not the checkpoint of a run"),
        (without("state_dict"), "it has no state_dict"),
        (without("run"), "it has no run"),
        (without("loops"), "it has no loops"),
        (without("run", "history"), "its 'run' has no history"),
        (without("state_dict", "model.encoder.1.weight"), "does not hold the weights"),
        (lambda checkpoint: checkpoint | {"state_dict": 1}, "does not hold the weights"),
    ],
)
def test_checkpoint_that_cannot_be_used(trained, change, words, capsys):
    shutil.copytree(trained, "run")
    path = Path("run/checkpoint.ckpt")
    if change is None:
        path.write_bytes(b"")
    else:
        torch.save(change(torch.load(path, weights_only=True)), path)
    assert_refused_in_one_line(words, capsys)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"data": ...}, "has no data"),
        ({"model": ..., "lr": ...}, "has no model, lr"),
        ({"epochs": "x"}, "config.yaml: epochs is 'x'; it must be an integer >= 1"),
        ({"epochs": True}, "epochs is True; it must be an integer"),
        ({"width": "abc"}, "config.yaml: width is 'abc'; it must be a finite number > 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lam": -1}, "lam is -1; it must be a finite number >= 0"),
        ({"data": ["digits"]}, "data is ['digits']; it must be a string"),
        ({"seed": 2**65}, f"seed is {2**65}; it must be an integer from 0 to"),
        ({"model": "gan"}, "config.yaml: model is 'gan'; known systems"),
        ({"width": 1e5}, "config.yaml: network 'mlp' of width 100000.0"),
        ({"latent_dim": 3}, "checkpoint.ckpt does not hold the weights"),
    ],
)
def test_configuration_that_cannot_be_used(trained, change, words, capsys):
    shutil.copytree(trained, "run")
    path = Path("run/config.yaml")
    config = yaml.safe_load(path.read_text()) | change
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not ...}))
    assert_refused_in_one_line(words, capsys)


def assert_refused_in_one_line(words, capsys):
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for command in (["evaluate", "run"], ["train", "--resume", "run", "--epochs", 2]):
        capsys.readouterr()
        assert vimae(*command) == 1
        printed = capsys.readouterr().err
        assert words in printed and printed.startswith(f"vimae {command[0]}: error: ")
        assert printed.count("\n") == 1
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sample"], ["traverse"], ["evaluate"], ["demo"], ["info"]]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        vimae(*command, "--help")
    assert caught.value.code == 0
    assert "usage: vimae" in capsys.readouterr().out


def test_info_names_systems_and_backends(capsys):
    assert vimae("info") == 0
    printed = capsys.readouterr().out
    for word in ("vimae-l", "mnist", "reference", "torch"):
        assert word in printed


@pytest.mark.parametrize(
    "name, words",
    [("aae", ("discriminator", "--lambda 10")), ("imae/mnist", ("lr_decay: 0.98", "not printed"))],
)
def test_info_explains_systems_and_presets(name, words, capsys):
    assert vimae("info", name) == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed


def test_info_of_what_is_unknown_names_the_nearest(capsys):
    assert vimae("info", "imea") == 1
    assert "neither a system nor a preset; did you mean imae?" in capsys.readouterr().err


def quick_demo(monkeypatch):
    from vimae_models import demo

    monkeypatch.setitem(demo._CONFIG, "epochs", 15)
    monkeypatch.setattr(demo.kernel_times, "__defaults__", (2,))
    assert vimae("demo") == 0
    return json.loads(Path("runs/vimae-l-digits-1/metrics.json").read_text())


def test_demo_measures_before_and_after_training(monkeypatch, capsys):
    results = quick_demo(monkeypatch)
    images = results["all images"]
    assert images["images"] == 1797
    assert images["after"]["mmd"] < 0.3 * images["before"]["mmd"]
    assert images["after"]["reconstruction"] < 0.5 * images["before"]["reconstruction"]
    printed = capsys.readouterr().out
    assert results["test"]["svm"]["clean"] > results["test"]["svm"]["mask 0.5"] > 0.1
    for name in ("latent", "reconstructions", "samples", "training"):
        figure = Path(f"runs/vimae-l-digits-1/figures/{name}.png")
        assert figure.exists() and str(figure) in printed


def test_demo_claims_no_fused_kernel_where_there_is_none(monkeypatch, capsys):
    with vk.use_backend("reference"):
        results = quick_demo(monkeypatch)
    printed = capsys.readouterr().out
    assert "fused" not in printed and "speed-up" not in printed
    assert "eager PyTorch" in printed
    assert results["mmd seconds"]["backend"] == "reference"


def run_without(modules, code):
    """Run `code` in an interpreter that cannot find `modules`."""
    blocker = (
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        f"gone = {modules!r}\n"
        "PathFinder.find_spec = lambda name, *rest: (\n"
        "    None if name.split('.')[0] in gone else find(name, *rest)\n"
        ")\n"
    )
    return subprocess.run(
        [sys.executable, "-c", blocker + code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


EXTRA = ["jsonargparse", "lightning", "matplotlib", "rich", "sklearn", "tensorboard", "yaml"]


def test_without_the_extra_the_command_says_what_to_install():
    result = run_without(EXTRA, "from vimae_models.__main__ import main; main()")
    assert result.returncode == 1
    assert "pip install 'vimae-kernels[models]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_extra_models_work_in_plain_pytorch():
    code = (
        "import torch, vimae_models\n"
        "model = vimae_models.build('vimae-l', data_shape=(1, 8, 8))\n"
        "model.loss(torch.rand(10, 1, 8, 8))['loss'].backward()\n"
        "print(model.sample(2).shape)"
    )
    result = run_without(EXTRA, code)
    assert result.returncode == 0, result.stderr
    assert "torch.Size([2, 1, 8, 8])" in result.stdout
