"""Every system by its name: it learns, and holds to the interface the training loop relies on."""

import copy
import math

import pytest
import torch

from vimae_models import autoencoder, build, data, hyperparameters, names, objectives, presets
from vimae_models.networks import NETWORKS

SHAPE = (1, 8, 8)
JOINT = ["vmi-joint-vae", "imae", "hybrid-beta-vae", "hybrid-infovae", "joint-vae"]
POINT = ["vimae-n", "vimae-l"]


@pytest.fixture(scope="module")
def images():
    return data.load("digits").train.images


def small(name, **given):
    torch.manual_seed(0)
    given = {"latent_dim": 3, "width": 0.1} | given
    return build(name, data_shape=SHAPE, **given)


def train(model, images, steps=40, lr=3e-3):
    """The protocol: the auxiliary network first, with its own optimiser. Returns the losses."""
    main = torch.optim.Adam(model.main_parameters(), lr)
    other = torch.optim.Adam(model.auxiliary.parameters(), lr) if model.auxiliary else None
    losses = []
    for x in images[: 100 * 10].split(100) * (steps // 10):
        if other is not None:
            other.zero_grad()
            model.auxiliary_loss(x)["loss"].backward()
            other.step()
        main.zero_grad()
        terms = model.loss(x)
        terms["loss"].backward()
        main.step()
        losses.append(terms["loss"].item())
    return losses


def test_the_systems_of_the_papers():
    assert names() == [
        "ae",
        "vae",
        "aae",
        "stein-vae",
        "mmd-vae",
        "vimae-n",
        "vimae-l",
        "beta-vae-h",
        "beta-vae-a",
        "min-rate-vae",
        "infovae",
        "vmi-vae",
        "vmi-joint-vae",
        "imae",
        "hybrid-beta-vae",
        "hybrid-infovae",
        "joint-vae",
    ]


@pytest.mark.parametrize("name", names())
def test_loss_falls(name, images):
    model = small(name)
    losses = train(model, images)
    assert all(map(math.isfinite, losses))
    # The systems differ in scale and noise: the reconstruction alone falls in every one.
    assert sum(losses[-5:]) < sum(losses[:5]) - 5 * 1.0
    model.eval()
    x = images[:200]
    fresh = small(name).eval()
    with torch.no_grad():
        assert model.loss(x)["reconstruction"] < 0.95 * fresh.loss(x)["reconstruction"]


@pytest.mark.parametrize("name", names())
def test_terms_are_named_scalars_and_always_the_same(name, images):
    model = small(name)
    keys = list(model.loss(images[:20]))
    model.eval()
    with torch.no_grad():
        terms = model(images[:20])
    assert list(terms) == keys
    assert {"loss", "reconstruction"} <= set(terms)
    for value in terms.values():
        assert value.shape == () and torch.isfinite(value) and not value.requires_grad


@pytest.mark.parametrize("name", names())
def test_each_loss_trains_its_own_parameters_only(name, images):
    # The attribute alone would not do: with width 0.1 a ReLU may be dead.
    model = small(name, width=0.5)
    auxiliary = set() if model.auxiliary is None else set(model.auxiliary.parameters())
    main = set(model.main_parameters())
    assert main | auxiliary == set(model.parameters()) and not main & auxiliary
    if auxiliary:
        model.auxiliary_loss(images[:50])["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in auxiliary)
        assert all(p.grad is None for p in main)
        model.zero_grad()
    model.loss(images[:50])["loss"].backward()
    assert all(p.grad is None for p in auxiliary)
    for parameter_name, parameter in model.named_parameters():
        if parameter in main:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["aae", "vmi-vae", "vmi-joint-vae"])
def test_auxiliary_step_leaves_the_statistics_of_the_model_alone(name, images):
    model = small(name, network="dcgan", width=0.05)

    def state(module):
        return {k: v.clone() for k, v in module.state_dict().items()}

    def same(before, module):
        return all(torch.equal(v, before[k]) for k, v in module.state_dict().items())

    encoder, decoder = state(model.encoder), state(model.decoder)
    model.auxiliary_loss(images[:20])
    assert same(encoder, model.encoder) and same(decoder, model.decoder)
    auxiliary = state(model.auxiliary)
    model.loss(images[:20])
    assert same(auxiliary, model.auxiliary) and not same(encoder, model.encoder)


@pytest.mark.parametrize("name", names())
def test_state_dict_round_trip(name, images):
    given = {"bank": 30} if "bank" in hyperparameters(name) else {}
    model = small(name, **given)
    train(model, images, steps=10)
    torch.manual_seed(99)
    other = build(name, data_shape=SHAPE, latent_dim=3, width=0.1, **given)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    losses = []
    for each in (model, other):
        torch.manual_seed(1)
        losses.append({k: v.item() for k, v in each.loss(images[:50]).items()})
    assert losses[0] == losses[1]
    model.eval(), other.eval()
    assert torch.equal(model.reconstruct(images[:5]), other.reconstruct(images[:5]))


@pytest.mark.parametrize("name", names())
def test_codes_and_images(name, images):
    model = small(name).eval()
    x = images[:7]
    code_dim = 13 if name in JOINT else 3
    assert model.code_dim == code_dim and model.latent_dim == 3
    for code in (model.encode(x), model.sample_posterior(x), model.sample_prior(7)):
        assert code.shape == (7, code_dim)
        if name in JOINT:
            y = code[:, 3:]
            assert torch.equal(y.sort(1).values[:, -1], torch.ones(7)) and y.sum() == 7
    for made in (model.reconstruct(x), model.draw(model.encode(x)), model.sample(7)):
        assert made.shape == (7, *SHAPE) and made.min() >= 0 and made.max() <= 1
    assert model.log_likelihood(x, model.encode(x)).shape == (7,)
    assert model.log_prior(model.encode(x)).shape == (7,)
    # Nothing random but where it says so.
    assert torch.equal(model.encode(x), model.encode(x))
    assert torch.equal(model.reconstruct(x), model.reconstruct(x))
    a, b, c = (model.sample(4, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    a, b, c = (model.sample_posterior(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and torch.equal(a, c) == (name in POINT)
    if name in POINT:
        assert torch.equal(model.sample_posterior(x), model.encode(x))
    else:
        mean, log_var = model.posterior(x)
        assert torch.equal(mean, model.encode(x)[:, :3]) and log_var.shape == (7, 3)


@pytest.mark.parametrize("name", names())
def test_hyperparameters_are_what_build_takes_and_models_have(name):
    values = hyperparameters(name)
    model = small(name)
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        assert getattr(model, key) == value
    assert type(small(name, **values)) is type(model)


def test_defaults_are_those_of_the_papers():
    assert hyperparameters("vimae-l") == {"lam": 10.0, "noise": 0.01, "kernel": "imq", "bank": 0}
    assert hyperparameters("beta-vae-h")["beta"] == 10.0
    assert hyperparameters("beta-vae-a")["beta"] == 0.2
    assert small("vae").beta == 1.0
    assert small("imae", beta=3.0).gamma == 6.0
    for name, dim in (("vmi-vae", 32), ("vmi-joint-vae", 16), ("imae", 10), ("joint-vae", 10)):
        assert build(name, data_shape=SHAPE, width=0.01).latent_dim == dim
    assert build("vae", data_shape=SHAPE, width=0.01, network="dcgan5").latent_dim == 64
    with pytest.raises(ValueError, match="name is 'gan'; known systems"):
        hyperparameters("gan")


def test_point_codes_have_no_auxiliary_and_no_posterior():
    model = small("vimae-n")
    assert model.auxiliary is None and not hasattr(model, "posterior")
    with pytest.raises(NotImplementedError, match="VIMAE has no auxiliary network"):
        model.auxiliary_loss(torch.rand(2, *SHAPE))


@pytest.mark.parametrize(
    "name, twin, given",
    [
        ("vmi-vae", "vae", {"lam": 0.0}),
        ("vmi-joint-vae", "hybrid-beta-vae", {"lam": 0.0}),
        ("min-rate-vae", "vae", {"rate": 0.0}),
        ("beta-vae-h", "vae", {"beta": 1.0}),
        ("infovae", "vae", {"alpha": 1.0, "lam": 1.0, "divergence": "kl"}),
        ("infovae", "mmd-vae", {"alpha": 0.0, "lam": 1000.0, "kernel": "mmd-vae"}),
    ],
)
def test_twins_begin_with_the_same_weights_and_have_the_same_loss(name, twin, given, images):
    shared = {"likelihood": "bernoulli", "network": "mlp"}
    of_twin = {"vat": 0.0, "beta": 1.0} if twin == "hybrid-beta-vae" else {}
    a, b = small(name, **shared, **given), small(twin, **shared, **of_twin)
    for key, weight in b.state_dict().items():
        assert torch.equal(a.state_dict()[key], weight)
    losses = []
    for model in (a, b):
        torch.manual_seed(5)
        losses.append(model.loss(images[:50])["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_chain_of_the_unregularised_autoencoder_leaves_the_prior(images):
    """The codes of its samples are distributed as those of the data, not as N(0, I)."""
    model = small("ae", width=0.5)
    train(model, images, steps=200)
    model.eval()
    with torch.no_grad():
        spread = model.encode(images).std(0).mean()
        ancestral = model.encode(model.decode(model.sample_prior(400))).std(0).mean()
        chain = model.encode(model.sample(400)).std(0).mean()
    assert spread > 1.5 * ancestral
    assert abs(chain - spread) < 0.5 * abs(ancestral - spread)
    still = small("ae", steps=0).eval()
    z = still.sample_prior(3, torch.Generator().manual_seed(0))
    assert torch.equal(still.sample(3, torch.Generator().manual_seed(0)), still.decode(z))


@pytest.mark.parametrize("name", ["mmd-vae", "stein-vae", "aae", "vimae-l", "infovae"])
def test_regularised_codes_come_closer_to_the_prior(name, images):
    """Started far away, where the reconstruction alone would leave them."""
    given = {"lam": {"mmd-vae": 1000.0, "aae": 1.0}.get(name, 300.0)}
    model = small(name, width=0.1 if name == "aae" else 0.3, **given)
    with torch.no_grad():
        model.encoder[-1].bias[:3] += 3.0
    before = model.encode(images).mean(0).norm()
    train(model, images, steps=200)
    after = model.encode(images).mean(0).norm()
    assert before > 4 and after < 0.4 * before


def test_minimal_rate_holds_the_rate(images):
    model = small("min-rate-vae", rate=6.0, beta=20.0, width=0.5)
    train(model, images, steps=200)
    assert model.loss(images[:500])["kl"].item() == pytest.approx(6, abs=1)


# The memory bank.


def test_bank_holds_the_latest_codes():
    bank = autoencoder.MemoryBank(5, 1)
    codes = torch.arange(12.0)[:, None]
    assert bank(codes[:3]).flatten().tolist() == [0, 1, 2]
    assert bank(codes[3:6]).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(bank(codes[6:8]).flatten().tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(bank.codes.flatten().tolist()) == [3, 4, 5, 6, 7]
    bank(torch.arange(100.0, 108)[:, None])
    assert sorted(bank.codes.flatten().tolist()) == [103, 104, 105, 106, 107]
    bank.eval()
    assert torch.equal(bank(codes[:2]), codes[:2])
    assert sorted(bank.codes.flatten().tolist()) == [103, 104, 105, 106, 107]


def test_bank_gives_the_statistic_of_all_codes_and_their_share_of_its_gradient():
    """Batch by batch through unchanged codes, gradients add up to the full one, n / B times each."""
    import vimae_kernels as vk

    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(40, 2, generator=generator)
    prior = torch.randn(40, 2, generator=generator)
    everything = codes.clone().requires_grad_()
    full = vk.mmd(everything, prior)
    (expected,) = torch.autograd.grad(full, everything)
    bank = autoencoder.MemoryBank(30, 2)
    bank(codes[:30])
    z = codes[30:].clone().requires_grad_()
    value = vk.mmd(bank(z), prior)
    assert value.item() == pytest.approx(full.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.allclose(gradient, 4 * expected[30:], rtol=1e-4, atol=1e-7)


def test_codes_come_to_rest_beside_a_long_bank():
    """Codes that only what they were 40 batches ago pushes would swing about the prior forever."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    bank = autoencoder.MemoryBank(2000, 2)
    shift = torch.full((2,), 2.0, requires_grad=True)
    optimizer = torch.optim.SGD([shift], lr=1.0)
    away = []
    for _ in range(300):
        z = torch.randn(50, 2, generator=generator) + shift
        terms = objectives.infomax(torch.zeros(()), z, "normal", 1.0, memory=bank(z))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        away.append(shift.detach().norm().item())
    assert max(away[-100:]) < 0.35


@pytest.mark.parametrize("name", ["mmd-vae", "vimae-n"])
def test_bank_of_a_system(name, images):
    model = small(name, bank=300)
    train(model, images, steps=10)
    assert model.memory.seen == 1000
    x = images[:100]
    codes = model.memory.codes.clone()
    torch.manual_seed(1)
    terms = model.loss(x)
    torch.manual_seed(1)
    if name == "mmd-vae":
        reconstruction, z, _, _ = model._terms(x)
    else:
        from vimae_models import corruptions

        z = model.encode(corruptions.truncated_gaussian(x, 0.01))
        reconstruction = terms["reconstruction"]
    batch, everything = (
        objectives.infomax(reconstruction, c, "normal", model.lam, model.kernel)["mmd"].item()
        for c in (z, torch.cat([codes, z]))
    )
    assert terms["mmd"].item() == pytest.approx((batch + everything) / 2, rel=1e-4, abs=1e-6)
    assert small(name).memory is None


# Presets.


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_builds(name):
    p = presets.preset(name)
    shape = {"cifar10": (3, 32, 32), "celeba": (3, 64, 64), "dsprites": (1, 64, 64)}
    model = build(
        p["model"],
        data_shape=shape.get(p["data"], (1, 28, 28)),
        latent_dim=p["latent_dim"],
        network=p["network"],
        width=0.02,
        **p["hyperparameters"],
    )
    assert name.startswith(f"{p['model']}/{p['data']}")
    assert p["network"] in NETWORKS and model.latent_dim == p["latent_dim"]
    assert p["optimizer"]["name"] in ("adam", "sgd")
    known = {*p, *p["optimizer"]}
    assert set(p["unprinted"]) <= known


def test_presets_are_the_papers():
    p = presets.preset("vimae-l/mnist")
    assert (p["network"], p["latent_dim"], p["epochs"], p["batch_size"]) == ("dcgan", 8, 80, 100)
    assert p["hyperparameters"] == {"lam": 10.0}
    assert p["optimizer"] == {"name": "adam", "lr": 1e-3, "betas": (0.5, 0.999)}
    p = presets.preset("beta-vae-h/celeba")
    assert (p["network"], p["latent_dim"], p["epochs"]) == ("dcgan5", 64, 60)
    assert p["hyperparameters"] == {"beta": 100.0}
    p = presets.preset("imae/fashion_mnist")
    assert p["optimizer"] == {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "decay": 0.98}
    assert p["seeds"] == 10


def test_a_preset_is_the_callers_own_and_an_unknown_one_names_the_nearest():
    presets.preset("imae/mnist")["hyperparameters"]["beta"] = -1
    assert "beta" not in presets.preset("imae/mnist")["hyperparameters"]
    with pytest.raises(ValueError, match="'vimae-l/mnst'.*'vimae-l/mnist'"):
        presets.preset("vimae-l/mnst")
