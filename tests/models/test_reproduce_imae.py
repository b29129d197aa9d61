import json
import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import vimae_models
from vimae_models import data, encoding, runs
from vimae_models.metrics import labels
from vimae_models.reproduce import engine, imae, imae_categories, imae_figures, targets
from vimae_models.reproduce.report import Page
from vimae_models.reproduce.statistics import confidence_interval
from vimae_models.reproduce.target import SCALES, Results, Trained

NAMES = ("imae-fashion", "imae-mnist", "imae-dsprites")


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path):
    target = targets.target(name)
    page = engine.reproduce(target, "smoke", tmp_path, jobs=2, console=Console(quiet=True))
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["runs"]) == len(target.configs("smoke"))
    assert all(c["verdict"] in ("holds", "does not hold", "undecided") for c in found["claims"])
    shown = [line for line in page.read_text().splitlines() if line.startswith("![")]
    assert len(shown) == len(list((tmp_path / "figures").glob("*.png"))) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_configurations(name):
    target = targets.target(name)
    for scale in SCALES:
        configs = target.configs(scale)
        for label, config in configs.items():
            runs.check_config(config | {"seed": 0}, label)
        imae_model, joint = (
            runs.build_model(
                configs[target.label(method, target.swept[scale][-1])] | {"width": 0.01}, (1, 8, 8)
            )
            for method in ("imae", "joint-vae")
        )
        assert imae_model.gamma == 2 * imae_model.beta
        if scale == "small":
            config = configs[target.label("joint-vae", target.swept[scale][-1])]
            steps = config["epochs"] * config["images"] / config["batch_size"]
            assert joint.steps == pytest.approx(25 / 55 * steps, rel=0.05)


def test_the_swept_weight_of_dsprites_is_gamma_of_imae():
    configs = targets.target("imae-dsprites").configs("small")
    assert configs["imae, gamma 4"]["gamma"] == 4 and configs["imae, gamma 4"]["beta"] == 2
    assert configs["hybrid-infovae, beta 4"]["beta"] == 4


# What the paper says, as values over (beta 1, beta 9) of each system.
_PAPER = {
    "accuracy": {
        "imae": (0.8, 0.8),
        "hybrid-infovae": (0.4, 0.75),
        "joint-vae": (0.7, 0.5),
        "hybrid-beta-vae": (0.3, 0.2),
    },
    "of_y": {
        "imae": (2.1, 2.0),
        "hybrid-infovae": (1.0, 1.8),
        "joint-vae": (2.0, 1.9),
        "hybrid-beta-vae": (0.5, 0.01),
    },
    "of_z": {
        "imae": (14.0, 9.0),
        "hybrid-infovae": (14.0, 8.0),
        "joint-vae": (12.0, 9.0),
        "hybrid-beta-vae": (12.0, 2.0),
    },
    "error": {
        "imae": (90.0, 110.0),
        "hybrid-infovae": (90.0, 120.0),
        "joint-vae": (95.0, 115.0),
        "hybrid-beta-vae": (95.0, 160.0),
    },
}


def curves(means, seeds=3):
    """Values with a little spread over the seeds."""
    return {
        method: {
            weight: [mean * (1 + 0.001 * seed) for seed in range(seeds)]
            for weight, mean in zip((1.0, 9.0), pair, strict=True)
        }
        for method, pair in means.items()
    }


def verdicts(name, measured, folder, seeds=3):
    page = Page(folder)
    targets.target(name)._claims(page, **{k: curves(v, seeds) for k, v in measured.items()})
    return [claim["verdict"] for claim in page.claims]


def test_claims_of_categories_hold_if_the_runs_are_as_the_paper_says(tmp_path):
    for name in ("imae-fashion", "imae-mnist"):
        assert set(verdicts(name, _PAPER, tmp_path)) == {"holds"}
        assert set(verdicts(name, _PAPER, tmp_path, seeds=1)) == {"undecided"}


def test_claims_of_categories_do_not_hold_if_imae_and_beta_vae_change_places(tmp_path):
    swap = {"imae": "hybrid-beta-vae", "hybrid-beta-vae": "imae"}
    measured = {
        name: {method: means[swap.get(method, method)] for method in means}
        for name, means in _PAPER.items()
    }
    found = verdicts("imae-fashion", measured, tmp_path)
    # That hybrid-infovae and joint-vae prefer large and small weights has nothing to do with it.
    assert found.count("holds") == 2
    assert set(found) == {"holds", "does not hold"}


def test_one_weight_at_which_a_claim_fails_decides(tmp_path):
    accuracy = _PAPER["accuracy"] | {"hybrid-infovae": (0.4, 0.85)}
    found = verdicts("imae-fashion", _PAPER | {"accuracy": accuracy}, tmp_path)
    assert found.count("does not hold") == 1
    # In the mean over the weights imae is still above, and on MNIST that is no contradiction.
    assert set(verdicts("imae-mnist", _PAPER | {"accuracy": accuracy}, tmp_path)) == {"holds"}


def test_claims_of_disentanglement(tmp_path):
    score = {
        "imae": (0.3, 0.4),
        "hybrid-infovae": (0.2, 0.35),
        "joint-vae": (0.2, 0.15),
        "hybrid-beta-vae": (0.2, 0.1),
    }
    error = {
        "imae": (40.0, 60.0),
        "hybrid-infovae": (50.0, 90.0),
        "joint-vae": (50.0, 55.0),
        "hybrid-beta-vae": (50.0, 120.0),
    }
    of_z = _PAPER["of_z"]
    measured = {"score": score, "error": error, "of_z": of_z}
    assert set(verdicts("imae-dsprites", measured, tmp_path)) == {"holds"}
    assert set(verdicts("imae-dsprites", measured, tmp_path, seeds=1)) <= {"undecided", "holds"}
    # An imae that decodes badly has no run where decoding is good.
    worse = measured | {"error": error | {"imae": (200.0, 200.0)}}
    assert verdicts("imae-dsprites", worse, tmp_path)[-1] == "does not hold"


def test_rank_claims(tmp_path):
    page = Page(tmp_path)
    x = list(range(12))
    for y, sign in ((x, 1), (x[::-1], 1), (x[::-1], -1), ([1, 0] * 6, 1), ([1] * 12, 1)):
        imae.rank_claim(page, "", "", x, y, sign)
    verdict = [claim["verdict"] for claim in page.claims]
    assert verdict == ["holds", "does not hold", "holds", "undecided", "undecided"]


def test_agreement_of_latents(tmp_path):
    page = Page(tmp_path)
    same, other = ([1, 2, 3, 4], [1, 4, 9, 16]), ([1, 2, 3, 4], [4, 3, 2, 1])
    for pairs in ([same] * 3, [other] * 3, [same, other, same]):
        imae_categories._agreement_claim(page, "", "", pairs)
    verdict = [claim["verdict"] for claim in page.claims]
    assert verdict == ["holds", "does not hold", "undecided"]


def test_curves_and_the_best_known_of_several_capacities():
    target = targets.target("imae-mnist")
    usual, *others = target.capacities["small"]
    made = []
    for value in target.swept["small"]:
        for i, ends in enumerate((None, *others)):
            label = target.label("joint-vae", value, ends)
            for seed in range(2):
                values = {"a": {"b": 100 * value + 10 * i + seed}}
                made.append(Trained(label, seed, {}, None, None, None, values))
    found = target.curve(Results(made), "small", "joint-vae", "a", "b")
    assert found == {1.0: [100, 101], 5.0: [500, 501], 9.0: [900, 901]}
    found = target.curve(Results(made), "small", "joint-vae", "a", "b", ends=others[1])
    assert found[5.0] == [520, 521]
    assert {run.label for run in made} <= set(target.configs("small"))


def test_slant_is_the_columns_a_row():
    image = torch.zeros(3, 1, 9, 9)
    for row in range(9):
        image[0, 0, row, 4] = 1  # upright
        image[1, 0, row, row] = 1  # one to the right a row
        image[2, 0, row, 4 - (row - 4) // 2 if row % 2 == 0 else 4] = row % 2 == 0
    torch.testing.assert_close(imae_figures.slant(image), torch.tensor([0.0, 1.0, -0.5]))
    # Brightness and an empty picture change nothing.
    torch.testing.assert_close(imae_figures.slant(0.5 * image), imae_figures.slant(image))
    assert imae_figures.slant(torch.zeros(1, 1, 9, 9)) == 0


def test_order_follows_the_matched_classes():
    counts = torch.tensor([[0, 1, 9], [8, 0, 7], [3, 6, 5]])
    assert imae_figures.order(counts).tolist() == [1, 2, 0]


@pytest.fixture(scope="module")
def joint():
    torch.manual_seed(0)
    model = vimae_models.build(
        "imae", data_shape=(1, 8, 8), network="imae", latent_dim=3, categories=10, width=0.1
    ).eval()
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return model


def test_movement_against_one_image_and_latent_at_a_time(joint):
    images = data.load("digits").test.images[:5]
    found = imae_figures.movement(joint, images)
    for k in range(3):
        total = 0.0
        for code in encoding.codes(joint, images):
            low, high = code.clone(), code.clone()
            low[k], high[k] = -2, 2
            with torch.no_grad():
                total += float((joint.decode(high[None]) - joint.decode(low[None])).square().sum())
        assert found[k] == pytest.approx(total / 5, rel=1e-4)
    assert min(found) > 0


def test_category_images_against_a_loop(joint):
    test = data.load("digits").test
    run = SimpleNamespace(model=joint, data=SimpleNamespace(test=test))
    found = imae_figures.category_images(run, 6)
    codes = encoding.codes(joint, test.images)
    order = imae_figures.order(labels.digits_per_category(joint, test)).tolist()
    with torch.no_grad():
        for place, category in enumerate(order):
            own = codes[codes[:, 3 + category] == 1]
            code = torch.zeros(13)
            code[3 + category] = 1
            if len(own):
                code[:3] = own[:, :3].mean(0)
            torch.testing.assert_close(found[place], joint.decode(code[None])[0])
            if place == 6:
                # Of all latents the one that is moved changes the slant most.
                rows = [joint.decode(imae_figures.moved(code, k)) for k in range(3)]
    change = [float(imae_figures.slant(row).max() - imae_figures.slant(row).min()) for row in rows]
    torch.testing.assert_close(found[10:], rows[change.index(max(change))])
    assert found.shape == (20, 1, 8, 8)


def test_confidence_interval_of_student():
    low, high = confidence_interval([1.0, 2.0, 3.0], 0.8)
    # The 0.9 quantile of Student's t with 2 degrees of freedom is 4 / 3 sqrt 2.
    assert (low, high) == pytest.approx(
        (2 - 4 / 3 * math.sqrt(2 / 3), 2 + 4 / 3 * math.sqrt(2 / 3))
    )
    assert confidence_interval([5.0], 0.8) == (5.0, 5.0)
