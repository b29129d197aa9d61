"""The targets of InfoVAE: that they run, and that their claims follow from the numbers."""

import json
import math

import pytest
import torch
from rich.console import Console

from vimae_models import build
from vimae_models.reproduce import engine, infovae, infovae_figure1, infovae_figure3, infovae_table1
from vimae_models.reproduce.report import Page
from vimae_models.reproduce.target import Results, Trained
from vimae_models.reproduce.targets import target


@pytest.mark.parametrize("name", ["infovae-table1", "infovae-figure3", "infovae-figure1"])
def test_target_at_the_smoke_scale(name, tmp_path):
    chosen = target(name)
    page = engine.reproduce(chosen, "smoke", tmp_path, jobs=2, console=Console(quiet=True))
    assert "Scale: smoke" in page.read_text()
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["runs"]) == len(chosen.configs("smoke"))
    # One seed gives no confidence.
    assert {claim["verdict"] for claim in found["claims"]} == {"undecided"}
    assert len(list((tmp_path / "figures").glob("*.png"))) == 1


@pytest.mark.parametrize("name", ["infovae-table1", "infovae-figure3", "infovae-figure1"])
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_models_of_every_scale_are_those_of_the_paper(name, scale):
    for label, config in target(name).configs(scale).items():
        assert config["binarize"] and config["model"] == label.partition(",")[0]
        network = "imae" if (name, scale) == ("infovae-figure3", "small") else "pixelcnn"
        assert config["network"] == network
        assert config.get("likelihood", "bernoulli") == "bernoulli"


def results(values):
    """Finished runs with these measures, a list over seeds for every label."""
    return Results(
        [
            Trained(label, seed, {}, None, None, None, found)
            for label, of_seeds in values.items()
            for seed, found in enumerate(of_seeds)
        ]
    )


def table1(mmd, elbo, warning=""):
    nll = {"vae": elbo, "mmd-vae": mmd}
    return results(
        {
            name: [{"nll": value, "warning": warning if name == "mmd-vae" else ""} for value in of]
            for name, of in nll.items()
        }
    )


@pytest.mark.parametrize(
    "mmd, elbo, warning, holds",
    [
        ((80.7, 80.8, 80.9), (82.7, 82.8, 82.6), "", True),
        ((82.7, 82.8, 82.6), (80.7, 80.8, 80.9), "", False),
        ((80.0, 82.0, 84.0), (82.1, 81.0, 83.3), "", None),
        # Too high an estimate cannot have lost; it can have won.
        ((82.7, 82.8, 82.6), (80.7, 80.8, 80.9), "few", None),
        ((80.7, 80.8, 80.9), (82.7, 82.8, 82.6), "few", True),
    ],
)
def test_likelihoods_are_compared_as_far_as_their_estimates_go(mmd, elbo, warning, holds):
    verdict, evidence = infovae_table1._less_likely(table1(mmd, elbo, warning), "mmd-vae", "vae")
    assert verdict is holds
    assert ("too high" in evidence) == (warning != "" and holds is None)


def test_on_par_is_two_percent():
    found = table1((101.0, 101.1, 100.9), (100.0, 100.1, 99.9))
    assert infovae_table1._less_likely(found, "mmd-vae", "vae")[0] is False
    assert infovae_table1._less_likely(found, "mmd-vae", "vae", slack=1.02)[0] is True


def verdicts(page):
    return {claim["claim"]: claim["verdict"] for claim in page.claims}


def figure1(vae, ae, chain_of_ae):
    spread = (-0.01, 0.0, 0.01)

    def runs(information, ancestral, chain):
        return [
            {
                "information": information + e,
                "distance": {"ancestral": ancestral + e, "chain": chain + e},
                "history": {"information": [0.4, information]},
            }
            for e in spread
        ]

    values = {"vae": runs(vae, 10, 10), "ae": runs(ae, 50, chain_of_ae), "mmd-vae": runs(5, 12, 12)}
    return results(values)


def test_claims_of_figure1(tmp_path):
    borne_out, contradicted = Page(tmp_path), Page(tmp_path)
    infovae_figure1._claims_of_figure1(borne_out, figure1(0.2, 5.0, 11.0), None)
    assert set(verdicts(borne_out).values()) == {"holds"}
    infovae_figure1._claims_of_figure1(contradicted, figure1(1.5, 1.8, 40.0), None)
    failed = [name for name, verdict in verdicts(contradicted).items() if verdict != "holds"]
    assert len(failed) == 4
    for words in ("the ELBO leaves", "ae keeps", "make no sense", "the chain of ae"):
        assert any(words in name for name in failed), words


def figure3(dimensions, **better):
    """What the paper says, or for the systems in `better` the measures given."""
    columns = "mmd", "log_det", "cross_entropy", "svm_error"
    rows = {  # a pair is the value at all but the highest dimension, and that at the highest
        "vae": ((0.0, 0.0), (0, 0), 0.2, (0.9, 0.9)),
        "mmd-vae": ((0.001, 0.01), (0, -0.2), 0.1, (0.5, 0.1)),
        "stein-vae": ((0.002, 0.1), (0, -2), 0.3, (0.5, 0.2)),
        "aae": ((0.05, 0.05), (-0.3, -0.3), 0.3, (0.5, 0.2)),
        "ae": ((1.0, 1.0), (3, 3), 2.0, (0.3, 0.1)),
    }
    told = {name: dict(zip(columns, row, strict=True)) for name, row in rows.items()}
    values = {}
    for name, measures in told.items():
        measures = measures | better.get(name.replace("-", "_"), {})
        for d in dimensions:
            at = {
                k: v[d == dimensions[-1]] if isinstance(v, tuple) else v
                for k, v in measures.items()
            }
            values[f"{name}, d = {d}"] = [
                {k: v + e for k, v in at.items()}
                | {"history": {"mmd": [0.1 + at["mmd"] + e, at["mmd"]]}}
                for e in (-1e-4, 0.0, 1e-4)
            ]
    return results(values)


def test_claims_of_figure3(tmp_path):
    dimensions = (2, 10, 40)

    def claims(**better):
        page = Page(tmp_path)
        infovae_figure3._claims_of_figure3(page, figure3(dimensions, **better), dimensions, 10)
        return verdicts(page)

    as_told = claims()
    slow = [name for name in as_told if name.startswith("(D)")]
    assert {v for name, v in as_told.items() if name not in slow} == {"holds"}
    assert {as_told[name] for name in slow} == {"does not hold"}  # 0.1 on average, against 0.05
    assert {claims(aae={"mmd": (0.3, 0.3)})[name] for name in slow} == {"holds"}
    for better, lost in (
        ({"stein_vae": {"mmd": (0.0, 0.0)}}, "(A) q(z) of mmd-vae is nearer to the prior than that of stein"),
        ({"stein_vae": {"log_det": (0, 0.1)}}, "(B) Stein under-estimates"),
        ({"aae": {"log_det": (0, 4)}}, "(B) adversarial training is consistent"),
        ({"vae": {"cross_entropy": 0.01}}, "(C) unless the dimension is large"),
        ({"ae": {"svm_error": (0.7, 0.0)}}, "(E) MMD catches up"),
        ({"vae": {"svm_error": (0.6, 0.1)}}, "(E) an SVM on the codes of the ELBO"),
    ):  # fmt: skip
        failed = [name for name, v in claims(**better).items() if v == "does not hold"]
        assert any(name.startswith(lost) for name in failed), lost


def with_posterior(mean, log_var, d=1):
    """Images of 2x2 and codes whose coordinates all have this mean, of the first pixel."""
    model = build("ae", data_shape=(1, 2, 2), latent_dim=d, network="mlp", width=0.1).eval()

    class Encoder(torch.nn.Module):
        def forward(self, x):
            m = mean(x.flatten(1)[:, :1]).expand(-1, d)
            return torch.cat([m, torch.full_like(m, log_var)], 1)

    model.encoder = Encoder()
    return model


def test_samples_are_drawn_and_are_those_of_a_chain():
    """A decoder that copies the code's sign to every pixel, an encoder that answers with its opposite."""
    model = with_posterior(lambda x: 1 - 2 * x, -40.0)
    model.decoder.forward = lambda z: (1e4 * z)[:, :, None, None].expand(-1, 1, 2, 2)
    ancestral = infovae.draw_images(model, 30)
    assert set(ancestral.unique().tolist()) == {0, 255}
    assert torch.equal(infovae.draw_images(model, 30, steps=2), ancestral)
    assert torch.equal(infovae.draw_images(model, 30, steps=1), 255 - ancestral)


@pytest.mark.parametrize(
    "log_var, widen", [(0.0, 1.0), (-2 * math.log(2), 2.0), (-2 * math.log(4), 4.0)]
)
def test_likelihood_is_that_of_the_best_proposal(log_var, widen):
    """Where x does not depend on z the posterior is the prior, and so is the proposal that is exact."""
    model = with_posterior(torch.zeros_like, log_var, d=20)
    model.decoder.forward = lambda z: z.new_zeros(len(z), 1, 2, 2)
    found = infovae.log_likelihood(model, torch.bernoulli(torch.full((40, 1, 2, 2), 0.5)), 200)
    assert found["widen"] == widen
    assert found["nll"] == pytest.approx(4 * math.log(2), rel=1e-5)
    assert found["effective_samples"] == pytest.approx(200, rel=1e-3)
