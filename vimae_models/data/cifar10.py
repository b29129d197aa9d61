"""CIFAR-10: the binary and the Python version, as archives or unpacked, whole or in part."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import ImageData, Source, Split
from .idx import read_gzip

_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
_TEST = "test_batch"
_PIXELS = 3 * 32 * 32

# Where each part was found, and its bytes.
_Found = dict[str, tuple[str, bytes]]


def load(source: Source) -> ImageData:
    """The last tenth of the training images validates: 45k / 5k of the 50k."""
    found, parse = _find(source)
    parts = {part: parse(source, path, raw) for part, (path, raw) in found.items()}
    if _TEST not in parts:
        raise source.missing(_TEST)
    images = torch.cat([parts[part][0] for part in _TRAIN if part in parts])
    labels = torch.cat([parts[part][1] for part in _TRAIN if part in parts])
    test = Split(*parts[_TEST])
    kept = len(labels) - len(labels) // 10
    partial = ""
    if len(labels) < 50_000 or len(test) < 10_000:
        partial = (
            f"partial: {len(labels):,} of 50,000 training images, {len(test):,} of 10,000 test "
            "images"
        )
    return ImageData(
        source.name,
        Split(images[:kept], labels[:kept]),
        Split(images[kept:], labels[kept:]),
        test,
        partial,
    )


def _find(source: Source) -> tuple[_Found, Callable[[Source, str, bytes], tuple[Tensor, Tensor]]]:
    """Unpacked files if they are complete, else an archive, else what files there are."""
    loose = []
    for suffix, parse in ((".bin", _binary), ("", _pickled)):
        paths = {
            part: path
            for part in (*_TRAIN, _TEST)
            if (path := source.look(f"{part}{suffix}", f"{part}{suffix}.gz")) is not None
        }
        loose.append((paths, parse))
    paths, parse = max(loose, key=lambda entry: len(entry[0]))
    if len(paths) < 6:
        for archive, suffix, parse_archive in (
            ("cifar-10-binary.tar.gz", ".bin", _binary),
            ("cifar-10-python.tar.gz", "", _pickled),
        ):
            path = source.look(archive)
            if path is not None:
                return _unpack(source, path, suffix), parse_archive
    if not any(part in paths for part in _TRAIN):
        raise source.missing("cifar-10-binary.tar.gz (or data_batch_1.bin ..., or data_batch_1)")
    return {part: (str(p), read_gzip(source, p)) for part, p in paths.items()}, parse


def _unpack(source: Source, path: Path, suffix: str) -> _Found:
    """The parts in an archive, read into memory."""
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = Path(member.name).name
                part = file.removesuffix(suffix)
                if member.isfile() and part in (*_TRAIN, _TEST) and file == part + suffix:
                    opened = archive.extractfile(member)
                    assert opened is not None  # it is a regular file
                    found[part] = (f"{file} in {path}", opened.read())
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise source.damaged(path, f"it is not a whole tar.gz file ({error})") from error
    absent = [part + suffix for part in (*_TRAIN, _TEST) if part not in found]
    if absent:
        raise source.damaged(path, f"it has no {', '.join(absent)}")
    return found


def _binary(source: Source, path: str, raw: bytes) -> tuple[Tensor, Tensor]:
    """Records of a label byte and 3072 bytes: three planes of 32x32, row by row."""
    record = 1 + _PIXELS
    if not raw or len(raw) % record:
        raise source.damaged(path, f"it has {len(raw)} bytes, not a multiple of {record}")
    records = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, record).copy())
    return _checked(source, path, records[:, 1:], records[:, 0].long())


def _pickled(source: Source, path: str, raw: bytes) -> tuple[Tensor, Tensor]:
    """A pickled dictionary: b"data", a uint8 array (N, 3072), and b"labels", a list."""
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise source.damaged(path, f"it cannot be unpickled ({error})") from error
    data = content.get(b"data") if isinstance(content, dict) else None
    array = data.array() if isinstance(data, _Array) else None
    labels = content.get(b"labels") if isinstance(content, dict) else None
    if array is None or array.ndim != 2 or array.shape[1] != _PIXELS:
        raise source.damaged(path, f"its b'data' is no uint8 array of {_PIXELS} columns")
    if (
        not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
        or len(labels) != len(array)
    ):
        raise source.damaged(path, f"its b'labels' is no list of {len(array)} integers")
    return _checked(source, path, torch.from_numpy(array), torch.tensor(labels))


def _checked(source: Source, path: str, data: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise source.damaged(path, "it has labels that are not 0..9, or none")
    return data.reshape(-1, 3, 32, 32), labels


class _Record:
    """Stands for a class of numpy: keeps what a pickle says of an object, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Record):
    pass


class _Array(_Record):
    def array(self) -> np.ndarray[Any, Any] | None:
        """The array it stands for, if that is one of bytes."""
        match self.state:
            case (_, (int(n), int(columns)), _Dtype() as dtype, fortran, bytes(raw)):
                if dtype.arguments[:1] not in ((b"u1",), ("u1",)) or len(raw) != n * columns:
                    return None
                flat = np.frombuffer(raw, np.uint8)
                return flat.reshape((n, columns), order="F" if fortran else "C").copy()
        return None


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays; finds no code that it could run."""

    _STAND_INS = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return self._STAND_INS[module, name]
