"""CIFAR-10: the binary and the Python version, as archives or unpacked, whole or in part."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import ImageData, Source, Split
from .idx import read_gzip

_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
_TEST = "test_batch"
_PIXELS = 3 * 32 * 32
_INTEGERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}

_ARCHIVES = [
    f"cifar-10-{kind}.tar{ending}" for kind in ("binary", "python") for ending in (".gz", "")
]

# Images and labels of each part, and what reads them from the bytes of a file.
_Parts = dict[str, tuple[Tensor, Tensor]]
_Parse = Callable[[Source, str, bytes], tuple[Tensor, Tensor]]


def load(source: Source) -> ImageData:
    """The last tenth of the training images validates: 45k / 5k of the 50k."""
    parts = _find(source)
    if _TEST not in parts:
        raise source.missing(_TEST)
    images = torch.cat([parts[part][0] for part in _TRAIN if part in parts])
    labels = torch.cat([parts[part][1] for part in _TRAIN if part in parts])
    test = Split(*parts[_TEST])
    kept = len(labels) - len(labels) // 10
    missing = ""
    if len(labels) < 50_000 or len(test) < 10_000:
        missing = (
            f"partial: {len(labels):,} of 50,000 training images, {len(test):,} of 10,000 test "
            "images"
        )
    return ImageData(
        source.name,
        Split(images[:kept], labels[:kept]),
        Split(images[kept:], labels[kept:]),
        test,
        missing,
    )


def _find(source: Source) -> _Parts:
    """Unpacked files if they are complete, else an archive, else what files there are."""
    loose = []
    for suffix, parse in ((".bin", _binary), ("", _pickled)):
        paths = {
            part: files
            for part in (*_TRAIN, _TEST)
            if (files := source.files(f"{part}{suffix}", f"{part}{suffix}.gz"))
        }
        if any(part in paths for part in _TRAIN):
            folder = next(iter(paths.values()))[0].parent
            loose.append((len(paths), folder, partial(_read, source, parse, paths)))
    loose.sort(key=lambda form: form[0], reverse=True)
    ways = [
        *((folder, read) for n, folder, read in loose if n == 6),
        *((path, partial(_unpack, source)) for path in source.files(*_ARCHIVES)),
        *((folder, read) for n, folder, read in loose if n < 6),
    ]
    if not ways:
        raise source.missing("cifar-10-binary.tar.gz (or data_batch_1.bin ..., or data_batch_1)")
    return source.first_whole(ways)


def _read(source: Source, parse: _Parse, paths: dict[str, list[Path]], _: Path) -> _Parts:
    """The parts in files of their own, each in one or more places."""

    def read(path: Path) -> tuple[Tensor, Tensor]:
        return parse(source, str(path), read_gzip(source, path))

    return {part: source.first_whole([(path, read) for path in paths[part]]) for part in paths}


def _unpack(source: Source, path: Path) -> _Parts:
    """The parts in an archive."""
    suffix, parse = (".bin", _binary) if "binary" in path.name else ("", _pickled)
    found = {}
    try:
        with tarfile.open(path) as archive:
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
    return {part: parse(source, file, raw) for part, (file, raw) in found.items()}


def _binary(source: Source, path: str, raw: bytes) -> tuple[Tensor, Tensor]:
    """Records of a label byte and 3072 bytes: three planes of 32x32, row by row."""
    record = 1 + _PIXELS
    if not raw or len(raw) % record:
        raise source.damaged(path, f"it has {len(raw)} bytes, not a multiple of {record}")
    records = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, record).copy())
    return _checked(source, path, records[:, 1:], records[:, 0].long())


def _pickled(source: Source, path: str, raw: bytes) -> tuple[Tensor, Tensor]:
    """A pickled dictionary: "data", a uint8 array (N, 3072), and "labels", a list or an array.

    The official files are Python 2's, whose strings are bytes here; others were pickled again.
    """
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        entries = content.items() if isinstance(content, dict) else ()
        found = {_text(key): value for key, value in entries}
        data, labels = (_plain(found.get(key)) for key in ("data", "labels"))
    except Exception as error:  # a damaged pickle can raise anything
        raise source.damaged(path, f"it cannot be unpickled ({error})") from error
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != _PIXELS
    ):
        raise source.damaged(path, f"its b'data' is no uint8 array of {_PIXELS} columns")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if (
        not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
        or len(labels) != len(data)
    ):
        raise source.damaged(path, f"its b'labels' is no list of {len(data)} integers")
    return _checked(source, path, torch.from_numpy(data), torch.tensor(labels))


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
    def dtype(self) -> np.dtype[Any]:
        """The type it stands for, if that is one of integers."""
        code, order = _text(self.arguments[0]), _text(self.state[1])
        if code not in _INTEGERS or order not in ("|", "<", ">"):
            raise pickle.UnpicklingError(f"it has an array of {order}{code}, not of integers")
        return np.dtype(f"{order}{code}")


class _Array(_Record):
    """numpy's _reconstruct, which the state tells what to hold."""

    def plain(self) -> np.ndarray[Any, Any]:
        _, shape, dtype, fortran, raw = self.state
        return _filled(raw, dtype, shape, "F" if fortran else "C")


class _Buffer(_Record):
    """numpy's _frombuffer(raw, dtype, shape, order)."""

    def plain(self) -> np.ndarray[Any, Any]:
        return _filled(*self.arguments[:4])


class _Scalar(_Record):
    """numpy's scalar(dtype, raw)."""

    def plain(self) -> int:
        dtype, raw = self.arguments
        return int(_filled(raw, dtype, (), "C"))


def _filled(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(raw, dtype.dtype()).reshape(shape, order=order).copy()


def _encoded(text: str = "", encoding: str = "latin1") -> bytes:
    """Python 3 writes bytes as text to be encoded, none as bytes(), in protocols 0 to 2."""
    return text.encode("latin1")


def _text(key: Any) -> Any:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _plain(value: Any) -> Any:
    """A value of the dictionary with the arrays and numbers that records stand for."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.plain() if isinstance(value, (_Array, _Buffer, _Scalar)) else value


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays; finds no code that it could run."""

    _STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        ("_codecs", "encode"): _encoded,
        ("__builtin__", "bytes"): _encoded,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        # numpy 2 has put an underscore before core.
        **{
            (f"numpy.{core}.{module}", name): stand_in
            for core in ("core", "_core")
            for module, name, stand_in in (
                ("multiarray", "_reconstruct", _Array),
                ("multiarray", "scalar", _Scalar),
                ("numeric", "_frombuffer", _Buffer),
            )
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return self._STAND_INS[module, name]
