"""Tasks: losses and metrics against torch's, and what rotation does to images."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from test_dense import output

from selfstudy import registry
from selfstudy.types import Batch, DataInfo
from util.errors import UserError

registry.discover()
INFO = DataInfo(3, 16, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {"train": 8}, {"class": 10})


def batch(n=8, size=16):
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch((images,), {"class": torch.arange(n) % 10}, torch.arange(n))


def test_classify_is_the_mean_cross_entropy_of_the_heads():
    task = registry.get("task", "ClassifyTask")(INFO)
    logits = {"fc/class": torch.randn(8, 10), "mlp/class": torch.randn(8, 10)}
    loss, metrics = task.evaluate(batch(), output(logits))
    truth = batch().targets["class"]
    expected = sum(F.cross_entropy(item, truth) for item in logits.values()) / 2
    assert torch.allclose(loss, expected)
    hits = (logits["fc/class"].argmax(1) == truth).float().mean()
    assert next(iter(metrics)) == "accuracy" and metrics["accuracy"].finish() == hits


def test_dense_targets_meet_smaller_maps():
    task = registry.get("task", "ClassifyTask")(
        dataclasses.replace(INFO, targets={"segment": 3})
    )
    truth = torch.randint(0, 3, (2, 16, 16))
    one = Batch((torch.zeros(2, 3, 16, 16),), {"segment": truth}, torch.arange(2))
    coarse = truth[:, ::4, ::4]
    perfect = F.one_hot(coarse, 3).permute(0, 3, 1, 2).float() * 50
    loss, metrics = task.evaluate(one, output({"fc/segment": perfect}))
    assert loss < 1e-6 and metrics["accuracy"].finish() == 1


def test_pose_uses_only_the_pose_heads():
    info = DataInfo(3, 16, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {}, {"class": 10, "pose": 5})
    task = registry.get("task", "ClassifyTask")(info, is_pose=True)
    one = batch()
    one.targets["pose"] = torch.arange(8) % 5
    logits = {"fc/class": torch.randn(8, 10), "fc/pose": torch.randn(8, 5)}
    loss, _ = task.evaluate(one, output(logits))
    assert torch.allclose(loss, F.cross_entropy(logits["fc/pose"], one.targets["pose"]))


def test_missing_labels_are_said():
    with pytest.raises(UserError, match="needs 'class' labels and the data have none"):
        registry.get("task", "ClassifyTask")(DataInfo(3, 16, "rgb", "uint8", (0.0,), (1.0,)))


def test_rotation_turns_by_the_angle_that_it_asks_for():
    task = registry.get("task", "RotateTask")(INFO)
    one = batch(400, 8)
    turned = task.prepare(one, torch.Generator().manual_seed(3))
    for image, result, angle in zip(one.views[0], turned.views[0], turned.targets["angle"],
                                    strict=True):  # fmt: skip
        assert torch.equal(torch.rot90(image, int(angle), (1, 2)), result)
    counts = torch.bincount(turned.targets["angle"], minlength=4)
    assert counts.min() > 60 and "angle" not in one.targets
