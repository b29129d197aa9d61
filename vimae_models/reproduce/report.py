"""The page of a reproduction: claims, tables and figures, as Markdown, HTML, CSV and JSON."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import figures, files, presets, runs
from ..networks import NETWORKS
from ..systems import hyperparameters
from .statistics import mean_and_spread
from .target import Results, Target, Trained, Values

REPORT = "report.md"
RESULTS = "results.json"
_CONFIDENCE = (
    "Of a difference [a, b]: it is above a with 95 % confidence, and below b with 95 % (Welch's t-test over "
    "the seeds, each one-sided). A claim that is neither borne out nor refuted with that is undecided."
)
_VERDICTS = {True: "holds", False: "does not hold", None: "undecided"}


class Page:
    """Collects what a target has to show, in order.

    Args:
        folder: where report.md, report.html, results.csv, results.json, figures/ and configs/ land.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.claims: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.parts: list[str] = []

    def text(self, markdown: str) -> None:
        self.parts.append(markdown)

    def claim(self, text: str, source: str, holds: bool | None, evidence: str) -> None:
        """A claim of the paper, and whether our runs bear it out; None is undecided."""
        self.claims.append(
            {"claim": text, "source": source, "verdict": _VERDICTS[holds], "evidence": evidence}
        )

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.tables.append(
            {"title": title, "columns": list(columns), "rows": [list(r) for r in rows]}
        )
        self.parts.append(f"**{title}**\n\n{_table(columns, rows)}")

    def comparison(
        self,
        title: str,
        columns: Sequence[str],
        ours: Mapping[str, Sequence[list[float] | None]],
        published: Mapping[str, Sequence[float | None]],
        digits: int = 1,
    ) -> None:
        """A table of "ours / published": mean ± standard deviation over seeds, and the paper's figure.

        Args:
            title: of the table, with units.
            columns: names of the measures; the first column is that of the row.
            ours: by row, the values over seeds of each measure, or None.
            published: by row, the paper's figures, or None where it prints none.
            digits: after the decimal point.
        """
        rows = []
        for name, cells in ours.items():
            told = published.get(name, [None] * len(cells))
            row = [name]
            for values, figure in zip(cells, told, strict=True):
                mine = "-" if values is None else mean_and_spread(values, digits)
                row.append(f"{mine} / {'-' if figure is None else f'{figure:g}'}")
            rows.append(row)
        header = ["ours / published", *columns]
        self.table(title, header, rows)

    @contextmanager
    def figure(
        self, name: str, caption: str, rows: int, columns: int, size: tuple[float, float]
    ) -> Iterator[Any]:
        """The axes of a figure, saved as figures/<name>.png and shown on the page."""
        path = self.folder / "figures" / f"{name}.png"
        with figures.figure(path, rows, columns, size) as axes:
            yield axes
        self.parts.append(f"![{caption}](figures/{name}.png)\n\n*{caption}*")

    def write(
        self, target: Target, scale: str, results: Results, machine: Mapping[str, Any]
    ) -> None:
        """All files of the report."""
        parts = [
            f"# {target.title}",
            f"{target.source}.",
            *_face(target, scale, results.trained),
        ]
        if self.claims:
            cells = [[c["claim"], c["source"], f"**{c['verdict']}**", c["evidence"]]
                     for c in self.claims]  # fmt: skip
            header = "claim", "in the paper", "in our runs", "evidence"
            parts += ["## Claims", _table(header, cells), _CONFIDENCE]
        parts += ["## Results", *self.parts, "## Runs", _runs(results.trained)]
        told = ", ".join(f"{key} {value}" for key, value in machine.items())
        seeds = len({run.seed for run in results.trained})
        option = "" if seeds == target.seeds[scale] else f" --seeds {seeds}"
        parts.append(f"Made by `vimae reproduce {target.name} --scale {scale}{option}`: {told}.")
        text = "\n\n".join(parts) + "\n"
        files.write(self.folder / REPORT, text.encode())
        files.write(self.folder / "report.html", self._html(target.title, text).encode())
        configs = self.folder / "configs"
        configs.mkdir(exist_ok=True)
        for run in results.trained:
            path = configs / f"{run.folder.name}.yaml"
            files.write(path, (run.folder / runs.CONFIG).read_bytes())
        files.write(self.folder / "results.csv", _csv(results.trained).encode())
        found = {
            "target": target.name,
            "title": target.title,
            "source": target.source,
            "scale": scale,
            "claims": self.claims,
            "tables": self.tables,
            "runs": {
                run.folder.name: {"label": run.label, "seed": run.seed, "values": run.values}
                for run in results.trained
            },
            "machine": dict(machine),
        }
        files.write(self.folder / RESULTS, (json.dumps(found, indent=1) + "\n").encode())

    def _html(self, title: str, markdown: str) -> str:
        """The page with its pictures inside, so that one file can be sent around."""
        from markdown_it import MarkdownIt

        body = MarkdownIt("commonmark").enable("table").render(markdown)

        def inline(match: re.Match[str]) -> str:
            picture = base64.b64encode((self.folder / match[1]).read_bytes()).decode()
            return f'src="data:image/png;base64,{picture}"'

        body = re.sub(r'src="(figures/[^"]+)"', inline, body)
        return (
            f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>{_CSS}{body}\n"
        )


_CSS = """<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 14px; }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; }
img { max-width: 100%; }
blockquote { border-left: 4px solid #d95; margin: 1rem 0; padding: .2rem 1rem; background: #fdf6ee; }
</style>"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _face(target: Target, scale: str, trained: list[Trained]) -> list[str]:
    """What everybody should know before the first number."""
    if scale == "smoke":
        lines = ["**Scale: smoke.** This shows that the machinery runs. Its numbers mean nothing."]
    elif scale == "small":
        lines = ["**Scale: small.** Scaled down from the paper for two CPU cores, as follows."]
    else:
        lines = ["**Scale: paper.** What the paper prints is kept; the rest is our choice."]
    changed: dict[tuple[str, str, str], list[str]] = {}
    for run in {run.label: run for run in trained}.values():
        for key, there, here in _changes(run.config):
            if key not in target.varied:
                changed.setdefault((key, there, here), []).append(run.label)
    everything = {run.label for run in trained}
    rows = [
        [key, there, here, "all" if set(labels) == everything else ", ".join(labels)]
        for (key, there, here), labels in changed.items()
    ]
    partial = {f"{run.data.name} is {run.data.partial}." for run in trained if run.data.partial}
    for sentence in [*target.scaled(scale), *sorted(partial)]:
        lines.append(f"- {sentence}")
    parts = ["\n".join("> " + line for line in lines)]
    if rows:
        parts.append(_table(("setting", "of the preset", "here", "runs"), rows))
    free = sorted({key for run in trained for key in _unprinted(run.config)})
    if free:
        parts.append(f"The paper does not print, and the presets choose: {', '.join(free)}.")
    return parts


def _changes(config: runs.Config) -> list[tuple[str, str, str]]:
    """Where a configuration differs from its preset: the key, the preset's value, its own."""
    if "preset" not in config:
        return []
    defaults = runs.DEFAULTS | hyperparameters(config["model"])
    preset = defaults | runs.preset(config["preset"])
    made_for = NETWORKS[preset["network"]].likelihood
    if made_for is not None:
        preset["likelihood"] = made_for
    return [
        (key, "all" if key == "images" else _short(preset.get(key)), _short(value))
        for key, value in config.items()
        if key != "seed" and value != preset.get(key)
    ]


def _unprinted(config: runs.Config) -> tuple[str, ...]:
    if "preset" not in config:
        return ()
    unprinted: tuple[str, ...] = presets.preset(config["preset"])["unprinted"]
    return unprinted


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _runs(trained: list[Trained]) -> str:
    labels = dict.fromkeys(run.label for run in trained)
    rows = []
    for label in labels:
        own = [run for run in trained if run.label == label]
        seeds = ", ".join(str(run.seed) for run in own)
        name = own[0].folder.name
        rows.append([label, f"`{own[0].config['model']}`", seeds, f"[{name}](configs/{name}.yaml)"])
    return _table(("run", "system", "seeds", "configuration of the first"), rows)


def flat(values: Values, prefix: str = "") -> dict[str, float]:
    """Nested measurements as one dictionary of numbers, with names joined by "/"."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = {str(i): entry for i, entry in enumerate(value)}
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found


def _csv(trained: list[Trained]) -> str:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("run", "label", "seed", "measure", "value"))
    for run in trained:
        for name, value in flat(run.values).items():
            if not math.isnan(value):
                writer.writerow((run.folder.name, run.label, run.seed, name, value))
    return table.getvalue()


def summary(folder: Path, targets: Sequence[str]) -> Path:
    """README.md of a folder of reports: every claim and its verdict, linked to its report.

    Args:
        folder: with a folder for every target that was reproduced.
        targets: all targets, in the order in which they are shown; the page names those without a
            report.

    Raises:
        RunError: no report is there.
    """
    reports = [(path.parent, json.loads(path.read_text())) for path in folder.glob(f"*/{RESULTS}")]
    if not reports:
        raise runs.RunError(f"{folder} has no folders of reports (*/{RESULTS})")
    order = {name: i for i, name in enumerate(targets)}
    reports.sort(key=lambda report: order.get(report[1]["target"], len(order)))
    overview, details = [], []
    for where, result in reports:
        link = f"{where.name}/{REPORT}"
        verdicts = [claim["verdict"] for claim in result["claims"]]
        seeds = len({run["seed"] for run in result["runs"].values()})
        counts = [str(verdicts.count(verdict)) for verdict in _VERDICTS.values()]
        overview.append([f"[{result['target']}]({link})", result["scale"], str(seeds), *counts])
        details.append(f"## [{result['title']}]({link})")
        details.append(f"{result['source']}. Scale: {result['scale']}.")
        cells = [[c["claim"], f"**{c['verdict']}**", c["evidence"]] for c in result["claims"]]
        if cells:
            details.append(_table(("claim", "in our runs", "evidence"), cells))
    parts = [
        "# What of the papers' claims holds in our runs",
        "Every page was made by one `vimae reproduce` and says what was scaled down. A claim "
        '"holds" or "does not hold" with the evidence that is given; "undecided" is neither.',
        _table(("target", "scale", "seeds", *_VERDICTS.values()), overview),
    ]
    missing = [name for name in targets if name not in {result["target"] for _, result in reports}]
    if missing:
        parts.append(f"Without a report here: {', '.join(missing)}.")
    path = folder / "README.md"
    files.write(path, ("\n\n".join([*parts, *details]) + "\n").encode())
    return path
