"""Every system through the command line, on few real images."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vimae_models import build, cli, evaluation, figures, names, presets, runs
from vimae_models import data as datasets
from vimae_models.metrics import labels

LOAD = datasets.load
EVALUATE = ["evaluate", "run", "--samples", 40, "--likelihood-images", 9, "--likelihood-samples", 5]
JOINT = {"vmi-joint-vae", "imae", "hybrid-beta-vae", "hybrid-infovae", "joint-vae"}


def vimae(*arguments):
    return cli.run([str(a) for a in arguments])


@pytest.fixture(scope="module")
def images():
    """Some digits: MNIST if there is a folder for it, else those of scikit-learn."""
    if "VIMAE_DATA" not in os.environ:
        return datasets.load("digits")
    mnist = datasets.load("mnist")
    cut = {
        part: datasets.Split(split.images[:n], split.labels[:n])
        for part, split, n in (
            ("train", mnist.train, 1200),
            ("validation", mnist.validation, 200),
            ("test", mnist.test, 200),
        )
    }
    return datasets.ImageData("mnist", **cut)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load", lambda name, *_, **__: images)


@pytest.mark.parametrize("name", names())
def test_train_sample_traverse(name, images):
    train = ["train", "--model", name, "--width", 0.1, "--latent-dim", 2, "--epochs", 3]
    assert vimae(*train, "--output", "run") == 0
    with open("run/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])

    assert vimae("sample", "run", "-n", 5) == 0
    first = np.load("run/samples.npy")
    assert first.shape == (5, *images.shape) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert vimae("sample", "run", "-n", 5, "--output", "again") == 0
    assert np.array_equal(first, np.load("again.npy"))
    assert vimae("sample", "run", "-n", 5, "--output", "other", "--seed", 1) == 0
    assert not np.array_equal(first, np.load("other.npy"))
    assert Path("other.png").read_bytes()[:4] == b"\x89PNG"

    assert vimae("traverse", "run", "--steps", 3, "--output", "traversals") == 0
    ends = [f"-category-{k}" for k in range(10)] if name in JOINT else [""]
    expected = {f"{kind}{end}.png" for kind in ("traverse", "manifold") for end in ends}
    assert {path.name for path in Path("traversals").iterdir()} == expected

    results = json.loads(Path("run/metrics.json").read_text())
    assert ("categories" in results["test"]) == (name in JOINT)


def test_a_decoder_that_draws_pixel_by_pixel(monkeypatch):
    monkeypatch.setattr(datasets, "load", LOAD)
    small = ["--network", "pixelcnn", "--width", 0.05, "--epochs", 1, "--batch-size", 400]
    assert vimae("train", "--model", "vae", *small, "--output", "run") == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["likelihood"] == "bernoulli" and config["latent_dim"] == 10
    assert vimae("sample", "run", "-n", 2) == 0
    assert set(np.unique(np.load("run/samples.npy"))) == {0, 1}


@pytest.mark.parametrize("name, code", [("ae", "z"), ("imae", "y")])
def test_bound_on_the_information_of_a_fixed_model(name, code, capsys):
    quick = ["--width", 0.1, "--epochs", 4, "--lr", 0.01, "--output", "run"]
    assert vimae("train", "--model", name, *quick) == 0
    trained = json.loads(Path("run/metrics.json").read_text())
    weights = Path("run/checkpoint.ckpt").read_bytes()
    bounds = []
    for steps in (1, 150):
        assert vimae(*EVALUATE, "--mi-bound", "--mi-steps", steps) == 0
        evaluated = json.loads(Path("run/metrics.json").read_text())
        result = evaluated["test"].pop("information_bound")
        assert evaluated["test"].items() >= trained["test"].items()
        assert result["of"] == code and result["steps"] == steps
        bounds.append(result["nats"])
    assert f"lower bound on I({code}; x), nats" in capsys.readouterr().out
    # Trained longer it is tighter.
    assert bounds[0] < bounds[1]
    assert Path("run/checkpoint.ckpt").read_bytes() == weights


def test_no_bound_where_there_is_none(capsys):
    assert vimae("train", "--width", 0.05, "--epochs", 1, "--output", "run") == 0
    assert vimae("evaluate", "run", "--mi-bound") == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("vimae evaluate: error: --mi-bound: ") and "VIMAE" in printed
    assert vimae("evaluate", "run", "--informative", 2) == 1
    assert "an option of --mi-bound" in capsys.readouterr().err


def keys_and_numbers(value, name=""):
    """Every name in nested results, with what is there; lists count as one."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from keys_and_numbers(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


OF_POSTERIOR = {
    "rate",
    "total_correlation",
    "mutual_information",
    "coordinates",
    "mutual_information_gap",
}


@pytest.mark.parametrize(
    "name, without",
    [
        ("vimae-l", OF_POSTERIOR | {"log_likelihood", "categories", "fid"}),
        ("ae", {"mutual_information_gap", "categories", "fid"}),
        ("vmi-joint-vae", {"mutual_information_gap", "fid"}),
    ],
)
def test_evaluate_has_every_measure_or_says_why_not(name, without, capsys):
    quick = ["--width", 0.1, "--epochs", 1, "--latent-dim", 2, "--output", "run"]
    assert vimae("train", "--model", name, *quick) == 0
    history = Path("run/metrics.csv").read_bytes()
    capsys.readouterr()
    assert vimae(*EVALUATE) == 0
    printed = capsys.readouterr().out
    first = json.loads(Path("run/metrics.json").read_text())
    test = first["test"]
    assert set(test["skipped"]) == without
    assert {key for key, value in test.items() if value is None} == without
    for key, value in keys_and_numbers({k: test[k] for k in test if k not in without}):
        if isinstance(value, float):
            assert np.isfinite(value), key
    for key, why in test["skipped"].items():
        assert key in printed and why in printed
    assert test["samples"] == 40 and test["classifier"]["test_accuracy"] > 0.3
    assert test["class_cross_entropy"] > 0 and test["classifier_distance"] > 0
    assert set(test["svm"]) == {"clean", *labels.CORRUPTIONS}
    if "log_likelihood" not in without:
        assert (test["log_likelihood"]["images"], test["log_likelihood"]["samples"]) == (9, 5)
    if "rate" not in without:
        assert set(test["rate"]) == ({"kl_z", "kl_y"} if name in JOINT else {"kl_z"})
        assert len(test["coordinates"]["information"]) == 2
    for words in (
        "MMD²",
        "SVM accuracy on z, gaussian 0.3",
        "40 samples: class cross entropy, nats",
    ):
        assert words in printed
    assert Path("run/metrics.csv").read_bytes() == history
    # Again, with the classifier that is there now: the same numbers.
    made = Path("run/classifier.pt").read_bytes()
    assert vimae(*EVALUATE, "--classifier", "run/classifier.pt") == 0
    assert json.loads(Path("run/metrics.json").read_text()) == first
    assert Path("run/classifier.pt").read_bytes() == made


def test_evaluate_refuses_before_it_works(capsys):
    assert vimae("train", "--width", 0.05, "--epochs", 1, "--output", "run") == 0
    results = Path("run/metrics.json").read_bytes()
    Path("odd.pt").write_bytes(b"no classifier")
    for options, words in (
        (["--classifier", "odd.pt"], "odd.pt is damaged: "),
        (["--samples", 1], "--samples is 1; it must be at least 2"),
        (["--likelihood-images", 1], "--likelihood-images is 1"),
        (["--inception", "nowhere.pth"], "torch-fidelity|nowhere.pth is missing"),
        (["--classifier", "nowhere/classifier.pt"], "No such file or directory"),
    ):
        capsys.readouterr()
        assert vimae(*EVALUATE, *options) == 1
        printed = capsys.readouterr().err
        assert re.match(f"vimae evaluate: error: .*({words})", printed)
        assert printed.count("\n") == 1
    assert Path("run/metrics.json").read_bytes() == results
    assert Path("odd.pt").read_bytes() == b"no classifier"


def test_images_without_classes_have_no_classifier(monkeypatch):
    digits = LOAD("digits")
    parts = {
        part: datasets.Split(split.images[:100], torch.zeros(len(split.labels[:100])).long())
        for part in ("train", "validation", "test")
        for split in [getattr(digits, part)]
    }
    monkeypatch.setattr(
        datasets, "load", lambda *_, **__: datasets.ImageData("unlabelled", **parts)
    )
    assert vimae("train", "--width", 0.05, "--epochs", 1, "--output", "run") == 0
    assert vimae(*EVALUATE) == 0
    test = json.loads(Path("run/metrics.json").read_text())["test"]
    for name in ("svm", "classifier", "class_cross_entropy", "classifier_distance"):
        assert test[name] is None and test["skipped"][name] == "the images have no classes"
    assert not Path("run/classifier.pt").exists() and test["sample_nll"]["nll"] is not None


def test_what_is_not_finite_becomes_null_with_a_reason(monkeypatch):
    """All codes the same: their covariance has no logarithm."""
    model = build("vimae-l", data_shape=(1, 8, 8), width=0.1)
    for parameter in model.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    found = evaluation.evaluate_all(
        model, LOAD("digits"), Path("classifier.pt"), samples=20, likelihood_images=2
    )
    assert found["log_det_covariance"] is None
    assert found["skipped"]["log_det_covariance"] == "it is -inf"
    json.dumps(found, allow_nan=False)


def test_known_factors_have_a_gap_and_binary_images_binary_samples(monkeypatch):
    digits = LOAD("digits", binarize=True)
    seen = []
    monkeypatch.setattr(
        evaluation.images, "class_cross_entropy", lambda _, x, __: seen.append(x) or 0.0
    )
    test = replace(digits.test, latents=digits.test.labels[:, None])
    model = build("vae", data_shape=(1, 8, 8), width=0.1)
    found = evaluation.evaluate_all(
        model,
        replace(digits, test=test),
        Path("classifier.pt"),
        samples=20,
        likelihood_images=2,
        likelihood_samples=2,
    )
    assert 0 <= found["mutual_information_gap"]["mig"] <= 1
    assert set(seen[0].unique().tolist()) == {0, 255}


SHAPES = {
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "omniglot": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "celeba": (3, 64, 64),
    "dsprites": (1, 64, 64),
}


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_a_configuration(name):
    options = cli._parser().parse_args(["train", "--preset", name])["train"]
    config = cli._config({"preset": options.preset})
    runs.check_config(config)
    assert name.startswith(f"{config['model']}/{config['data']}")
    with torch.device("meta"):
        model = runs.build_model(config | {"width": 0.02}, SHAPES[config["data"]])
    assert model.latent_dim == config["latent_dim"]


def test_options_beside_a_preset_win():
    options = ["--data", "digits", "--epochs", 1, "--width", 0.02, "--lambda", 3]
    assert vimae("train", "--preset", "vimae-n/mnist", *options, "--output", "run") == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    expected = {"preset": "vimae-n/mnist", "network": "dcgan", "latent_dim": 8, "momentum": 0.5}
    assert expected.items() <= config.items()
    assert (config["data"], config["epochs"], config["lam"]) == ("digits", 1, 3.0)
    # The file of the run has everything; an option after it wins over it.
    again = ["--config", "run/config.yaml", "--lambda", 4, "--output", "again"]
    assert vimae("train", *again) == 0
    assert yaml.safe_load(Path("again/config.yaml").read_text()) == config | {"lam": 4.0}


def test_traversal_changes_one_coordinate_at_a_time(tmp_path, monkeypatch):
    model = build("imae", data_shape=(1, 8, 8), latent_dim=3, categories=2, width=0.05)
    seen = []
    monkeypatch.setattr(
        model, "decode", lambda z, *_: seen.append(z) or torch.zeros(len(z), 1, 8, 8)
    )
    image = torch.rand(1, 1, 8, 8)
    paths = figures.traversals(model, image, tmp_path, reach=2.0, steps=5)
    assert [path.name for path in paths] == [f"traverse-category-{k}.png" for k in (0, 1)]
    start = model.encode(image)[0, :3]
    for category, codes in enumerate(seen):
        assert torch.equal(codes[:, 3:], torch.eye(2)[category].expand(15, 2))
        for row in range(15):
            coordinate, step = divmod(row, 5)
            expected = start.clone()
            expected[coordinate] = step - 2.0
            assert torch.allclose(codes[row, :3], expected)


def test_the_plane_of_codes_has_z1_to_the_right_and_z2_upwards(tmp_path, monkeypatch):
    model = build("vae", data_shape=(1, 8, 8), width=0.05)
    seen = []
    monkeypatch.setattr(
        model, "decode", lambda z, *_: seen.append(z) or torch.zeros(len(z), 1, 8, 8)
    )
    figures.traversals(model, torch.rand(1, 1, 8, 8), tmp_path, reach=1.0, steps=3)
    plane = seen[1].view(3, 3, 2)
    assert torch.equal(plane[..., 0], torch.tensor([-1.0, 0, 1]).expand(3, 3))
    assert torch.equal(plane[..., 1], torch.tensor([1.0, 0, -1])[:, None].expand(3, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_puts_images_in_rows(channels):
    images = torch.rand(5, channels, 4, 6)
    picture = figures.grid(images, 3).reshape(2 * 4 + 1, 3 * 6 + 2, channels)
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        shown = picture[5 * row : 5 * row + 4, 7 * column : 7 * column + 6]
        assert torch.equal(shown, image.permute(1, 2, 0))
    blank = 0.0 if channels == 1 else 1.0
    assert (picture[5:, 14:] == blank).all() and (picture[4] == blank).all()
