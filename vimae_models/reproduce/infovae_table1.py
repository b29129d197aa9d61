"""Table 1 of InfoVAE: likelihood."""

from __future__ import annotations

import statistics
from typing import Any, ClassVar

from .. import runs
from ..metrics import information
from .infovae import NAMES, images_trained_on, log_likelihood
from .report import Page
from .statistics import difference
from .target import Results, Target, Trained, Values, config


class Table1(Target):
    """The likelihood of test images, by importance sampling, of codes of five dimensions."""

    name = "infovae-table1"
    title = "InfoVAE: likelihood of binarised MNIST"
    source = "InfoVAE, table 1 and sec. 4.2.1 (5)"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    published: ClassVar = {"vae": 82.75, "mmd-vae": 80.76, "stein-vae": 81.47, "aae": 82.21}

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 1, "width": 0.1, "images": 200},
            "small": {
                "image_size": 14,
                "images": 10_000,
                "epochs": 3,
                "width": 0.25,
                "batch_size": 50,
                "lr": 2e-3,
            },
            "paper": {},
        }
        return {name: config(f"{name}/mnist-nll", **at[scale]) for name in self.published}

    def scaled(self, scale: str) -> list[str]:
        if scale != "small":
            return []
        return [
            "The decoder is a PixelCNN, as in the paper, with a quarter of the filters, on images of 14x14: "
            "their likelihoods are not on the scale of the published ones, of 28x28, and only their order can "
            "be compared.",
            "The likelihood is that of 100 test images, the same for all runs, by 400 importance samples each.",
        ]

    def measure(self, trained: Trained) -> Values:
        model, test = trained.model, trained.data.test.images
        part = images_trained_on(trained)
        n, samples = (2000, 1000) if part is None else (part // 100, 400)
        return {
            **log_likelihood(model, test[:n], samples),
            "information": information.mutual_information(model, test)["information"],
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        page.comparison(
            "Negative log likelihood of test images in nats; the information in their codes, I(x; z) in "
            "nats; effective samples, and by how much the proposal was wider than q(z|x)",
            ("-log p(x)", "I(x; z)", "effective samples", "proposal"),
            {
                NAMES[name]: [
                    results.values(name, measure)
                    for measure in ("nll", "information", "effective_samples", "widen")
                ]
                for name in self.published
            },
            {NAMES[name]: (nll, None, None, None) for name, nll in self.published.items()},
            digits=2,
        )
        warnings = [
            f"- {NAMES[name]}, seed {run.seed}: {run.values['warning']}"
            for name in self.published
            for run in results.of(name)
            if run.values["warning"]
        ]
        if warnings:
            page.text("Of log p(x), so that -log p(x) is too high:\n\n" + "\n".join(warnings))
        with page.figure(
            "likelihood",
            "Negative log likelihood: left every seed of our runs and their mean, right as published.",
            1,
            2,
            (7.0, 2.4),
        ) as (ours, published):
            for i, (name, nll) in enumerate(self.published.items()):
                found = results.values(name, "nll")
                ours.plot([i] * len(found), found, "o", ms=4, color=f"C{i}", alpha=0.6)
                ours.hlines(statistics.fmean(found), i - 0.3, i + 0.3, color=f"C{i}", lw=1.5)
                published.hlines(nll, i - 0.3, i + 0.3, color=f"C{i}", lw=1.5)
            for axis, title in ((ours, "our runs"), (published, "published")):
                axis.set_xticks(
                    range(len(self.published)), [NAMES[name] for name in self.published]
                )
                axis.set(title=title, ylabel="-log p(x), nats")
                axis.margins(x=0.1, y=0.2)
        for other in ("vae", "stein-vae", "aae"):
            page.claim(
                f"the negative log likelihood of mmd-vae is below that of {other}",
                "table 1",
                *_less_likely(results, "mmd-vae", other),
            )
        for name in ("mmd-vae", "stein-vae", "aae"):
            page.claim(
                f"{name} is on par with the ELBO or better: its negative log likelihood is at most 2 % "
                "higher",
                "sec. 4.2.1 (5)",
                *_less_likely(results, name, "vae", slack=1.02),
            )


def _less_likely(
    results: Results, name: str, other: str, slack: float = 1.0
) -> tuple[bool | None, str]:
    """Whether the negative log likelihood of `name` is below `slack` times that of `other`."""
    ours, theirs = results.values(name, "nll"), results.values(other, "nll")
    gap = difference([slack * value for value in theirs], ours)
    holds = gap.above()
    times = "" if slack == 1 else f"{slack:g} times "
    evidence = f"{times}that of {other} minus that of {name}: {gap} nats"
    # With few effective samples an estimate is too high: such a system has not lost for certain.
    loser = other if holds else name
    if holds is not None and any(run.values["warning"] for run in results.of(loser)):
        return None, f"{evidence}; but that of {loser} is estimated too high"
    return holds, evidence
