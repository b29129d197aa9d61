"""Reading data sets: what is there, what is missing, what is damaged."""

import gzip
import os
import struct

import pytest
import torch

from vimae_models import corruptions, data

TRAIN, TEST = 60, 10


def idx(shape, values, magic=None):
    header = struct.pack(f">{1 + len(shape)}I", magic or 0x800 + len(shape), *shape)
    return header + bytes(values)


def compressed(raw):
    return gzip.compress(raw, mtime=0)  # the same bytes, thus the same test names, every time


def files(compress=compressed, train=TRAIN, test=TEST):
    """Four files as bytes: image i is filled with i, its label is i mod 10."""
    out = {}
    for part, n in (("train", train), ("t10k", test)):
        images = [i for i in range(n) for _ in range(16)]
        out[f"{part}-images-idx3-ubyte"] = compress(idx((n, 4, 4), images))
        out[f"{part}-labels-idx1-ubyte"] = compress(idx((n,), [i % 10 for i in range(n)]))
    return out


def write(folder, contents, suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in contents.items():
        (folder / f"{name}{suffix}").write_bytes(raw)


@pytest.mark.parametrize("where", ["mnist", ".", "MNIST/raw"])
@pytest.mark.parametrize("gzipped", [True, False])
def test_reads_idx_files_wherever_they_are_usually_put(tmp_path, where, gzipped):
    if gzipped:
        write(tmp_path / where, files())
    else:
        write(tmp_path / where, files(bytes), suffix="")
    loaded = data.load("mnist", tmp_path)
    assert loaded.shape == (1, 4, 4)
    # The last sixth of the training file validates, in the order of the file.
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [50, 10, 10]
    assert loaded.train.images[:, 0, 2, 3].tolist() == list(range(50))
    assert loaded.validation.images[:, 0, 0, 0].tolist() == list(range(50, 60))
    assert loaded.test.labels.tolist() == list(range(10))
    assert loaded.partial.startswith("partial: 60 of 60,000 training images, 10 of 10,000")


def test_environment_variable_stands_for_data_dir(tmp_path, monkeypatch):
    write(tmp_path / "fashion_mnist", files())
    monkeypatch.setenv("VIMAE_DATA", str(tmp_path))
    assert len(data.load("fashion_mnist").test) == TEST


def test_bytes_become_pixels_in_the_unit_interval():
    assert data.pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == [
        0.0,
        pytest.approx(0.2),
        1.0,
    ]
    x = torch.rand(3)
    assert data.pixels(x) is x


def damaged(name, raw):
    return files() | {name: raw}


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "name, raw, words",
    [
        (IMAGES, files()[IMAGES][:-20], "not a whole gzip file"),
        (IMAGES, b"not gzip at all", "not a whole gzip file"),
        (IMAGES, files()[IMAGES][:40] + b"\xff" * 20 + files()[IMAGES][60:], "gzip"),
        (IMAGES, compressed(b"\0\0"), "less than an IDX header"),
        (IMAGES, compressed(idx((TRAIN, 4, 4), [0] * 16 * TRAIN, magic=2049)), "magic number"),
        (IMAGES, compressed(idx((TRAIN, 4, 4), [0] * 100)), "60 x 4 x 4 entries but 100 follow"),
        (IMAGES, compressed(idx((2**31, 2**31, 4), [])), "2147483648 x 4 entries but 0 follow"),
        (LABELS, compressed(idx((59,), [0] * 59)), "59 labels for the 60 images"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, raw, words):
    write(tmp_path / "mnist", damaged(name, raw))
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("mnist", tmp_path)
    assert str(tmp_path / "mnist" / f"{name}.gz") in str(caught.value)
    assert "https://" in str(caught.value)


@pytest.mark.parametrize(
    "contents, file, words",
    [
        (files(test=1), "t10k-images-idx3-ubyte", "has too few images, 1; it must have 2"),
        (files(test=0), "t10k-images-idx3-ubyte", "has too few images, 0; it must have 2"),
        (files(train=11), IMAGES, "has too few images, 11; it must have 12"),
        (damaged(IMAGES, compressed(idx((TRAIN, 4, 5), [0] * 20 * TRAIN))), IMAGES, "4 x 5"),
    ],
)
def test_files_that_cannot_be_used_together_are_named(tmp_path, contents, file, words):
    write(tmp_path, contents)
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("mnist", tmp_path)
    assert str(tmp_path / f"{file}.gz") in str(caught.value)


def test_the_fewest_images_are_enough(tmp_path):
    write(tmp_path, files(train=12, test=2))
    loaded = data.load("mnist", tmp_path)
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [10, 2, 2]


def test_missing_file_says_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    contents = files()
    del contents["t10k-labels-idx1-ubyte"]
    write(tmp_path, contents)
    with pytest.raises(data.DataError, match="t10k-labels-idx1-ubyte.gz .*is missing") as caught:
        data.load("mnist", tmp_path)
    for part in (str(tmp_path / "mnist"), "MNIST/raw", "https://"):
        assert part in str(caught.value)


def test_without_a_folder_the_option_and_the_variable_are_named(monkeypatch):
    monkeypatch.delenv("VIMAE_DATA", raising=False)
    with pytest.raises(data.DataError, match="--data-dir.*VIMAE_DATA"):
        data.load("mnist")


def test_unknown_data_set_lists_the_known_ones():
    with pytest.raises(data.DataError, match="'imagenet'.*digits.*mnist"):
        data.load("imagenet")


def test_digits_split_is_fixed_and_disjoint():
    first, again = data.load("digits"), data.load("digits")
    assert torch.equal(first.train.images, again.train.images)
    assert [len(s) for s in (first.train, first.validation, first.test)] == [1200, 197, 400]
    every = torch.cat([s.images for s in (first.train, first.validation, first.test)])
    assert len(every.unique(dim=0)) == 1797
    assert every.min() == 0 and every.max() == 1
    assert len(first.test.labels.unique()) == 10


def test_gaussian_noise_has_its_deviation():
    x = torch.full((10, 1, 100, 100), 0.5)
    noise = corruptions.gaussian(x, 0.4, torch.Generator().manual_seed(0)) - x
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(0.4, rel=0.02)


def test_mask_forces_a_fraction_of_the_pixels_to_zero_in_all_channels():
    x = torch.ones(10, 3, 50, 50)
    masked = corruptions.mask(x, 0.2, torch.Generator().manual_seed(0))
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    assert (masked == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(masked[:, 0], masked[:, 2])


@pytest.mark.skipif("VIMAE_DATA" not in os.environ, reason="VIMAE_DATA does not name a folder")
@pytest.mark.parametrize("name, mean", [("mnist", 0.130660), ("fashion_mnist", 0.286041)])
def test_official_files(name, mean):
    loaded = data.load(name)
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [
        50_000,
        10_000,
        10_000,
    ]
    assert loaded.partial == ""
    every = torch.cat([loaded.train.images, loaded.validation.images])
    assert every.double().mean().item() / 255 == pytest.approx(mean, abs=1e-6)
