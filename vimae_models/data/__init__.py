"""Image data sets by name: in memory, rendered, or read from files when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import cifar10, digits, download, dsprites, files, folder, idx, omniglot
from .base import (
    Binarized,
    DataError,
    ImageData,
    Images,
    Lazy,
    MissingError,
    Part,
    Rotated,
    Source,
    Split,
    pixels,
    printable,
)

__all__ = [
    "DataError",
    "ImageData",
    "Images",
    "Lazy",
    "Split",
    "load",
    "names",
    "pixels",
    "printable",
]


@dataclass(frozen=True)
class _Known:
    load: Callable[[Source], ImageData]
    # Other places for its files, below the data folder or its folder of the name of the data set.
    folders: tuple[str, ...] = ()
    how: str = ""
    sized: bool = False  # --image-size can be chosen


_KNOWN = {
    "digits": _Known(digits.load),
    "mnist": _Known(
        idx.load, ("MNIST/raw", "MNIST", "raw"), download.how_to_get("mnist"), sized=True
    ),
    "fashion_mnist": _Known(
        idx.load,
        ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "raw"),
        download.how_to_get("fashion_mnist"),
        sized=True,
    ),
    "omniglot": _Known(
        omniglot.load, ("omniglot-py",), download.how_to_get("omniglot"), sized=True
    ),
    "cifar10": _Known(
        cifar10.load,
        ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-python/cifar-10-batches-py"),
        download.how_to_get("cifar10"),
    ),
    "celeba": _Known(
        files.load_celeba,
        ("CelebA/Img", "CelebA", "Img"),
        "Unpack img_align_celeba.zip (the aligned and cropped images) from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html there; it cannot be downloaded by this "
        "command.",
        sized=True,
    ),
    "dsprites": _Known(
        dsprites.load,
        ("dsprites-dataset",),
        "Without that file the images are rendered; it is from "
        "https://github.com/google-deepmind/dsprites-dataset.",
    ),
}


def names() -> list[str]:
    """The names `load` knows; it also takes the path of any folder of images."""
    return list(_KNOWN)


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    images: int | None = None,
    image_size: int | None = None,
    rotate: bool = False,
    binarize: bool = False,
    download: bool = False,
) -> ImageData:
    """A data set by name.

    Args:
        name: one of `names()`, or the path of a folder of images, whose sub-folders are its classes.
            "digits" (8x8, 1797 images) comes with scikit-learn; "dsprites" is rendered.
        data_dir: folder of the official files, DIR/<name>/ or DIR itself, or what torchvision, Kaggle
            or Google Drive makes of them there; None is the environment variable VIMAE_DATA.
        images: how many of the training images there are to be, a choice that is the same every
            time; None is all.
        image_size: height and width of the images of mnist and fashion_mnist (a divisor of 28, which
            is the default), omniglot (28), celeba (64) and folders (as they are).
        rotate: add the images turned by 90, 180 and 270 degrees to every split (Omniglot in the
            paper).
        binarize: draw every pixel as 0 or 1 with the probability of its intensity; anew each time
            for training images, the same every time for the others.
        download: get missing files into DIR/<name>/, if they are public.

    Raises:
        DataError: an unknown name; a missing or damaged file, with where it was looked for and how
            to get it. The images of CelebA, which are read when they are asked for, raise it then.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}; it must be 1 or more")
    if name in _KNOWN:
        data = _load_known(name, data_dir, image_size, download)
    elif Path(name).is_dir():
        data = folder.load(Path(name), image_size)
    else:
        raise DataError(
            f"data set is {name!r}; known data sets are {names()}, and any folder of images by its "
            "path"
        )
    _, height, width = data.shape
    if rotate and height != width:
        raise DataError(
            f"{name}: images of {height} x {width} cannot be rotated; they must be square"
        )
    if images is not None:
        data = replace(data, train=_some(data, images))
    splits: dict[str, Any] = {}
    for part in ("train", "validation", "test"):
        split: Split = getattr(data, part)
        # The MMD takes two.
        if len(split) < 2:
            raise DataError(f"{name}: too few images, {len(split)}, for {part}; it takes 2")
        if rotate:
            split = Split(Rotated(split.images), split.labels.repeat(4))
        if binarize:
            split = replace(split, images=Binarized(split.images, fixed=part != "train"))
        splits[part] = split
    return replace(data, **splits)


def _some(data: ImageData, images: int) -> Split:
    """A part of the training set, in the order of its files."""
    split = data.train
    if not 2 <= images <= len(split):
        raise DataError(
            f"images is {images}; it must be from 2 to the {len(split)} training images of {data.name}"
        )
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    chosen = order[:images].sort().values
    return Split(
        split.images[chosen] if isinstance(split.images, Tensor) else Part(split.images, chosen),
        split.labels[chosen],
        None if split.latents is None else split.latents[chosen],
    )


def _load_known(
    name: str, data_dir: str | Path | None, image_size: int | None, fetch: bool
) -> ImageData:
    known = _KNOWN[name]
    if image_size is not None and not known.sized:
        raise DataError(f"{name}: the size of its images is fixed; --image-size cannot be given")
    given = data_dir if data_dir is not None else os.environ.get("VIMAE_DATA")
    folders: tuple[Path, ...] = ()
    if given is not None:
        root = Path(given)
        places = (root, root / name)
        folders = (*places[::-1], *(place / f for f in known.folders for place in places))
    source = Source(name, folders, known.how, image_size)
    try:
        data = known.load(source)
    except MissingError:
        if not fetch or not folders or name not in download.FILES:
            raise
        download.fetch(name, folders[0])
        source.notes.clear()
        data = known.load(source)
    return replace(data, notes=tuple(source.notes))
