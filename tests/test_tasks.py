"""Tasks and methods: losses against torch's, labels that never reach the encoder."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from selfstudy import registry
from selfstudy.models.wrapper import Wrapper
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError

pytestmark = pytest.mark.usefixtures("narrow")
registry.discover()
INFO = DataInfo(3, 16, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {"train": 8}, {"class": 10})
PRETEXT = [name for name in registry.names("task") if registry.get("task", name).backbone]


def batch(n=8, size=16):
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch((images,), {"class": torch.arange(n) % 10}, torch.arange(n))


def output(logits):
    nothing = torch.zeros(1)
    return Output(logits, {}, Features(nothing, nothing))


def test_classify_is_the_mean_cross_entropy_of_the_heads():
    task = registry.get("task", "ClassifyTask")(INFO)
    logits = {"fc/class": torch.randn(8, 10), "mlp/class": torch.randn(8, 10)}
    loss, metrics = task.evaluate(batch(), output(logits))
    truth = batch().targets["class"]
    expected = sum(F.cross_entropy(item, truth) for item in logits.values()) / 2
    assert torch.allclose(loss, expected)
    hits = (logits["fc/class"].argmax(1) == truth).float().mean()
    assert next(iter(metrics)) == "accuracy" and metrics["accuracy"] == hits


def test_dense_targets_meet_smaller_maps():
    task = registry.get("task", "ClassifyTask")(
        dataclasses.replace(INFO, targets={"segment": 3})
    )
    truth = torch.randint(0, 3, (2, 16, 16))
    one = Batch((torch.zeros(2, 3, 16, 16),), {"segment": truth}, torch.arange(2))
    coarse = truth[:, ::4, ::4]
    perfect = F.one_hot(coarse, 3).permute(0, 3, 1, 2).float() * 50
    loss, metrics = task.evaluate(one, output({"fc/segment": perfect}))
    assert loss < 1e-6 and metrics["accuracy"] == 1


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


@pytest.mark.parametrize("name", PRETEXT)
@pytest.mark.parametrize("labels", [True, False])
def test_methods_learn_and_labels_never_reach_the_encoder(name, labels):
    """Loss falls on one batch; the encoder's gradient is the same whatever the labels are."""
    cls = registry.get("task", name)
    info = INFO if labels else DataInfo(3, 16, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3)

    def gradient(shift):
        torch.manual_seed(0)
        model = Wrapper(info, model_choice=cls.backbone).train()
        task = cls(info)
        one = batch()
        one.targets = {"class": (one.targets["class"] + shift) % 10} if labels else {}
        one = task.prepare(one, torch.Generator().manual_seed(1))
        loss, metrics = task.evaluate(one, model(one))
        assert torch.isfinite(loss) and "accuracy" in metrics
        loss.backward()
        return model, task, one, [item.grad for item in model.backbone.parameters()]

    model, task, one, first = gradient(0)
    assert all(item is not None for item in first) and any(item.any() for item in first)
    assert all(torch.equal(a, b) for a, b in zip(first, gradient(3)[3], strict=True))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss, metrics = task.evaluate(one, model(one))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(metrics["pretext_loss"]))
    assert losses[-1] < 0.5 * losses[0]
