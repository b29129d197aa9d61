"""The targets of VMI: their runs, their measures on known answers, their verdicts on made-up ones."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vimae_models import build, data, runs, vmi
from vimae_models.reproduce import engine, targets
from vimae_models.reproduce.report import Page
from vimae_models.reproduce.target import Results, Trained
from vimae_models.reproduce.vmi import agreement, impact
from vimae_models.reproduce.vmi_gaussian import Gaussian
from vimae_models.reproduce.vmi_joint import Joint

NAMES = ["vmi-joint", "vmi-gaussian"]


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path):
    known, quiet = targets.target(name), Console(quiet=True)
    page = engine.reproduce(known, "smoke", tmp_path, jobs=2, console=quiet)
    found = json.loads((tmp_path / "results.json").read_text())
    assert page.is_file() and found["claims"] and found["tables"]
    assert len(found["runs"]) == len(known.configs("smoke"))


@pytest.mark.parametrize("name", NAMES)
def test_the_twins_have_the_same_first_weights(name):
    weights = []
    for config in targets.target(name).configs("smoke").values():
        torch.manual_seed(3)
        weights.append(runs.build_model(config, (1, 8, 8)).state_dict())
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in other)


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_the_twins_differ_in_lambda_alone(name, scale):
    configs = targets.target(name).configs(scale).values()
    for given in {config["data"] for config in configs}:
        same = [
            {key: value for key, value in config.items() if key not in ("lam", "preset")}
            for config in configs
            if config["data"] == given
        ]
        assert len(same) > 1 and all(one == same[0] for one in same)


def test_impact():
    """g = a x_n + b y_v, x and y of variance 1: the share is b^2 / (a^2 + b^2)."""
    x, y = (torch.tensor([-1.0, 1.0]).view(shape) for shape in ((2, 1, 1, 1, 1), (1, 2, 1, 1, 1)))
    pixel = torch.rand(1, 1, 3, 4, 5)
    assert impact(1 + (3 * x + 4 * y) * pixel) == pytest.approx(16 / 25)
    assert impact((x + 0 * y) * pixel) == 0
    assert impact((0 * x + y) * pixel) == pytest.approx(1)


class FirstPixel(torch.nn.Module):
    """Sees the class in the first pixel."""

    classes = torch.arange(3)

    def probabilities(self, images):
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).double()


def test_agreement():
    classes = torch.tensor([[0, 2, 1], [0, 2, 2], [0, 1, 1], [1, 2, 1]])
    share, common = agreement(FirstPixel(), classes[:, :, None, None, None].float())
    assert share.tolist() == [0.75, 0.75, 0.75] and common.tolist() == [0, 2, 1]


def test_information_of_a_fixed_model():
    digits = data.load("digits")
    digits = replace(digits, train=digits.train, test=digits.validation)
    torch.manual_seed(0)
    model = build("vmi-vae", data_shape=(1, 8, 8), latent_dim=3, width=0.2)
    # z_1 is the sum of the pixels, nearly without noise, and decides about all pixels.
    model.encoder = Sum()
    model.decoder = Threshold()
    before = torch.get_rng_state()
    found = [
        vmi.information_of_fixed(model, digits, "mlp", 0.2, steps=steps, informative=1)
        for steps in (300, 1, 1)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert found[1] == found[2] < found[0]
    # About half of the images are brighter; the sign, log 2 nats, is all that images tell of z_1.
    assert found[0] == pytest.approx(math.log(2), abs=0.1)


class Sum(torch.nn.Module):
    """Mean 1 or -1 of z_1, for images brighter or darker than most."""

    def forward(self, x):
        mean = torch.zeros(len(x), 3)
        mean[:, 0] = (x.mean((1, 2, 3)) > 0.305).float() * 2 - 1
        return torch.cat([mean, torch.full_like(mean, -4.0)], 1)


class Threshold(torch.nn.Module):
    """White images for z_1 > 0, black ones for the others."""

    def forward(self, z):
        return (20 * z[:, :1].sign())[:, :, None, None].expand(-1, 1, 8, 8)


def run(label, seed, values, history=()):
    made_up = Trained(label, seed, {}, Path(), Path(), None, values)
    made_up.__dict__["history"] = list(history)
    return made_up


def joint(new, old):
    """Results of three seeds whose measures are those of the two, plus a little."""
    trained = []
    for seed in range(3):
        for label, values in (("MNIST", new), ("MNIST, ELBO", old)):
            some = {key: value + 0.002 * seed for key, value in values.items()}
            categories = {"accuracy": some["accuracy"], "kl": some["kl"]}
            curve = [{"train/information": some["bound"], "train/kl_y": some["kl"]}] * 2
            trained.append(run(label, seed, {**some, "categories": categories}, curve))
            label = label.replace("MNIST", "Fashion")
            trained.append(run(label, seed, {"impact": some["impact"]}))
    return Results(trained)


# As published, or, where nothing is, as the figures look.
PUBLISHED = (
    {"accuracy": 0.74, "kl": 2.22, "bound": 2.1, "impact": 0.3, "agreement": 0.8, "above half": 0.9,
     "concentration": 0.75},
    {"accuracy": 0.21, "kl": 0.89, "bound": 0.5, "impact": 0.001, "agreement": 0.2,
     "above half": 0.01, "concentration": 0.12},
)  # fmt: skip


def verdicts(target, results, tmp_path):
    page = Page(tmp_path)
    target._claims(page, results)
    return [claim["verdict"] for claim in page.claims]


def test_claims_of_the_joint_code(tmp_path):
    new, old = PUBLISHED
    assert set(verdicts(Joint(), joint(new, old), tmp_path)) == {"holds"}
    # The one way to be right after a swap is to be a bound.
    swapped = verdicts(Joint(), joint(old, new), tmp_path)
    assert swapped.count("holds") == 1 and swapped.count("undecided") == 0
    one = Results([made_up for made_up in joint(new, old).trained if made_up.seed == 0])
    assert set(verdicts(Joint(), one, tmp_path)) == {"holds", "undecided"}
    loose = new | {"bound": 2.3}
    claims = verdicts(Joint(), joint(loose, old), tmp_path)
    assert claims.count("does not hold") == 1


def gaussian(impacts, bounds, digits):
    return Results(
        [
            run(
                f"lambda {lam:g}",
                seed,
                {
                    "impact": impact + 0.002 * seed,
                    "impact of z_1": impact + 0.002 * seed,
                    "bound": bound + 0.01 * seed,
                    "digits": count,
                },
            )
            for seed in range(3)
            for lam, impact, bound, count in zip(
                Gaussian.lambdas, impacts, bounds, digits, strict=True
            )
        ]
    )


def test_claims_of_the_gaussian_code(tmp_path):
    claims = [
        verdicts(Gaussian(), gaussian(*values), tmp_path)
        for values in (
            ((0.1, 0.12, 0.3, 0.4, 0.5), (1, 1.1, 3, 3.5, 4), (0, 0, 2, 3, 3)),
            ((0.3, 0.4, 0.3, 0.2, 0.1), (3, 3, 2, 2, 2), (2, 2, 1, 0, 0)),
            ((0.1, 0.1495, 0.2, 0.2, 0.2), (1, 1, 1, 1, 1), (0, 0, 2, 2, 2)),
        )
    ]
    assert set(claims[0]) == {"holds"}
    assert set(claims[1]) == {"does not hold"}
    assert claims[2] == ["undecided", "undecided", "holds", "undecided", "undecided"]
