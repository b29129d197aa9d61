"""Every system's loss, compiled: two graphs for whatever batch sizes and numbers, values as in eager mode."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from vimae_models import build, hyperparameters, names

BATCHES = 6, 9, 14
# What shapes the networks, and whole numbers: torch takes a module's for constants.
FIXED = {"categories", "informative", "bank", "steps", "dataset_size"}
SYSTEMS = [
    *((name, {}) for name in names()),
    ("imae", {"weighting": "mws", "dataset_size": 100}),
    ("imae", {"weighting": "mss", "dataset_size": 100}),
    ("infovae", {"divergence": "kl"}),
    ("infovae", {"divergence": "stein", "kernel": "median"}),
    ("vimae-l", {"kernel": "wae"}),
    ("vimae-l", {"bank": 40}),
    ("vae", {"network": "dcgan", "likelihood": "gaussian"}),
]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(loss, model, x):
    """Terms, gradients and buffers after one loss, from the same noise every time."""
    torch.manual_seed(1)
    terms = loss(x)
    gradients = torch.autograd.grad(terms["loss"], list(model.parameters()), allow_unused=True)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {name: term.detach() for name, term in terms.items()}, gradients, buffers


@pytest.mark.parametrize("name, given", SYSTEMS, ids=str)
def test_two_graphs(name, given):
    """Three batch sizes, and ten values of every number the loss is made of."""
    torch.manual_seed(0)
    model = build(name, data_shape=(1, 8, 8), latent_dim=2, width=0.02, **given)
    own = {key: getattr(model, key) for key in hyperparameters(name) if key not in FIXED}
    numbers = {key: value for key, value in own.items() if isinstance(value, float)}
    for method in ["loss"] + ["auxiliary_loss"] * (model.auxiliary is not None):
        backend = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(getattr(model, method), fullgraph=True, backend=backend)
        for call in range(10):
            for key, value in numbers.items():
                setattr(model, key, value * 0.8**call)
            x = torch.rand(BATCHES[call % 3], *model.data_shape)
            eager = copy.deepcopy(model)
            expected = step(getattr(eager, method), eager, x)
            torch.testing.assert_close(step(compiled, model, x), expected, rtol=1e-4, atol=1e-5)
        assert backend.frame_count <= 2
