"""Training: it learns, and it continues exactly where it was stopped."""

import errno
import io
import os
import signal

import pytest
import torch
from rich.console import Console

from vimae_models import build, data, evaluation, files
from vimae_models.training import CHECKPOINT, Batches, Interrupted, fit

EPOCHS = 3
STEPS = 1200 // 100


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def new_model(name="vimae-l", **hyperparameters):
    torch.manual_seed(0)
    return build(name, data_shape=(1, 8, 8), width=0.1, **hyperparameters)


def train(model, digits, run, epochs=EPOCHS, **options):
    run.mkdir(exist_ok=True)
    settings = {"batch_size": 100, "lr": 1e-3, "seed": 0} | options
    return fit(model, digits, run, epochs=epochs, console=Console(file=io.StringIO()), **settings)


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


LATE = STEPS + 5


@pytest.mark.parametrize(
    "name, hyperparameters, options, step",
    [
        ("vimae-l", {}, {}, 1),
        ("vimae-l", {}, {}, STEPS - 1),
        ("vimae-l", {}, {}, STEPS),
        ("vimae-l", {}, {}, STEPS + 1),
        ("vimae-l", {}, {}, 2 * STEPS + 5),
        ("vimae-l", {"network": "dcgan"}, {}, LATE),
        ("vimae-l", {}, {"optimizer": "sgd", "lr_decay": 0.5}, LATE),
        ("vimae-l", {}, {"precision": "64"}, LATE),
        ("vimae-l", {}, {"precision": "bf16-mixed"}, LATE),
        ("vae", {}, {"optimizer": "sgd", "lr_decay": 0.5}, STEPS),
        ("aae", {}, {"auxiliary_lr": 3e-3, "lr_decay": 0.5}, LATE),
        ("vmi-joint-vae", {}, {}, LATE),
        ("mmd-vae", {"bank": 150}, {}, LATE),
        ("joint-vae", {"steps": 30}, {}, LATE),
        ("imae", {}, {}, STEPS),
    ],
)
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(
    tmp_path, digits, name, hyperparameters, options, step
):
    whole = new_model(name, **hyperparameters)
    history = train(whole, digits, tmp_path / "whole", **options)

    stopped = new_model(name, **hyperparameters)
    interrupt_at(stopped, step)
    with pytest.raises(Interrupted):
        train(stopped, digits, tmp_path / "stopped", **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = new_model(name, **hyperparameters)
    torch.manual_seed(99)
    resumed_history = train(resumed, digits, tmp_path / "stopped", resume=True, **options)
    assert_same_weights(whole, resumed)
    assert resumed_history == history
    csv = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "stopped")]
    assert csv[0] == csv[1]


@pytest.mark.parametrize("name", ["vae", "aae", "vmi-joint-vae"])
def test_training_is_the_plain_loop(tmp_path, digits, name):
    """The steps in the order of the papers: on every batch the auxiliary network first."""
    by_fit = new_model(name)
    train(by_fit, digits, tmp_path / "run", epochs=2, lr_decay=0.5, auxiliary_lr=3e-3)

    model = new_model(name)
    main = torch.optim.Adam(model.main_parameters(), 1e-3, (0.5, 0.999), fused=True)
    if model.auxiliary is not None:
        of_auxiliary = torch.optim.Adam(
            model.auxiliary.parameters(), 3e-3, (0.5, 0.999), fused=True
        )
    batches = Batches(digits.train.images, 100, seed=0)
    for _ in range(2):
        for x in batches:
            if model.auxiliary is not None:
                of_auxiliary.zero_grad()
                model.auxiliary_loss(x)["loss"].backward()
                of_auxiliary.step()
            main.zero_grad()
            model.loss(x)["loss"].backward()
            main.step()
        main.param_groups[0]["lr"] *= 0.5
        if model.auxiliary is not None:
            of_auxiliary.param_groups[0]["lr"] *= 0.5
    assert_same_weights(by_fit, model)


def test_sgd_has_momentum_and_its_rate_decays(tmp_path, digits):
    train(new_model(), digits, tmp_path / "run", epochs=3, optimizer="sgd", lr_decay=0.5)
    (state,) = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["optimizer_states"]
    (group,) = state["param_groups"]
    assert group["lr"] == 1e-3 / 8 and group["momentum"] == 0.9
    assert all(s["momentum_buffer"].abs().sum() > 0 for s in state["state"].values())


def test_precision_64_is_float64_all_through(tmp_path, digits):
    model = new_model()
    train(model, digits, tmp_path / "run", epochs=1, precision="64")
    assert all(p.dtype == torch.float64 for p in model.parameters())
    weights = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["state_dict"]
    # Not float32 numbers in a wider type.
    assert any((w != w.float().double()).any() for w in weights.values())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, b"first")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*file'$"):
        files.write(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


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


def test_processes_share_every_batch_between_them():
    images = torch.arange(103.0).reshape(103, 1, 1, 1)
    whole = list(Batches(images, 10, seed=3))
    shares = [list(Batches(images, 10, seed=3, rank=rank, world=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [len(part) for part in parts] == [5, 5]
        assert torch.equal(torch.cat(parts).sort(0).values, batch.sort(0).values)


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
