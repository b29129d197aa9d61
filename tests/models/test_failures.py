"""A command that fails says why in one line and leaves nothing behind; mended, it works."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vimae_models import build, cli, data, training
from vimae_models.training import Batches

# A shuffled folder of 60 images has this one among those for testing.
TEST_IMAGE = 56
TRAIN = ["train", "--width", 0.05, "--epochs", 1, "--batch-size", 20]
QUICK = ["--samples", 20, "--likelihood-images", 5, "--likelihood-samples", 2]


def vimae(*arguments):
    try:
        return cli.run([str(a) for a in arguments])
    except SystemExit as refused:
        return refused.code


def folder_of_images(path, n=60, damaged=(), size=(8, 8)):
    """`n` pictures of three classes."""
    draws = np.random.default_rng(0)
    for i in range(n):
        file = path / f"class {i % 3}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, size, dtype=np.uint8)).save(file)
        if i in damaged:
            file.write_bytes(file.read_bytes()[:30])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder with much that can be wrong, and a run that is right on the images in "pictures"."""
    zoo = tmp_path_factory.mktemp("zoo")
    folder_of_images(zoo / "pictures")
    folder_of_images(zoo / "few", n=8)
    folder_of_images(zoo / "odd", size=(5, 7))
    folder_of_images(zoo / "damaged", damaged=range(60))
    folder_of_images(zoo / "one damaged", damaged=[31])
    folder_of_images(zoo / "test damaged", damaged=[TEST_IMAGE])
    (zoo / "empty").mkdir()
    (zoo / "full").mkdir()
    (zoo / "full/of.txt").write_text("something")
    (zoo / "file").write_text("a file")
    (zoo / "mnist").mkdir()
    for file in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (zoo / "mnist" / file).write_bytes(b"\0\0\x08\x03 short")
    texts = {
        "list": b"- 1\n",
        "nothing": b"",
        "broken": b"lr: [\n",
        "unknown": b"batchsize: 3\n",
        "kind": b"epochs: many\n",
        "hyperparameter": b"model: vae\ngamma: 1\n",
        "binary": b"\xff\xfe\0",
    }
    for name, text in texts.items():
        (zoo / f"{name}.yaml").write_bytes(text)
    assert vimae(*TRAIN, "--data", zoo / "pictures", "--output", zoo / "run") == 0
    return zoo


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIMAE_DATA", raising=False)


def tree():
    return {p: p.read_bytes() if p.is_file() else None for p in Path.cwd().rglob("*")}


def assert_fails(command, words, capsys):
    before = tree()
    capsys.readouterr()
    assert vimae(*command) in (1, 2)
    printed = capsys.readouterr().err
    assert words in printed and "error: " in printed
    assert printed.count("\n") == 1 and printed.endswith("\n")
    assert tree() == before


WRONG = [
    # Data.
    (["--data", "imagenet"], "known data sets"),
    (["--data", "file"], "known data sets"),
    (["--data", "mnist"], "--data-dir"),
    (["--data", "mnist", "--data-dir", "nowhere"], "nowhere"),
    (["--data", "mnist", "--data-dir", "."], "is damaged"),
    (["--data", "empty"], "0 images"),
    (["--data", "full"], "0 images"),
    (["--data", "few"], "8 images"),
    (["--data", "damaged"], "is damaged"),
    (["--data", "one damaged"], "31.png is damaged"),
    (["--data", "one damaged", "--devices", 2], "31.png is damaged"),
    (["--data", "test damaged"], "56.png is damaged"),
    (["--data", "odd", "--rotate"], "square"),
    (["--image-size", 10], "the size of its images is fixed"),
    (["--images", 5000], "1200 training images"),
    (["--images", 1], "from 2 to"),
    # What the data do not go with.
    (["--data", "odd", "--network", "dcgan"], "multiples of 4; these are 5x7"),
    (
        ["--data", "odd", "--model", "vae", "--network", "pixelcnn++"],
        "multiples of 4; these are 5x7",
    ),
    (["--batch-size", 1201], "1200 training images"),
    (["--images", 15], "15 training images"),
    (["--batch-size", 1], "two for each device"),
    (["--batch-size", 3, "--devices", 2], "from 4 to"),
    (["--batch-size", 21, "--devices", 2], "a multiple of --devices"),
    (["--model", "imae", "--weighting", "mss", "--dataset-size", 5], "at least the batch's 20"),
    # Options.
    (["--preset", "vimae-l/mnits"], "nearest are ['vimae-l/mnist'"),
    (["--preset", "imae/mnist", "--model", "vae"], "vae has no --categories"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["--config", "empty"], "not a file"),
    (["--config", "binary.yaml"], "no text"),
    (["--config", "list.yaml"], "Unexpected config"),
    (["--config", "nothing.yaml"], "Unexpected config"),
    (["--config", "broken.yaml"], "parsing"),
    (["--config", "unknown.yaml"], "did you mean --batch-size?"),
    (["--config", "kind.yaml"], "epochs"),
    (["--config", "hyperparameter.yaml"], "vae has no --gamma"),
    (["--model", "gan"], "known systems"),
    (["--network", "vgg"], "known networks"),
    (["--network", "pixelcnn"], "made for likelihood 'bernoulli'"),
    (["--model", "vae", "--likelihood", "logistic-mixture", "--data", "x"], "known data sets"),
    (["--latent-dim", 0], "latent_dim"),
    (["--latent-dim", 10**20], "too large"),
    (["--width", 1e300], "too large"),
    (["--lambda", -1], "lam is -1.0"),
    (["--kernel", "cosine"], "must be one of ['imq'"),
    (["--model", "vmi-vae", "--latent-dim", 2, "--informative", 3], "at most latent_dim"),
    (["--optimizer", "lbfgs"], "must be one of ['adam', 'sgd']"),
    (["--momentum", 2], "momentum is 2.0"),
    (["--auxiliary-lr", 1], "no auxiliary network"),
    (["--precision", "8"], "precision is '8'"),
    (["--devices", 1000], "--devices" if torch.cuda.is_available() else "from 2000 to"),
    (["--seed", 2**63], "seed is"),
    (["--resume", "full"], "cannot be given"),
    # The loss.
    (["--lr", 1e30], "the loss was not finite"),
    # Folders.
    (["--output", "full"], "is not an empty folder: give another --output, or remove full"),
    (["--output", "file"], "is not an empty folder"),
    (["--output", "file/run"], "Not a directory: 'file/run'"),
    (["--output", f"new/folders/{'x' * 300}"], "File name too long"),
    (["--output", "new/run", "--lr", 1e30], "the loss was not finite"),
    (["--output", "empty", "--lr", 1e30], "the loss was not finite"),
]


@pytest.mark.parametrize("options, words", WRONG, ids=lambda value: None)
def test_training_that_cannot_be(zoo, monkeypatch, options, words, capsys):
    monkeypatch.chdir(zoo)
    assert_fails([*TRAIN, *options], words, capsys)


@pytest.mark.parametrize(
    "command, words",
    [
        (["demo", "--output", "full"], "not an empty folder"),
        (["demo", "--output", "file/run"], "Not a directory"),
        (["sample", "nowhere"], "not a run folder"),
        (["sample", "file"], "not a run folder"),
        (["sample", "run", "-n", 0], "n"),
        (["sample", "run", "--output", "file/x"], "exists: 'file'"),
        (["traverse", "empty"], "not a run folder"),
        (["traverse", "run", "--image", 6], "there are 6 test images"),
        (["traverse", "run", "--steps", 1], "at least 2"),
        (["traverse", "run", "--output", "file"], "exists: 'file'"),
        (["evaluate", "full"], "not a run folder"),
        (["evaluate", "run", "--samples", 1], "at least 2"),
        (["evaluate", "run", *QUICK, "--classifier", "nowhere/c.pt"], "No such file"),
        (["evaluate", "run", *QUICK, "--mi-bound"], "--mi-bound: "),
        (["evaluate", "run", *QUICK, "--informative", 1], "an option of --mi-bound"),
        (["train", "--resume", "nowhere"], "not a run folder"),
        (["train", "--resume", "file"], "not a run folder"),
        (["train", "--resume", "full"], "not a run folder"),
        (["train", "--resume", "run"], "has all of its 1 epochs"),
        (["train", "--resume", "run", "--lr", 1], "--lr cannot be given"),
        (["train", "--resume", "run", "--output", "x"], "--output cannot be given"),
        (["reproduce", "nothing"], "known targets"),
        (["reproduce", "vimae-mnist", "--scale", "tiny"], "must be one of"),
        (["reproduce", "vimae-mnist", "--data-dir", "nowhere"], "nowhere"),
        (["reproduce", "vimae-mnist", "--data-dir", "."], "is damaged"),
        (["reproduce", "summary", "--output", "nowhere"], "no folders of reports"),
        (["nonsense"], "nonsense"),
        ([], "command"),
    ],
    ids=lambda value: None,
)
def test_commands_that_cannot_be(zoo, monkeypatch, command, words, capsys):
    monkeypatch.chdir(zoo)
    assert_fails(command, words, capsys)


@pytest.mark.parametrize("gone", ["all", "the images"])
def test_data_that_were_lost_after_training(zoo, gone, capsys):
    shutil.copytree(zoo / "run", "run")
    shutil.copytree(zoo / "pictures", "pictures")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    moved = config | {"data": str(Path("pictures").resolve())}
    Path("run/config.yaml").write_text(yaml.safe_dump(moved))
    for picture in Path("pictures").rglob("*.png"):
        if gone == "all":
            picture.unlink()
        else:
            picture.write_bytes(b"")
    words = "0 images" if gone == "all" else "is damaged"
    for command in (["traverse", "run"], ["evaluate", "run", *QUICK]):
        assert_fails(command, words, capsys)
    if gone == "all":
        assert_fails(["train", "--resume", "run", "--epochs", 2], words, capsys)


@pytest.mark.parametrize(
    "option, wrong, mended",
    [
        ("--lr", 1e30, 1e-3),
        ("--data", "one damaged", "odd"),
        ("--batch-size", 1, 2),
        ("--network", "pixelcnn", "mlp"),
    ],
)
def test_mended_the_same_command_works(zoo, monkeypatch, tmp_path, option, wrong, mended):
    monkeypatch.chdir(zoo)
    assert vimae(*TRAIN, "--output", tmp_path / "run", option, wrong) == 1
    assert vimae(*TRAIN, "--output", tmp_path / "run", option, mended) == 0


def failing_at(monkeypatch, step, error):
    real = training.Module.training_step

    def training_step(self, *arguments):
        if self.total_steps == step:
            raise error
        return real(self, *arguments)

    monkeypatch.setattr(training.Module, "training_step", training_step)


@pytest.mark.parametrize("step", [0, 70])
@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (MemoryError(), "out of memory"),
        (ValueError("scale is 0"), "scale is 0"),
    ],
    ids=["CPU", "CUDA", "Python", "value"],
)
def test_an_error_in_any_step(monkeypatch, step, error, words, capsys):
    """Where no checkpoint is there yet: the second epoch has begun at step 70."""
    with monkeypatch.context() as patched:
        failing_at(patched, step, error)
        before = tree()
        assert vimae(*TRAIN, "--epochs", 2, "--output", "new/run") == 1
        told = [line for line in capsys.readouterr().err.splitlines() if "epoch 1 " not in line]
        assert len(told) == 1 and words in told[0] and told[0].startswith("vimae train: error: ")
        assert tree() == before
    assert vimae(*TRAIN, "--output", "new/run") == 0


@pytest.mark.parametrize("command", [TRAIN, ["demo"]])
def test_what_stops_at_once_leaves_nothing(monkeypatch, command):
    """A second Ctrl-C; and an error of our own, with its traceback."""
    before = tree()
    with monkeypatch.context() as patched:
        failing_at(patched, 3, KeyboardInterrupt())
        assert vimae(*command) == 130
    assert tree() == before
    failing_at(monkeypatch, 3, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        vimae(*command)
    assert tree() == before


def test_an_error_after_a_checkpoint_leaves_a_run_that_goes_on(monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    with monkeypatch.context() as patched:
        failing_at(patched, 70, MemoryError())
        assert vimae(*TRAIN, "--epochs", 2, "--output", "run") == 1
    assert vimae("sample", "run", "-n", 2) == 0
    assert vimae("train", "--resume", "run") == 0
    assert json.loads(Path("run/metrics.json").read_text())["epochs"] == 2


def test_ctrl_c_in_the_first_step_leaves_a_run_for_every_command(monkeypatch):
    with monkeypatch.context() as patched:
        real = training.Module.training_step

        def training_step(self, *arguments):
            signal.raise_signal(signal.SIGINT)
            return real(self, *arguments)

        patched.setattr(training.Module, "training_step", training_step)
        assert vimae(*TRAIN, "--output", "run") == 130
    assert vimae("sample", "run", "-n", 2) == 0
    assert vimae("traverse", "run", "--steps", 2) == 0
    assert vimae("evaluate", "run", *QUICK) == 0
    assert vimae("train", "--resume", "run") == 0


# Batch normalisation and batches of one.

NORMALISED = [("vimae-l", "dcgan"), ("vae", "dcgan5"), ("vae", "infovae"), ("imae", "imae")]


@pytest.fixture
def normalised(request):
    name, network = request.param
    return build(name, data_shape=(1, 8, 8), latent_dim=2, network=network, width=0.02)


@pytest.mark.parametrize("normalised", NORMALISED, indirect=True)
def test_a_batch_of_one_is_refused_in_training_and_fine_in_evaluation(normalised):
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"^x is a batch of one image; batch normalisation in"):
        normalised.loss(x)
    normalised.eval()
    assert torch.isfinite(normalised.encode(x)).all()
    assert normalised.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("normalised", NORMALISED[:1], indirect=True)
def test_images_over_when_the_batches_are_full_are_left_out(normalised, tmp_path):
    """21 training images in batches of 20, and one image in the last part that is evaluated."""
    digits = data.load("digits")

    def cut(split, n):
        return data.Split(split.images[:n], split.labels[:n])

    images = data.ImageData(
        "few", cut(digits.train, 21), cut(digits.train, 1001), cut(digits.test, 2)
    )
    settings = {"epochs": 2, "batch_size": 20, "lr": 1e-3, "seed": 0}
    history = training.fit(normalised, images, tmp_path, **settings)
    assert [row["step"] for row in history] == [1, 2]
    assert all(np.isfinite(value) for row in history for value in row.values())


def test_batches_hold_two_images_for_each_process():
    images = torch.zeros(10, 1, 2, 2)
    for batch, world, least in ((1, 1, 2), (3, 2, 4), (0, 1, 2)):
        with pytest.raises(ValueError, match=f"batch_size is {batch}; it must be at least {least}"):
            Batches(images, batch, seed=0, world=world)
