"""The figures of IMAE's targets, and what they show of a model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import encoding, figures
from ..data import Images, Split, pixels
from ..joint import JointAutoencoder
from ..metrics import labels
from .report import Page
from .statistics import confidence_interval
from .target import Trained

STEPS = 10
_REACH = 2.0
_BAND = 0.8

# Values over seeds, by the weight they were trained with.
Curve = dict[float, list[float]]


def pooled(curves: Iterable[Curve]) -> list[float]:
    """The values of all weights and seeds."""
    return [value for curve in curves for values in curve.values() for value in values]


def bands() -> str:
    return f"Means over seeds; the bands are their {100 * _BAND:.0f} % confidence intervals."


def band(axis: Any, curve: Curve, name: str, color: str) -> None:
    """The mean of a curve, and the confidence interval of the mean."""
    weights = list(curve)
    low, high = zip(*(confidence_interval(v, _BAND) for v in curve.values()), strict=True)
    axis.fill_between(weights, low, high, color=color, alpha=0.2, lw=0)
    means = [statistics.fmean(v) for v in curve.values()]
    axis.plot(weights, means, color=color, lw=1.2, marker="o", ms=3, label=name)


def panel(axis: Any, curves: Mapping[str, Curve], title: str, xlabel: str) -> None:
    for i, (method, curve) in enumerate(curves.items()):
        band(axis, curve, method, f"C{i}")
    axis.set(title=title, xlabel=xlabel, xticks=list(curve))


def legend(axis: Any) -> None:
    """The legend of a panel as that of its figure, below it."""
    handles, names = axis.get_legend_handles_labels()
    axis.figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8
    )


def trade_off(axis: Any, quality: Mapping[str, Curve], score: Mapping[str, Curve]) -> None:
    """Mean score against mean decoding quality, a line for every system through its weights."""
    for i, method in enumerate(score):
        x, y = (
            [statistics.fmean(values) for values in curves[method].values()]
            for curves in (quality, score)
        )
        axis.plot(x, y, color=f"C{i}", lw=1, marker="o", ms=3)
    axis.set(title="score", xlabel="-reconstruction error, nats")


def scatter(axis: Any, correlation: Mapping[str, Curve], score: Mapping[str, Curve]) -> None:
    """The score of every run against its total correlation."""
    for i, method in enumerate(score):
        # An estimate can fall below 0.
        x = [max(value, 1e-2) for value in pooled([correlation[method]])]
        axis.plot(x, pooled([score[method]]), "o", color=f"C{i}", ms=3, mew=0, alpha=0.8)
    axis.set(title="score", xlabel="total correlation, nats", xscale="log")


def proposition(page: Page, run: Trained, axis_name: str) -> None:
    """Figure 2 (a)."""
    of_z = run.values["coordinates"]
    ranked = sorted(range(len(of_z["kl"])), key=lambda k: -of_z["information"][k])
    at = range(1, len(ranked) + 1)
    with page.figure(
        "proposition",
        f"Figure 2 (a): the latents of imae, {axis_name} = {run.config['beta']:g}, first seed, sorted by "
        "what they know of the image: the information with the bounds of Proposition 1 and the KL "
        "divergence of the ELBO, and the variances they come from. The lower bound supposes a Gaussian "
        "q(z_k).",
        1,
        2,
        (7.0, 2.6),
    ) as (left, right):
        for key, name, style in (
            ("information", "I(x; $z_k$)", {"marker": "o", "ms": 4, "color": "C0"}),
            ("upper", "upper bound, eq. 4", {"ls": "--", "color": "C1", "lw": 1}),
            ("lower", "lower bound, eq. 5", {"ls": ":", "color": "C1", "lw": 1.2}),
            ("kl", "E KL(q($z_k$|x) ‖ p($z_k$))", {"ls": "-.", "color": "C2", "lw": 1}),
        ):
            left.plot(at, [of_z[key][k] for k in ranked], label=name, **style)
        spread = [of_z["mean_spread"][k] for k in ranked]
        within = [of_z["mean_variance"][k] for k in ranked]
        right.plot(at, spread, "s", ms=4, color="C0", label="Var $\\mu_k$(x)")
        right.plot(at, within, "*", ms=6, color="C3", label="E $\\sigma_k^2$(x)")
        total = [a + b for a, b in zip(spread, within, strict=True)]
        right.plot(at, total, "+", ms=6, color="0.3", label="Var $z_k$")
        for axis, name in ((left, "nats"), (right, "variance")):
            axis.set(xlabel="latents, sorted", ylabel=name, xticks=at)
            axis.legend(frameon=False, fontsize=7)


@torch.no_grad()
def informative(page: Page, run: Trained) -> None:
    """Figure 2 (b) to (d)."""
    model, test = run.model, run.data.test
    assert isinstance(model, JointAutoencoder)
    known = run.values["coordinates"]["information"]
    ranked = sorted(range(len(known)), key=lambda k: -known[k])
    codes = encoding.codes(model, test.images)
    starts = []
    for category in _matched(model, test):
        own = (codes[:, model.latent_dim + category] == 1).nonzero()[:1, 0]
        starts.append(codes[own[0]] if len(own) else _pure(model, int(category)))
    with page.figure(
        "traversals",
        f"Figure 2 (b) to (d): the most informative latent of imae, one in the middle and the least "
        f"informative one, beta = {run.config['beta']:g}, first seed, from -2 to 2 to the right. Each "
        "row is a category with the other latents of its first test image. The paper shows latents of "
        "1.7, 0.9 and 0 nats.",
        1,
        3,
        (7.0, 2.6),
    ) as axes:
        for axis, k in zip(axes, (ranked[0], ranked[len(ranked) // 2], ranked[-1]), strict=True):
            images = torch.cat([model.decode(moved(start, k)) for start in starts])
            figures.show(axis, images.cpu(), STEPS)
            axis.set_title(f"I(x; $z_{{{k + 1}}}$) = {max(known[k], 0.0):.1f}")


@torch.no_grad()
def members(page: Page, best: Trained, worst: Trained) -> None:
    """Figure 2 (e) and (f)."""
    with page.figure(
        "members",
        "Figure 2 (e) and (f): test images of every category, one category a row, in the runs of imae "
        "with the most and the least informative y. The paper shows 2.1 and 1.7 nats.",
        1,
        2,
        (7.0, 3.6),
    ) as axes:
        for axis, run in zip(axes, (best, worst), strict=True):
            model, test = run.model, run.data.test
            assert isinstance(model, JointAutoencoder)
            y = encoding.codes(model, test.images)[:, model.latent_dim :].argmax(1).cpu()
            rows = []
            for category in _matched(model, test):
                images = pixels(test.images[(y == category).nonzero()[:STEPS, 0]])
                rows.append(_filled(images, test.images.shape[1:]))
            figures.show(axis, torch.cat(rows), STEPS)
            told = run.values["categories"]
            axis.set_title(
                f"I(x; y) = {told['information']:.1f}, accuracy {100 * told['accuracy']:.0f} %, "
                f"beta = {run.config['beta']:g}"
            )


def _filled(images: Tensor, shape: Sequence[int]) -> Tensor:
    """A row of images, empty ones after the last."""
    return torch.cat([images, images.new_zeros(STEPS - len(images), *shape)])


def moved(start: Tensor, k: int) -> Tensor:
    """A code (d + K,) with its coordinate k from -2 to 2: (10, d + K)."""
    codes = start.repeat(STEPS, 1)
    codes[:, k] = torch.linspace(-_REACH, _REACH, STEPS)
    return codes


@torch.no_grad()
def movement(model: JointAutoencoder, images: Images) -> list[float]:
    """How much every latent changes images: mean of ||g(z with z_k = 2) - g(z with z_k = -2)||^2.

    z and y are the codes of the images (N, C, H, W).
    """
    codes = encoding.codes(model, images)
    found = []
    for k in range(model.latent_dim):
        ends = []
        for value in (-_REACH, _REACH):
            there = codes.clone()
            there[:, k] = value
            ends.append(model.decode(there))
        found.append(float((ends[1] - ends[0]).square().flatten(1).sum(1).mean()))
    return found


def slant(images: Tensor) -> Tensor:
    """By how many columns images (N, C, H, W) move right a row further down: (N,).

    The slope of the regression of columns on rows, both from the middle of the picture, with the
    intensities as weights.
    """
    x = images.mean(1)
    height, width = x.shape[1:]
    rows = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    mixed = torch.einsum("nhw,h,w->n", x, rows, columns)
    return mixed / torch.einsum("nhw,h->n", x, rows.square()).clamp_min(1e-6)


@torch.no_grad()
def category_images(run: Trained, turned: int | None) -> Tensor:
    """Every category at its mean z, in the order of the classes; that of `turned` along its angle."""
    model, test = run.model, run.data.test
    assert isinstance(model, JointAutoencoder)
    codes = encoding.codes(model, test.images)
    z, y = codes.split((model.latent_dim, model.categories), 1)
    means = (y.T @ z) / y.sum(0).clamp_min(1)[:, None]
    categories = _matched(model, test).to(means.device)
    starts = torch.cat([means, torch.eye(model.categories).to(means)], 1)[categories]
    rows = [model.decode(starts)]
    if turned is not None:
        ways = [model.decode(moved(starts[turned], k)) for k in range(model.latent_dim)]
        change = [float(slant(way).max() - slant(way).min()) for way in ways]
        rows.append(ways[change.index(max(change))])
    return torch.cat(rows).cpu()


def _pure(model: JointAutoencoder, category: int) -> Tensor:
    """The code of a category with z = 0."""
    code = next(model.parameters()).new_zeros(model.code_dim)
    code[model.latent_dim + category] = 1
    return code


def _matched(model: JointAutoencoder, split: Split) -> Tensor:
    """The categories (K,) in the order of the classes they are matched to."""
    return order(labels.digits_per_category(model, split))


def order(counts: Tensor) -> Tensor:
    """Rows of counts (K, K) in the order of the columns that the Hungarian algorithm gives them."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return torch.from_numpy(rows[columns.argsort()])


def shade(k: int, n: int) -> str:
    """From dark to light, so that the first of many lines stands out."""
    return str(0.85 * k / (n - 1))
