"""Options of every data set: rotation, binarisation, downloads; and lazy images in training."""

import builtins
import hashlib
import http.server
import io
import json
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from test_data import TEST, TRAIN, compressed, files, idx, write

from vimae_models import build, cli, data, evaluation
from vimae_models.data import download
from vimae_models.data.base import Binarized, Rotated
from vimae_models.training import Interrupted, fit


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("VIMAE_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    """100 noisy grey images of 8x8 in two classes."""
    generator = np.random.default_rng(0)
    for i in range(100):
        path = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(100 * (i % 2), 100 * (i % 2) + 100, (8, 8))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.mark.parametrize("name", ["digits", "dsprites"])
def test_images_are_a_part_of_the_training_set_in_its_order(name):
    whole, part = data.load(name), data.load(name, images=50)
    assert part.train.images.shape == (50, *whole.shape) and len(part.test) == len(whole.test)
    everything = whole.train.images[:2000].flatten(1).tolist()
    again = data.load(name, images=50, rotate=True).train
    assert len(again) == 200 and torch.equal(again.images[:50], part.train.images[:])
    if name == "digits":
        places = [everything.index(image) for image in part.train.images.flatten(1).tolist()]
        assert places == sorted(places)
        assert torch.equal(whole.train.labels[places], part.train.labels)
    else:
        assert part.train.latents.shape == (50, whole.train.latents.shape[1])
    for n in (1, len(whole.train) + 1):
        with pytest.raises(data.DataError, match=f"images is {n}; it must be from 2 to the"):
            data.load(name, images=n)


def test_images_of_mnist_are_halved_by_means(tmp_path):
    contents = files()
    for name, n in (("train-images-idx3-ubyte", TRAIN), ("t10k-images-idx3-ubyte", TEST)):
        noise = np.random.default_rng(n).integers(256, size=n * 16)
        contents[name] = compressed(idx((n, 4, 4), noise.tolist()))
    write(tmp_path, contents)
    whole, half = data.load("mnist", tmp_path), data.load("mnist", tmp_path, image_size=2)
    assert half.shape == (1, 2, 2)
    for part in ("train", "validation", "test"):
        x = getattr(whole, part).images.double()
        means = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        assert (getattr(half, part).images - means).abs().max() <= 0.5
    with pytest.raises(data.DataError, match="image_size is 3; it must divide the 4 x 4 pixels"):
        data.load("mnist", tmp_path, image_size=3)


def test_rotations_follow_the_images():
    plain, rotated = data.load("digits"), data.load("digits", rotate=True)
    n = len(plain.train)
    assert len(rotated.train) == 4 * n and len(rotated.test) == 4 * len(plain.test)
    x = plain.train.images
    for turn in range(4):
        assert torch.equal(rotated.train.images[turn * n : (turn + 1) * n], x.rot90(turn, (2, 3)))
    assert torch.equal(rotated.train.labels, plain.train.labels.repeat(4))
    # Reading does not turn the images themselves.
    assert torch.equal(rotated.train.images[:n], x) and torch.equal(
        x, data.load("digits").train.images
    )


def test_rotation_needs_squares(folder):
    for path in folder.rglob("*.png"):
        Image.fromarray(np.zeros((8, 9), np.uint8)).save(path)
    with pytest.raises(data.DataError, match="8 x 9 cannot be rotated"):
        data.load(str(folder), rotate=True)


def test_binarised_pixels_have_the_probability_of_their_intensity():
    images = (torch.arange(5) * 63.75).to(torch.uint8).repeat(4000, 1, 1, 1)
    drawn = Binarized(images, fixed=False)[:]
    assert drawn.dtype == torch.uint8 and set(drawn.unique().tolist()) == {0, 255}
    expected = data.pixels(images[0, 0, 0])
    assert torch.allclose(data.pixels(drawn).mean((0, 1, 2)), expected, atol=0.03)
    assert (drawn[..., 0] == 0).all() and (drawn[..., 4] == 255).all()


def test_binarisation_is_new_for_training_and_fixed_for_testing():
    loaded = data.load("digits", binarize=True)
    index = torch.tensor([7, 3, 90])
    train, test = loaded.train.images, loaded.test.images
    assert not torch.equal(train[index], train[index])
    assert torch.equal(test[index], test[index])
    assert torch.equal(test[:100][index], test[index])
    assert not torch.equal(test[index] // 255, data.load("digits").test.images[index])
    torch.manual_seed(3)
    first = train[index]
    torch.manual_seed(3)
    assert torch.equal(train[index], first)


def test_rotation_and_binarisation_together():
    loaded = data.load("digits", rotate=True, binarize=True)
    assert isinstance(loaded.train.images, Binarized)
    assert isinstance(loaded.train.images.images, Rotated)
    assert len(loaded.train) == 4800


def train(loaded, run, epochs=2, resume=False, interrupt=None):
    torch.manual_seed(0)
    model = build("vimae-l", data_shape=loaded.shape, width=0.1)
    if interrupt is not None:
        import signal

        calls = []

        def hook(module, inputs):
            calls.append(0)
            if len(calls) == interrupt:
                signal.raise_signal(signal.SIGINT)

        model.register_forward_pre_hook(hook)
    run.mkdir(exist_ok=True)
    history = fit(
        model,
        loaded,
        run,
        epochs=epochs,
        batch_size=20,
        lr=1e-3,
        seed=0,
        resume=resume,
        console=Console(file=io.StringIO()),
    )
    return model, history


def in_memory(split):
    return data.Split(split.images[:], split.labels)


def test_lazy_images_train_and_evaluate_as_those_in_memory(tmp_path, folder):
    lazy = data.load(str(folder))
    held = data.ImageData(
        "held", in_memory(lazy.train), in_memory(lazy.validation), in_memory(lazy.test)
    )
    (one, history), (other, other_history) = (train(d, tmp_path / d.name) for d in (lazy, held))
    assert history == other_history
    assert evaluation.evaluate(one, lazy) == evaluation.evaluate(other, held)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_binarised_run_resumes_bit_for_bit(tmp_path, folder, step):
    loaded = data.load(str(folder), binarize=True)
    whole, history = train(loaded, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(loaded, tmp_path / "parts", interrupt=step)
    resumed, resumed_history = train(loaded, tmp_path / "parts", resume=True)
    assert resumed_history == history
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


# The command


def test_help_lists_every_data_set():
    assert cli._DATA.split(", ") == data.names()


def vimae(*arguments):
    return cli.run([str(a) for a in arguments])


def test_command_trains_on_a_folder_with_every_option(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--width", 0.1, "--batch-size", 20, "--image-size", 6, "--rotate", "--binarize"]
    assert vimae("train", "--data", "pictures", "--epochs", 1, *options) == 0
    run = Path("runs/vimae-l-pictures-1")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"] == str(folder) and config["image_size"] == 6
    assert config["rotate"] is True and config["binarize"] is True and "download" not in config
    assert "40 test images" in capsys.readouterr().out
    results = json.loads((run / "metrics.json").read_text())["test"]
    # From elsewhere, with the settings that were written down.
    monkeypatch.chdir("/")
    assert vimae("evaluate", tmp_path / run) == 0
    again = json.loads((tmp_path / run / "metrics.json").read_text())["test"]
    assert results["mmd"] and {key: again[key] for key in results} == results
    assert vimae("train", "--resume", tmp_path / run, "--epochs", 2) == 0
    monkeypatch.chdir(tmp_path)
    assert vimae("train", "--config", run / "config.yaml") == 0
    again = yaml.safe_load(Path("runs/vimae-l-pictures-2/config.yaml").read_text())
    assert again == config | {"epochs": 2}


def test_command_draws_images_of_one_class_and_of_many(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "many" / str(i % 30)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "many" / str(i % 30) / path.name).write_bytes(path.read_bytes())
    options = ["--width", 0.1, "--batch-size", 20, "--epochs", 1]
    for name in ("flat", "many"):
        assert vimae("train", "--data", name, "--output", f"run-{name}", *options) == 0
        assert Path(f"run-{name}/figures/reconstructions.png").exists()


def test_command_says_that_a_set_is_partial(tmp_path, monkeypatch, capsys):
    from test_data_formats import cifar

    monkeypatch.chdir(tmp_path)
    cifar(tmp_path / "data", "bin", batches=2)
    options = ["--width", 0.01, "--batch-size", 20, "--epochs", 1, "--output", "run"]
    assert vimae("train", "--data", "cifar10", "--data-dir", "data", *options) == 0
    line = "cifar10 is partial: 40 of 50,000 training images"
    assert line in capsys.readouterr().out
    assert '"partial": "partial: 40 of' in Path("run/metrics.json").read_text()
    assert vimae("evaluate", "run") == 0
    assert line in capsys.readouterr().out


def test_command_names_a_damaged_image_in_one_line(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (folder / "class1" / "33.png").write_bytes(b"nonsense")
    assert vimae("train", "--data", folder, "--width", 0.1, "--batch-size", 20) == 1
    printed = capsys.readouterr().err
    assert "33.png is damaged" in printed and "Traceback" not in printed
    assert not (tmp_path / "runs").exists()
    assert printed.count("error: ") == 1


# Downloads


@pytest.fixture
def served(tmp_path, monkeypatch):
    """MNIST in small, on a server of this machine; gives its requests."""
    pytest.importorskip("pooch")
    write(tmp_path / "server", files())
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(Path(self.path).name)

    handler = partial(Handler, directory=str(tmp_path / "server"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    registry = {
        f"{name}.gz": (f"{address}/{name}.gz", f"sha256:{hashlib.sha256(raw).hexdigest()}")
        for name, raw in files().items()
    }
    monkeypatch.setitem(download.FILES, "mnist", registry)
    yield requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_gets_what_is_missing_once(tmp_path, served):
    with pytest.raises(data.DataError, match="is missing.*--download"):
        data.load("mnist", tmp_path / "data")
    assert served == []  # never without being asked
    loaded = data.load("mnist", tmp_path / "data", download=True)
    assert len(loaded.train) == 50 and len(served) == 4
    assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == sorted(served)
    data.load("mnist", tmp_path / "data", download=True)
    assert len(served) == 4
    (tmp_path / "data" / "mnist" / served[0]).unlink()
    data.load("mnist", tmp_path / "data", download=True)
    assert served[4:] == served[:1]


def test_download_keeps_no_file_that_is_not_the_right_one(tmp_path, served):
    name = "train-labels-idx1-ubyte.gz"
    (tmp_path / "server" / name).write_bytes(b"something else")
    with pytest.raises(data.DataError, match=f"{name} could not be downloaded: .*hash"):
        data.load("mnist", tmp_path / "data", download=True)
    assert not (tmp_path / "data" / "mnist" / name).exists()
    (tmp_path / "server" / name).unlink()
    with pytest.raises(data.DataError, match=f"{name} could not be downloaded: 404"):
        data.load("mnist", tmp_path / "data", download=True)


def test_download_never_replaces_a_damaged_file(tmp_path, served):
    data.load("mnist", tmp_path / "data", download=True)
    path = tmp_path / "data" / "mnist" / served[0]
    path.write_bytes(b"mine")
    with pytest.raises(data.DataError, match="is damaged"):
        data.load("mnist", tmp_path / "data", download=True)
    assert path.read_bytes() == b"mine"


def test_download_without_pooch_says_what_to_install(tmp_path, monkeypatch):
    find = builtins.__import__

    def without(name, *rest):
        if name == "pooch":
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(data.DataError, match=r"pip install 'vimae-kernels\[download\]'"):
        data.load("mnist", tmp_path, download=True)


def test_download_needs_a_folder():
    with pytest.raises(data.DataError, match="--data-dir"):
        data.load("mnist", download=True)


def test_every_download_has_a_checksum():
    for files_of in download.FILES.values():
        for file, (address, checksum) in files_of.items():
            kind, value = checksum.split(":")
            assert len(value) == {"md5": 32, "sha256": 64}[kind] and int(value, 16)
            assert address.endswith(f"/{file}")
