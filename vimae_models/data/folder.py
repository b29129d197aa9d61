"""Folders of images, as users have them: with links, and with what cameras and systems leave in them."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .base import (
    HIDDEN,
    DataError,
    Ignored,
    ImageData,
    MissingError,
    Part,
    Source,
    Split,
    count_below,
    files_below,
    hidden,
    printable,
)
from .files import Files, Picture, formats, opened

# The splits, in the order they are drawn in, and the names that their folders have.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def load(folder: Path, size: int | None) -> ImageData:
    """All images below a folder; the label is the sub-folder, in the order of their names.

    A folder that holds train/ and test/, val/ or both (also valid/, validation/; in any case) is split
    so, and its classes are the sub-folders of these. Of what there is no folder for, a tenth of the
    training images tests or validates, drawn in the same way every time.

    Images are RGB if the file of any has colour, else grey; turned as EXIF says; composed on white
    where they are transparent; 16-bit grey is scaled to 8 bits; of several in one file the first is
    taken. Every file is read once to begin with, so that a damaged one is found before any work.

    Args:
        folder: of images, or of one sub-folder of images for each class. Links are followed; what is
            hidden, or left by an editor or a system, is no image and no class.
        size: height and width to crop (the largest square in the centre) and resize (Lanczos) to;
            None takes images as they are, which must all be of one size.
    """
    source = Source(
        printable(folder.resolve().name),
        (folder,),
        "A data set is a folder of images (png, jpg, ...), or one of sub-folders, one for each "
        "class",
    )
    ignored = Ignored()
    splits = _split_folders(source, folder, ignored)
    found = {
        split: sorted(
            os.path.join(below, name) for name in _images(source, folder / below, ignored)
        )
        for split, below in (splits or {"train": ""}).items()
    }
    drawn = [split for split in _SPLITS if split not in found]
    for split, names in found.items():
        # A tenth must be two, which the MMD takes.
        least = 20 if drawn and split == "train" else 2
        if len(names) < least:
            raise MissingError(
                f"{source.name}: {folder / splits.get(split, '')} has {len(names)} images; it must "
                f"have {least} or more ({ignored}). {source.how}"
            )
    names = [name for part in found.values() for name in part]
    pictures = _look(source, folder, names)

    mode = "RGB" if any(picture.mode == "RGB" for picture in pictures) else "L"
    height, width = pictures[0].shape if size is None else (size, size)

    def prepare(picture: Picture) -> Picture:
        plain = _plain(picture)[0].convert(mode)
        if size is None:
            return plain
        side = min(plain.size)
        left, top = (plain.width - side) // 2, (plain.height - side) // 2
        square = plain.crop((left, top, left + side, top + side))
        return square.resize((size, size), Image.Resampling.LANCZOS)

    if size is None:
        _check_sizes(source, folder, names, pictures)
    images = Files(source, folder, names, prepare, (1 if mode == "L" else 3, height, width))

    # The class is the first folder below that of the split.
    depth = 1 if splits else 0
    parts = [Path(name).parts[depth:] for name in names]
    classes = [part[0] if len(part) > 1 else "" for part in parts]
    number = {label: i for i, label in enumerate(sorted(set(classes)))}
    labels = torch.tensor([number[label] for label in classes])

    chosen = _chosen({split: len(part) for split, part in found.items()}, drawn)
    train, validation, test = (
        Split(Part(images, chosen[split]), labels[chosen[split]]) for split in _SPLITS
    )

    notes = [f"{len(names):,} images used, {ignored}"]
    if splits:
        used = ", ".join(f"{splits[split]} ({len(found[split]):,} images)" for split in splits)
        rest = "".join(f"; a tenth of {splits['train']} for {split}" for split in drawn)
        notes.append(f"split as its folders are: {used}{rest}")
    empty = _empty_classes(folder, splits, set(classes))
    if empty:
        notes.append(f"no class, for they hold no images: {', '.join(empty)}")
    alone = classes.count("")
    if 0 < alone < len(classes):
        notes.append(f"a class of their own, for they are in no sub-folder: {alone:,} images")
    remarks = Counter(remark for picture in pictures for remark in picture.remarks)
    notes += [f"{remark} ({count:,} images)" for remark, count in sorted(remarks.items())]
    return ImageData(
        source.name, train, validation, test, notes=tuple(printable(note) for note in notes)
    )


def _split_folders(source: Source, folder: Path, ignored: Ignored) -> dict[str, str]:
    """The folder of each split, train first; none if these are no splits. Counts what is beside them."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise source.unreadable(folder, error) from error
    found: dict[str, str] = {}
    for split, names in _SPLITS.items():
        folders = sorted(e.name for e in entries if e.name.lower() in names and e.is_dir())
        if len(folders) > 1:
            raise DataError(
                f"{source.name}: {folder} has {' and '.join(folders)}; it must have one for {split}"
            )
        if folders:
            found[split] = folders[0]
    if "train" not in found or len(found) == 1:
        return {}
    for entry in entries:
        if entry.name not in found.values():
            reason = HIDDEN if hidden(entry.name) else f"beside {' and '.join(found.values())}"
            ignored.add(reason, entry.name, count_below(entry.path))
    return found


def _chosen(sizes: dict[str, int], drawn: list[str]) -> dict[str, torch.Tensor]:
    """The indices of each split: those of its folder, or a tenth drawn from the training images."""
    n = sizes["train"]
    held = n // 10
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    parts = order.split([n - held * len(drawn)] + [held] * len(drawn))
    chosen = dict(zip(["train", *drawn], parts, strict=True))
    start = n
    for split, size in sizes.items():
        if split != "train":
            chosen[split] = torch.arange(start, start + size)
            start += size
    return chosen


def _images(source: Source, folder: Path, ignored: Ignored) -> list[str]:
    """The images below a folder, by their paths from it."""
    names = []
    for name in files_below(source, folder, ignored):
        path, ending = folder / name, os.path.splitext(name)[1].lower()
        if ending not in formats():
            ignored.add("not of a format that is read here", ending or name)
        elif path.is_file():
            names.append(name)
        elif path.is_symlink():
            ignored.add("linked to nothing", name)
        else:
            ignored.add("neither file nor folder", name)
    return names


@dataclass(frozen=True)
class _Seen:
    """What there is to know of a picture before it is used."""

    mode: str
    shape: tuple[int, int]
    remarks: tuple[str, ...]


def _look(source: Source, folder: Path, names: list[str]) -> list[_Seen]:
    """Every picture, read once; DataError if any cannot be."""

    def look(picture: Picture) -> _Seen:
        plain, remarks = _plain(picture)
        return _Seen(plain.mode, (plain.height, plain.width), remarks)

    def see(name: str) -> _Seen | DataError:
        try:
            return opened(source, folder / name, look)
        except DataError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(see, names))
    errors = [result for result in results if isinstance(result, DataError)]
    if errors:
        more = f" So are {len(errors) - 1:,} others." if errors[1:] else ""
        raise DataError(f"{errors[0]}.{more}")
    return [result for result in results if isinstance(result, _Seen)]


def _check_sizes(source: Source, folder: Path, names: list[str], pictures: list[_Seen]) -> None:
    height, width = pictures[0].shape
    for name, picture in zip(names, pictures, strict=True):
        if picture.shape != (height, width):
            raise source.damaged(
                folder / name,
                f"it is {picture.shape[1]} x {picture.shape[0]}, but {names[0]} {width} x {height}; "
                "--image-size makes all images of one size",
            )


def _plain(picture: Picture) -> tuple[Picture, tuple[str, ...]]:
    """The first picture of a file as it is seen, L or RGB; and what was done to it."""
    file, picture = picture, _upright(picture)
    # Looking for a second image loses what is loaded of the first. Phones put previews there.
    several = getattr(file, "is_animated", False) and file.format != "MPO"
    remarks = ["only the first image of several is used"] if several else []
    if picture.mode.startswith("F"):
        raise ValueError("its pixels are floating-point numbers, not of 8 or 16 bits")
    if picture.mode.startswith("I"):
        return _of_8_bits(picture), (*remarks, "16-bit grey is scaled to 8 bits")
    grey = picture.mode in ("1", "L", "LA") or (picture.mode == "P" and _grey_palette(picture))
    if picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] != 255:
            remarks.append("transparency is composed on white")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("L" if grey else "RGB"), tuple(remarks)


def _upright(picture: Picture) -> Picture:
    picture.load()
    if picture.format == "TIFF":  # Pillow turns it, and may leave the tag
        return picture.copy()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF can raise anything, and says nothing
        return picture.copy()


def _of_8_bits(picture: Picture) -> Picture:
    """Grey of 16 bits, 0..65535, as 0..255; rounded."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    scaled = ((values * 255 + 32767) // 65535).astype(np.uint8)
    if "transparency" in picture.info:
        scaled[values == picture.info["transparency"]] = 255
    return Image.fromarray(scaled)


def _grey_palette(picture: Picture) -> bool:
    colours = np.reshape(picture.getpalette() or [], (-1, 3))
    return bool((colours == colours[:, :1]).all())


def _empty_classes(folder: Path, splits: dict[str, str], classes: set[str]) -> list[str]:
    folders = {
        entry.name
        for below in splits.values() or [""]
        for entry in os.scandir(folder / below)
        if entry.is_dir() and not hidden(entry.name)
    }
    return sorted(folders - classes)
