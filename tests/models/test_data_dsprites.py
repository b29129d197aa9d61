"""dSprites: what its specification says, and the reading of its official file."""

import math
import zipfile

import numpy as np
import pytest
import torch

from vimae_models import data
from vimae_models.data import dsprites

N = 737_280
STEP = dict(zip(dsprites.LATENTS, (N, N // 3, N // 18, 1024, 32, 1), strict=True))


@pytest.fixture(scope="module")
def sprites():
    return dsprites.Sprites()


@pytest.fixture(scope="module")
def every(sprites):
    """One image of each shape, scale and orientation, in the middle: (3, 6, 40, 64, 64)."""
    index = torch.arange(720) * 1024 + 15 * 32 + 15
    return sprites[index].view(3, 6, 40, 64, 64)


def test_count_and_order_of_latents():
    assert math.prod(dsprites.SIZES) == N == len(dsprites.Sprites())
    index = torch.arange(N)
    classes = dsprites.classes(index)
    for column, (name, size) in enumerate(zip(dsprites.LATENTS, dsprites.SIZES, strict=True)):
        assert torch.equal(classes[:, column], index // STEP[name] % size)
    assert len(classes.unique(dim=0)) == N


def test_values_of_latents():
    values = dsprites.values(dsprites.classes(torch.tensor([0, N - 1, 1024, 40_960, 33])))
    assert values.dtype == torch.float64
    assert values[0].tolist() == [1, 1, 0.5, 0, 0, 0]
    assert values[1].tolist() == pytest.approx([1, 3, 1, 2 * math.pi, 1, 1])
    assert values[2, 3].item() == pytest.approx(2 * math.pi / 39)
    assert values[3, 2].item() == pytest.approx(0.6)
    assert values[4, 4:].tolist() == pytest.approx([1 / 31, 1 / 31])


def test_images_are_binary_and_inside_the_frame(sprites, every):
    assert every.dtype == torch.uint8 and set(every.unique().tolist()) == {0, 255}
    assert every.flatten(3).any(3).all()
    for corner in (0, 31, 31 * 32, 31 * 32 + 31):
        x = sprites[torch.arange(720) * 1024 + corner].view(3, 6, 40, 64, 64)
        # Nothing is cut off.
        assert torch.equal(x.count_nonzero(dim=(3, 4)), every.count_nonzero(dim=(3, 4)))
        assert not x[..., 0, :].any() or corner % 32 != 0


def centre(image):
    """Mean row and column of the white pixels."""
    return image.nonzero().double().mean(0)


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_a_step_of_position_moves_the_sprite_by_one_pixel(sprites, shape):
    start = shape * STEP["shape"] + 5 * STEP["scale"] + 7 * STEP["orientation"]
    images = sprites[start + torch.arange(1024)][:, 0].view(32, 32, 64, 64)
    for x, y in ((0, 0), (31, 0), (0, 31), (13, 22)):
        moved = images[0, 0].roll((y, x), (0, 1))
        assert torch.equal(images[x, y], moved)


def test_position_range_is_in_the_middle_of_the_frame(sprites):
    first, last = (centre(sprites[torch.tensor([i])][0, 0]) for i in (0, 1023))
    assert (first + last).tolist() == [63, 63]


def test_shapes_have_their_symmetries(every):
    upright = every[:, :, 0]
    square, ellipse, heart = upright
    # The centre of a sprite is a pixel, at 31 of 64: leave out the last row and column.
    for image in (square, ellipse):
        inner = image[:, :63, :63]
        assert torch.equal(inner, inner.flip(1)) and torch.equal(inner, inner.flip(2))
    assert torch.equal(square, square.transpose(1, 2))
    assert not torch.equal(ellipse, ellipse.transpose(1, 2))
    assert torch.equal(heart[:, :63, :63], heart[:, :63, :63].flip(2))
    assert not torch.equal(heart[:, :63, :63], heart[:, :63, :63].flip(1))
    # Its point is below: fewer pixels in the lower half.
    assert heart[5, :31].count_nonzero() > heart[5, 32:].count_nonzero()


def test_area_grows_with_the_square_of_the_scale(every):
    area = every.count_nonzero(dim=(3, 4)).double().mean(2)
    scale = torch.linspace(0.5, 1, 6).double()
    assert torch.allclose(area / area[:, 5:], scale.square().expand(3, 6), rtol=0.02)


def test_orientation_turns_once_clockwise(every):
    # 0 and 2 pi are both there.
    assert torch.equal(every[:, :, 0], every[:, :, 39])
    # Between them no two are the same, but for squares about a quarter turn apart.
    assert len(every[1:, :, :39].flatten(0, 2).unique(dim=0)) == 2 * 6 * 39
    for scale in range(6):
        for step in range(1, 5):
            turned = every[0, scale, step:] != every[0, scale, :-step]
            assert turned.flatten(1).any(1).all()
    # The long axis of the ellipse, right and down, after one step of 2 pi / 39.
    at = every[1, 5, 1].nonzero().double() - 31
    covariance = at.T @ at
    angle = 0.5 * math.atan2(2 * covariance[0, 1], covariance[1, 1] - covariance[0, 0])
    assert angle == pytest.approx(2 * math.pi / 39, abs=0.02)
    # Areas hardly depend on it.
    area = every.count_nonzero(dim=(3, 4)).double()
    assert (area.std(2) / area.mean(2)).max() < 0.06


def test_random_access_is_sequential_access(sprites):
    index = torch.randint(N, (3000,), generator=torch.Generator().manual_seed(1))
    index, _ = index.sort()
    order = torch.randperm(len(index))
    assert torch.equal(sprites[index[order]], sprites[index][order])
    assert torch.equal(sprites[5000:5100], sprites[torch.arange(5000, 5100)])
    assert torch.equal(sprites[-3:], sprites[torch.arange(N - 3, N)])
    assert sprites[:0].shape == (0, 1, 64, 64)


def test_splits_are_fixed_disjoint_and_know_their_latents(sprites, monkeypatch):
    monkeypatch.delenv("VIMAE_DATA", raising=False)
    loaded = data.load("dsprites")
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [
        707_280,
        10_000,
        20_000,
    ]
    assert loaded.shape == (1, 64, 64) and loaded.partial == ""
    weights = torch.tensor(list(STEP.values()))
    latents = [s.latents for s in (loaded.train, loaded.validation, loaded.test)]
    index = [(part[:, 1:] * weights[1:]).sum(1) for part in latents]
    assert torch.equal(torch.cat(index).sort()[0], torch.arange(N))
    for split, i in zip((loaded.train, loaded.validation, loaded.test), index, strict=True):
        assert torch.equal(split.images[100:120], sprites[i[100:120]])
        assert torch.equal(split.labels, split.latents[:, 1])


class Trap:
    """Executed where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("the metadata was unpickled",)


def npz(folder, n=30, images=None, classes=None):
    generator = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    content = {
        "metadata": np.array({"trap": Trap()}, dtype=object),
        "imgs": generator.integers(0, 2, (n, 64, 64), np.uint8) if images is None else images,
        "latents_classes": dsprites.classes(torch.arange(n)).numpy()
        if classes is None
        else classes,
    }
    np.savez_compressed(folder / dsprites.FILE, **content)
    return content


def test_official_file_is_read_without_its_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(dsprites, "_AT_ONCE", 7)
    content = npz(tmp_path / "dsprites")
    loaded = data.load("dsprites", tmp_path)
    assert loaded.partial == "partial: 30 of 737,280 images"
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [24, 3, 3]
    for split in (loaded.train, loaded.validation, loaded.test):
        expected = content["imgs"][split.latents[:, 5]]
        assert torch.equal(split.images[:][:, 0], torch.from_numpy(expected * np.uint8(255)))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"images": np.zeros((30, 64, 63), np.uint8)}, r"not uint8 \(N, 64, 64\)"),
        ({"images": np.zeros((30, 64, 64), np.float32)}, "imgs are float32"),
        ({"images": np.full((30, 64, 64), 2, np.uint8)}, "have the value 2, not 0 or 1"),
        ({"classes": np.zeros((29, 6), int)}, r"not \(30, 6\)"),
        ({"classes": np.array([Trap()] * 30)}, "is damaged"),
    ],
    ids=["shape", "float", "value", "classes", "pickled"],
)
def test_damaged_official_file(tmp_path, wrong, words):
    npz(tmp_path, **wrong)
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("dsprites", tmp_path)
    assert str(tmp_path / dsprites.FILE) in str(caught.value)


def test_official_file_that_is_cut_or_lacks_its_images(tmp_path):
    npz(tmp_path)
    path = tmp_path / dsprites.FILE
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(data.DataError, match="is damaged: File is not a zip file"):
        data.load("dsprites", tmp_path)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(data.DataError, match=r"no item named 'imgs\.npy'"):
        data.load("dsprites", tmp_path)
