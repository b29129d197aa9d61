"""The target of VMI about an informative category."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .. import encoding, evaluation, figures, runs
from ..data import ImageData, Images
from ..joint import JointAutoencoder
from ..metrics import labels
from .report import Page
from .statistics import Difference, difference
from .target import Results, Target, Trained, Values, config
from .vmi import (
    CHANGED,
    agreement,
    decoded,
    impact,
    negated,
    one_of_each,
    percent,
    shared_classifier,
    with_originals,
)

_ELBO = ", ELBO"
_BINS = 25  # 0.1, the uniform probability, is in the middle of one


class Joint(Target):
    """A category that carries information, beside its twin on the plain ELBO."""

    name = "vmi-joint"
    title = "VMI: the categorical code with and without information maximisation"
    source = "VMI-VAE, sec. 5.2 and 7, figures 4 to 10"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    # Accuracy in % and KL of the category.
    published: ClassVar = {"MNIST": (74, 2.22), "MNIST, ELBO": (21, 0.89)}
    sets: ClassVar = {"MNIST": "mnist", "Fashion": "fashion_mnist"}

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 2, "width": 0.1, "images": 400},
            "small": {"epochs": 20, "images": 40_000, "width": 0.5},
            "paper": {},
        }
        # Of Fashion-MNIST the paper shows a picture and no number.
        short = {"epochs": 8} if scale == "small" else {}
        found = {}
        for label, data in self.sets.items():
            changes = at[scale] | (short if label == "Fashion" else {})
            found[label] = config(f"vmi-joint-vae/{data}", **changes)
            found[label + _ELBO] = config(f"vmi-joint-vae/{data}-elbo", **changes)
        return found

    def prepare(self, folder: Path, data: ImageData) -> None:
        shared_classifier(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, test = trained.model, trained.data.test
        assert isinstance(model, JointAutoencoder)
        changed = _categories_changed(model, test.images[:CHANGED])
        with torch.no_grad():
            p = torch.cat([model.classify(x) for x in encoding.inputs(model, test.images)])
        counts = labels.digits_per_category(model, test)
        found: Values = {
            **evaluation.summary(model, test.images),
            "categories": labels.categories(model, test),
            "majority": float(counts.amax(1).sum() / counts.sum()),
            "digits": counts.tolist(),
            "concentration": float((counts.amax(0) / counts.sum(0)).mean()),
            "probabilities": _histogram(p),
            "largest": _histogram(p.amax(1)),
            "above half": float((p.amax(1) > 0.5).double().mean()),
            "impact": impact(changed),
        }
        if trained.label.startswith("MNIST"):
            judge = shared_classifier(trained.data, trained.shared)
            found["agreement"] = float(agreement(judge, changed)[0].mean())
        return found

    def report(self, page: Page, results: Results, scale: str) -> None:
        names = [name for label in self.sets for name in (label, label + _ELBO)]
        page.comparison(
            "The category c on the test set, and the lower bound on I(c; x) in the last epoch of the "
            "training; nats where nothing else is said",
            (
                "accuracy, matched, %",
                "accuracy, majority, %",
                "KL(c)",
                "I(c; x)",
                "lower bound",
                "impact, %",
                "-log p(x\\|z, c)",
            ),
            {
                name: (
                    percent(results.values(name, "categories", "accuracy")),
                    percent(results.values(name, "majority")),
                    results.values(name, "categories", "kl"),
                    results.values(name, "categories", "information"),
                    [run.history[-1]["train/information"] for run in results.of(name)],
                    percent(results.values(name, "impact")),
                    results.values(name, "reconstruction"),
                )
                for name in names
            },
            {
                name: (accuracy, accuracy, kl, None, None, None, None)
                for name, (accuracy, kl) in self.published.items()
            },
            digits=2,
        )
        page.text(
            'The paper applies "the encoder categorical component as a classifier" and does not say '
            "how a category gets its digit. *Matched*: every category gets a digit of its own, so that "
            "the accuracy is largest (the Hungarian algorithm); *majority*: every category gets the "
            "digit it has most of, which is never less. The claim below is about the first. *Impact* is "
            "the share of the variance of decoded images that is due to c: "
            f"{CHANGED} test images, decoded with each category, z being kept. "
            "A KL(c) of 0.89 nats, which the paper prints of the twin, and probabilities that are all near "
            "0.1, where it is 0, exclude each other.\n\n"
            "The lower bound (eq. 5) is one on what decoded images x' tell of the category they were decoded "
            "from; KL(c) is an upper bound on what the images x of the data tell of theirs. Nothing makes "
            "the first stay below the second: x' can tell which category was drawn where x leaves it open."
        )
        self._claims(page, results)
        for label in self.sets:
            _show_categories(page, results, label)
        _show_probabilities(page, results)
        _show_training(page, results, list(self.sets))
        _show_digits(page, results)

    def _claims(self, page: Page, results: Results) -> None:
        new, old = "MNIST", "MNIST, ELBO"

        def gap(*path: str, label: str = new) -> Difference:
            return difference(results.values(label, *path), results.values(label + _ELBO, *path))

        accuracy = gap("categories", "accuracy")
        page.claim(
            "as a classifier of MNIST the category is better than that of the twin on the ELBO",
            "sec. 5.2: 74 % against 21 %",
            accuracy.above(),
            f"accuracy, matched {accuracy}",
        )
        page.claim(
            "its accuracy is above that of the twin by at least half of the published margin (0.265)",
            "sec. 5.2: 74 % against 21 %",
            accuracy.above(0.265),
            f"accuracy, matched {accuracy}",
        )
        kl = gap("categories", "kl")
        page.claim(
            "KL(c) is above that of the twin",
            "sec. 7 and figure 8: 2.22 against 0.89",
            kl.above(),
            f"KL(c) {kl}",
        )
        tenths = 0.9 * math.log(10)
        near = _mean(results.values(new, "categories", "kl"))
        page.claim(
            "KL(c) comes close to its maximum, log 10 = 2.303 (to nine tenths of it)",
            "sec. 5.2 and figure 8: 2.22",
            near.above(tenths),
            f"KL(c) {near}; nine tenths are {tenths:.3f}",
        )
        curves = {name: _curves(results, name, "information") for name in (new, old)}
        during = difference(*([statistics.fmean(c) for c in curves[name]] for name in (new, old)))
        page.claim(
            "the lower bound on I(c; x) is above that of the twin during the training (mean over epochs)",
            "sec. 5.2 and figure 7",
            during.above(),
            f"lower bound {during}",
        )
        slack = [
            upper - lower
            for name in (new, old)
            for uppers, lowers in zip(_curves(results, name, "kl_y"), curves[name], strict=True)
            for upper, lower in zip(uppers, lowers, strict=True)
        ]
        page.claim(
            "KL(c) is an upper bound on that lower bound, in every epoch of every run",
            "sec. 5.2 and 7, figures 7 and 8",
            min(slack) >= 0,
            f"KL(c) minus the lower bound is at least {min(slack):.4f} nats",
        )
        small = _mean(results.values(old, "impact"))
        page.claim(
            "on the ELBO the category has no influence on decoded images (impact below 1 %)",
            "sec. 5.2 and figure 4",
            negated(small.above(0.01)),
            f"impact {small}",
        )
        for label, figure in (("MNIST", "figure 4"), ("Fashion", "figure 5")):
            change = gap("impact", label=label)
            page.claim(
                f"{label}: with information maximisation the influence of the category on decoded images is "
                "above that in the twin",
                f"sec. 5.2 and {figure}",
                change.above(),
                f"impact {change}",
            )
        same = _mean(results.values(new, "agreement"))
        page.claim(
            "for most images a category makes the same digit of them (more than half, mean over "
            "categories, as a classifier sees them)",
            "sec. 5.2 and figure 4",
            same.above(0.5),
            f"share of images {same}; in the twin "
            f"{statistics.fmean(results.values(old, 'agreement')):.3f}",
        )
        often = _mean(results.values(new, "above half"))
        page.claim(
            "with information maximisation the largest probability of a category is above 0.5 for most "
            "images",
            "sec. 5.2 and figure 6",
            often.above(0.5),
            f"share of images {often}",
        )
        seldom = _mean(results.values(old, "above half"))
        page.claim(
            "on the ELBO the largest probability is seldom above 0.5 (for less than 5 % of the images)",
            "sec. 5.2 and figure 6",
            negated(seldom.above(0.05)),
            f"share of images {seldom}",
        )
        together = _mean(results.values(new, "concentration"))
        page.claim(
            "most images of a digit have one and the same category (more than half, mean over digits)",
            "app. B and figure 9",
            together.above(0.5),
            f"share of images {together}",
        )
        apart = _mean(results.values(old, "concentration"))
        page.claim(
            "on the ELBO the digits are spread uniformly over the categories (the most frequent one has "
            "at most 0.2 of a digit's images, twice the uniform share)",
            "app. B and figure 10",
            negated(apart.above(0.2)),
            f"share of images {apart}",
        )


def _mean(values: list[float]) -> Difference:
    """The mean itself, with what can be said of it."""
    return difference(values, [0.0, 0.0])


def _histogram(p: Tensor) -> list[float]:
    """Shares of probabilities in equal bins from 0 to 1."""
    counts = torch.histc(p.float().cpu(), _BINS, 0, 1)
    return [float(share) for share in counts / counts.sum()]


def _curves(results: Results, label: str, term: str) -> list[list[float]]:
    """A term of the loss in the epochs of every run."""
    return [[row[f"train/{term}"] for row in run.history] for run in results.of(label)]


def _categories_changed(model: JointAutoencoder, images: Images) -> Tensor:
    """Decoded images (N, K, C, H, W) of the codes of N images, with every category."""
    z = encoding.codes(model, images)[:, : model.latent_dim]
    y = torch.eye(model.categories).to(z).expand(len(z), -1, -1)
    return decoded(model, torch.cat([z[:, None].expand(-1, y.shape[1], -1), y], 2))


def _show_categories(page: Page, results: Results, label: str) -> None:
    first = results.first(label)
    chosen = one_of_each(first.data.test)
    with page.figure(
        f"categories-{label}".lower(),
        f"{label}: test images (the columns apart), and what is decoded from their z with each of the ten "
        "categories. Columns are categories. Compare figure "
        f"{4 if label == 'MNIST' else 5} of the paper.",
        1,
        2,
        (7.0, 3.2),
    ) as axes:
        axes[0].figure.get_layout_engine().set(wspace=0.06)
        for axis, name in zip(axes, (label + _ELBO, label), strict=True):
            model = results.first(name).model
            assert isinstance(model, JointAutoencoder)
            rows = _categories_changed(model, chosen)
            figures.show(axis, with_originals(chosen, rows), rows.shape[1] + 2)
            axis.set_title(_told(name))


def _told(name: str) -> str:
    """What a run of `Joint` was trained on."""
    return "ELBO" if name.endswith(_ELBO) else "with information maximisation"


def _show_probabilities(page: Page, results: Results) -> None:
    with page.figure(
        "probabilities",
        "MNIST: probabilities q(c|x) of the test images, mean over seeds. The paper has collected its "
        "figure 6 during the training.",
        1,
        2,
        (7.0, 2.3),
    ) as axes:
        edges = torch.linspace(0, 1, _BINS + 1).tolist()
        panels = {
            "probabilities": "of all ten categories",
            "largest": "of the most probable category",
        }
        for axis, (key, title) in zip(axes, panels.items(), strict=True):
            for name, color in (("MNIST, ELBO", "0.6"), ("MNIST", "C0")):
                runs_of = [run.values[key] for run in results.of(name)]
                means = [100 * statistics.fmean(share) for share in zip(*runs_of, strict=True)]
                axis.stairs(means, edges, color=color, fill=True, alpha=0.4)
                axis.stairs(means, edges, color=color, lw=1.2, label=_told(name))
            axis.set(title=title, xlabel="probability", xlim=(0, 1))
        axes[0].set_ylabel("share, %")
        axes[1].legend(frameon=False, loc="upper center")


def _show_training(page: Page, results: Results, sets: Sequence[str]) -> None:
    with page.figure(
        "training",
        "The category during the training, means of epochs: lines are means over seeds, bands a standard "
        "deviation on both sides, dashes log 10, the maximum. Compare figures 7 and 8 of the paper.",
        len(sets),
        2,
        (7.0, 2.1 * len(sets)),
    ) as axes:
        panels = {"information": "lower bound on I(c; x), nats", "kl_y": "KL(c), nats"}
        for row, label in zip(axes, sets, strict=True):
            for axis, (term, title) in zip(row, panels.items(), strict=True):
                for name, color in ((label + _ELBO, "0.5"), (label, "C0")):
                    _band(axis, _curves(results, name, term), color, _told(name))
                axis.axhline(math.log(10), color="0.35", lw=0.8, ls="--")
                axis.set(title=f"{label}: {title}", ylim=(-0.1, 2.5))
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in axes[-1]:
            axis.set_xlabel("epoch")
        axes[-1, 0].legend(frameon=False, loc="best")


def _band(axis: Any, curves: list[list[float]], color: str, label: str) -> None:
    epochs = range(1, len(curves[0]) + 1)
    columns = list(zip(*curves, strict=True))
    means = [statistics.fmean(column) for column in columns]
    axis.plot(epochs, means, color=color, lw=1.2, label=label)
    if len(curves) > 1:
        spread = [statistics.stdev(column) for column in columns]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(epochs, low, high, color=color, alpha=0.25, lw=0)


def _show_digits(page: Page, results: Results) -> None:
    from scipy.optimize import linear_sum_assignment

    with page.figure(
        "digits",
        "MNIST: numbers of test images of every digit (columns) whose most probable category is this one "
        "(rows, in the order of the digits matched to them). Compare figures 9 and 10 of the paper.",
        1,
        2,
        (7.0, 3.4),
    ) as axes:
        for axis, name in zip(axes, ("MNIST, ELBO", "MNIST"), strict=True):
            counts = torch.tensor(results.first(name).values["digits"])
            rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
            order = rows[columns.argsort()]
            axis.imshow(counts[order].numpy(), cmap="Blues", vmin=0, vmax=int(counts.sum(0).max()))
            for i, category in enumerate(order):
                for digit, count in enumerate(counts[category].tolist()):
                    color = "white" if count > 0.6 * counts.sum(0).max() else "0.25"
                    axis.text(digit, i, count, ha="center", va="center", size=5.5, color=color)
            axis.set_xticks(range(counts.shape[1]))
            axis.set_yticks(range(len(order)), [str(category + 1) for category in order])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set(title=_told(name), xlabel="digit")
        axes[0].set_ylabel("one-hot vector")
