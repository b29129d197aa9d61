"""The targets of VMI (variational mutual information maximisation for VAEs)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from .. import densities, encoding, evaluation, figures, runs, vmi
from ..autoencoder import Autoencoder
from ..data import ImageData, Images, Split, pixels
from ..joint import JointAutoencoder
from ..metrics import classifier, labels
from ..vae import GaussianAutoencoder
from .report import Page
from .statistics import Difference, difference
from .target import Results, Target, Trained, Values, config

_ELBO = ", ELBO"
_BINS = 25  # 0.1, the uniform probability, is in the middle of one
# Test images whose codes are changed, and values of a coordinate from -3 to 3 they are given.
_CHANGED = 200
_STEPS = 7


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
        _judge(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, test = trained.model, trained.data.test
        assert isinstance(model, JointAutoencoder)
        changed = _categories_changed(model, test.images[:_CHANGED])
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
            judge = _judge(trained.data, trained.shared)
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
                    _percent(results.values(name, "categories", "accuracy")),
                    _percent(results.values(name, "majority")),
                    results.values(name, "categories", "kl"),
                    results.values(name, "categories", "information"),
                    [run.history[-1]["train/information"] for run in results.of(name)],
                    _percent(results.values(name, "impact")),
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
            f"{_CHANGED} test images, decoded with each category, z being kept. "
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
            _not(small.above(0.01)),
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
            _not(seldom.above(0.05)),
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
            _not(apart.above(0.2)),
            f"share of images {apart}",
        )


class Gaussian(Target):
    """Two coordinates of a Gaussian code that carry information, for several weights of it."""

    name = "vmi-gaussian"
    title = "VMI: two informative coordinates of a Gaussian code"
    source = "VMI-VAE, sec. 5.1, figures 2 and 3, and eq. 5"
    seeds: ClassVar = {"smoke": 1, "small": 3, "paper": 3}
    # The paper shows several weights and prints none; 0 is the ELBO, 1 that of the preset.
    lambdas = (0.0, 0.1, 1.0, 3.0, 10.0)

    def configs(self, scale: str) -> dict[str, runs.Config]:
        at: dict[str, dict[str, Any]] = {
            "smoke": {"data": "digits", "epochs": 2, "width": 0.1, "images": 400},
            "small": {"epochs": 12, "images": 40_000, "width": 0.5},
            "paper": {},
        }
        return {_label(lam): config("vmi-vae/mnist", **at[scale], lam=lam) for lam in self.lambdas}

    def prepare(self, folder: Path, data: ImageData) -> None:
        _judge(data, folder)

    def measure(self, trained: Trained) -> Values:
        model, data = trained.model, trained.data
        assert isinstance(model, GaussianAutoencoder)
        images = data.test.images[:_CHANGED]
        plane = _plane_changed(model, images)
        judge = _judge(data, trained.shared)
        share, digit = agreement(judge, plane)
        with torch.no_grad():
            parts = [model.posterior(x) for x in encoding.inputs(model, data.test.images)]
        mean, log_var = (torch.cat(part) for part in zip(*parts, strict=True))
        kl = densities.normal_kl(mean, log_var).mean(0)
        return {
            **evaluation.summary(model, data.test.images),
            "kl": {"informative": float(kl[:2].sum()), "other": float(kl[2:].sum())},
            "bound": vmi.information_of_fixed(
                model,
                data,
                trained.config["network"],
                trained.config["width"],
                # Five times all training images.
                steps=5 * len(data.train) // 100,
                informative=2,
            ),
            "impact": impact(plane),
            "impact of z_1": impact(_line_changed(model, images, _STEPS)),
            "largest agreement": float(share.max()),
            "digits": len(digit[share >= 0.9].unique()),
        }

    def report(self, page: Page, results: Results, scale: str) -> None:
        page.comparison(
            "Information in (z_1, z_2) and its impact on decoded images, test set; nats where nothing "
            "else is said",
            (
                "lower bound on I(z_1, z_2; x')",
                "KL of (z_1, z_2)",
                "KL of the others",
                "impact of (z_1, z_2), %",
                "impact of z_1, %",
                "-log p(x\\|z)",
            ),
            {
                label: (
                    results.values(label, "bound"),
                    results.values(label, "kl", "informative"),
                    results.values(label, "kl", "other"),
                    _percent(results.values(label, "impact")),
                    _percent(results.values(label, "impact of z_1")),
                    results.values(label, "reconstruction"),
                )
                for label in map(_label, self.lambdas)
            },
            {},
            digits=2,
        )
        page.text(
            "The bound is that of eq. 5: the model is fixed, and only a network Q is trained, anew, on "
            "images x' that the model draws. It is one on I(z_1, z_2; x'); the KL is an upper bound on "
            "I(z_1, z_2; x) of the images of the data. *Impact* is the share "
            f"of the variance of decoded images that is due to the named coordinates: {_CHANGED} test "
            f"images, decoded with each of {_STEPS} values from -3 to 3 of every one of them, the others "
            "being kept. The paper prints no numbers here."
        )
        self._claims(page, results)
        _show_plane(page, results, (_label(0.0), _label(1.0)))
        _show_line(page, results, [_label(lam) for lam in self.lambdas])
        _show_lambdas(page, results, self.lambdas)

    def _claims(self, page: Page, results: Results) -> None:
        vanilla, low, new = _label(0.0), _label(0.1), _label(1.0)
        double = difference(
            results.values(new, "impact"),
            [2 * value for value in results.values(vanilla, "impact")],
        )
        page.claim(
            "with information maximisation (lambda 1) (z_1, z_2) has a strong impact on decoded images, "
            "on the ELBO little: at least twice as much",
            "sec. 5.1 and figure 2",
            double.above(),
            f"impact minus twice that on the ELBO: {double}",
        )
        bound = difference(results.values(new, "bound"), results.values(vanilla, "bound"))
        page.claim(
            "information maximisation (lambda 1) raises the lower bound on I(z_1, z_2; x'), evaluated on "
            "the fixed models",
            "sec. 3.2 and 7, eq. 5",
            bound.above(),
            f"nats {bound}",
        )
        counts = {
            label: [int(count) for count in results.values(label, "digits")]
            for label in (new, vanilla)
        }
        page.claim(
            "there are values of (z_1, z_2) that turn images (at least 90 %) into one digit whatever "
            "they showed, and for another digit too (in every run with lambda 1)",
            "sec. 5.1 and figure 2: digits 1 and 6",
            _of_all([count >= 2 for count in counts[new]]),
            f"numbers of such digits in the runs: {counts[new]}; on the ELBO {counts[vanilla]}",
        )
        more = difference(
            results.values(low, "impact of z_1"), results.values(vanilla, "impact of z_1")
        )
        page.claim(
            "with a small lambda (0.1) the impact of z_1 is that on the ELBO (no more than 0.05 above)",
            "sec. 5.1 and figure 3",
            _not(more.above(0.05)),
            f"impact {more}",
        )
        rises = [
            difference(*(results.values(_label(lam), "impact of z_1") for lam in (high, low)))
            for low, high in zip(self.lambdas[1:], self.lambdas[2:], strict=False)
        ]
        page.claim(
            "the impact of z_1 increases with lambda (from 0.1 to 1, 3 and 10)",
            "sec. 5.1 and figure 3",
            _of_all([rise.above() for rise in rises]),
            "; ".join(map(str, rises)),
        )


def impact(changed: Tensor) -> float:
    """E_n Var_v g / Var g: the share of the variance of images that is due to what is changed.

    Args:
        changed: images (N, V, C, H, W), of N codes with V values each of a part of it.
    """
    flat = changed.flatten(2).double()
    of_all = flat.flatten(0, 1).var(0, correction=0).sum()
    return float(flat.var(1, correction=0).mean(0).sum() / of_all)


def agreement(judge: classifier.Classifier, changed: Tensor) -> tuple[Tensor, Tensor]:
    """For each of V values the share of N images that are of the most frequent class, and that class.

    Args:
        judge: says of what class an image is.
        changed: images (N, V, C, H, W).
    """
    seen = judge.probabilities(changed.flatten(0, 1)).argmax(1)
    counts = F.one_hot(seen.unflatten(0, changed.shape[:2]), len(judge.classes)).sum(0)
    return counts.amax(1) / len(changed), counts.argmax(1)


def _judge(data: ImageData, folder: Path) -> classifier.Classifier:
    """The classifier of a target; few images are not shown more than 25 times."""
    steps = min(classifier.STEPS, len(data.train) // 4)
    return classifier.load_or_train(data, folder / "classifier.pt", steps=steps)


def _label(lam: float) -> str:
    return f"lambda {lam:g}"


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _mean(values: list[float]) -> Difference:
    """The mean itself, with what can be said of it."""
    return difference(values, [0.0, 0.0])


def _not(verdict: bool | None) -> bool | None:
    return None if verdict is None else not verdict


def _of_all(verdicts: Sequence[bool | None]) -> bool | None:
    """That of a statement which has several parts, or is about several runs."""
    return True if all(verdicts) else False if False in verdicts else None


def _histogram(p: Tensor) -> list[float]:
    """Shares of probabilities in equal bins from 0 to 1."""
    counts = torch.histc(p.float().cpu(), _BINS, 0, 1)
    return [float(share) for share in counts / counts.sum()]


def _curves(results: Results, label: str, term: str) -> list[list[float]]:
    """A term of the loss in the epochs of every run."""
    return [[row[f"train/{term}"] for row in run.history] for run in results.of(label)]


@torch.no_grad()
def _decoded(model: Autoencoder, codes: Tensor) -> Tensor:
    """Images (N, V, C, H, W) of codes (N, V, code_dim), on the CPU."""
    parts = codes.flatten(0, 1).split(1000)
    return torch.cat([model.decode(part).cpu() for part in parts]).view(
        *codes.shape[:2], *model.data_shape
    )


def _categories_changed(model: JointAutoencoder, images: Images) -> Tensor:
    """Decoded images (N, K, C, H, W) of the codes of N images, with every category."""
    z = encoding.codes(model, images)[:, : model.latent_dim]
    y = torch.eye(model.categories).to(z).expand(len(z), -1, -1)
    return _decoded(model, torch.cat([z[:, None].expand(-1, y.shape[1], -1), y], 2))


def _coordinates_changed(model: Autoencoder, images: Images, values: Tensor) -> Tensor:
    """The same of a Gaussian code whose first k coordinates get each of the `values` (V, k)."""
    z = encoding.codes(model, images)
    codes = z[:, None].repeat(1, len(values), 1)
    codes[:, :, : values.shape[1]] = values.to(z)
    return _decoded(model, codes)


def _plane_changed(model: Autoencoder, images: Images) -> Tensor:
    """With all pairs of values of (z_1, z_2), z_1 being the slower: (N, steps^2, C, H, W)."""
    values = torch.linspace(-3, 3, _STEPS)
    return _coordinates_changed(model, images, torch.cartesian_prod(values, values))


def _line_changed(model: Autoencoder, images: Images, steps: int) -> Tensor:
    return _coordinates_changed(model, images, torch.linspace(-3, 3, steps)[:, None])


def _one_of_each(split: Split) -> Tensor:
    """The first image of every class, as pixels."""
    first = [int((split.labels == label).nonzero()[0, 0]) for label in split.labels.unique()]
    return pixels(split.images[torch.tensor(first)])


def _with_originals(images: Tensor, rows: Tensor) -> Tensor:
    """Tiles of rows (R, V, C, H, W), each behind its image (R, C, H, W) and a gap: (R (V + 2), C, H, W)."""
    originals = images[:, None]
    return torch.cat([originals, torch.zeros_like(originals), rows], 1).flatten(0, 1)


def _show_categories(page: Page, results: Results, label: str) -> None:
    first = results.first(label)
    chosen = _one_of_each(first.data.test)
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
            figures.show(axis, _with_originals(chosen, rows), rows.shape[1] + 2)
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


def _show_plane(page: Page, results: Results, names: Sequence[str]) -> None:
    test = results.first(names[0]).data.test
    chosen = _one_of_each(test)[[1, 4, 7]]
    with page.figure(
        "plane",
        "Three test images (alone in a row), and what is decoded from their codes with z_1 (rows) and z_2 "
        "(columns) changed from -3 to 3 and all other coordinates kept. Compare figure 2 of the paper.",
        len(names),
        len(chosen),
        (7.0, 5.4),
    ) as axes:
        axes[0, 0].figure.get_layout_engine().set(wspace=0.06)
        for row, name in zip(axes, names, strict=True):
            planes = _plane_changed(results.first(name).model, chosen)
            for axis, image, plane in zip(row, chosen, planes, strict=True):
                alone = torch.zeros_like(plane[:_STEPS])
                alone[_STEPS // 2] = image
                figures.show(axis, torch.cat([alone, plane]), _STEPS)
            axis = row[0]
            axis.text(
                -0.04, 0.45, name, transform=axis.transAxes, rotation=90, ha="right", va="center"
            )


def _show_line(page: Page, results: Results, names: Sequence[str]) -> None:
    steps = 10
    chosen = _one_of_each(results.first(names[0]).data.test)[[2, 7]]
    lines = torch.stack([_line_changed(results.first(name).model, chosen, steps) for name in names])
    with page.figure(
        "lambda",
        "Two test images (the columns apart), and what is decoded from their codes with z_1 changed from -3 to "
        "3, for each lambda. Compare figure 3 of the paper.",
        1,
        len(chosen),
        (7.0, 1.6),
    ) as axes:
        for i, axis in enumerate(axes):
            original = chosen[i : i + 1].expand(len(names), -1, -1, -1)
            tiles = _with_originals(original, lines[:, i])
            figures.show(axis, tiles, steps + 2)
        axis = axes[0]
        for i, name in enumerate(names):
            height = 1 - (i + 0.5) / len(names)
            axis.text(-0.02, height, name, transform=axis.transAxes, ha="right", va="center")


def _show_lambdas(page: Page, results: Results, lambdas: Sequence[float]) -> None:
    panels: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
        "information in $(z_1, z_2)$, nats": {
            "KL": (("kl", "informative"), "0.5"),
            "lower bound": (("bound",), "C0"),
        },
        "impact on decoded images, %": {
            "$(z_1, z_2)$": (("impact",), "C0"),
            "$z_1$": (("impact of z_1",), "C1"),
        },
        "$-\\log p(x|z)$, nats": {"": (("reconstruction",), "C0")},
    }
    with page.figure(
        "weights",
        "The measures of the table against lambda: means over seeds and standard deviations.",
        1,
        len(panels),
        (7.0, 2.2),
    ) as axes:
        at = range(len(lambdas))
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for label, (path, color) in lines.items():
                factor = 100 if "%" in title else 1
                cells = [
                    [factor * value for value in results.values(_label(lam), *path)]
                    for lam in lambdas
                ]
                means = [statistics.fmean(values) for values in cells]
                spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in cells]
                axis.errorbar(
                    at, means, spread, capsize=2, lw=1.2, marker="o", ms=3, color=color, label=label
                )
            axis.set_xticks(at, [f"{lam:g}" for lam in lambdas])
            axis.set(title=title, xlabel="lambda")
            axis.margins(y=0.15)
            if len(lines) > 1:
                axis.legend(frameon=False)
