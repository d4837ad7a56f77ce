"""Transforms against naive loops and torchvision; the pipeline against the transforms."""

import gin
import pytest
import torch
import torch.nn.functional as F
from later import Later

from selfstudy.data.augment import augment
from selfstudy.data.transforms import (
    Blur,
    ColorJitter,
    Cutout,
    Flip,
    Grayscale,
    PadCrop,
    PhotoJitter,
    ResizedCrop,
    Rotate90,
)
from selfstudy.types import DataInfo
from util.color import rgb_to_lab
from util.errors import UserError

reference = Later("torchvision.transforms.functional")

CPU = torch.device("cpu")
MEANS = {"rgb": (125.32, 122.97, 113.89), "lab": (50.84, 0.40, 5.73)}
STDS = {"rgb": (62.99, 62.09, 66.70), "lab": (24.26, 10.15, 16.08)}
VIEWS = dict(color_jitter=False, cutout=False, resized_crop=True, blur=True)


def data_info(size=32, space="rgb", stored="uint8"):
    return DataInfo(3, size, space, stored, MEANS[space], STDS[space])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stored_images(n=16, size=32, stored="uint8", seed=1):
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator(seed))
    if stored == "uint8":
        return images.to(torch.uint8)
    return ((images - 120) / 60).half()


def normalised(images, info):
    """The slow way: convert, subtract, divide."""
    images = images.float()
    if info.stored == "normalised":
        return images
    if info.space == "lab":
        images = rgb_to_lab(images)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    return (images - mean) / std


def one_by_one(augmentation, images, params):
    """What the pipeline promises to equal: the transforms in the published order."""
    images = images.float()
    for name in ("resized_crop", "blur"):
        if name in params:
            images = augmentation.transforms[name].apply(images, params[name])
    images = normalised(images, augmentation.info)
    for name in ("color_jitter", "grayscale", "flip", "crop", "cutout"):
        if name in params:
            images = augmentation.transforms[name].apply(images, params[name])
    return images


def close(result, expected, atol=1e-5):
    torch.testing.assert_close(result, expected, rtol=0, atol=atol)


# ---- the pipeline ---------------------------------------------------------------------------


@pytest.mark.parametrize("n, size", [(16, 32), (5, 8), (1, 28), (300, 32), (3, 64), (2, 7)])
@pytest.mark.parametrize("stored", ["uint8", "normalised"])
def test_pipeline_equals_the_transforms(n, size, stored):
    info = data_info(size, stored=stored)
    images = stored_images(n, size, stored)
    augmentation = augment(info, True)
    params = augmentation.draw(n, size, size, generator(), CPU)
    result = augmentation.apply(images, params)
    assert result.dtype == torch.float32 and result.is_contiguous()
    close(result, one_by_one(augmentation, images, params))


@pytest.mark.parametrize(
    "options",
    [
        *({name: False} for name in ("color_jitter", "grayscale", "flip", "crop", "cutout")),
        dict(color_jitter=False, grayscale=False, flip=False, crop=False),
        dict(color_jitter=False, grayscale=False, crop=False, cutout=False),
        VIEWS,
        dict(blur=True),
        dict(resized_crop=True),
        dict(resized_crop=True, flip=False),
    ],
)
def test_each_switch_of_the_pipeline(options):
    images = stored_images()
    augmentation = augment(data_info(), True, **options)
    params = augmentation.draw(16, 32, 32, generator(), CPU)
    off = {name for name, value in options.items() if not value}
    assert not off & params.keys() and ("crop" in params) != (
        "resized_crop" in params or "crop" in off
    )
    close(augmentation.apply(images, params), one_by_one(augmentation, images, params), 2e-5)


@pytest.mark.parametrize("options", [{}, VIEWS])
def test_pipeline_in_lab(options):
    images = stored_images()
    augmentation = augment(data_info(space="lab"), True, **options)
    params = augmentation.draw(16, 32, 32, generator(), CPU)
    close(augmentation.apply(images, params), one_by_one(augmentation, images, params), 1e-4)


def test_pads_and_holes_are_exactly_the_mean():
    images = stored_images()
    augmentation = augment(data_info(space="lab"), True)
    params = augmentation.draw(16, 32, 32, generator(), CPU)
    shown = torch.ones(16, 1, 32, 32)
    for name in ("crop", "cutout"):
        shown = augmentation.transforms[name].apply(shown, params[name])
    hidden = augmentation.apply(images, params).masked_select(shown == 0)
    assert len(hidden) >= 3 * 16 * 64 and (hidden == 0).all()


@pytest.mark.parametrize(
    "space, stored", [("rgb", "uint8"), ("lab", "uint8"), ("lab", "normalised")]
)
def test_without_augmentation_images_are_only_normalised(space, stored):
    info = data_info(space=space, stored=stored)
    images = stored_images(stored=stored)
    targets = {"class": torch.arange(16), "pose": torch.arange(16) % 5}
    everything_off = dict.fromkeys(
        ("color_jitter", "grayscale", "flip", "crop", "cutout"), False
    )
    for augmentation in (
        augment(info, False),
        augment(info, True, do_augment=False),
        augment(info, True, **everything_off),
    ):
        (view,), moved = augmentation(images, targets, generator())
        close(view, normalised(images, info))
        assert view.is_contiguous() and all(torch.equal(moved[k], targets[k]) for k in targets)
    assert augment(info, False, do_augment=True).transforms


def test_the_same_generator_gives_the_same_images_and_each_image_its_own():
    augmentation = augment(data_info(), True)
    images = stored_images(1).expand(64, -1, -1, -1).contiguous()
    (first,), _ = augmentation(images, {}, generator(3))
    (again,), _ = augmentation(images, {}, generator(3))
    (other,), _ = augmentation(images, {}, generator(4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 64


def test_inputs_stay_as_they_were():
    for stored in ("uint8", "normalised"):
        images = stored_images(stored=stored)
        before, pose = images.clone(), torch.ones(16, dtype=torch.int64)
        for options in ({}, VIEWS):
            augment(data_info(stored=stored), True, **options)(
                images, {"pose": pose}, generator()
            )
        assert torch.equal(images, before) and (pose == 1).all()


def test_two_views_differ_but_share_their_flip():
    images = stored_images(64)
    only_flip = dict(color_jitter=False, grayscale=False, crop=False, cutout=False)
    (one, two), _ = augment(data_info(), True, **only_flip)(images, {}, generator(), views=2)
    assert torch.equal(one, two)
    alone = augment(data_info(), True, share_flip=False, **only_flip)
    (one, two), _ = alone(images, {}, generator(), views=2)
    assert 16 < (one != two).any(-1).any(-1).any(-1).sum() < 48
    (one, two), _ = augment(data_info(), True)(images, {}, generator(), views=2)
    assert (one != two).any(-1).any(-1).any(-1).all()


# ---- targets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, dict(resized_crop=True), dict(crop=False), dict(share_flip=False)]
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_dense_targets_move_with_the_first_view(options, dtype):
    """A target that is the picture itself must stay the picture itself."""
    values = torch.randint(1, 200, (32, 1, 32, 32), generator=generator())
    images, targets = (
        values.expand(-1, 3, -1, -1).to(torch.uint8),
        {"segment": values[:, 0].to(dtype)},
    )
    info = DataInfo(3, 32, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3)
    augmentation = augment(
        info,
        True,
        color_jitter=False,
        grayscale=False,
        cutout=False,
        transform_targets=True,
        **options,
    )
    (view, _), moved = augmentation(images, targets, generator(), views=2)
    assert moved["segment"].dtype == dtype
    if "resized_crop" not in options:  # which takes the nearest pixel, not a mean
        close(moved["segment"].float(), view[:, 0], 1e-4)
    assert not torch.equal(moved["segment"], targets["segment"])


def test_resized_targets_follow_a_smooth_image():
    ramp = torch.arange(32.0)[:, None] * 3 + torch.arange(32.0)
    info = DataInfo(3, 32, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3)
    augmentation = augment(
        info,
        True,
        color_jitter=False,
        grayscale=False,
        cutout=False,
        resized_crop=True,
        transform_targets=True,
    )
    images = ramp.to(torch.uint8).expand(32, 3, 32, 32)
    (view,), moved = augmentation(images, {"depth": ramp.expand(32, 32, 32)}, generator())
    assert (moved["depth"] - view[:, 0]).abs().max() <= 2.01  # half a pixel of each slope


def test_targets_stay_without_transform_targets():
    targets = {"segment": torch.randint(0, 9, (16, 32, 32)), "class": torch.arange(16)}
    _, moved = augment(data_info(), True)(stored_images(), targets, generator())
    assert all(moved[name] is targets[name] for name in targets)


def test_dense_targets_of_another_size_are_refused():
    targets = {"segment": torch.zeros(16, 16, 16)}
    with pytest.raises(UserError, match="segment.*16, 16.*32, 32"):
        augment(data_info(), True, transform_targets=True)(
            stored_images(), targets, generator()
        )


@pytest.mark.parametrize("share_flip", [True, False])
def test_a_mirrored_pose_swaps_left_and_right_with_the_first_view(share_flip):
    pose = torch.arange(5).repeat(20)
    images = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    images[..., 0] = 255  # the left edge is bright, until mirrored
    only_flip = dict(color_jitter=False, grayscale=False, crop=False, cutout=False)
    (view, other), moved = augment(data_info(), True, share_flip=share_flip, **only_flip)(
        images, {"pose": pose}, generator(), views=2
    )
    assert torch.equal(view, other) == share_flip
    mirrored = view[:, 0, 0, 0] < 0
    assert 30 < mirrored.sum() < 70
    swapped = torch.tensor([0, 3, 2, 1, 4])[pose]
    assert torch.equal(moved["pose"], torch.where(mirrored, swapped, pose))
    _, kept = augment(data_info(), True, **only_flip, relabel_pose=False)(
        images, {"pose": pose}, generator()
    )
    assert torch.equal(kept["pose"], pose)


# ---- each transform -------------------------------------------------------------------------


def naive_crop(image, top, left, pad):
    padded = torch.zeros(*image.shape[:-2], *(side + 2 * pad for side in image.shape[-2:]))
    padded[..., pad:-pad, pad:-pad] = image
    return padded[..., top : top + image.shape[-2], left : left + image.shape[-1]]


def test_pad_crop_is_a_window_of_the_padded_image():
    images = torch.rand(81, 3, 32, 32)
    params = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    result = PadCrop().apply(images, params)
    for image, (top, left), window in zip(images, params.tolist(), result, strict=True):
        assert torch.equal(window, naive_crop(image, top, left, 4))
    dense = (images[:, 0] * 9).long()
    assert torch.equal(
        PadCrop().apply(dense, params), (PadCrop().apply(images[:, 0], params) * 9).long()
    )


def test_pad_crop_draws_all_positions_and_a_quarter_more_centres():
    params = PadCrop().draw(101_000, 32, 32, generator(), CPU)
    counts = torch.bincount(params[:, 0] * 9 + params[:, 1], minlength=81)
    assert len(counts) == 81 and params.min() == 0 and params.max() == 8
    centre = counts[40].item()
    others = torch.cat([counts[:40], counts[41:]]).float()
    assert centre == pytest.approx(21_000, rel=0.03)  # 1 + 20 of 101 options
    assert others.mean() == pytest.approx(1000, rel=0.01)
    assert others.min() > 850 and others.max() < 1150


def test_cutout_is_a_square_inside():
    cutout = Cutout()
    params = cutout.draw(50_000, 32, 32, generator(), CPU)
    assert params.min() == 0 and params.max() == 24  # 25 positions of an 8 x 8 square
    counts = torch.bincount(params[:, 0] * 25 + params[:, 1], minlength=625).float()
    assert counts.mean() == 80 and counts.min() > 40 and counts.max() < 125
    images = torch.rand(20, 3, 32, 32) + 1
    result = cutout.apply(images, params[:20])
    for image, (top, left) in zip(images, params[:20].tolist(), strict=True):
        image[:, top : top + 8, left : left + 8] = 0
    assert torch.equal(result, images)


def test_flip_mirrors_half_of_the_images():
    params = Flip().draw(10_000, 32, 32, generator(), CPU)
    assert params.float().mean() == pytest.approx(0.5, abs=0.02)
    images = torch.rand(4, 3, 6, 6)
    result = Flip().apply(images, torch.tensor([[True], [False], [True], [False]]))
    assert torch.equal(result[::2], images[::2].flip(-1)) and torch.equal(
        result[1::2], images[1::2]
    )


def test_grayscale_is_the_mean_of_a_quarter():
    params = Grayscale().draw(10_000, 32, 32, generator(), CPU)
    assert params.float().mean() == pytest.approx(0.25, abs=0.015)
    images = torch.rand(2, 3, 6, 6)
    result = Grayscale().apply(images, torch.tensor([[True], [False]]))
    grey = (images[0, 0] + images[0, 1] + images[0, 2]) / 3
    close(result[0], grey.expand(3, 6, 6))
    assert torch.equal(result[1], images[1])


def test_color_jitter_has_the_published_distribution():
    params = ColorJitter().draw(40_000, 32, 32, generator(), CPU)
    scale, shift = params[:, :3].log2(), params[:, 3:]
    moved = (params != torch.tensor([1.0, 1, 1, 0, 0, 0])).any(1)
    assert moved.float().mean() == pytest.approx(0.8, abs=0.01)
    for values in (*scale[moved].T, *shift[moved].T):
        assert values.mean() == pytest.approx(0, abs=0.01)
        assert values.std() == pytest.approx(0.25, rel=0.02)
    correlations = torch.corrcoef(params[moved].T) - torch.eye(6)
    assert correlations.abs().max() < 0.03
    images = torch.randn(2, 3, 4, 4)
    for image, row, result in zip(
        images, params, ColorJitter().apply(images, params[:2]), strict=False
    ):
        for c in range(3):
            close(result[c], image[c] * row[c] + row[3 + c])


@pytest.mark.parametrize("shape", [(8, 3, 6, 6), (8, 6, 6)])
def test_rotate90_equals_rot90(shape):
    images, turns = torch.rand(shape), torch.arange(8)[:, None] % 4
    result = Rotate90().apply(images, turns)
    for image, turn, turned in zip(images, turns, result, strict=True):
        assert torch.equal(turned, torch.rot90(image, int(turn), (-2, -1)))
    with pytest.raises(ValueError, match="square"):
        Rotate90().apply(torch.rand(2, 3, 4, 6), turns[:2])
    drawn = Rotate90().draw(10_000, 6, 6, generator(), CPU)
    assert torch.bincount(drawn[:, 0]).float().sub(2500).abs().max() < 200


def test_resized_crop_equals_interpolation():
    crop = ResizedCrop()
    images = torch.rand(30, 3, 24, 24)
    params = crop.draw(30, 24, 24, generator(), CPU)
    bilinear, nearest = crop.apply(images, params), crop.apply(images[:, 0], params)
    for i, (top, left, tall, wide) in enumerate(params.tolist()):
        box = images[i : i + 1, :, top : top + tall, left : left + wide]
        close(bilinear[i], F.interpolate(box, (24, 24), mode="bilinear")[0])
        assert torch.equal(
            nearest[i], F.interpolate(box[:, :1], (24, 24), mode="nearest-exact")[0, 0]
        )


def test_resized_crop_draws_boxes_as_published():
    size = 200  # large, so that rounding to pixels does not matter
    top, left, tall, wide = ResizedCrop().draw(20_000, size, size, generator(), CPU).unbind(1)
    for start, length in ((top, tall), (left, wide)):
        assert start.min() >= 0 and (start + length).max() <= size
    area, ratio = tall * wide / size**2, (wide / tall).log()
    assert 0.19 < area.min() and area.max() <= 1 and ratio.abs().max() < 0.30
    assert ratio.mean() == pytest.approx(0, abs=0.005)
    # Small boxes always fit, so there the area is uniform: as many in 0.2-0.4 as in 0.4-0.6.
    low, high = ((area > a) & (area < a + 0.2) for a in (0.2, 0.4))
    assert low.sum() / high.sum() == pytest.approx(1, abs=0.05)
    assert (left / (size - wide).clamp_min(1))[low].float().mean() == pytest.approx(
        0.5, abs=0.02
    )


def test_resized_crops_show_the_share_that_is_asked_for():
    chosen = augment(data_info(), True, resized_crop=True, crop_scale=0.5)
    crop = chosen.transforms["resized_crop"]
    top, left, tall, wide = crop.draw(1000, 200, 200, generator(), CPU).unbind(1)
    area = tall * wide / 200**2
    assert 0.49 < area.min() < 0.51 and area.max() <= 1
    with pytest.raises(UserError, match="crop_scale = 0.0: expected a share"):
        augment(data_info(), True, resized_crop=True, crop_scale=0.0)


@pytest.mark.parametrize("size, taps", [(32, 3), (64, 7), (128, 13)])
def test_blur_equals_torchvision(size, taps):
    images = torch.rand(4, 3, size, size)
    sigmas = torch.tensor([[0.1], [0.7], [2.0], [0.0]])
    result = Blur().apply(images, sigmas)
    for image, sigma, blurred in zip(images[:3], sigmas, result, strict=False):
        close(blurred, reference.gaussian_blur(image, [taps, taps], [sigma.item()] * 2))
    assert torch.equal(result[3], images[3])
    drawn = Blur().draw(10_000, size, size, generator(), CPU)
    blurred = drawn[drawn > 0]
    assert len(blurred) == pytest.approx(5000, rel=0.05)
    assert blurred.min() >= 0.1 and blurred.max() <= 2
    assert blurred.mean() == pytest.approx(1.05, abs=0.05)


# ---- photo jitter ---------------------------------------------------------------------------


def torchvision_jitter(image, row):
    bright, contrast, saturation, hue = row.tolist()
    image = reference.adjust_brightness(image, bright)
    image = reference.adjust_contrast(image, contrast)
    return reference.adjust_hue(reference.adjust_saturation(image, saturation), hue)


def test_photo_jitter_equals_torchvision():
    jitter, images = PhotoJitter(), torch.rand(24, 3, 16, 16)
    params = jitter.draw(24, 16, 16, generator(), CPU)
    for image, row, result in zip(images, params, jitter.apply(images, params), strict=True):
        close(result, torchvision_jitter(image, row), 2e-5)


def test_photo_jitter_draws_within_its_strengths():
    params = PhotoJitter((0.4, 0.3, 1.5, 0.1)).draw(20_000, 8, 8, generator(), CPU)
    changed = (params != torch.tensor([1.0, 1, 1, 0])).any(1)
    assert changed.float().mean() == pytest.approx(0.8, abs=0.01)
    limits = [(0.6, 1.4), (0.7, 1.3), (0, 2.5), (-0.1, 0.1)]
    for values, (low, high) in zip(params[changed].T, limits, strict=True):
        assert low <= values.min() and values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.03)


def test_fast_photo_jitter_is_exact_without_hue_and_clipping():
    """With mild factors on middling images nothing clips, so both ways are the same."""
    jitter, images = PhotoJitter((0.2, 0.2, 0.2, 0), probability=1), torch.rand(24, 3, 8, 8)
    images = 0.35 + 0.25 * images
    params = jitter.draw(24, 8, 8, generator(), CPU)
    close(jitter.fast(images * 255, params, 255) / 255, jitter.apply(images, params), 2e-4)


def test_fast_photo_jitter_is_near_the_exact_one():
    jitter = PhotoJitter(probability=1)
    images = torch.rand(64, 3, 8, 8, generator=generator()) * 0.3
    images += torch.rand(64, 1, 8, 8, generator=generator(1)) * 0.6
    params = jitter.draw(64, 8, 8, generator(), CPU)
    exact, fast = jitter.apply(images, params), jitter.fast(images, params, 1)
    assert fast.min() >= 0 and fast.max() <= 1
    assert (fast - exact).abs().mean() < 0.02 < (images - exact).abs().mean() / 3


@pytest.mark.parametrize("stored", ["uint8", "normalised"])
def test_photo_jitter_in_the_pipeline(stored):
    info, images = data_info(stored=stored), stored_images(stored=stored)
    options = dict(
        dict.fromkeys(("color_jitter", "grayscale", "flip", "crop", "cutout"), False)
    )
    augmentation = augment(
        info, True, photo_jitter=[0.4, 0.4, 0.4, 0.1], exact_photo_jitter=True, **options
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    rgb = images.float() if stored == "uint8" else (images.float() * std + mean)
    params = augmentation.draw(16, 32, 32, generator(), CPU)
    jittered = augmentation.transforms["photo_jitter"].apply(rgb / 255, params["photo_jitter"])
    close(augmentation.apply(images, params), (jittered * 255 - mean) / std, 1e-4)
    fast = augment(info, True, photo_jitter=[0.4, 0.4, 0.4, 0.1], **options)
    assert (fast.apply(images, params) - augmentation.apply(images, params)).abs().mean() < 0.2


def test_wrong_photo_jitter_is_explained():
    for wrong in ([0.4, 0.4, 0.4], [0.4, 0.4, 0.4, 0.7], [0.4, -1, 0.4, 0.1]):
        with pytest.raises(UserError, match="augment.photo_jitter is .* four strengths"):
            augment(data_info(), True, photo_jitter=wrong)
    with pytest.raises(UserError, match="stored as normalised LAB"):
        augment(
            data_info(space="lab", stored="normalised"), True, photo_jitter=[0.4, 0.4, 0.4, 0.1]
        )


def test_gin_binds_every_argument_but_the_callers():
    gin.parse_config("augment.cutout = False\naugment.transform_targets = True")
    augmentation = augment(data_info(), True)
    assert "cutout" not in augmentation.transforms and augmentation.transform_targets
    with pytest.raises(ValueError, match="train"):
        gin.parse_config("augment.train = True")


def test_benchmark_baseline_really_augments():
    """The chunk-of-options algorithm is only a fair baseline if it does all five changes."""
    from bench.augment import chunks_of_options

    images = torch.rand(500, 3, 32, 32) + 1
    result = chunks_of_options(images)
    assert result.shape == images.shape
    assert ((result == 0).all(1).flatten(1).sum(1) >= 64).all()  # a hole of 8 x 8 in each
    grey = (result[:, 0] - result[:, 1]).abs().amax((1, 2)) < 1e-6
    assert grey.float().mean() == pytest.approx(0.25, abs=0.06)
