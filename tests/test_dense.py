"""Targets at each pixel: losses and metrics against loops, and how they move with images."""

import dataclasses
import math

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import paths
from selfstudy import configure, registry
from selfstudy.configure import Spec
from selfstudy.data.augment import augment
from selfstudy.data.transforms import Flip, PadCrop, ResizedCrop, Rotate90
from selfstudy.experiment import rehearsal
from selfstudy.models.wrapper import Wrapper
from selfstudy.tasks.base import classification_metrics, depth_errors
from selfstudy.train.session import Session
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError

registry.discover()
CPU = torch.device("cpu")
ALL = {"class": 10, "pose": 5, "segment": 11, "depth": 0, "normals": 0}
INFO = DataInfo(3, 16, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {"train": 8}, ALL)
NORMALS = INFO.kind("normals")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def info(*targets):
    return dataclasses.replace(INFO, targets={name: ALL[name] for name in targets})


def task(name, *targets, **more):
    return registry.get("task", name)(info(*targets), **more)


def output(logits, **selfsup):
    return Output(logits, selfsup, Features(torch.zeros(1), torch.zeros(1)))


def batch(size=16, **targets):
    n = len(next(iter(targets.values())))
    return Batch((torch.zeros(n, 3, size, size),), targets, torch.arange(n))


def surfaces(n=6, size=16, seed=0):
    """Depths of 0.5 to 2 m, a third of the places without a surface."""
    metres = 0.5 + 1.5 * torch.rand(n, size, size, generator=generator(seed))
    hidden = torch.rand(n, size, size, generator=generator(seed + 1)) < 1 / 3
    return metres.masked_fill(hidden, 0).half()


def finished(metrics):
    """The numbers of a minibatch's metrics."""
    return {name: item.finish() for name, item in metrics.items()}


# ---- depth ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_l2", [False, True])
def test_depth_equals_a_loop_over_the_pixels(use_l2):
    metres = surfaces()
    noise = 1 + 0.2 * torch.randn(metres.shape, generator=generator(5))
    out = 4 * (metres.float() * noise - 1)  # quarters of a metre from 1 m on
    out[0, 0] = -7.0  # behind the camera
    loss, _, metrics = depth_errors(out, metres, use_l2)
    errors, near, nearer = [], [], []
    for p, t in zip(out.flatten().double().tolist(), metres.flatten().tolist(), strict=True):
        if t == 0:
            continue
        p = 1 + p / 4
        errors.append(abs(p - t))
        near.append(0 < p < 1.25 * t and t < 1.25 * p)
        nearer.append(0 < p < 1.1 * t and t < 1.1 * p)
    errors = np.array(errors)
    expected = {"accuracy": np.mean(near), "strict": np.mean(nearer), "error": errors.mean(),
                "rmse": np.sqrt((errors**2).mean())}  # fmt: skip
    assert finished(metrics) == pytest.approx(expected)
    # The published scale: centimetres / 25.
    scaled = 100 * errors / 25
    assert float(loss) == pytest.approx((scaled**2).mean() if use_l2 else scaled.mean())
    assert 0.5 < expected["strict"] + 0.2 < expected["accuracy"] + 0.2 < 1.2


@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("use_l2", [False, True])
def test_places_without_a_surface_count_nowhere(garbage, use_l2):
    metres = surfaces()
    out = torch.randn(metres.shape, generator=generator(5))
    expected = depth_errors(out, metres, use_l2)
    spoilt = torch.where(metres > 0, out, garbage).requires_grad_()
    loss, part, metrics = depth_errors(spoilt, metres, use_l2)
    assert loss == expected[0] and torch.equal(part.state, expected[1].state)
    assert finished(metrics) == finished(expected[2])
    loss.backward()
    moved = spoilt.grad != 0
    assert torch.equal(moved, metres > 0) and spoilt.grad.isfinite().all()


def test_a_batch_without_any_surface_is_no_accident():
    out = torch.randn(2, 1, 4, 4, requires_grad=True)
    one = batch(depth=torch.zeros(2, 16, 16).half())
    loss, metrics = task("DepthTask", "depth").evaluate(one, output({"fc/depth": out}))
    loss.backward()
    assert loss == 0 and not out.grad.any()
    assert all(math.isnan(item) for item in finished(metrics).values())


def test_depth_task_is_the_mean_of_its_two_heads_at_the_size_of_the_map():
    """The nearest pixel and never a mean, which would mix surfaces with nothing."""
    metres = surfaces()
    coarse = metres[:, ::4, ::4].float()
    right = 4 * (coarse[:, None] - 1)
    logits = {"fc/depth": right, "mlp/depth": right + 1}
    logits["fc/segment"] = torch.full((6, 11, 4, 4), torch.nan)
    one = batch(depth=metres)
    loss, metrics = task("DepthTask", "depth").evaluate(one, output(logits))
    assert loss == pytest.approx(0.5)
    assert list(metrics)[:2] == ["accuracy", "loss"] and metrics["accuracy"].finish() == 1
    assert metrics["mlp_depth_error"].finish() == pytest.approx(0.25)
    loss, _ = task("DepthTask", "depth", use_l2=True).evaluate(one, output(logits))
    assert loss == pytest.approx(0.5)
    half = {name: item.bfloat16() for name, item in logits.items()}
    loss, _ = task("DepthTask", "depth").evaluate(one, output(half))
    assert loss.dtype == torch.float32 and loss == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("targets, head, message", [
    (("class",), "fc/depth", "DepthTask needs 'depth' .* of the data are: class; .*"
     "SynDataset.dense = ..depth"),
    ((), "fc/depth", "are: none"),
    (("depth",), "fc/class", "no probe predicts 'depth': see .*Wrapper.dense_pred"),
])  # fmt: skip
def test_depth_says_what_it_misses(targets, head, message):
    with pytest.raises(UserError, match=message):
        one = batch(depth=surfaces())
        task("DepthTask", *targets).evaluate(one, output({head: torch.zeros(6, 1, 4, 4)}))


def test_depth_is_one_number():
    with pytest.raises(UserError, match=r"out_classes = \[11, 5\]: depth is one number"):
        Wrapper(INFO, out_classes=[11, 5], dense_pred=True)


# ---- segmentation ---------------------------------------------------------------------------


def test_foreground_tells_what_accuracy_hides():
    truth = torch.zeros(4, 8, 8, dtype=torch.int64)
    truth[:, 2:4, 2:4] = 3
    guess = F.one_hot(torch.zeros_like(truth), 11).movedim(-1, 1).float()
    *_, metrics = classification_metrics(guess, truth)
    assert metrics["accuracy"].finish() == 60 / 64 and metrics["foreground"].finish() == 0
    guess[:2, 3, 2:4, 2:4] = 9  # the objects of half of the pictures are found
    *_, metrics = classification_metrics(guess, truth)
    assert metrics["accuracy"].finish() == 62 / 64 and metrics["foreground"].finish() == 0.5
    *_, metrics = classification_metrics(guess, torch.zeros_like(truth))
    assert math.isnan(metrics["foreground"].finish())


def test_pixels_are_classified_where_the_heads_are_for_pixels():
    """Data with labels of both kinds: what is trained is what there are heads for."""
    targets = {"class": torch.arange(6), "segment": torch.randint(0, 11, (6, 16, 16))}
    classify, one = task("ClassifyTask", "class", "segment"), batch(**targets)
    dense = {"fc/segment": torch.randn(6, 11, 16, 16), "fc/depth": torch.randn(6, 1, 16, 16)}
    loss, metrics = classify.evaluate(one, output(dense))
    assert torch.allclose(loss, F.cross_entropy(dense["fc/segment"], targets["segment"]))
    assert metrics["accuracy"].finish() == metrics["fc_segment_accuracy"].finish()
    loss, _ = classify.evaluate(one, output({"fc/class": torch.eye(6, 10) * 99}))
    assert loss < 1e-6


def test_pose_is_never_replaced_by_pixels():
    with pytest.raises(UserError, match="needs 'pose' .* have segment.*predict_pose = True"):
        task("ClassifyTask", "segment", is_pose=True)
    one = batch(segment=torch.zeros(2, 16, 16).long(), pose=torch.zeros(2).long())
    with pytest.raises(UserError, match="no probe predicts 'pose'"):
        task("ClassifyTask", "segment", "pose", is_pose=True).evaluate(
            one, output({"fc/segment": torch.zeros(2, 11, 16, 16)})
        )


# ---- pretraining ----------------------------------------------------------------------------


def test_pretraining_adds_all_dense_probes():
    segment, depth = torch.randint(0, 11, (6, 16, 16)), surfaces()
    one = batch(segment=segment, depth=depth, angle=torch.zeros(6).long())
    logits = {"fc/segment": torch.randn(6, 11, 4, 4), "fc/depth": torch.randn(6, 1, 4, 4)}
    angle = torch.randn(6, 4)
    rotate = task("RotateTask", "segment", "depth")
    loss, metrics = rotate.evaluate(one, output(logits, angle=angle))
    near = depth[:, ::4, ::4].float()
    there = near > 0
    wanted = (logits["fc/depth"][:, 0] - 4 * (near - 1))[there].abs().mean()
    wanted = (wanted + F.cross_entropy(logits["fc/segment"], segment[:, ::4, ::4])) / 2
    assert torch.allclose(loss, wanted + F.cross_entropy(angle, one.targets["angle"]))
    assert metrics["accuracy"].finish() == metrics["fc_segment_accuracy"].finish()
    assert {"fc_depth_rmse", "fc_segment_foreground", "pretext_accuracy"} <= metrics.keys()


def test_rotation_turns_dense_targets():
    ids = torch.arange(1, 257).view(1, 16, 16).expand(64, -1, -1).contiguous()
    facing = normals_of(hills(64))
    one = batch(segment=ids, depth=ids / 100, normals=facing)
    one.views = (ids[:, None].float(),)
    turned = task("RotateTask", "segment").prepare(one, generator(1))
    assert torch.equal(turned.targets["segment"], turned.views[0][:, 0].long())
    assert torch.equal(turned.targets["depth"], turned.views[0][:, 0] / 100)
    for before, after, k in zip(hills(64), turned.targets["normals"],
                                turned.targets["angle"].tolist(), strict=True):  # fmt: skip
        assert torch.equal(normals_of(torch.rot90(before, k)[None])[0], after)


def test_poses_of_turned_images_count_nowhere():
    rotate, pose = task("RotateTask", "class", "pose"), torch.arange(64) % 5
    one = rotate.prepare(batch(pose=pose, **{"class": pose}), generator(1))
    upright = one.targets["angle"] == 0
    assert 5 < upright.sum() < 30 and torch.equal(one.targets["class"], pose)
    logits = {"fc/pose": torch.randn(64, 5)}
    _, metrics = rotate.evaluate(one, output(logits, angle=torch.zeros(64, 4)))
    hits = logits["fc/pose"].argmax(1) == pose
    right = hits[upright].double().mean().item()
    assert metrics["fc_pose_accuracy"].finish() == pytest.approx(right)
    wanted = F.cross_entropy(logits["fc/pose"][upright], pose[upright])
    found = metrics["loss"].finish() - metrics["pretext_loss"].finish()
    assert found == pytest.approx(wanted.item(), abs=1e-6)
    one.targets["pose"] = torch.full((64,), -100)
    loss, metrics = rotate.evaluate(one, output(logits, angle=torch.zeros(64, 4)))
    assert loss.item() == pytest.approx(metrics["pretext_loss"].finish())
    assert math.isnan(metrics["fc_pose_accuracy"].finish())


# ---- moving along ---------------------------------------------------------------------------


def hills(n, size=16):
    """Smooth heights [n, H, W] towards the camera, in pixels."""
    coarse = torch.rand(n, 1, 4, 4, generator=generator(7)) * 9
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)[:, 0]


def normals_of(heights):
    """Normals [n, 3, H, W] int8 of height fields by differences: right, up, to the camera."""
    down, right = torch.gradient(heights, dim=(1, 2))
    vectors = torch.stack([-right, down, torch.ones_like(right)], 1)
    return (F.normalize(vectors, dim=1) * 127).round().to(torch.int8)


@pytest.mark.parametrize("transform", [Flip(), Rotate90()])
def test_normals_turn_as_the_normals_of_the_turned_shape(transform):
    heights = hills(40)
    params = transform.draw(40, 16, 16, generator(3), CPU)
    moved = transform.move(normals_of(heights), params, NORMALS, (16, 16))
    expected = normals_of(transform.apply(heights, params))
    assert moved.dtype == torch.int8 and torch.equal(moved, expected)
    assert not torch.equal(transform.apply(normals_of(heights), params), expected)


def test_a_cropped_shape_keeps_its_normals():
    heights, crop = hills(40), PadCrop()
    params = crop.draw(40, 16, 16, generator(3), CPU)
    inside = crop.apply(torch.ones(40, 16, 16), params) > 0
    inner = ~F.max_pool2d((~inside).float(), 3, 1, 1).bool()
    inner[:, [0, -1]] = inner[:, :, [0, -1]] = False  # where a border changes the differences
    moved = crop.move(normals_of(heights), params, NORMALS, (16, 16))
    expected = normals_of(crop.apply(heights, params))
    assert torch.equal(moved.movedim(1, -1)[inner], expected.movedim(1, -1)[inner])
    assert not moved.movedim(1, -1)[~inside].any()


def test_enlarging_takes_whole_normals():
    ids = torch.arange(256).view(1, 16, 16).expand(20, -1, -1).contiguous()
    facing, crop = normals_of(hills(20)), ResizedCrop()
    params = crop.draw(20, 16, 16, generator(3), CPU)
    source = (
        crop.move(ids, params, INFO.kind("segment"), (16, 16))
        .flatten(1)[:, None]
        .expand(-1, 3, -1)
    )
    assert torch.equal(
        crop.move(facing, params, NORMALS, (16, 16)).flatten(2),
        facing.flatten(2).gather(2, source),
    )


@pytest.mark.parametrize("options", [{}, {"resized_crop": True}, {"crop": False}])
def test_all_dense_targets_move_together(options):
    """Each pixel that is somewhere afterwards has taken all of its targets there."""
    ids = torch.arange(1, 257).view(1, 16, 16).expand(40, -1, -1).contiguous()
    depth, facing = surfaces(40), normals_of(hills(40))
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    targets = {"segment": ids, "depth": depth, "normals": facing, "class": torch.arange(40)}
    augmentation = augment(INFO, True, transform_targets=True, **options)
    _, moved = augmentation(images, targets, generator(2), views=2)
    flipped = augmentation.draw(40, 16, 16, generator(2), CPU)["flip"]
    place = moved["segment"].flatten(1)
    there, place = place > 0, (place - 1).clamp_min(0)
    assert torch.equal(moved["class"], targets["class"]) and moved["depth"].dtype == depth.dtype
    assert there.all() == ("crop" in options or "resized_crop" in options)
    assert torch.equal(moved["depth"].flatten(1), depth.flatten(1).gather(1, place) * there)
    facing[:, 0] *= 1 - 2 * flipped[:, :, None].to(torch.int8)
    facing = facing.flatten(2).gather(2, place[:, None].expand(-1, 3, -1)) * there[:, None]
    assert torch.equal(moved["normals"].flatten(2), facing)


def test_images_may_not_move_away_from_their_targets():
    for options, first in (({}, "flip"), ({"flip": False}, "crop"),
                           ({"resized_crop": True}, "resized_crop")):  # fmt: skip
        with pytest.raises(UserError) as error:
            augment(info("class", "depth", "normals"), True, **options)
        assert error.value.text == (
            f"augment.{first} = True moves the images away from their targets (depth, "
            "normals): set augment.transform_targets = True, or switch it off"
        )
    augment(INFO, False)
    augment(INFO, True, flip=False, crop=False)
    augment(info("class", "pose"), True)


# ---- sessions -------------------------------------------------------------------------------

SETTINGS = (
    "session.dataset = 'SynDataset'",
    "SynDataset.dataset_choice = 'steps'",
    "BaseDataset.input_res = 16",
    "BaseDataset.num_valid = 8",
    "SynDataset.dense = ['segment', 'depth', 'normals']",
    "augment.transform_targets = True",
    "augment.color_jitter = False",
    "augment.grayscale = False",
    "augment.cutout = False",
    "dataloader.batch_size = 8",
    "optimizer.optim_fn = 'Adam'",
    "scheduler.target_lrs = 0.01",
    "scheduler.milestones = [1, 20]",
    "Wrapper.dense_pred = True",
    "ResNet.width = 0.125",
    "ResNet.out_feats = None",
    "ResNet.feat_layer = 2",
)
SUPERVISED = ("Wrapper.finetune_classifier = True", "Wrapper.run_selfsup = False")


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """96 pictures of a brighter square on black: the brighter, the nearer and the later class.

    The square covers a quarter of a picture, at any of four places.
    """
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    path = tmp_path / "syn" / "steps" / "data_16.h5"
    path.parent.mkdir(parents=True)
    random = np.random.RandomState(0)
    classes, places = np.arange(96) % 10, random.randint(0, 2, (96, 2)) * 8
    segment = np.zeros((96, 16, 16), np.uint8)
    for mask, label, (top, left) in zip(segment, classes, places, strict=True):
        mask[top : top + 8, left : left + 8] = label + 1
    images = np.repeat(segment[:, None] * 23, 3, 1)
    depth = np.where(segment > 0, 2.2 - 0.2 * segment, 0).astype(np.float16)
    facing = np.zeros((96, 3, 16, 16), np.int8)
    facing[:, 2] = 127 * (segment > 0)
    with h5py.File(path, "w") as file:
        file["data"], file["targets"] = images.astype(np.uint8), classes
        file["segment"], file["depth"], file["normals"] = segment, depth, facing


@pytest.mark.parametrize("name, key, constant", [
    ("ClassifyTask", "fc_segment_foreground", 0.1), ("DepthTask", "fc_depth_strict", 0.2),
])  # fmt: skip
def test_a_session_learns_each_pixel(name, key, constant, steps):
    configure.load(Spec((), (*SETTINGS, *SUPERVISED, f"session.task = '{name}'")))
    session = Session(CPU)
    for _ in range(20):
        result = session.round()
    assert result[f"valid_{key}"] > constant + 0.4, result
    assert result["valid_accuracy"] > 0.8


def test_the_rehearsal_knows_dense_targets(steps):
    task = ("session.task = 'RotateTask'", "Wrapper.model_choice = 'rotate'")
    found = rehearsal.check(Spec((), (*SETTINGS, *task)), {})
    assert {"valid_fc_depth_strict", "train_mlp_segment_foreground"} <= set(found.metrics)
    with pytest.raises(UserError, match="set augment.transform_targets = True"):
        rehearsal.check(Spec((), (*SETTINGS, "augment.transform_targets = False")), {})
