"""Textures: seamless, different, the same everywhere; and how the bank samples them."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from selfstudy.render import textures
from selfstudy.render.mesh import BUCKETS
from selfstudy.render.patterns import COUNT, FAMILIES, SIZE, make
from selfstudy.render.textures import Bank, from_folder, procedural
from util.errors import UserError


def one_of(family: int, turn: int = 0) -> int:
    return (family + turn * len(FAMILIES)) * BUCKETS


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_a_family_is_seamless_visible_and_varied(family):
    made = [make(one_of(family, turn) + turn) for turn in range(3)]
    for texels in made:
        assert texels.shape == (SIZE, SIZE, 3) and texels.dtype == np.uint8
        values = texels.astype(float)
        assert values.std((0, 1)).max() > 8 and 25 < values.mean() < 235
        # A step over the seam is like the steps elsewhere (compared with its row's worst).
        for axis in (0, 1):
            steps = np.abs(np.diff(values, axis=axis, append=values.take([0], axis))).mean(
                (1 - axis, 2)
            )
            assert steps[-1] <= steps[:-1].max() * 1.25 + 2
    assert not np.array_equal(made[0], made[1])


def test_a_texture_is_the_same_again_and_every_bucket_has_all_families():
    assert len(FAMILIES) >= 12 and COUNT % (BUCKETS * len(FAMILIES)) == 0
    assert np.array_equal(make(77), make(77)) and not np.array_equal(make(77), make(78))
    bank = Bank(np.zeros((COUNT, 1, 1, 3), np.uint8))
    numbers = [bank.numbers(bucket) for bucket in range(BUCKETS)]
    assert sorted(np.concatenate(numbers)) == list(range(COUNT))
    for found in numbers:
        assert set(found // BUCKETS % len(FAMILIES)) == set(range(len(FAMILIES)))


@pytest.fixture(scope="module")
def bank() -> Bank:
    draw = np.random.default_rng(0)
    return Bank(draw.integers(0, 256, (3, 16, 16, 3), np.uint8))


def test_sampling_agrees_with_torch_on_wrapped_texels(bank):
    uv = np.random.default_rng(1).uniform(-3, 3, (200, 2))
    tiled = torch.from_numpy(np.tile(bank.texels[1], (3, 3, 1)).transpose(2, 0, 1) / 255.0)
    places = torch.from_numpy(uv % 1 + 1) / 3 * 2 - 1
    expected = F.grid_sample(tiled[None], places[None, None], align_corners=False)[0, :, 0].T
    found = bank.sample(1, uv, 0.0)
    assert found.dtype == np.float32 and np.abs(found - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("level", [1, 2, 4, 9])
def test_higher_levels_are_means(bank, level):
    texels = torch.from_numpy(bank.texels[2].transpose(2, 0, 1) / 255.0)
    side = max(1, 16 >> level)
    means = F.adaptive_avg_pool2d(texels, side)
    centres = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1) + 0.5) / side
    found = bank.sample(2, centres.reshape(-1, 2), level).reshape(side, side, 3)
    assert np.abs(found.transpose(2, 0, 1) - means.numpy()).max() < 1e-5


def test_the_bank_forgets_old_sizes_and_makes_them_again(monkeypatch):
    monkeypatch.setattr(textures, "KEPT", 2)
    bank = Bank(np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8))
    first = bank.sample(0, np.array([[0.3, 0.6]]), 0)
    for texture in range(5):
        bank.sample(texture, np.zeros((1, 2)), 0)
    assert len(bank.levels) == 2
    assert np.array_equal(bank.sample(0, np.array([[0.3, 0.6]]), 0), first)


def test_procedural_textures_are_made_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "COUNT", 13)
    first = procedural(tmp_path / "syn")
    assert len(first.texels) == 13 and np.array_equal(first.texels[12], make(12))
    monkeypatch.setattr(textures, "make", lambda number: pytest.fail("made again"))
    again = procedural(tmp_path / "syn")
    assert np.array_equal(again.texels, first.texels)
    monkeypatch.undo()
    # What was cut short or is something else is made anew.
    (file,) = (tmp_path / "syn").iterdir()
    monkeypatch.setattr(textures, "COUNT", 13)
    file.write_bytes(file.read_bytes()[:1000])
    assert np.array_equal(procedural(tmp_path / "syn").texels, first.texels)
    assert len(list((tmp_path / "syn").iterdir())) == 1
    # So is what has another number of textures.
    np.save(file, np.zeros((5, SIZE, SIZE, 3), np.uint8))
    assert np.array_equal(procedural(tmp_path / "syn").texels, first.texels)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask()


def mask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "COUNT", 12)

    def save(file, texels):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    assert len(procedural(tmp_path).texels) == 12
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "COUNT", 12)
    (tmp_path / "syn").write_text("a file is in the way")
    assert len(procedural(tmp_path / "syn").texels) == 12


# ---- people's own pictures -------------------------------------------------------------------


def test_pictures_of_a_folder_are_cut_to_squares(tmp_path):
    for index in range(12):
        place = tmp_path / "images" / f"kind{index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (300, 200), (index * 20, 0, 0))
        picture.paste((0, 255, 0), (0, 0, 45, 200))  # what the square leaves out
        picture.save(place / f"{index:02}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    bank = from_folder(tmp_path, tmp_path / "cache")
    assert bank.texels.shape == (12, SIZE, SIZE, 3)
    assert bank.texels[..., 1].max() == 0
    reds = bank.texels[:, 64, 64, 0].tolist()
    assert reds == [
        20 * index for index in (*range(0, 12, 3), *range(1, 12, 3), *range(2, 12, 3))
    ]
    assert bank.numbers(11).tolist() == [11]


def test_decoded_pictures_are_kept_until_the_folder_changes(tmp_path, monkeypatch):
    place, cache = tmp_path / "pictures", tmp_path / "cache"
    place.mkdir()
    for index in range(12):
        Image.new("L", (150, 130), index).save(place / f"{index:02}.png")
    (place / "._00.png").write_bytes(b"what macOS leaves in archives")
    first = from_folder(place, cache).texels
    decode = textures._square
    monkeypatch.setattr(textures, "_square", lambda path: pytest.fail("decoded again"))
    assert np.array_equal(from_folder(place, cache).texels, first)
    monkeypatch.setattr(textures, "_square", decode)
    Image.new("L", (160, 130), 99).save(place / "00.png")
    assert from_folder(place, cache).texels[0].max() == 99


def test_too_few_or_broken_pictures_are_told(tmp_path):
    with pytest.raises(UserError, match="holds 0 pictures .*at least 12"):
        from_folder(tmp_path, tmp_path / "cache")
    for index in range(12):
        Image.new("L", (8, 8), index).save(tmp_path / f"{index}.png")
    (tmp_path / "5.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="5.png is not a readable picture"):
        from_folder(tmp_path, tmp_path / "cache")
