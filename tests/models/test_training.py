"""Training: it learns, and it continues exactly where it was stopped."""

import io
import os
import signal

import pytest
import torch
from rich.console import Console

from vimae_models import build, data, evaluation
from vimae_models.training import CHECKPOINT, Batches, Interrupted, fit

EPOCHS = 3
STEPS = 1200 // 100


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def new_model(network="mlp"):
    torch.manual_seed(0)
    return build("vimae-l", data_shape=(1, 8, 8), network=network, width=0.1)


def train(model, digits, run, epochs=EPOCHS, resume=False):
    run.mkdir(exist_ok=True)
    return fit(
        model,
        digits,
        run,
        epochs=epochs,
        batch_size=100,
        lr=1e-3,
        seed=0,
        resume=resume,
        console=Console(file=io.StringIO()),
    )


def interrupt_at(model, step):
    """Ctrl-C while `step` (from 1) is being computed."""
    calls = 0

    def hook(module, inputs):
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(signal.SIGINT)

    model.register_forward_pre_hook(hook)


def assert_same_weights(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    "network, step",
    [
        ("mlp", 1),
        ("mlp", STEPS - 1),
        ("mlp", STEPS),
        ("mlp", STEPS + 1),
        ("mlp", 2 * STEPS + 5),
        ("dcgan", STEPS + 5),
    ],
)
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(tmp_path, digits, network, step):
    whole = new_model(network)
    history = train(whole, digits, tmp_path / "whole")

    stopped = new_model(network)
    interrupt_at(stopped, step)
    with pytest.raises(Interrupted):
        train(stopped, digits, tmp_path / "stopped")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = new_model(network)
    torch.manual_seed(99)
    resumed_history = train(resumed, digits, tmp_path / "stopped", resume=True)
    assert_same_weights(whole, resumed)
    assert resumed_history == history
    csv = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "stopped")]
    assert csv[0] == csv[1]


def test_more_epochs_continue_a_finished_run_bit_for_bit(tmp_path, digits):
    whole = new_model()
    train(whole, digits, tmp_path / "whole", epochs=4)
    train(new_model(), digits, tmp_path / "parts", epochs=2)
    resumed = new_model()
    train(resumed, digits, tmp_path / "parts", epochs=4, resume=True)
    assert_same_weights(whole, resumed)


def test_training_lowers_the_loss_and_the_distance_to_the_prior(tmp_path, digits):
    torch.manual_seed(0)
    model = build("vimae-l", data_shape=(1, 8, 8))
    before = evaluation.summary(model, digits.test.images)
    history = train(model, digits, tmp_path / "run", epochs=20)
    after = evaluation.summary(model, digits.test.images)
    assert after["reconstruction"] < 0.5 * before["reconstruction"]
    assert after["mmd"] < 0.2 * before["mmd"]
    assert history[-1]["train/loss"] < 0.5 * history[0]["train/loss"]
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert history[-1]["step"] == 20 * STEPS


def test_row_is_the_mean_of_the_steps(tmp_path, digits):
    model = new_model()
    seen = []
    model.register_forward_hook(lambda module, inputs, terms: seen.append(terms))
    (row,) = train(model, digits, tmp_path / "run", epochs=1)
    assert len(seen) == STEPS
    for term in ("loss", "reconstruction", "mmd"):
        mean = sum(terms[term].item() for terms in seen) / STEPS
        assert row[f"train/{term}"] == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_checkpoint_holds_no_code(tmp_path, digits):
    model = new_model()
    train(model, digits, tmp_path / "run", epochs=1)
    checkpoint = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
    fresh = new_model()
    fresh.load_state_dict(weights)
    assert_same_weights(model, fresh)


def test_loss_that_is_not_finite_stops_the_run(tmp_path, digits):
    model = new_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(model, digits, tmp_path / "run")


def test_batches_visit_every_image_once_in_a_new_order_each_epoch():
    images = torch.arange(103.0).reshape(103, 1, 1, 1)
    batches = Batches(images, 10, seed=0)
    first, second = (torch.cat(list(batches)).flatten() for _ in range(2))
    assert len(batches) == 10
    for epoch in (first, second):
        assert len(epoch.unique()) == 100
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.cat(list(Batches(images, 10, seed=1))).flatten())


def test_batches_refuse_more_than_there_are():
    with pytest.raises(ValueError, match="batch_size is 11, but there are 10 images"):
        Batches(torch.zeros(10, 1, 2, 2), 11, seed=0)


def test_summary_counts_every_image_once(digits):
    """Images come in chunks of unequal size; the mean is over images."""
    model = new_model().eval()
    images = torch.cat([digits.train.images, digits.test.images])
    with torch.no_grad():
        errors = (images - model.reconstruct(images)).square().sum((1, 2, 3))
    measured = evaluation.summary(model, images)
    assert measured["reconstruction"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert measured == evaluation.summary(model, images)


def test_svm_tells_separable_codes_from_noise(digits):
    """An encoder that passes on the pixels scores high, one that gives constants at chance."""
    model = new_model()
    model.encoder = torch.nn.Flatten()
    accuracy = evaluation.svm_accuracy(model, digits)
    assert accuracy["clean"] > 0.95
    assert accuracy["clean"] > accuracy["gaussian 0.4"]
    assert accuracy["mask 0.2"] > accuracy["mask 0.5"]
    model.encoder = torch.nn.Sequential(torch.nn.Flatten(), ZeroTimes())
    assert evaluation.svm_accuracy(model, digits)["clean"] < 0.2


class ZeroTimes(torch.nn.Module):
    def forward(self, x):
        return 0 * x


@pytest.mark.skipif("VIMAE_DATA" not in os.environ, reason="VIMAE_DATA does not name a folder")
def test_mnist_in_a_few_steps():
    torch.manual_seed(0)
    mnist = data.load("mnist")
    model = build("vimae-l", data_shape=mnist.shape)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before = evaluation.summary(model, mnist.test.images)
    for batch in mnist.train.images[:20_000].split(100):
        optimizer.zero_grad()
        model(data.pixels(batch))["loss"].backward()
        optimizer.step()
    after = evaluation.summary(model, mnist.test.images)
    assert after["reconstruction"] < 0.6 * before["reconstruction"]
    assert after["mmd"] < 0.5 * before["mmd"]
