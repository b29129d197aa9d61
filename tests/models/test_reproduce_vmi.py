import json

import pytest
import torch
from rich.console import Console

from vimae_models import runs
from vimae_models.reproduce import engine, targets


@pytest.mark.parametrize("name", ["vmi-joint", "vmi-gaussian"])
def test_smoke(name, tmp_path):
    page = engine.reproduce(
        targets.target(name), "smoke", tmp_path, jobs=1, console=Console(quiet=True)
    )
    found = json.loads((tmp_path / "results.json").read_text())
    assert page.is_file() and found["claims"] and found["tables"]
    assert {claim["verdict"] for claim in found["claims"]} <= {
        "holds",
        "does not hold",
        "undecided",
    }


@pytest.mark.parametrize("name", ["vmi-joint", "vmi-gaussian"])
def test_the_twins_have_the_same_first_weights(name):
    weights = []
    for config in targets.target(name).configs("smoke").values():
        torch.manual_seed(3)
        weights.append(runs.build_model(config, (1, 8, 8)).state_dict())
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in other)
