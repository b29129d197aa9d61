"""What a reproduction is: the runs it takes, what is measured of each, and the page it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import runs
from ..autoencoder import Autoencoder
from ..data import ImageData

if TYPE_CHECKING:
    from .report import Page

SCALES = ("smoke", "small", "paper")
MEASURES = "measures.json"

Values = dict[str, Any]
"""What was measured of a run: numbers, or dictionaries and lists of numbers, by name."""


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        label: what is the same in the runs that differ in their seed only.
        seed: of the run.
        config: its exact configuration, with `data_dir` left out.
        folder: its run folder.
        shared: folder of the target, for what its runs share.
        data_dir: folder of the official data files, or None.
        values: what was measured; empty before.
    """

    label: str
    seed: int
    config: runs.Config
    folder: Path
    shared: Path
    data_dir: str | None
    values: Values

    @cached_property
    def model(self) -> Autoencoder:
        """The trained model, in evaluation mode."""
        return runs.load_model(self.folder)[1]

    @property
    def data(self) -> ImageData:
        """Loaded once for all runs that train on the same."""
        keys = "data", "images", "image_size", "rotate", "binarize"
        return _load(tuple((key, self.config.get(key)) for key in keys), self.data_dir)

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """One row per epoch, as in metrics.csv."""
        history: list[dict[str, float]] = runs.read_checkpoint(self.folder)["run"]["history"]
        return history


@lru_cache(maxsize=4)
def _load(items: tuple[tuple[str, Any], ...], data_dir: str | None) -> ImageData:
    return runs.load_data(dict(items), data_dir)


class Results:
    """All finished runs of a reproduction, by label and seed."""

    def __init__(self, trained: list[Trained]) -> None:
        self.trained = trained

    def of(self, label: str) -> list[Trained]:
        """The runs of a label, in the order of their seeds."""
        return [run for run in self.trained if run.label == label]

    def first(self, label: str) -> Trained:
        """The run of a label with the smallest seed: the one whose pictures are shown."""
        return self.of(label)[0]

    def values(self, label: str, *path: str) -> list[float]:
        """A measured number, found by the names on the path to it, of every seed.

        Raises:
            RunError: it was not measured.
        """
        found = []
        for run in self.of(label):
            value: Any = run.values
            try:
                for name in path:
                    value = value[name]
            except KeyError as error:
                raise runs.RunError(
                    f"{run.folder / MEASURES} has no {'/'.join(path)}: it was measured by an other "
                    "version; remove that file, and it is measured again"
                ) from error
            found.append(float(value))
        return found


class Target:
    """One table or figure of a paper. A subclass is all there is to know of it.

    Attributes:
        name: on the command line.
        title: one line.
        source: paper, section, table or figure.
        seeds: number of runs of each configuration, by scale.
        varied: settings that the paper varies too, so that they are no change of a preset.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    seeds: ClassVar[dict[str, int]]
    varied: ClassVar[tuple[str, ...]] = ()

    def configs(self, scale: str) -> dict[str, runs.Config]:
        """The configurations to train at a scale, without seeds, by label; see `config`."""
        raise NotImplementedError

    def scaled(self, scale: str) -> list[str]:
        """What differs from the paper at a scale beyond the configurations; one sentence each."""
        return []

    def prepare(self, folder: Path, data: ImageData) -> None:
        """Make, once and before any run, the files in `folder` that the runs share."""

    def measure(self, trained: Trained) -> Values:
        """What is to be known of a run."""
        raise NotImplementedError

    def report(self, page: Page, results: Results, scale: str) -> None:
        """Put claims, tables and figures on the page."""
        raise NotImplementedError


def config(preset: str, **changes: Any) -> runs.Config:
    """The configuration of `vimae train --preset`, with changes; a value of None takes a key out."""
    merged = runs.DEFAULTS | runs.preset(preset) | changes
    return {key: value for key, value in merged.items() if value is not None and key != "seed"}
