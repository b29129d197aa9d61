"""What codes and generated images say about classes: known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vimae_models import build, data, files
from vimae_models.metrics import classifier, images, labels


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


# Support vector machine


def test_svm_tells_separable_codes_from_noise(digits):
    """An encoder that passes on the pixels scores high, one that gives constants at chance."""
    model = build("vimae-l", data_shape=(1, 8, 8), width=0.1)
    model.encoder = torch.nn.Flatten()
    accuracy = labels.svm_accuracy(model, digits)
    assert accuracy["clean"] > 0.95
    assert accuracy["clean"] > accuracy["gaussian 0.4"]
    assert accuracy["mask 0.2"] > accuracy["mask 0.5"]
    model.encoder = torch.nn.Sequential(torch.nn.Flatten(), ZeroTimes())
    assert labels.svm_accuracy(model, digits)["clean"] < 0.2


class ZeroTimes(torch.nn.Module):
    def forward(self, x):
        return 0 * x


def test_svm_reads_separable_codes_without_an_error(digits):
    """An encoder that gives the class itself, written into a pixel of every image."""

    def marked(split):
        marks = split.images.clone()
        marks[:, 0, 0, 0] = split.labels.float()
        return data.Split(marks, split.labels)

    model = build("vimae-l", data_shape=(1, 8, 8), latent_dim=1, width=0.1)
    model.encoder = FirstPixel()
    told = replace(digits, train=marked(digits.train), test=marked(digits.test))
    accuracy = labels.svm_accuracy(model, told)
    assert set(accuracy) == {"clean", *labels.CORRUPTIONS}
    assert accuracy["clean"] == 1
    # Masking leaves a pixel with probability 1 - p, and makes it that of class 0 otherwise.
    for p in (0.2, 0.5):
        assert accuracy[f"mask {p}"] == pytest.approx(1 - 0.9 * p, abs=0.06)
    assert accuracy == labels.svm_accuracy(model, told)


class FirstPixel(torch.nn.Module):
    def forward(self, x):
        return x[:, 0, :1, 0]


def test_svm_on_classes_that_training_never_saw(digits):
    seen = digits.train.labels < 4
    loaded = data.ImageData(
        "digits",
        data.Split(digits.train.images[seen], digits.train.labels[seen]),
        digits.validation,
        data.Split(
            digits.test.images[digits.test.labels >= 4], digits.test.labels[digits.test.labels >= 4]
        ),
    )
    torch.manual_seed(0)
    model = build("vimae-l", data_shape=(1, 8, 8), latent_dim=8)
    accuracy = labels.svm_accuracy(model, loaded)
    assert accuracy["clean"] > 0.6  # five classes by chance: 0.2


def test_svm_needs_two_classes(digits):
    one = data.Split(digits.test.images, torch.zeros(400).long())
    model = build("vimae-l", data_shape=(1, 8, 8))
    assert labels.svm_accuracy(model, data.ImageData("one", one, one, one)) == {}


# Categories


class Fixed(torch.nn.Module):
    """A joint model whose probabilities are given, in the order of the images."""

    def __init__(self, p):
        super().__init__()
        self.p = torch.nn.Parameter(p)

    def classify(self, x):
        return self.p


def test_categories_are_matched_to_classes():
    classes = torch.tensor([3, 3, 3, 5, 5, 7, 7, 9])
    split = data.Split(torch.zeros(8, 1, 2, 2), classes)
    one_hot = torch.nn.functional.one_hot(torch.tensor([1, 1, 2, 0, 0, 2, 2, 1]), 3).double()
    found = labels.categories(Fixed(one_hot), split)
    # Categories 1, 0, 2 to classes 3, 5, 7: 2 + 2 + 2 of 8; class 9 is left without one.
    assert found["accuracy"] == 6 / 8
    assert found["kl"] == pytest.approx(np.log(3))
    counts = np.array([2, 3, 3]) / 8
    assert found["entropy"] == pytest.approx(-(counts * np.log(counts)).sum())
    assert found["information"] == pytest.approx(found["entropy"])
    # A category that takes everything is matched to the largest class alone.
    found = labels.categories(Fixed(torch.full((8, 3), 1 / 3, dtype=torch.float64)), split)
    assert found["accuracy"] == 3 / 8
    assert found["kl"] == pytest.approx(0) and found["information"] == pytest.approx(0)


def test_a_perfect_code_counts_as_such_whatever_its_order():
    order = torch.tensor([4, 2, 0, 1, 3])
    classes = torch.arange(5).repeat_interleave(torch.tensor([3, 1, 2, 5, 4]))
    split = data.Split(torch.zeros(15, 1, 2, 2), 10 * classes)
    model = Fixed(torch.nn.functional.one_hot(order[classes], 5).double())
    found = labels.categories(model, split)
    assert found["accuracy"] == 1
    assert found["information"] == pytest.approx(found["entropy"])
    counts = labels.digits_per_category(model, split)
    assert torch.equal(counts[order], torch.tensor([3, 1, 2, 5, 4]).diag())


def test_digits_per_category_have_a_row_per_category_and_a_column_per_class():
    split = data.Split(torch.zeros(5, 1, 2, 2), torch.tensor([7, 7, 7, 2, 2]))
    p = torch.tensor([[0.6, 0.4, 0], [0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.8, 0], [1, 0, 0]])
    counts = labels.digits_per_category(Fixed(p), split)
    assert counts.tolist() == [[1, 2], [1, 1], [0, 0]]


# Generated images


def known_classifier(p, classes):
    """A classifier that gives these probabilities (N, K), in the order of the images."""
    model = classifier.Classifier((1, 8, 8), classes)
    model.probabilities = lambda images: p
    return model


def test_class_cross_entropy_of_matching_and_of_skewed_distributions():
    classes = torch.tensor([1, 3, 4])
    training = torch.tensor([1] * 2 + [3] * 3 + [4] * 5)
    c = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for p in (c.expand(4, 3), torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1, 1, 2, 2, 2, 2, 2]]):
        found = images.class_cross_entropy(known_classifier(p, classes), None, training)
        assert found == pytest.approx(0, abs=1e-12)
    p = torch.tensor([[1, 0, 0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    found = images.class_cross_entropy(known_classifier(p, classes), None, training)
    expected = (
        0.2 * math.log(0.2 / 0.75) + 0.3 * math.log(0.3 / 0.125) + 0.5 * math.log(0.5 / 0.125)
    )
    assert found == pytest.approx(expected, rel=1e-12)
    # A class that is never generated.
    p = torch.tensor([[0.5, 0.5, 0]], dtype=torch.float64)
    assert images.class_cross_entropy(known_classifier(p, classes), None, training) == math.inf


def gaussians(n, mean, factor, seed):
    """n points with exactly this mean and the covariance factor factor^T."""
    z = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed)).double()
    z -= z.mean(0)
    covariance = z.T @ z / (n - 1)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), z.T, upper=False).T
    return z @ factor.T + mean


def test_frechet_distance_of_gaussians_with_known_moments():
    mean, other = torch.tensor([1.0, -2, 0.5]).double(), torch.tensor([0.0, 0.3, 4]).double()
    a, b = torch.tensor([2.0, 1, 0.1]).double(), torch.tensor([0.5, 3, 0.2]).double()
    # Covariances with the same eigenvectors: Tr of the square root is sum_k a_k b_k.
    turn = torch.linalg.qr(torch.randn(3, 3).double()).Q
    real = gaussians(50, mean, turn @ a.diag(), 1)
    generated = gaussians(77, other, turn @ b.diag(), 2)
    expected = float((mean - other).square().sum() + (a - b).square().sum())
    assert images.frechet_distance(real, generated) == pytest.approx(expected, rel=1e-8)
    assert images.frechet_distance(real, real) == pytest.approx(0, abs=1e-8)
    # Any two, by the square root of a positive matrix.
    s = torch.randn(3, 3).double()
    covariance, half = s @ s.T, turn @ a.diag() @ turn.T
    root = torch.linalg.eigvalsh(half @ covariance @ half).sqrt().sum()
    expected = float(covariance.trace() + half.square().sum() - 2 * root)
    found = images.frechet_distance(gaussians(50, 0 * mean, half, 1), gaussians(60, 0 * mean, s, 2))
    assert found == pytest.approx(expected, rel=1e-8)


class Means(torch.nn.Module):
    """Stands for Inception: the mean of every channel, of bytes of three."""

    num_features = 3

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return x.double().mean((2, 3)) / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_fid_is_the_distance_of_the_features_of_all_images(channels):
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, generated = torch.rand(300, channels, 5, 4), torch.rand(270, channels, 5, 4) ** 2
    done = []
    found = images.fid(
        real, images.to_bytes(generated), FrechetInceptionDistance(feature=Means()),
        lambda *now: done.append(now),
    )  # fmt: skip
    means = (x.mul(255).round().div(255).mean((2, 3)).expand(-1, 3) for x in (real, generated))
    assert found == pytest.approx(images.frechet_distance(*means), rel=1e-4)
    assert done[-1] == (570, 570)
    with pytest.raises(ValueError, match="have 2 channels; they must have 1 or 3"):
        images.fid(real[:, :1].expand(-1, 2, -1, -1), generated, None)


def test_inception_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "inception.pth"
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'vimae-kernels\[fid\]'.*2015-12-05"
    ):
        images.load_inception(path)
    monkeypatch.setattr(images, "find_spec", lambda name: name)
    with pytest.raises(files.FileError, match="inception.pth is missing"):
        images.load_inception(path)
    path.write_bytes(b"no weights")
    with pytest.raises(files.FileError, match="inception.pth is damaged"):
        images.load_inception(path)


@pytest.mark.parametrize("name", ["vimae-l", "imae", "ae"])
def test_generated_images_are_those_of_the_model_as_bytes(name):
    model = build(name, data_shape=(1, 8, 8), width=0.1).eval()
    done = []
    found = images.generate(model, 300, seed=3, progress=lambda *now: done.append(now))
    assert found.dtype == torch.uint8 and found.shape == (300, 1, 8, 8)
    with torch.no_grad():
        first = model.sample(256, torch.Generator().manual_seed(3))
    assert (found[:256] / 255 - first).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(found, images.generate(model, 300, seed=3))
    assert not torch.equal(found, images.generate(model, 300, seed=4))
    assert done[-1][0] == done[-1][1]


# The classifier


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "classifier.pt"
    state = torch.get_rng_state()
    steps = []
    made = classifier.load_or_train(
        digits, path, steps=120, progress=lambda *now: steps.append(now)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert steps[0] == (1, 120) and steps[-1] == (120, 120)
    return path, made


def test_classifier_learns_and_says_how_well(trained, digits):
    path, made = trained
    p = made.probabilities(digits.test.images)
    assert torch.allclose(p.sum(1), torch.ones(len(p)).double())
    right = (p.argmax(1) == digits.test.labels).double().mean()
    assert made.test_accuracy == float(right) > 0.9
    assert made.features(digits.test.images).shape == (len(digits.test), 64)


def test_classifier_is_loaded_as_it_was_trained(trained, digits):
    path, made = trained
    content = path.read_bytes()
    again = classifier.load_or_train(digits, path, steps=120)
    assert again.test_accuracy == made.test_accuracy
    x = digits.test.images
    assert torch.equal(again.probabilities(x), made.probabilities(x))
    assert torch.equal(again.features(x), made.features(x))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda path: path.write_bytes(b"x"), "classifier.pt is damaged"),
        (lambda path: torch.save([1], path), "does not hold a classifier"),
        (lambda path: edited(path, weights={}), "has not the weights of a classifier"),
        (lambda path: edited(path, weights=3), "has not the weights of a classifier"),
        (lambda path: edited(path, settings={"data": "mnist"}), "holds the classifier of .*mnist"),
        (lambda path: edited(path, test_accuracy="high"), "damaged"),
    ],
)
def test_a_file_that_is_not_that_classifier_is_refused_and_kept(
    trained, digits, tmp_path, change, words
):
    path = tmp_path / "classifier.pt"
    path.write_bytes(trained[0].read_bytes())
    change(path)
    content = path.read_bytes()
    with pytest.raises(files.FileError, match=words) as caught:
        classifier.load_or_train(digits, path, steps=120)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == content


def edited(path, **changes):
    torch.save(torch.load(path, weights_only=True) | changes, path)


def test_a_changed_byte_in_a_classifier_is_noticed(trained, digits, tmp_path):
    content = bytearray(trained[0].read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "classifier.pt"
    path.write_bytes(content)
    with pytest.raises(files.FileError, match="the checksum of .* is wrong"):
        classifier.load_or_train(digits, path, steps=120)


def test_classifier_is_that_of_its_data_seed_and_steps(trained, digits):
    fewer = replace(digits, train=data.Split(digits.train.images[:600], digits.train.labels[:600]))
    binary = data.load("digits", binarize=True)
    for other, options in (
        (fewer, {}),
        (binary, {}),
        (digits, {"seed": 1}),
        (digits, {"steps": 7}),
    ):
        with pytest.raises(files.FileError, match="name another file"):
            classifier.load_or_train(other, trained[0], **{"steps": 120} | options)


def test_classifier_of_classes_that_do_not_test_is_tested_on_validation_images(digits, tmp_path):
    seen, unseen = digits.train.labels < 4, digits.test.labels >= 4
    known = digits.validation.labels < 4
    apart = data.ImageData(
        "apart",
        data.Split(digits.train.images[seen], digits.train.labels[seen]),
        data.Split(digits.validation.images[known], digits.validation.labels[known]),
        data.Split(digits.test.images[unseen], digits.test.labels[unseen]),
    )
    made = classifier.load_or_train(apart, tmp_path / "classifier.pt", steps=40)
    guessed = made.probabilities(apart.validation.images).argmax(1)
    assert made.test_accuracy == float((guessed == apart.validation.labels).double().mean()) > 0.8


def test_one_class_has_no_classifier(digits, tmp_path):
    one = data.Split(digits.train.images, torch.zeros_like(digits.train.labels))
    with pytest.raises(ValueError, match="of one class; it must have two or more"):
        classifier.load_or_train(replace(digits, train=one), tmp_path / "classifier.pt")


def test_classifier_distance_tells_digits_from_noise(trained, digits):
    _, made = trained
    real = digits.test.images
    near = images.classifier_distance(made, real[::2], real[1::2])
    far = images.classifier_distance(made, real, torch.rand(300, 1, 8, 8))
    assert 0 <= near < 0.1 * far
