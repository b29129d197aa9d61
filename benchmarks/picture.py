"""Draws what the benchmarks measured: `python -m benchmarks.picture` reads benchmarks/results and writes
docs/images/speed.png, how many times faster every operation is than the fastest other way measured beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).with_name("results")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "speed.png"
# File, heading of its table or "" for the only one, what it is called, and what a row is.
TABLES = [
    ("mmd-cpu.md", "", "mmd, value + gradient"),
    ("stein-cpu.md", "Stein gradient", "stein_gradient"),
    ("stein-cpu.md", "KSD", "ksd, value + gradient"),
    ("total-correlation-cpu.md", "", "total_correlation, value + gradients"),
    ("gumbel-cpu.md", "", "gumbel_softmax, forward + backward"),
    ("mmd-test-cpu.md", "", "mmd_test"),
]


class Row(NamedTuple):
    size: str
    times: float  # faster
    other: str


def rows(text: str, heading: str) -> list[Row]:
    """The rows of the table after the line that starts with `heading`."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    found = []
    for line in lines[start:]:
        if ratio := re.search(r"\*\*([\d.]+)\*\* \(([^)]*)\)", line):
            found.append(Row(line.split("|")[1].strip(), float(ratio[1]), ratio[2]))
        elif found:
            break
    return found


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [table for table in TABLES if (RESULTS / table[0]).exists()]
    groups = [(name, rows((RESULTS / file).read_text(), start)) for file, start, name in measured]
    height = sum(len(found) + 1.3 for _, found in groups)
    with plt.rc_context({"font.size": 8}):
        figure, axis = plt.subplots(figsize=(7, 0.17 * height + 0.5), layout="constrained")
        y, labels, places = 0.0, [], []
        for index, (name, found) in enumerate(groups):
            axis.text(1.0, y, f" {name}", weight="bold", va="center")
            y += 1
            for row in found:
                color = f"C{index}"
                axis.plot([1, row.times], [y, y], color=color, lw=2.2, alpha=0.35)
                axis.plot(row.times, y, "o", color=color, ms=4)
                axis.text(
                    row.times * 1.07,
                    y,
                    f"{row.times:.1f}  ({row.other})",
                    va="center",
                    color="0.35",
                )
                labels.append(row.size)
                places.append(y)
                y += 1
            y += 0.3
        axis.set(
            xscale="log",
            ylim=(y, -0.8),
            xlabel="times faster than the fastest other, named in brackets",
        )
        times = [row.times for _, found in groups for row in found]
        axis.set_xlim(0.85 * min(1, *times), 2.5 * max(times))
        axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axis.set_yticks(places, labels)
        axis.tick_params(axis="y", length=0)
        axis.axvline(1, color="0.35", lw=0.8)
        axis.grid(axis="x", color="0.9", lw=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(PICTURE, dpi=180)
    print(f"written to {PICTURE}")


if __name__ == "__main__":
    main()
