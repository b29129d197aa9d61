"""Omniglot, CIFAR-10, CelebA and folders of images, from small files in their formats."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from vimae_models import data

official = pytest.mark.skipif(
    "VIMAE_DATA" not in os.environ, reason="VIMAE_DATA does not name a folder"
)


def sizes(loaded):
    return [len(split) for split in (loaded.train, loaded.validation, loaded.test)]


def encoded(array, ending="png", mode=None):
    file = io.BytesIO()
    image = Image.fromarray(array)
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    image = image.convert(mode) if mode else image
    image.save(file, "JPEG" if ending == "jpg" else ending, **options)
    return file.getvalue()


# Omniglot


def drawing(alphabet, character, writer):
    """105x105 black on white; the ink is a block whose place depends on the drawing."""
    white = np.full((105, 105), 255, np.uint8)
    top = 15 * (ord(alphabet[0]) % 5)
    white[top : top + 15, 30 * character : 30 * character + writer] = 0
    return encoded(white, mode="1")


def omniglot_zip(folder, stem, alphabets, extra=()):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}.zip", "w") as archive:
        archive.writestr(f"{stem}/", "")
        for alphabet in alphabets:
            for character in (1, 2):
                for writer in range(1, 21):
                    name = f"character{character:02}/{character:04}_{writer:02}.png"
                    archive.writestr(
                        f"{stem}/{alphabet}/{name}", drawing(alphabet, character, writer)
                    )
        for name, content in extra:
            archive.writestr(name, content)


def test_omniglot_drops_drawings_that_are_in_two_zips(tmp_path):
    omniglot_zip(tmp_path / "omniglot", "images_background_small1", ["A", "B", "C"])
    omniglot_zip(tmp_path / "omniglot", "images_background_small2", ["B", "C", "D"])
    loaded = data.load("omniglot", tmp_path)
    # Four alphabets of two characters by twenty writers; D is the last fifth, and tests.
    assert sizes(loaded) == [3 * 2 * 18, 3 * 2 * 2, 40]
    assert "160 of 32,460 drawings, 8 of 1,623 characters, 4 of 50" in loaded.partial
    assert loaded.test.labels.unique().tolist() == [6, 7]
    assert loaded.train.labels.unique().tolist() == list(range(6))
    assert loaded.train.labels.bincount().tolist() == [18] * 6


def test_omniglot_tests_on_the_evaluation_alphabets(tmp_path):
    omniglot_zip(tmp_path, "images_background", ["B", "C"])
    omniglot_zip(tmp_path, "images_evaluation", ["A"])
    loaded = data.load("omniglot", tmp_path)
    assert sizes(loaded) == [2 * 2 * 18, 2 * 2 * 2, 40]
    assert loaded.test.labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize("size", [28, 32, 105])
def test_omniglot_images_keep_their_ink(tmp_path, size):
    omniglot_zip(tmp_path, "images_background", ["A", "B"])
    loaded = data.load("omniglot", tmp_path, image_size=None if size == 28 else size)
    assert loaded.shape == (1, size, size) and loaded.train.images.dtype == torch.uint8
    # Writer w of character c left a block of 15 w pixels that starts at column 30 c.
    ink = data.pixels(loaded.train.images[:18]).mean((1, 2, 3)) * 105**2
    assert torch.allclose(ink, 15.0 * torch.arange(1, 19), rtol=0.01, atol=1.5)
    block = data.pixels(loaded.train.images[17, 0])
    columns = block.amax(0).nonzero()[:, 0]
    assert columns.min() == 30 * size // 105 and columns.max() == (48 * size - 1) // 105
    assert block.max() == 1


def test_omniglot_files_that_cannot_be_used(tmp_path):
    with pytest.raises(data.DataError, match=r"images_background\.zip .*is missing.*https://"):
        data.load("omniglot", tmp_path)
    with pytest.raises(data.DataError, match="--image-size is 106"):
        data.load("omniglot", tmp_path, image_size=106)
    (tmp_path / "images_background.zip").write_bytes(b"PK not a zip")
    with pytest.raises(data.DataError, match=r"images_background\.zip is damaged"):
        data.load("omniglot", tmp_path)
    name = "images_background/A/character03/0003_01.png"
    for content, words in (
        (drawing("A", 1, 1)[:60], "0003_01.png in"),
        (encoded(np.zeros((5, 6), np.uint8)), "5 x 6, not 105 x 105"),
    ):
        omniglot_zip(tmp_path, "images_background", ["A", "B"], [(name, content)])
        with pytest.raises(data.DataError, match=words):
            data.load("omniglot", tmp_path)


@official
def test_omniglot_real_files():
    loaded = data.load("omniglot")
    images = torch.cat([s.images for s in (loaded.train, loaded.validation, loaded.test)])
    assert 0.07 < data.pixels(images).mean().item() < 0.09
    if len(images) < 32_460:
        assert f"{len(images):,} of 32,460" in loaded.partial
    if "8 of 50 alphabets" in loaded.partial:
        assert sizes(loaded) == [3294, 366, 1180]


# CIFAR-10


def cifar_records(n, first=0):
    """n records: label i mod 10, planes filled with i, i + 1, i + 2, a mark in the first column."""
    labels = [(first + i) % 10 for i in range(n)]
    images = np.zeros((n, 3, 32, 32), np.uint8)
    for i in range(n):
        for channel in range(3):
            images[i, channel] = first + i + channel
    images[:, :, :, 0] = 255
    return labels, images.reshape(n, -1)


def binary(labels, images):
    return b"".join(
        bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)
    )


def old_pickle(labels, images, reconstruct=b"cnumpy.core.multiarray\n_reconstruct\n"):
    """The dictionary as Python 2 pickled it: byte strings, protocol 2, numpy's old names."""

    def string(raw):
        return b"T" + struct.pack("<i", len(raw)) + raw

    def integer(i):
        return b"J" + struct.pack("<i", i)

    dtype = (
        b"cnumpy\ndtype\n(" + string(b"u1") + integer(0) + integer(1) + b"tR("
        + integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    )  # fmt: skip
    array = (
        reconstruct + b"(cnumpy\nndarray\n(" + integer(0) + b"t" + string(b"b") + b"tR("
        + integer(1) + b"(" + integer(len(images)) + integer(images.shape[1]) + b"t" + dtype
        + b"\x89" + string(images.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


def cifar(folder, form, batches=5, n=20, test=10):
    """CIFAR-10 in one of its forms."""
    parts = {f"data_batch_{i + 1}": cifar_records(n, i * n) for i in range(batches)}
    parts["test_batch"] = cifar_records(test, 100)
    write = binary if "bin" in form else old_pickle
    suffix = ".bin" if "bin" in form else ""
    files = {f"{part}{suffix}": write(*content) for part, content in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if form.endswith("tar.gz"):
        with tarfile.open(folder / form, "w:gz") as archive:
            for name, raw in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches/{name}")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
    else:
        for name, raw in files.items():
            if form == "bin.gz":
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw, mtime=0))
            else:
                (folder / name).write_bytes(raw)
    return folder


@pytest.mark.parametrize(
    "where, form",
    [
        ("cifar10", "bin"),
        (".", "bin.gz"),
        ("cifar-10-batches-bin", "bin"),
        ("cifar10/cifar-10-batches-py", "py"),
        ("cifar10", "cifar-10-binary.tar.gz"),
        (".", "cifar-10-python.tar.gz"),
    ],
)
def test_cifar10_in_all_its_forms(tmp_path, where, form):
    cifar(tmp_path / where, form)
    loaded = data.load("cifar10", tmp_path)
    assert sizes(loaded) == [90, 10, 10] and loaded.shape == (3, 32, 32)
    assert loaded.train.images[:, 0, 3, 1].tolist() == list(range(90))
    assert loaded.validation.images[5, :, 31, 31].tolist() == [95, 96, 97]
    assert (loaded.test.images[:, :, :, 0] == 255).all()
    assert loaded.train.labels.tolist() == [i % 10 for i in range(90)]
    assert loaded.test.images[0, 2, 0, 1] == 102


def test_cifar10_prefers_a_whole_archive_to_some_of_the_files(tmp_path):
    cifar(tmp_path, "bin", batches=2)
    partial = data.load("cifar10", tmp_path)
    assert sizes(partial) == [36, 4, 10]
    assert "40 of 50,000 training images, 10 of 10,000 test images" in partial.partial
    cifar(tmp_path, "cifar-10-python.tar.gz")
    assert sizes(data.load("cifar10", tmp_path)) == [90, 10, 10]


def test_cifar10_pickles_run_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    cifar(tmp_path, "py")
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Attack()}))
    with pytest.raises(data.DataError, match=r"data_batch_3 is damaged.*mkdir, which is not allow"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()
    # Numpy's own way in, with a function of ours as the type of array.
    labels, images = cifar_records(20)
    raw = old_pickle(labels, images, b"cbuiltins\neval\n")
    (tmp_path / "data_batch_3").write_bytes(raw)
    with pytest.raises(data.DataError, match="eval, which is not allowed"):
        data.load("cifar10", tmp_path)


CIFAR_DAMAGES = {
    "cut": ("data_batch_2.bin", b"\0" * 3072, "3072 bytes, not a multiple of 3073"),
    "empty": ("data_batch_2.bin", b"", "0 bytes, not a multiple"),
    "label": ("test_batch.bin", b"\x0a" + b"\0" * 3072, "labels that are not 0..9"),
    "pickle": ("data_batch_1", b"\x80\x02}", "cannot be unpickled"),
    "no array": ("data_batch_1", pickle.dumps({b"data": 1}), "no uint8 array"),
    "list": ("data_batch_1", pickle.dumps([]), "no uint8 array"),
    "fewer labels": ("data_batch_1", old_pickle([1], cifar_records(2)[1]), "no list of 2 integers"),
    "tar": ("cifar-10-binary.tar.gz", b"not a tar", "not a whole tar.gz"),
}


@pytest.mark.parametrize("damage", CIFAR_DAMAGES)
def test_cifar10_damaged_files_are_named(tmp_path, damage):
    file, raw, words = CIFAR_DAMAGES[damage]
    if not file.endswith("gz"):
        cifar(tmp_path, "bin" if file.endswith("bin") else "py")
    (tmp_path / file).write_bytes(raw)
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("cifar10", tmp_path)
    assert str(tmp_path / file) in str(caught.value) and "https://" in str(caught.value)


def test_cifar10_archive_that_lacks_a_batch(tmp_path):
    cifar(tmp_path, "cifar-10-binary.tar.gz", batches=4)
    with pytest.raises(data.DataError, match=r"it has no data_batch_5\.bin"):
        data.load("cifar10", tmp_path)


def test_cifar10_missing_files(tmp_path):
    with pytest.raises(data.DataError, match=r"cifar-10-binary\.tar\.gz .*is missing; looked in"):
        data.load("cifar10", tmp_path)
    cifar(tmp_path, "bin")
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(data.DataError, match="test_batch is missing"):
        data.load("cifar10", tmp_path)


@official
def test_cifar10_real_files():
    loaded = data.load("cifar10")
    n, test = len(loaded.train) + len(loaded.validation), len(loaded.test)
    assert len(loaded.train) == n * 9 // 10
    assert (n == 50_000 and test == 10_000) == (loaded.partial == "")
    # The known means of the channels, from however many images there are.
    mean = data.pixels(loaded.train.images).mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.005)
    # The first test image is a cat.
    assert loaded.test.labels[:5].tolist() == [3, 8, 8, 0, 6]


# CelebA


def celeba(folder, n=40, size=(178, 218)):
    """A red square in the middle 140x140 of black, its centre green."""
    folder = folder / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[39:179, 19:159] = (250, 0, 0)
        pixels[99:119, 79:99] = (0, 250, 0)
        (folder / f"{i + 1:06}.jpg").write_bytes(encoded(pixels, "jpg"))
    return folder


def test_celeba_crops_and_holds_out_the_last(tmp_path):
    folder = celeba(tmp_path / "celeba")
    (folder / "000040.jpg").write_bytes(encoded(np.zeros((218, 178, 3), np.uint8), "jpg"))
    loaded = data.load("celeba", tmp_path)
    assert loaded.shape == (3, 64, 64) and sizes(loaded) == [32, 4, 4]
    assert loaded.partial == "partial: 40 of 202,599 images"
    # The last image is the last of the test set; what lies outside the crop is in none.
    assert loaded.test.images[3:].max() <= 3
    image = loaded.train.images[torch.tensor([31])][0].float()
    edge = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    assert (edge - torch.tensor([[250.0], [0], [0]])).abs().max() < 20  # nothing from beyond it
    centre = image[:, 29:35, 29:35] - torch.tensor([0, 250.0, 0])[:, None, None]
    assert centre.abs().max() < 20
    assert data.load("celeba", tmp_path, image_size=32).shape == (3, 32, 32)


def test_celeba_files_that_cannot_be_used(tmp_path):
    with pytest.raises(data.DataError, match=r"img_align_celeba is missing.*celeba/Img.*https://"):
        data.load("celeba", tmp_path, download=True)
    folder = celeba(tmp_path)
    whole = (folder / "000007.jpg").read_bytes()
    (folder / "000007.jpg").write_bytes(whole[: len(whole) // 2])
    loaded = data.load("celeba", tmp_path)
    loaded.train.images[:6]
    with pytest.raises(data.DataError, match=r"000007\.jpg is damaged"):
        loaded.train.images[:7]
    (folder / "000007.jpg").unlink()
    with pytest.raises(data.DataError, match=r"000007\.jpg is missing"):
        loaded.train.images[:7]
    (folder / "000007.jpg").write_bytes(encoded(np.zeros((178, 218, 3), np.uint8), "jpg"))
    with pytest.raises(data.DataError, match="it is 218 x 178, not 178 x 218"):
        loaded.train.images[:7]


def test_celeba_with_too_few_images(tmp_path):
    celeba(tmp_path, n=19)
    with pytest.raises(data.DataError, match=r"202599\.jpg \(19 found\) is missing"):
        data.load("celeba", tmp_path)


# Folders


def pictures(folder, classes=("b", "a", "c"), n=10, shape=(6, 8)):
    """Image i of class k is filled with 50 k + i."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            array = np.full(shape, 50 * k + i, np.uint8)
            if len(shape) == 3:
                array[..., 3:] = 255  # opaque
            (folder / name / f"{i}.png").write_bytes(encoded(array))


@pytest.mark.parametrize(
    "shape, expected", [((6, 8), (1, 6, 8)), ((6, 8, 3), (3, 6, 8)), ((6, 8, 4), (3, 6, 8))]
)
def test_folder_has_its_sub_folders_as_labels(tmp_path, shape, expected):
    pictures(tmp_path / "mine", shape=shape)
    (tmp_path / "mine" / "notes.txt").write_text("not an image")
    (tmp_path / "mine" / ".thumb.png").write_text("not an image")
    loaded = data.load(str(tmp_path / "mine"))
    assert loaded.name == "mine" and loaded.shape == expected and sizes(loaded) == [24, 3, 3]
    values = []
    for split in (loaded.train, loaded.validation, loaded.test):
        value = split.images[:][:, 0, 0, 0].long()
        # In the order of names a, b, c: the second, the first and the third that were written.
        assert torch.equal(torch.tensor([1, 0, 2])[value // 50], split.labels)
        values += value.tolist()
    assert sorted(values) == [50 * k + i for k in range(3) for i in range(10)]
    again = data.load(str(tmp_path / "mine"))
    assert torch.equal(again.test.images[:], loaded.test.images[:])


def test_folder_without_sub_folders_has_one_label(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(np.full((4, 4), i, np.uint8), "jpg"))
    assert data.load(str(tmp_path)).train.labels.unique().tolist() == [0]


def test_folder_images_of_different_sizes(tmp_path):
    pictures(tmp_path)
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 200  # the square in the centre
    (tmp_path / "a" / "3.png").write_bytes(encoded(wide))
    with pytest.raises(data.DataError, match=r"3\.png is damaged: it is 60 x 20, .*--image-size"):
        loaded = data.load(str(tmp_path))
        for split in (loaded.train, loaded.validation, loaded.test):
            split.images[:]
    loaded = data.load(str(tmp_path), image_size=5)
    assert loaded.shape == (1, 5, 5)
    every = torch.cat([s.images[:] for s in (loaded.train, loaded.validation, loaded.test)])
    assert (every == 200).all((1, 2, 3)).sum() == 1


def test_folder_errors(tmp_path):
    with pytest.raises(data.DataError, match="known data sets are .* and any folder of images"):
        data.load(str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="has 0 images; it must have 20 or more"):
        data.load(str(tmp_path))
    pictures(tmp_path)
    (tmp_path / "a" / "0.png").write_bytes(b"nonsense")
    with pytest.raises(data.DataError, match=r"a/0\.png is damaged"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("name", ["digits", "cifar10", "dsprites"])
def test_image_size_where_it_is_fixed(name, tmp_path):
    with pytest.raises(data.DataError, match="--image-size cannot be given"):
        data.load(name, tmp_path, image_size=10)
