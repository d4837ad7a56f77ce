"""Colour conversions against scikit-image, colorsys and torchvision."""

import colorsys

import numpy as np
import pytest
import skimage.color
import torch
from later import Later

from util import color

reference = Later("torchvision.transforms.functional")


def reference_lab(images):
    """scikit-image's LAB of [3, H, W] in 0..255."""
    pixels = images.double().permute(1, 2, 0).numpy() / 255
    return torch.from_numpy(skimage.color.rgb2lab(pixels)).permute(2, 0, 1)


@pytest.fixture(scope="module")
def cube():
    """A dense grid of all colours, with the darkest ones, [3, H, W] bytes."""
    steps = torch.cat([torch.arange(12), torch.arange(12, 256, 9)]).to(torch.uint8)
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"))
    return grid.reshape(3, len(steps), -1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_lab_equals_scikit_image(cube, dtype):
    lab = color.rgb_to_lab(cube.to(dtype))
    assert lab.dtype == torch.float32 and lab.shape == cube.shape
    assert (lab - reference_lab(cube)).abs().max() < 1e-3


def test_lab_between_bytes_equals_scikit_image():
    values = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) * 255
    assert (color.rgb_to_lab(values) - reference_lab(values)).abs().max() < 1e-3


def test_lab_of_a_batch_is_the_lab_of_each_image(cube):
    batch = cube[None, :, :8, :16].repeat(3, 1, 1, 1) // torch.tensor([1, 2, 3]).view(
        3, 1, 1, 1
    )
    batch = batch.to(torch.uint8)
    lab = color.rgb_to_lab(batch)
    for image, result in zip(batch, lab, strict=True):
        torch.testing.assert_close(result, color.rgb_to_lab(image), rtol=0, atol=1e-5)


def test_black_is_exactly_zero_and_white_is_100():
    extremes = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)
    assert torch.equal(color.response(extremes)[..., 0], torch.zeros(3, 1))
    lab = color.rgb_to_lab(extremes)[:, 0, 1]
    torch.testing.assert_close(lab, torch.tensor([100.0, 0, 0]), rtol=0, atol=5e-3)


def test_hue_equals_colorsys():
    generator = np.random.default_rng(0)
    pixels = [*generator.random((40, 3)), (0.3, 0.3, 0.3), (0, 0, 0), (1, 1, 0), (0, 1, 1)]
    for turns in (-0.5, -0.13, 0.0, 0.25):
        images = torch.tensor(np.array(pixels)).float().T[:, None]
        moved = color.shift_hue(images, torch.tensor(turns))[:, 0].T
        for pixel, result in zip(pixels, moved, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            expected = torch.tensor(colorsys.hsv_to_rgb((h + turns) % 1, s, v))
            torch.testing.assert_close(result, expected.float(), rtol=0, atol=1e-5)


def test_hue_is_drawn_per_image():
    images = torch.rand(3, 3, 5, 5)
    turns = torch.tensor([-0.3, 0.0, 0.2])
    moved = color.shift_hue(images, turns[:, None, None])
    for image, turn, result in zip(images, turns, moved, strict=True):
        expected = reference.adjust_hue(image, turn.item())
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_hue_rotation_is_exact_at_thirds_and_keeps_grey():
    images = torch.rand(1, 3, 4, 4)
    for turns in (0.0, 1 / 3, -1 / 3):
        matrix = color.hue_rotation(torch.tensor([turns]))
        turned = (matrix @ images.flatten(2)).view(images.shape)
        expected = color.shift_hue(images, torch.tensor(turns))
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)
    matrices = color.hue_rotation(torch.linspace(-0.5, 0.5, 7))
    torch.testing.assert_close(matrices.sum(2), torch.ones(7, 3))


def test_hue_rotation_is_near_the_shift_of_hue():
    """As its docstring says: 0.01 to 0.02 on average for moderately coloured images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 64, 64, generator=generator) * 0.3
    images += torch.rand(1, 1, 64, 64, generator=generator) * 0.6
    for turns in (-0.1, -0.05, 0.05, 0.1):
        exact = color.shift_hue(images, torch.tensor(turns))
        fast = (color.hue_rotation(torch.tensor([turns])) @ images.flatten(2)).view(exact.shape)
        assert (fast - exact).abs().mean() < 0.022
        assert (fast - exact).abs().mean() < (images - exact).abs().mean()


def test_lab_to_rgb_is_the_inverse_of_skimages():
    rgb = np.random.RandomState(0).randint(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    lab = torch.from_numpy(skimage.color.rgb2lab(rgb)).permute(0, 3, 1, 2)
    back = color.lab_to_rgb(lab).permute(0, 2, 3, 1).numpy()
    assert abs(back - rgb).max() < 0.05
