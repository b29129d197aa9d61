"""Folders and files as users have them: every animal is made here, and has its right outcome."""

import gzip
import io
import os
import pickle
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import compressed, files, write
from test_data_formats import (
    celeba,
    cifar,
    cifar_records,
    drawing,
    omniglot_zip,
    sizes,
)

from vimae_models import cli, data
from vimae_models.data.files import formats

HEIGHT, WIDTH = 6, 8


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("VIMAE_DATA", raising=False)


def grey(value=100, shape=(HEIGHT, WIDTH)):
    return Image.fromarray(np.full(shape, value, np.uint8))


def classes_of_grey(folder, classes="ab", n=10):
    """Image i of every class is filled with 10 i."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            grey(10 * i).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def root(tmp_path):
    return classes_of_grey(tmp_path / "zoo")


def every(loaded):
    """All images and labels, the training ones first."""
    splits = (loaded.train, loaded.validation, loaded.test)
    return torch.cat([s.images[:] for s in splits]), torch.cat([s.labels for s in splits])


def image(loaded, name):
    """The image of one file."""
    read = loaded.train.images.images
    return read[torch.tensor([read.names.index(name)])][0]


def said(loaded):
    return "\n".join(loaded.notes)


# One image more, of some kind. What it must be is (C, H, W), and what is said of it.

GREY16 = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 1394
SCALED = np.rint(GREY16 / 257).astype(np.uint8)[None]
ON_OFF = np.indices((HEIGHT, WIDTH)).sum(0) % 2 == 1
COLOURS = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
RAMP = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)


def planes(array):
    return array.transpose(2, 0, 1)


def on_white(array, alpha):
    alpha = alpha / 255
    return np.rint(array * alpha + 255 * (1 - alpha)).astype(np.uint8)


def with_alpha(array, alpha):
    return Image.fromarray(np.dstack([array, alpha]))


def palette(colours, indices):
    picture = Image.fromarray(indices).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([int(value) for colour in colours for value in colour])
    return picture


def turned(orientation):
    """RAMP in a file that says it is to be turned."""

    def save(path):
        upright = Image.fromarray(RAMP)
        stored = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }[orientation]
        exif = Image.Exif()
        exif[0x112] = orientation
        upright.transpose(stored).save(path, exif=exif)

    return save


def saver(picture, **options):
    return lambda path: picture.save(path, **options)


def writer(raw):
    return lambda path: path.write_bytes(raw)


def png(mode, array, transparent=None):
    """A PNG of 16 bits a sample, which Pillow writes for grey alone."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, mode, 0, 0, 0))
        + (b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent)))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def two_frames(kind, path):
    Image.fromarray(RAMP).save(
        path,
        kind,
        save_all=True,
        append_images=[grey(255)],
        **({"duration": 9} if kind != "TIFF" else {}),
    )


SQUARE16 = np.dstack([GREY16, GREY16[::-1], GREY16[:, ::-1]])
TRANSPARENT = "transparency is composed on white (1 images)"
SIXTEEN = "16-bit grey is scaled to 8 bits (1 images)"
FIRST = "only the first image of several is used (1 images)"
SAVED_BY = {
    # kind: (file, save, pixels, what is said)
    "16-bit PNG": ("z.png", saver(Image.fromarray(GREY16)), SCALED, SIXTEEN),
    "16-bit TIFF": ("z.tif", saver(Image.fromarray(GREY16)), SCALED, SIXTEEN),
    "16-bit big-endian TIFF": (
        "z.tiff",
        saver(Image.frombytes("I;16B", (WIDTH, HEIGHT), GREY16.astype(">u2").tobytes())),
        SCALED,
        SIXTEEN,
    ),
    "16-bit PGM": (
        "z.pgm",
        writer(b"P5 8 6 65535\n" + GREY16.astype(">u2").tobytes()),
        SCALED,
        SIXTEEN,
    ),
    "16-bit PNG with a transparent value": (
        "z.png",
        writer(png(0, GREY16, transparent=0)),
        np.where(GREY16 == 0, 255, SCALED),
        SIXTEEN,
    ),
    "16-bit grey and alpha": (
        "z.png",
        writer(png(4, np.dstack([GREY16, np.full_like(GREY16, 65535)]))),
        np.tile(GREY16 // 256, (3, 1, 1)),  # Pillow reads it as RGBA
        "",
    ),
    "16-bit RGB": ("z.png", writer(png(2, SQUARE16)), planes(SQUARE16 // 256), ""),
    "8-bit RGB": ("z.png", saver(Image.fromarray(COLOURS)), planes(COLOURS), ""),
    "RGBA": (
        "z.png",
        saver(with_alpha(COLOURS, ALPHA)),
        planes(on_white(COLOURS, ALPHA[..., None])),
        TRANSPARENT,
    ),
    "opaque RGBA": ("z.png", saver(with_alpha(COLOURS, ALPHA | 255)), planes(COLOURS), ""),
    "LA": ("z.png", saver(with_alpha(RAMP, ALPHA)), on_white(RAMP, ALPHA)[None], TRANSPARENT),
    "grey with a transparent value": (
        "z.png",
        saver(Image.fromarray(RAMP), transparency=7),
        np.where(RAMP == 7, 255, RAMP)[None],
        TRANSPARENT,
    ),
    "RGB with a transparent colour": (
        "z.png",
        saver(Image.fromarray(np.dstack([RAMP, RAMP, RAMP])), transparency=(7, 7, 7)),
        np.tile(np.where(RAMP == 7, 255, RAMP), (3, 1, 1)),
        TRANSPARENT,
    ),
    "palette": (
        "z.png",
        saver(palette(COLOURS.reshape(-1, 3), RAMP)),
        planes(COLOURS),
        "",
    ),
    "palette with a transparent colour": (
        "z.png",
        saver(palette(COLOURS.reshape(-1, 3), RAMP), transparency=7),
        planes(np.where(RAMP[..., None] == 7, 255, COLOURS)),
        TRANSPARENT,
    ),
    "palette with transparent colours": (
        "z.png",
        saver(palette(COLOURS.reshape(-1, 3), RAMP), transparency=bytes(ALPHA.flat)),
        planes(on_white(COLOURS, ALPHA[..., None])),
        TRANSPARENT,
    ),
    "palette of grey": (
        "z.png",
        saver(palette([(3 * i,) * 3 for i in range(48)], RAMP)),
        3 * RAMP[None],
        "",
    ),
    "GIF with a transparent colour": (
        "z.gif",
        saver(palette(COLOURS.reshape(-1, 3), RAMP), transparency=7),
        planes(np.where(RAMP[..., None] == 7, 255, COLOURS)),
        TRANSPARENT,
    ),
    "1 bit": ("z.png", saver(Image.fromarray(ON_OFF)), 255 * ON_OFF[None].astype(np.uint8), ""),
    "1 bit, PBM": (
        "z.pbm",
        saver(Image.fromarray(ON_OFF)),
        255 * ON_OFF[None].astype(np.uint8),
        "",
    ),
    "CMYK": (
        "z.tif",
        saver(Image.fromarray(COLOURS).convert("CMYK")),
        planes(COLOURS),
        "",
    ),
    "animated GIF": ("z.gif", lambda path: two_frames("GIF", path), RAMP[None], FIRST),
    "animated PNG": ("z.apng", lambda path: two_frames("PNG", path), RAMP[None], FIRST),
    "TIFF of two pages": ("z.tif", lambda path: two_frames("TIFF", path), RAMP[None], FIRST),
    "upper-case ending": ("z.PNG", saver(Image.fromarray(RAMP)), RAMP[None], ""),
    "BMP": ("z.BMP", saver(Image.fromarray(RAMP)), RAMP[None], ""),
    "PNG under the name of a JPEG": (
        "z.jpg",
        writer(saved(Image.fromarray(RAMP), "PNG")),
        RAMP[None],
        "",
    ),
    "unreadable EXIF": (
        "z.png",
        saver(Image.fromarray(RAMP), exif=b"Exif\0\0junk"),
        RAMP[None],
        "",
    ),
    **{
        f"orientation {k}, {kind}": (f"z.{kind}", turned(k), RAMP[None], "")
        for k in range(2, 9)
        for kind in ("png", "tif")
    },
}


@pytest.mark.parametrize("kind", SAVED_BY)
def test_picture_is_as_it_is_seen(root, kind):
    name, save, pixels, words = SAVED_BY[kind]
    save(root / "a" / name)
    loaded = data.load(str(root))
    assert sum(sizes(loaded)) == 21
    assert len(pixels) == loaded.shape[0]  # grey stays grey; one image of colour is enough
    seen = image(loaded, f"a/{name}").int()
    assert (seen - torch.tensor(pixels.astype(int))).abs().max() <= 1
    # The others are what they were, in as many channels.
    assert (image(loaded, "b/7.png") == 70).all()
    assert loaded.notes[0] == "21 images used, 0 ignored"
    assert list(loaded.notes[1:]) == ([words] if words else [])


@pytest.mark.parametrize(
    "ending", [".jpg", ".JPG", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".tiff"]
)
def test_formats_that_are_lossy(tmp_path, ending):
    if ending.lower() not in formats():
        pytest.skip(f"this Pillow does not read {ending}")
    for i in range(20):
        grey(10 * i, (32, 32)).save(tmp_path / f"{i}{ending}")
    loaded = data.load(str(tmp_path))
    assert sum(sizes(loaded)) == 20
    values = data.pixels(every(loaded)[0]).mean((1, 2, 3)).sort().values * 255
    assert (values - 10 * torch.arange(20)).abs().max() < 3


def test_photograph_is_turned_and_its_preview_is_not_said(tmp_path):
    for i in range(20):
        picture = np.zeros((40, 60), np.uint8)
        picture[:, :30] = 255  # left
        exif = Image.Exif()
        exif[0x112] = 6  # what is left in the file is up
        Image.fromarray(picture).save(
            tmp_path / f"{i}.jpg", "MPO", save_all=True, append_images=[grey()], exif=exif
        )
    loaded = data.load(str(tmp_path))
    assert loaded.shape == (1, 60, 40)
    images, _ = every(loaded)
    assert images[:, :, :28].min() > 240 and images[:, :, 32:].max() < 15
    assert loaded.notes == ("20 images used, 0 ignored",)
    assert data.load(str(tmp_path), image_size=10).shape == (1, 10, 10)


def test_colour_anywhere_is_kept_wherever_it_stands(root):
    Image.fromarray(COLOURS).save(root / "b" / "zz.png")
    loaded = data.load(str(root))
    assert loaded.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(image(loaded, "b/zz.png"), torch.tensor(planes(COLOURS)))


def test_transparency_is_said_once(root):
    for i in range(5):
        with_alpha(COLOURS, ALPHA).save(root / "b" / f"{i}.png")
    assert said(data.load(str(root))).count("transparen") == 1


# Files that cannot be used.

BOMB = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
WHOLE = saved(grey(shape=(64, 64)), "PNG")
NOISE = np.random.default_rng(1).integers(256, size=(64, 64), dtype=np.uint8)
DAMAGED = {
    "empty": (b"", "it is empty"),
    "text": (b"nonsense", "it is no image that Pillow reads"),
    "a page that says there is none": (b"<html>404</html>", "it is no image that Pillow reads"),
    "cut PNG": (saved(Image.fromarray(NOISE), "PNG")[:2000], "truncated"),
    "cut JPEG": (saved(Image.fromarray(NOISE), "JPEG")[:1500], "truncated"),
    "cut GIF": (saved(Image.fromarray(NOISE), "GIF")[:2000], "truncated|not enough"),
    "header alone": (saved(Image.fromarray(NOISE), "PNG")[:50], ""),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n", "no image"),
    "bomb": (saved(grey(), "PNG").replace(saved(grey(), "PNG")[16:29], BOMB), "bomb|exceeds"),
    "floating-point": (saved(Image.fromarray(np.ones((6, 8), np.float32)), "TIFF"), "floating"),
    "32 bits": (saved(Image.fromarray(np.full((6, 8), 10**6, np.int32)), "TIFF"), "16 bits"),
    "other size": (saved(grey(shape=(3, 4)), "PNG"), "4 x 3, .* 8 x 6; --image-size"),
}


def with_checksum(raw):
    """The PNG with the checksum its header needs."""
    return raw[:29] + struct.pack(">I", zlib.crc32(raw[12:29])) + raw[33:]


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_image_is_named_before_any_work(root, kind):
    raw, words = DAMAGED[kind]
    (root / "b" / "5.png").write_bytes(with_checksum(raw) if kind == "bomb" else raw)
    with pytest.raises(data.DataError, match=f"zoo: .*{words}") as caught:
        data.load(str(root))
    assert str(root / "b" / "5.png") in str(caught.value)
    assert "others" not in str(caught.value)


def test_all_damaged_images_are_counted(root):
    for i in range(4):
        (root / "a" / f"{i}.png").write_bytes(b"")
    with pytest.raises(data.DataError, match=r"a/0\.png is damaged.* So are 3 others"):
        data.load(str(root))


def test_image_that_may_not_be_read(root, monkeypatch):
    real = Path.open

    def refuse(path, *options):
        if path.name == "5.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(data.DataError, match=r"5\.png cannot be read: Permission denied"):
        data.load(str(root))


def test_folder_that_may_not_be_read(root, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for closed in ("zoo/b", "zoo"):
        with pytest.raises(data.DataError, match=f"{closed} cannot be read: Permission denied"):
            data.load(str(root))


# What lies around.


def put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def thumbnail(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey(255, (3, 3)).save(path, "PNG")


def test_the_folder_itself_may_be_hidden(tmp_path):
    root = classes_of_grey(tmp_path / ".cache" / "__MACOSX")
    assert data.load(str(root)).notes == ("20 images used, 0 ignored",)


LITTER = {
    ".ipynb_checkpoints": lambda root: thumbnail(root / ".ipynb_checkpoints" / "1-checkpoint.png"),
    "checkpoints in a class": lambda root: thumbnail(root / "a" / ".ipynb_checkpoints" / "1.png"),
    "@eaDir": lambda root: thumbnail(root / "@eaDir" / "1.png" / "SYNOPHOTO_THUMB_M.jpg"),
    "@eaDir in a class": lambda root: thumbnail(root / "a" / "@eaDir" / "1.png" / "THUMB.jpg"),
    "#recycle": lambda root: thumbnail(root / "#recycle" / "1.png"),
    ".AppleDouble": lambda root: thumbnail(root / "a" / ".AppleDouble" / "1.png"),
    "._1.png": lambda root: put(root / "a" / "._1.png", b"\0\5\x16\7\0\2\0\0Mac OS X"),
    "._a": lambda root: put(root / "._a"),
    "Thumbs.db": lambda root: put(root / "a" / "Thumbs.db"),
    "thumbs.DB": lambda root: put(root / "a" / "thumbs.DB"),
    "desktop.ini": lambda root: put(root / "desktop.ini"),
    ".DS_Store": lambda root: put(root / ".DS_Store"),
    ".DS_Store in a class": lambda root: put(root / "b" / ".DS_Store"),
    "__MACOSX": lambda root: thumbnail(root / "__MACOSX" / "zoo" / "a" / "1.png"),
    ".git": lambda root: put(root / ".git" / "HEAD"),
    ".thumbnails": lambda root: thumbnail(root / ".thumbnails" / "1.png"),
    ".Trash-1000": lambda root: thumbnail(root / ".Trash-1000" / "files" / "1.png"),
    "lost+found": lambda root: thumbnail(root / "lost+found" / "1.png"),
    "System Volume Information": lambda root: put(root / "System Volume Information" / "1.dat"),
    "$RECYCLE.BIN": lambda root: thumbnail(root / "$RECYCLE.BIN" / "1.png"),
    "link to a hidden folder": lambda root: (
        thumbnail(root.parent / "elsewhere" / "1.png"),
        (root / ".hidden").symlink_to(root.parent / "elsewhere"),
    ),
}


@pytest.mark.parametrize("kind", LITTER)
def test_what_is_hidden_is_no_image_and_no_class(root, kind):
    LITTER[kind](root)
    loaded = data.load(str(root))
    assert sum(sizes(loaded)) == 20 and loaded.shape == (1, HEIGHT, WIDTH)
    assert every(loaded)[1].bincount().tolist() == [10, 10]
    assert loaded.notes[0].startswith("20 images used, 1 ignored: 1 hidden or of the system (")


NO_IMAGES = {
    "text": (lambda root: put(root / "labels.csv"), "1 not of a format that is read here (.csv)"),
    "no ending": (
        lambda root: put(root / "README"),
        "1 not of a format that is read here (README)",
    ),
    "drawing": (
        lambda root: put(root / "a" / "1.SVG"),
        "1 not of a format that is read here (.svg)",
    ),
    "link to nothing": (
        lambda root: (root / "a" / "z.png").symlink_to(root / "gone.png"),
        "1 linked to nothing (a/z.png)",
    ),
    "link to itself": (
        lambda root: (root / "a" / "z.png").symlink_to(root / "a" / "z.png"),
        "1 linked to nothing (a/z.png)",
    ),
    "pipe": (lambda root: os.mkfifo(root / "a" / "z.png"), "1 neither file nor folder (a/z.png)"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_counted_with_the_reason(root, kind):
    make, words = NO_IMAGES[kind]
    make(root)
    loaded = data.load(str(root))
    assert sum(sizes(loaded)) == 20
    assert loaded.notes == (f"20 images used, 1 ignored: {words}",)


def test_every_file_is_used_or_ignored(root):
    for make in (*LITTER.values(), *(make for make, _ in NO_IMAGES.values())):
        if not (root / "a" / "z.png").is_symlink():
            make(root)
    loaded = data.load(str(root))
    below = [(where, name) for where, _, names in os.walk(root) for name in names]
    used, ignored = (int(part.split()[0]) for part in loaded.notes[0].split(": ")[0].split(", "))
    assert used == 20 and ignored == len(below) - 20 + 1  # the link to a hidden folder is one more
    assert "\n" not in loaded.notes[0]


def test_too_few_images_say_what_was_ignored(tmp_path):
    for i in range(30):
        put(tmp_path / f"{i}.xcf")
    with pytest.raises(data.DataError, match=r"has 0 images; .* \(30 ignored: 30 not .*\.xcf"):
        data.load(str(tmp_path))


def test_format_that_this_pillow_does_not_read(root, monkeypatch):
    from vimae_models.data import folder

    known = {k: v for k, v in folder.formats().items() if k != ".avif"}
    monkeypatch.setattr(folder, "formats", lambda: known)
    put(root / "a" / "z.avif")
    assert "1 not of a format that is read here (.avif)" in said(data.load(str(root)))


# Links.


def elsewhere(root, name="elsewhere", n=10):
    folder = root.parent / name
    classes_of_grey(folder, [""], n)
    return folder


def test_links_to_folders_are_entered(root):
    (root / "c").symlink_to(elsewhere(root))
    (root / "b" / "more").symlink_to(elsewhere(root, "further", 5))
    loaded = data.load(str(root))
    assert every(loaded)[1].bincount().tolist() == [10, 15, 10]
    assert loaded.notes == ("35 images used, 0 ignored",)


def test_classes_that_are_all_links_and_a_root_that_is_one(root):
    linked = root.parent / "linked"
    linked.mkdir()
    for name in "ab":
        (linked / name).symlink_to(root / name)
    (root.parent / "again").symlink_to(linked)
    for path in (linked, root.parent / "again"):
        assert every(data.load(str(path)))[1].bincount().tolist() == [10, 10]


def test_links_to_images_are_images(root):
    (root / "a" / "z.png").symlink_to(elsewhere(root) / "3.png")
    assert sum(sizes(data.load(str(root)))) == 21


LOOPS = {
    "to the root": lambda root: (root / "a" / "loop").symlink_to(root),
    "to itself": lambda root: (root / "a" / "loop").symlink_to(root / "a"),
    "of the root": lambda root: (root / "loop").symlink_to("."),
    "of two": lambda root: (
        (root / "a" / "other").symlink_to(root / "b"),
        (root / "b" / "other").symlink_to(root / "a"),
    ),
    "to the folder above": lambda root: (root / "a" / "loop").symlink_to(root.parent),
    "to a class, which comes first": lambda root: (root / "A").symlink_to(root / "b"),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_ends_and_every_image_is_in_one_class(root, kind):
    LOOPS[kind](root)
    loaded = data.load(str(root))
    assert every(loaded)[1].bincount().tolist() == [10, 10]
    assert "linked to a folder that is read elsewhere" in loaded.notes[0]


# Classes.


def test_deep_folders_are_of_the_class_above(tmp_path):
    for name in ("a/x/1", "a/x/2", "a/y", "b/x/1"):
        classes_of_grey(tmp_path, [name], 5)
    assert every(data.load(str(tmp_path)))[1].bincount().tolist() == [15, 5]


def test_folder_without_images_is_no_class(root):
    (root / "aa").mkdir()
    (root / "c" / "deep").mkdir(parents=True)
    loaded = data.load(str(root))
    assert every(loaded)[1].bincount().tolist() == [10, 10]
    assert "no class, for they hold no images: aa, c" in said(loaded)


def test_images_in_no_sub_folder_are_a_class_and_said(root):
    grey().save(root / "z.png")
    loaded = data.load(str(root))
    assert every(loaded)[1].bincount().tolist() == [1, 10, 10]
    assert "a class of their own, for they are in no sub-folder: 1 images" in said(loaded)


def test_one_class(tmp_path):
    loaded = data.load(str(classes_of_grey(tmp_path, "a", 20)))
    assert every(loaded)[1].tolist() == [0] * 20


NAMES = [
    b"caf\xe9",
    b"\xff\xfe",
    "日本".encode(),
    "日本".encode("shift-jis"),
    b"new\nline",
    b"[red]",
]


@pytest.mark.skipif(sys.platform != "linux", reason="names are text on this system")
@pytest.mark.parametrize("raw", NAMES)
def test_names_that_are_not_utf_8(tmp_path, raw):
    name = os.fsdecode(raw)
    root = classes_of_grey(tmp_path / name, ["A", name])
    grey().save(root / name / f"{name}.png")
    (root / f"{name}.txt").touch()
    (root / f"{name} empty").mkdir()
    loaded = data.load(str(root))
    assert every(loaded)[1].bincount().tolist() == [10, 11]
    for text in (loaded.name, *loaded.notes):
        assert text.isprintable()
    (root / name / "z.png").touch()
    with pytest.raises(data.DataError, match="it is empty") as caught:
        data.load(str(root))
    assert str(caught.value).isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="names are text on this system")
def test_command_trains_on_a_folder_whose_name_is_not_utf_8(tmp_path, monkeypatch, capsys):
    name = os.fsdecode(NAMES[0])
    root = classes_of_grey(tmp_path / name, ["a", name])
    monkeypatch.chdir(tmp_path)
    options = ["--batch-size", "10", "--epochs", "1", "--width", "0.1"]
    assert cli.run(["train", "--data", str(root), *options]) == 0
    assert r"caf\xe9: 20 images used, 0 ignored" in capsys.readouterr().out
    (run,) = (tmp_path / "runs").iterdir()
    assert cli.run(["train", "--resume", str(run), "--epochs", "2"]) == 0


# Splits.


@pytest.mark.parametrize(
    "names, expected",
    [
        (("train", "test"), (18, 2, 6)),
        (("Train", "TEST"), (18, 2, 6)),
        (("train", "val"), (18, 4, 2)),
        (("train", "valid", "test"), (20, 4, 6)),
        (("training", "validation", "testing"), (20, 4, 6)),
    ],
)
def test_folders_of_splits_are_used_and_said(tmp_path, names, expected):
    for name in names:
        n = {"tr": 10, "va": 2, "te": 3}[name[:2].lower()]
        classes_of_grey(tmp_path / name, "ab", n)
    classes_of_grey(tmp_path / "other", "a", 3)
    put(tmp_path / "labels.csv")
    put(tmp_path / ".DS_Store")
    loaded = data.load(str(tmp_path))
    assert sizes(loaded) == list(expected)
    assert loaded.train.labels.bincount().tolist() != [len(loaded.train)]
    assert every(loaded)[1].bincount().tolist() == [sum(expected) // 2] * 2
    for split in (loaded.train, loaded.validation, loaded.test):
        if len(split) in (4, 6):  # in its order: a, then b
            half = len(split) // 2
            assert split.labels.tolist() == [0] * half + [1] * half
            assert split.images[:][:, 0, 0, 0].tolist() == [10 * i for i in range(half)] * 2
    order = sorted(names, key=lambda name: name.lower()[1])  # train, val, test
    assert "4 beside " in loaded.notes[0] and "1 hidden" in loaded.notes[0]
    assert f"{sum(expected)} images used, 5 ignored" in loaded.notes[0]
    assert loaded.notes[1].startswith("split as its folders are: ")
    assert all(f"{name} (" in loaded.notes[1] for name in order)


def test_splits_keep_what_is_in_them_apart(tmp_path):
    classes_of_grey(tmp_path / "train", "abc")
    classes_of_grey(tmp_path / "test", "bd", 2)
    loaded = data.load(str(tmp_path))
    assert loaded.train.labels.unique().tolist() == [0, 1, 2]
    assert loaded.test.labels.tolist() == [1, 1, 3, 3]
    assert set(loaded.test.images[:][:, 0, 0, 0].tolist()) == {0, 10}


def test_splits_that_are_links_to_one_folder(tmp_path):
    classes_of_grey(tmp_path / "train", "ab")
    classes_of_grey(tmp_path / "val", "ab", 4)
    (tmp_path / "test").symlink_to(tmp_path / "val")
    assert sizes(data.load(str(tmp_path))) == [20, 8, 8]


def test_loop_does_not_lead_from_one_split_to_the_other(tmp_path):
    root = tmp_path / "zoo"
    classes_of_grey(root / "train", "ab")
    classes_of_grey(tmp_path / "elsewhere", "ab", 3)
    (root / "train" / "a" / "loop").symlink_to(root)
    (root / "test").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "a" / "loop").symlink_to(root)
    loaded = data.load(str(root))
    assert sizes(loaded) == [18, 2, 6] and "2 linked to a folder" in loaded.notes[0]


def test_colour_in_one_split_is_colour_in_all(tmp_path):
    classes_of_grey(tmp_path / "train", "ab")
    classes_of_grey(tmp_path / "test", "ab", 2)
    Image.fromarray(COLOURS).save(tmp_path / "test" / "a" / "1.png")
    assert data.load(str(tmp_path)).shape == (3, HEIGHT, WIDTH)


def test_classes_of_these_names_are_classes(tmp_path):
    classes_of_grey(tmp_path, ["train", "bus"])
    loaded = data.load(str(tmp_path))
    assert every(loaded)[1].bincount().tolist() == [10, 10] and sizes(loaded) == [16, 2, 2]
    classes_of_grey(tmp_path / "deep", ["a"], 1)
    classes_of_grey(tmp_path / "deep" / "train", ["a"], 1)
    classes_of_grey(tmp_path / "deep" / "test", ["a"], 1)
    assert len(every(data.load(str(tmp_path)))[1].unique()) == 3


def test_splits_that_cannot_be_used(tmp_path):
    classes_of_grey(tmp_path / "train", "ab")
    (tmp_path / "test").mkdir()
    with pytest.raises(data.DataError, match="test has 0 images; it must have 2 or more"):
        data.load(str(tmp_path))
    classes_of_grey(tmp_path / "test", "ab", 1)
    (tmp_path / "train" / "a" / "0.png").unlink()
    with pytest.raises(data.DataError, match="train has 19 images; it must have 20 or more"):
        data.load(str(tmp_path))
    classes_of_grey(tmp_path / "val", "ab", 1)
    assert sizes(data.load(str(tmp_path))) == [19, 2, 2]
    classes_of_grey(tmp_path / "valid", "ab", 1)
    with pytest.raises(data.DataError, match="has val and valid; it must have one for validation"):
        data.load(str(tmp_path))


def test_command_trains_on_a_zoo_and_says_what_it_made_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "zoo"
    classes_of_grey(root / "Train", "ab")
    classes_of_grey(root / "Test", "abd", 3)  # one class is only there
    with_alpha(COLOURS, ALPHA).save(root / "Train" / "a" / "z.png")
    LITTER["__MACOSX"](root)
    options = ["--batch-size", "10", "--epochs", "1", "--width", "0.1", "--output", "run"]
    assert cli.run(["train", "--data", "zoo", *options]) == 0
    out = capsys.readouterr().out
    assert "zoo: 30 images used, 1 ignored: 1 hidden or of the system (__MACOSX)\n" in out
    assert "zoo: split as its folders are: Train (21 images), Test (9 images); a tenth of" in out
    assert f"zoo: {TRANSPARENT}\n" in out
    assert cli.run(["evaluate", "run", "--samples", "10", "--likelihood-images", "5"]) == 0
    assert "zoo: 30 images used" in capsys.readouterr().out


# MNIST


def mnist(folder, name=lambda file: file, change=bytes):
    """The four files, under the names and in the form that is asked for."""
    for file, raw in files(bytes).items():
        put(folder / name(file), change(raw))


def dotted(file):
    return file.replace("-idx", ".idx")


MNIST = {
    "dots": lambda root: mnist(root, dotted),
    "dots, gzipped": lambda root: mnist(root, lambda file: f"{dotted(file)}.gz", compressed),
    "Kaggle's folders": lambda root: mnist(root, lambda file: f"{file}/{file}"),
    "Kaggle's folders with dots": lambda root: mnist(root, lambda f: f"{dotted(f)}/{dotted(f)}"),
    "Kaggle's mixture": lambda root: mnist(root, lambda file: f"{dotted(file)}/{file}"),
    "Kaggle, both": lambda root: (mnist(root, lambda f: f"{f}/{f}"), mnist(root, dotted)),
    "Kaggle in mnist": lambda root: mnist(root / "mnist", lambda file: f"{file}/{file}"),
    "torchvision": lambda root: mnist(root / "MNIST" / "raw"),
    "torchvision, gzipped too": lambda root: (
        mnist(root / "MNIST" / "raw"),
        mnist(root / "MNIST" / "raw", lambda file: f"{file}.gz", compressed),
    ),
    "torchvision in mnist": lambda root: mnist(root / "mnist" / "MNIST" / "raw"),
    "torchvision's MNIST": lambda root: mnist(root / "raw"),
    "gzip's bytes under a plain name": lambda root: mnist(root, change=compressed),
    "plain bytes under .gz": lambda root: mnist(root, lambda file: f"{file}.gz"),
    "gzipped twice": lambda root: mnist(
        root, lambda file: f"{file}.gz", lambda raw: compressed(compressed(raw))
    ),
    "with what macOS leaves": lambda root: (
        mnist(root),
        mnist(root, lambda file: f"._{file}", lambda raw: b"\0\5\x16\7"),
    ),
}


@pytest.mark.parametrize("kind", MNIST)
def test_mnist_under_the_names_people_have(tmp_path, kind):
    MNIST[kind](tmp_path)
    loaded = data.load("mnist", tmp_path)
    assert sizes(loaded) == [50, 10, 10] and loaded.notes == ()
    assert loaded.train.images[:, 0, 2, 3].tolist() == list(range(50))
    assert loaded.test.labels.tolist() == list(range(10))


def test_fashion_mnist_of_torchvision(tmp_path):
    mnist(tmp_path / "FashionMNIST" / "raw")
    write(tmp_path / "MNIST" / "raw", files(train=24))
    assert sizes(data.load("fashion_mnist", tmp_path)) == [50, 10, 10]
    assert sizes(data.load("mnist", tmp_path)) == [20, 4, 10]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>404</html>",
        compressed(b"\0\0\x08\x03"),
        files()["train-images-idx3-ubyte"][:80],
    ],
)
@pytest.mark.parametrize(
    "beside", ["train-images-idx3-ubyte", "MNIST/raw/train-images.idx3-ubyte.gz"]
)
def test_damaged_file_beside_a_good_one(tmp_path, raw, beside):
    write(tmp_path, files())
    bad = tmp_path / "train-images-idx3-ubyte.gz"
    put(tmp_path / beside, bad.read_bytes())
    bad.write_bytes(raw)
    loaded = data.load("mnist", tmp_path)
    assert loaded.train.images[:, 0, 2, 3].tolist() == list(range(50))
    (note,) = loaded.notes
    assert note.startswith(f"{bad} is damaged: ") and "https" not in note
    assert note.endswith(f"{tmp_path / beside} is used instead.")
    (tmp_path / beside).write_bytes(b"neither")
    with pytest.raises(data.DataError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        data.load("mnist", tmp_path)


def test_command_says_which_file_it_uses_instead(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    MNIST["torchvision, gzipped too"](tmp_path)
    put(tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz", b"")
    options = ["--batch-size", "10", "--epochs", "1", "--width", "0.1", "--output", "run"]
    assert cli.run(["train", "--data", "mnist", "--data-dir", ".", *options]) == 0
    assert "t10k-labels-idx1-ubyte is used instead" in capsys.readouterr().out


# CIFAR-10


def again(protocol, text=bytes, labels=list, order="C"):
    """A batch as Python 3 pickles it: of the keys `text`, in numpy's present form."""

    def dump(numbers, images):
        key = (lambda name: name) if text is str else str.encode
        content = {
            key("batch_label"): text() if text is bytes else "batch 1",
            key("labels"): labels(numbers),
            key("data"): np.asarray(images, order=order),
            key("filenames"): [key("a.png")] * len(numbers),
        }
        return pickle.dumps(content, protocol)

    return dump


def as_numpy_1(dump):
    """The same with the module of numpy 1, whose name is shorter."""

    def old(numbers, images):
        raw = dump(numbers, images)
        return raw.replace(b"cnumpy._core.", b"cnumpy.core.")

    return old


PICKLES = {
    **{f"protocol {p}, {t.__name__}": again(p, t) for p in range(6) for t in (bytes, str)},
    **{f"protocol {p}, array of labels": again(p, str, np.array) for p in (0, 2, 4, 5)},
    **{
        f"protocol {p}, labels of {t.__name__}": again(p, bytes, lambda n, t=t: np.array(n, t))
        for p in (2, 5)
        for t in (np.uint8, np.int16, np.int32)
    },
    "big-endian labels": again(4, bytes, lambda n: np.array(n, ">i4")),
    **{
        f"protocol {p}, numbers of numpy": again(p, bytes, lambda n: list(np.array(n)))
        for p in (0, 2, 4, 5)
    },
    **{f"protocol {p}, by columns": again(p, order="F") for p in (0, 2, 4, 5)},
    **{f"numpy 1, protocol {p}": as_numpy_1(again(p, str)) for p in (0, 1, 2)},
}


@pytest.mark.parametrize("kind", PICKLES)
def test_cifar10_pickled_again(tmp_path, kind):
    for part, first in (("test_batch", 100), *((f"data_batch_{i + 1}", 20 * i) for i in range(5))):
        put(tmp_path / part, PICKLES[kind](*cifar_records(10 if first == 100 else 20, first)))
    loaded = data.load("cifar10", tmp_path)
    assert sizes(loaded) == [90, 10, 10]
    assert loaded.train.images[:, 0, 3, 1].tolist() == list(range(90))
    assert loaded.validation.images[5, :, 31, 31].tolist() == [95, 96, 97]
    assert loaded.train.labels.tolist() == [i % 10 for i in range(90)]


class Call:
    """What is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["labels", "data", "other", "key"])
def test_hostile_pickles_run_nothing(tmp_path, protocol, place):
    for call in (
        Call(os.mkdir, str(tmp_path / "ran")),
        Call(eval, f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"),
        Call(getattr, Call(__import__, "os"), "mkdir"),
        Call(np.load, str(tmp_path / "x.npy")),
        Call(bytearray, 10**12),
    ):
        labels, images = cifar_records(20)
        content = {"labels": labels, "data": images, "other": 0}
        content |= {(1, call): 0} if place == "key" else {place: call}
        cifar(tmp_path, "py")
        put(tmp_path / "data_batch_3", pickle.dumps(content, protocol))
        with pytest.raises(data.DataError, match="data_batch_3 is damaged.*not allowed") as caught:
            data.load("cifar10", tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((20, 3072), np.int64), "labels": [0] * 20},
        {"data": np.zeros((20, 3072), np.float32), "labels": [0] * 20},
        {"data": np.array([[None] * 3072] * 20), "labels": [0] * 20},
        {"data": np.zeros((20, 3, 32, 32), np.uint8), "labels": [0] * 20},
        {"data": np.zeros((20, 3072), np.uint8), "labels": np.zeros(20)},
        {"data": np.zeros((20, 3072), np.uint8), "labels": np.zeros(19, int)},
        {"data": np.zeros((20, 3072), np.uint8), "labels": ["0"] * 20},
        {"data": np.zeros((20, 3072), np.uint8), "labels": [10] * 20},
        {"labels": [0] * 20},
        [np.zeros((20, 3072), np.uint8)],
        3,
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar10_pickles_of_something_else(tmp_path, content, protocol):
    cifar(tmp_path, "py")
    put(tmp_path / "data_batch_3", pickle.dumps(content, protocol))
    with pytest.raises(data.DataError, match="data_batch_3 is damaged"):
        data.load("cifar10", tmp_path)


def repacked(path, change):
    path.write_bytes(change(path.read_bytes()))


CIFAR = {
    "torchvision": lambda root: cifar(root / "cifar-10-batches-py", "py"),
    "torchvision in cifar10": lambda root: cifar(root / "cifar10" / "cifar-10-batches-py", "py"),
    "Kaggle": lambda root: cifar(root / "cifar-10-python" / "cifar-10-batches-py", "py"),
    "plain tar": lambda root: repacked(
        cifar(root, "cifar-10-python.tar.gz") / "cifar-10-python.tar.gz", gzip.decompress
    ),
    "tar that Safari unpacked": lambda root: (
        cifar(root, "cifar-10-binary.tar.gz"),
        put(
            root / "cifar-10-binary.tar",
            gzip.decompress((root / "cifar-10-binary.tar.gz").read_bytes()),
        ),
        (root / "cifar-10-binary.tar.gz").unlink(),
    ),
    "gzip's bytes under a plain name": lambda root: repacked(
        cifar(root, "bin") / "data_batch_2.bin", compressed
    ),
    "plain bytes under .gz": lambda root: repacked(
        cifar(root, "bin.gz") / "data_batch_2.bin.gz", gzip.decompress
    ),
    "archive, with what macOS leaves": lambda root: with_apple_double(
        cifar(root, "cifar-10-binary.tar.gz") / "cifar-10-binary.tar.gz"
    ),
}


def with_apple_double(path):
    with tarfile.open(path) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive if m.isfile()]
    with tarfile.open(path, "w:gz") as archive:
        for member, raw in members:
            for name, content in ((member.name, raw), (member.name.replace("/", "/._"), b"\0\5")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", CIFAR)
def test_cifar10_under_the_names_people_have(tmp_path, kind):
    CIFAR[kind](tmp_path)
    loaded = data.load("cifar10", tmp_path)
    assert sizes(loaded) == [90, 10, 10] and loaded.notes == ()
    assert loaded.train.images[:, 0, 3, 1].tolist() == list(range(90))


@pytest.mark.parametrize("good", ["bin", "py", "cifar-10-python.tar.gz"])
@pytest.mark.parametrize("bad", ["bin.gz", "cifar-10-binary.tar.gz"])
def test_cifar10_damaged_beside_good(tmp_path, good, bad):
    cifar(tmp_path / "cifar10", bad)
    file = tmp_path / "cifar10" / (bad if "tar" in bad else "data_batch_4.bin.gz")
    repacked(file, lambda raw: raw[: len(raw) // 2])
    with pytest.raises(data.DataError, match=f"{file.name} is damaged"):
        data.load("cifar10", tmp_path)
    cifar(tmp_path, good)
    loaded = data.load("cifar10", tmp_path)
    assert sizes(loaded) == [90, 10, 10]
    if "tar" not in bad or "tar" in good:  # whole files are taken before any archive
        assert f"{file} is damaged" in said(loaded) and "is used instead" in said(loaded)


# Omniglot


def omniglot(folder, stem, alphabets):
    """The files that a zip unpacks to."""
    omniglot_zip(folder, stem, alphabets)
    with zipfile.ZipFile(folder / f"{stem}.zip") as archive:
        archive.extractall(folder)
    (folder / f"{stem}.zip").unlink()


def omniglot_litter(folder):
    put(folder / ".DS_Store")
    put(folder / "images_background" / ".DS_Store")
    put(folder / "images_background" / "A" / "character01" / "._0001_01.png")
    put(folder / "images_background" / "A" / "character01" / "Thumbs.db")
    put(folder / "__MACOSX" / "images_background" / "A" / "character01" / "._0001_01.png")
    shutil.copytree(
        folder / "images_background" / "A" / "character01",
        folder / "images_background" / "__MACOSX" / "Z" / "character01",
    )


def both(folder, first=omniglot, second=omniglot):
    first(folder, "images_background", ["B", "C"])
    second(folder, "images_evaluation", ["A"])


def nested(root):
    both(root)
    for stem in ("images_background", "images_evaluation"):
        (root / stem).rename(root / "moved")
        (root / stem).mkdir()
        (root / "moved").rename(root / stem / stem)


OMNIGLOT = {
    "unpacked": both,
    "in omniglot": lambda root: both(root / "omniglot"),
    "torchvision": lambda root: both(root / "omniglot-py"),
    "torchvision in omniglot": lambda root: both(root / "omniglot" / "omniglot-py"),
    "one of them packed": lambda root: both(root, second=omniglot_zip),
    "both forms of both": lambda root: (both(root), both(root, omniglot_zip, omniglot_zip)),
    "unpacked into folders of their names": nested,
    "through a link": lambda root: (
        both(root / "deep"),
        *(
            (root / s).symlink_to(root / "deep" / s)
            for s in ("images_background", "images_evaluation")
        ),
    ),
    "beside an empty folder": lambda root: (
        both(root),
        (root / "omniglot" / "images_background").mkdir(parents=True),
    ),
    "beside a damaged zip": lambda root: (both(root), put(root / "images_background.zip", b"PK")),
}


@pytest.mark.parametrize("kind", OMNIGLOT)
def test_omniglot_under_the_names_people_have(tmp_path, kind):
    OMNIGLOT[kind](tmp_path)
    loaded = data.load("omniglot", tmp_path)
    assert sizes(loaded) == [2 * 2 * 18, 2 * 2 * 2, 40]
    assert loaded.test.labels.unique().tolist() == [0, 1]
    both(tmp_path / "zips", omniglot_zip, omniglot_zip)
    expected = data.load("omniglot", tmp_path / "zips")
    assert all(map(torch.equal, every(loaded), every(expected)))
    assert ("is used instead" in said(loaded)) == kind.startswith("beside")


def test_omniglot_unpacked_small_sets_with_what_macos_leaves(tmp_path):
    omniglot(tmp_path, "images_background_small1", ["A", "B", "C"])
    omniglot(tmp_path, "images_background_small2", ["B", "C", "D"])
    omniglot(tmp_path, "images_background", ["A"])
    omniglot_litter(tmp_path)
    loaded = data.load("omniglot", tmp_path)
    assert sizes(loaded) == [3 * 2 * 18, 3 * 2 * 2, 40]
    assert loaded.train.labels.bincount().tolist() == [18] * 6


def test_omniglot_zip_made_on_a_mac(tmp_path):
    omniglot_zip(
        tmp_path,
        "images_background",
        ["A", "B"],
        [
            ("__MACOSX/images_background/A/character01/._0001_01.png", b"\0\5\x16\7"),
            ("__MACOSX/A/character01/0001_01.png", b"\0\5\x16\7"),
            ("images_background/.DS_Store", b""),
        ],
    )
    assert sizes(data.load("omniglot", tmp_path)) == [36, 4, 40]


def test_omniglot_damaged_drawing_in_a_folder(tmp_path):
    both(tmp_path)
    bad = tmp_path / "images_background" / "B" / "character02" / "0002_07.png"
    bad.write_bytes(drawing("B", 2, 7)[:60])
    with pytest.raises(data.DataError, match="B/character02/0002_07.png in .*images_background is"):
        data.load("omniglot", tmp_path)


# CelebA


def celeba_in(folder, *, litter=False):
    images = celeba(folder)
    if litter:
        for i in range(1, 6):
            put(images / f"._{i:06}.jpg", b"\0\5\x16\7")
        put(images / ".DS_Store")
    return images


CELEBA = {
    "torchvision": lambda root: celeba_in(root / "celeba"),
    "Kaggle": lambda root: (
        celeba_in(root / "img_align_celeba"),
        put(root / "list_attr_celeba.csv"),
        put(root / "list_eval_partition.csv"),
    ),
    "Kaggle in celeba": lambda root: celeba_in(root / "celeba" / "img_align_celeba"),
    "Google Drive": lambda root: (
        celeba_in(root / "Img"),
        put(root / "Img" / "img_align_celeba.zip"),
        put(root / "Anno" / "list_attr_celeba.txt"),
    ),
    "Google Drive in celeba": lambda root: celeba_in(root / "celeba" / "Img"),
    "Google Drive in CelebA": lambda root: celeba_in(root / "CelebA" / "Img"),
    "unpacked into a folder of its name": lambda root: celeba_in(
        root / "CelebA" / "Img" / "img_align_celeba"
    ),
    "beside an empty folder": lambda root: (
        celeba_in(root),
        (root / "celeba" / "img_align_celeba").mkdir(parents=True),
    ),
}


@pytest.mark.parametrize("kind", CELEBA)
def test_celeba_as_it_is_laid_out(tmp_path, kind):
    CELEBA[kind](tmp_path)
    loaded = data.load("celeba", tmp_path)
    assert sizes(loaded) == [32, 4, 4] and loaded.shape == (3, 64, 64)
    assert loaded.test.images[:].amax((0, 2, 3))[:2].min() > 240 and loaded.notes == ()


@pytest.mark.parametrize("inner", ["", "img_align_celeba"])
def test_celeba_with_what_macos_leaves(tmp_path, inner):
    celeba_in(tmp_path / "img_align_celeba" if inner else tmp_path, litter=True)
    loaded = data.load("celeba", tmp_path)
    assert sizes(loaded) == [32, 4, 4] and "40 of 202,599" in loaded.partial
    every(loaded)
    assert "40 images used, 5 ignored: " in said(loaded)


def test_celeba_that_is_still_compressed(tmp_path):
    put(tmp_path / "Img" / "img_align_celeba.zip", b"PK")
    with pytest.raises(data.DataError, match=r"is missing.*Unpack img_align_celeba\.zip"):
        data.load("celeba", tmp_path)
