"""Getting the files of public data sets, with their checksums, where the user asks for it."""

from __future__ import annotations

from pathlib import Path

from .base import DataError

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_OMNIGLOT = "https://github.com/brendenlake/omniglot/raw/master/python/"
_CIFAR10 = "https://www.cs.toronto.edu/~kriz/"

# data set: file: (address, checksum)
FILES: dict[str, dict[str, tuple[str, str]]] = {
    "mnist": {
        f"{file}.gz": (f"{_MNIST}{file}.gz", f"sha256:{sha256}")
        for file, sha256 in (
            (
                "train-images-idx3-ubyte",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        )
    },
    "fashion_mnist": {
        f"{file}.gz": (f"{_FASHION}{file}.gz", f"sha256:{sha256}")
        for file, sha256 in (
            (
                "train-images-idx3-ubyte",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        )
    },
    "omniglot": {
        f"{file}.zip": (f"{_OMNIGLOT}{file}.zip", f"md5:{md5}")
        for file, md5 in (
            ("images_background", "68d2efa1b9178cc56df9314c21c6e718"),
            ("images_evaluation", "6b91aef0f799c5bb55b94e3f2daec811"),
        )
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": (
            f"{_CIFAR10}cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
        )
    },
}


def how_to_get(name: str) -> str:
    """A sentence with the files of a data set and their address."""
    files = FILES[name]
    address = next(iter(files.values()))[0].rpartition("/")[0] + "/"
    plural = "files are" if len(files) > 1 else "file is"
    return f"The {plural} {', '.join(files)}, from {address}; --download gets what is missing."


def fetch(name: str, folder: Path) -> None:
    """Download the files of a data set of `FILES` that `folder` does not have.

    Raises:
        DataError: pooch is not installed; a file could not be got, or is not the one it should be
            (it is not kept then).
    """
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            "--download needs a package that is not installed: pip install 'vimae-kernels[download]'"
        ) from error
    for file, (address, checksum) in FILES[name].items():
        if (folder / file).exists():
            continue
        try:
            pooch.retrieve(address, checksum, file, folder)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise DataError(f"{name}: {address} could not be downloaded: {why}") from error
