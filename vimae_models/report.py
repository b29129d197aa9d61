"""The results of an evaluation as a table on the console."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

_PERCENT = "{:.1%}"
_Row = tuple[str, str, str]
# Group by group: what a row is called, where its value is, and how it is written. Braces in a name
# are other results.
_ROWS: tuple[tuple[_Row, ...], ...] = (
    (
        ("reconstruction -log p(x|z), nats", "reconstruction", "{:.2f}"),
        (
            "log p(x) of {log_likelihood[images]} images, nats",
            "log_likelihood.log_likelihood",
            "{:.2f}",
        ),
        ("    its standard error", "log_likelihood.standard_error", "{:.2f}"),
        (
            "    effective samples of {log_likelihood[samples]}",
            "log_likelihood.effective_samples",
            "{:.1f}",
        ),
    ),
    (
        ("MMD² to the prior", "mmd", "{:.5f}"),
        ("log det of the covariance of z / dimension", "log_det_covariance", "{:.3f}"),
        ("total correlation of z, nats", "total_correlation", "{:.3f}"),
        ("rate KL(q(z|x) ‖ p(z)), nats", "rate.kl_z", "{:.3f}"),
        ("rate KL(q(y|x) ‖ p(y)), nats", "rate.kl_y", "{:.3f}"),
        (
            "I(x; z), nats (at most {mutual_information[bound]:.3f})",
            "mutual_information.information",
            "{:.3f}",
        ),
        ("I(x; z_k), nats, the largest", "coordinates.information", "{:.2f}"),
        ("mutual information gap", "mutual_information_gap.mig", "{:.3f}"),
        ("lower bound on I({information_bound[of]}; x), nats", "information_bound.nats", "{:.3f}"),
    ),
    (
        ("SVM accuracy on z, ", "svm", _PERCENT),
        ("accuracy of the categorical code", "categories.accuracy", _PERCENT),
        ("categorical KL, nats", "categories.kl", "{:.3f}"),
        ("H(y), nats", "categories.entropy", "{:.3f}"),
        ("I(x; y), nats", "categories.information", "{:.3f}"),
    ),
    (
        ("{samples} samples: class cross entropy, nats", "class_cross_entropy", "{:.4f}"),
        ("    Fréchet distance, features of a classifier", "classifier_distance", "{:.3f}"),
        ("    accuracy of that classifier", "classifier.test_accuracy", _PERCENT),
        ("    FID", "fid", "{:.1f}"),
        ("    NLL of test images beside them, nats", "sample_nll.nll", "{:.1f}"),
    ),
)


def show(console: Console, title: str, test: dict[str, Any], squared_error: bool) -> None:
    """Print what `evaluation` found: a table, warnings, and what was not computed and why.

    Args:
        console: where to.
        title: of the table.
        test: the results of `evaluation.evaluate` or `evaluation.evaluate_all`.
        squared_error: whether the reconstruction is ||x - g(z)||^2.
    """
    table = Table(title=title, title_justify="left", min_width=56)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for group in _ROWS:
        for row in group:
            for name, value in _cells(row, test):
                if squared_error and name.startswith("reconstruction"):
                    name = "reconstruction ‖x - g(z)‖²"
                table.add_row(name, value)
        table.add_section()
    console.print(table)
    for name, result in test.items():
        if isinstance(result, dict) and result.get("warning"):
            console.print(f"{name}: {result['warning']}", soft_wrap=True, highlight=False)
    reasons: dict[str, list[str]] = {}
    for name, why in test.get("skipped", {}).items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        console.print(f"without {', '.join(names)}: {why}", soft_wrap=True, highlight=False)


def _cells(row: _Row, test: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of a row: one if it has a value, one for each of a dictionary, none if it has none."""
    name, path, form = row
    value: Any = test
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return
    if isinstance(value, dict):
        yield from ((name + key, form.format(item)) for key, item in value.items())
    elif isinstance(value, list):
        largest = sorted((item for item in value if item is not None), reverse=True)
        yield name.format(**test), " ".join(form.format(item) for item in largest[:5])
    else:
        yield name.format(**test), form.format(value)
