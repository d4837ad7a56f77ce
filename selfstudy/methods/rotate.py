"""Rotation prediction (Gidaris, Singh, Komodakis, ICLR 2018, arXiv 1803.07728).

Each image is rotated by 0, 90, 180 or 270 degrees, and a linear layer on its embedding
classifies the angle. Published with ResNet-9 on CIFAR-10: 100 rounds at a peak rate of 0.001.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy.data.transforms import Rotate90
from selfstudy.models.resnet import ResnetModel
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, draw_rows
from selfstudy.types import IGNORED, Batch, DataInfo, Features, Output
from util.errors import UserError

ANGLES = 4


@register("backbone", "rotate")
class RotateModel(ResnetModel):
    """An encoder with a linear classifier of four angles."""

    def __init__(self, info: DataInfo, run_selfsup: bool):
        super().__init__(info, run_selfsup)
        if run_selfsup:
            self.angle = nn.Linear(self.out_feats, ANGLES)

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """Logits over the angles, [B, 4]."""
        return {"angle": self.angle(feats[0].pooled)}


@register("task")
@configurable(denylist=["info"])
class RotateTask(PretextTask):
    """Cross-entropy over the angle.

    Dense targets are rotated with the images. Poses are not: their classes are defined in the
    world's axes, so an object rotated in the image plane has none. The pose probes therefore
    learn from unrotated images only.
    """

    backbone = "rotate"

    def __init__(self, info: DataInfo):
        super().__init__(info)
        self.turn = Rotate90()
        for name in info.targets:
            if self.turn.refuses(info.kind(name)):
                raise UserError(
                    f"RotateTask turns the images, and what the target '{name}' says then "
                    "cannot be worked out: leave it out (BaseDataset.targets), or declare it "
                    "invariant"
                )

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Turn each image by an angle of its own, and its targets with it."""
        images = batch.views[0]
        height, width = images.shape[2:]
        params = draw_rows(
            lambda n: self.turn.draw(n, height, width, generator, images.device),
            batch.idxs, generator,
        )  # fmt: skip
        targets = {
            name: self.turn.move(item, params, self.info.kind(name), (height, width))
            for name, item in batch.targets.items()
        }
        targets["angle"] = params[:, 0].long()
        if "pose" in targets:
            targets["pose"] = targets["pose"].masked_fill(targets["angle"] != 0, IGNORED)
        return dataclasses.replace(
            batch, views=(self.turn.apply(images, params),), targets=targets
        )

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """Four-way cross-entropy (nats) and accuracy."""
        logits, truth = self.output(out, "angle").float(), batch.targets["angle"]
        hits = logits.detach().argmax(1) == truth
        return {"loss": F.cross_entropy(logits, truth), "accuracy": hits.float().mean()}
