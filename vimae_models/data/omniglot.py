"""Omniglot: the zip files of its repository, whichever are there, or what they unpack to."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .base import DataError, ImageData, Source, Split, files_below, hidden

_BACKGROUND = ("images_background", "images_background_small1", "images_background_small2")
_EVALUATION = "images_evaluation"
_SIZE = 105
_ALL = (964 + 659) * 20
# <alphabet>/character<NN>/<number>_<writer>.png; unpackers may have put folders around it.
_DRAWING = re.compile(r"(?:.*/)?([^/]+)/(character\d+)/(\d+_(\d+)\.png)", re.DOTALL)


def load(source: Source) -> ImageData:
    """Drawings with ink 1 on 0; the label is the character.

    The evaluation alphabets test; the 19th and 20th writer of the others validate. Where only one
    of the two sets is there, the last fifth of its alphabets by name, rounded up, tests. Either way the
    characters of the test set were never seen in training, as in the paper.

    Source: VIMAE (ICLR version), sec. 5.2 and 5.3.
    """
    size = source.size or 28
    if size > _SIZE:
        raise DataError(
            f"{source.name}: --image-size is {size}; the drawings are of {_SIZE} x {_SIZE}"
        )
    drawings: dict[str, tuple[Path, str, str]] = {}  # a drawing is in several of the zips
    evaluation = set()
    for stem in (*_BACKGROUND, _EVALUATION):
        paths = source.files(f"{stem}.zip") + source.unpacked(stem)
        if not paths:
            continue
        path, found = source.first_whole([(path, partial(_drawings, source)) for path in paths])
        for name, match in found:
            alphabet, character, file, _ = match.groups()
            drawings.setdefault(f"{alphabet}/{character}/{file}", (path, name, alphabet))
            if stem == _EVALUATION:
                evaluation.add(alphabet)
    if not drawings:
        raise source.missing("images_background.zip (or any other of the zip files)")

    keys = sorted(drawings)
    alphabets = sorted({drawings[key][2] for key in keys})
    test_alphabets = evaluation
    if len(evaluation) in (0, len(alphabets)):
        test_alphabets = set(alphabets[-math.ceil(len(alphabets) / 5) :])
    characters = sorted({key.rpartition("/")[0] for key in keys})
    number = {character: i for i, character in enumerate(characters)}
    labels = torch.tensor([number[key.rpartition("/")[0]] for key in keys])
    tests = torch.tensor([drawings[key][2] in test_alphabets for key in keys])
    writers = torch.tensor([int(key.rpartition("_")[2].removesuffix(".png")) for key in keys])
    images = _shrunk(_read(source, [drawings[key][:2] for key in keys]), size)

    missing = ""
    if len(keys) < _ALL:
        missing = (
            f"partial: {len(keys):,} of {_ALL:,} drawings, {len(characters):,} of 1,623 "
            f"characters, {len(alphabets)} of 50 alphabets"
        )
    validates = ~tests & (writers > 18)
    chosen = (~tests & ~validates, validates, tests)
    train, validation, test = (Split(images[c], labels[c]) for c in chosen)
    return ImageData(source.name, train, validation, test, missing)


def _drawings(source: Source, path: Path) -> tuple[Path, list[tuple[str, re.Match[str]]]]:
    """The names of the drawings in a zip file or a folder, without what macOS left among them."""
    try:
        if path.is_dir():
            names = [Path(name).as_posix() for name in files_below(source, path)]
        else:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise source.damaged(path, f"it is not a whole zip file ({error})") from error
    found = [
        (name, match)
        for name in names
        if (match := _DRAWING.fullmatch(name)) and not any(map(hidden, name.split("/")))
    ]
    if not found:
        raise source.damaged(path, "it has no ALPHABET/characterNN/NNNN_NN.png")
    return path, found


def _read(source: Source, places: list[tuple[Path, str]]) -> Tensor:
    """Ink (N, 105, 105) of drawings, black on white in the files, 0 or 1."""
    ink = torch.empty(len(places), _SIZE, _SIZE, dtype=torch.uint8)
    with ExitStack() as stack:
        archives = {
            path: stack.enter_context(zipfile.ZipFile(path))
            for path in {path for path, _ in places}
            if path.is_file()
        }
        for row, (path, name) in zip(ink, places, strict=True):
            try:
                file = archives[path].open(name) if path in archives else path / name
                with Image.open(file) as image:
                    white = np.array(image.convert("1"))
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, SyntaxError) as error:
                raise source.damaged(f"{name} in {path}", error) from error
            if white.shape != row.shape:
                raise source.damaged(
                    f"{name} in {path}", f"it is {white.shape[0]} x {white.shape[1]}, not 105 x 105"
                )
            row.copy_(torch.from_numpy(~white))
    return ink


def _shrunk(ink: Tensor, size: int) -> Tensor:
    """Bytes (N, 1, size, size): the mean ink over the area of each new pixel."""
    # Row i: what fraction of new pixel i lies in each old one.
    edges = torch.arange(_SIZE, dtype=torch.float64)
    start = torch.arange(size, dtype=torch.float64)[:, None] * _SIZE / size
    overlap = torch.minimum(edges + 1, start + _SIZE / size) - torch.maximum(edges, start)
    weights = (overlap.clamp_(min=0) * size / _SIZE).float()
    parts = [weights @ part.float() @ weights.T for part in ink.split(1000)]
    return torch.cat([part.mul_(255).round_().to(torch.uint8) for part in parts]).unsqueeze(1)
