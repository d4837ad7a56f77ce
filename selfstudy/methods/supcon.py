"""Supervised contrastive learning (Khosla et al., NeurIPS 2020, arXiv 2004.11362).

SimCLR whose positives are all views of all images of the same class. The one method here in
which labels reach the encoder. Published: ResNet-50 on ImageNet, 78.7 % linear accuracy.
"""

import torch
from torch import Tensor

from selfstudy import distributed
from selfstudy.losses import contrastive, monitors
from selfstudy.models.siamese import Siamese
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import IGNORED, Batch, DataInfo, Output
from util.errors import UserError


@register("backbone", "supcon")
class SupConModel(Siamese):
    """An encoder and a projector, shared by both views."""


@register("task")
@configurable(denylist=["info"])
class SupConTask(PretextTask):
    """L_out over both views of the batch; an image without a label is a class of its own.

    Args:
        info: description of the data set, which must have classes.
        temperature: T.

    Raises:
        UserError: the data have no classes.
    """

    backbone = "supcon"
    batch_dependent = of_minibatch("loss", "negative", "spread")

    def __init__(self, info: DataInfo, temperature: float = 0.1):
        super().__init__(info)
        if not info.targets.get("class"):
            raise UserError(
                "SupConTask learns from classes and these data have none: take data with "
                "classes, or session.task = 'SimCLRTask' with Wrapper.model_choice = 'simclr'"
            )
        if temperature <= 0:
            raise UserError(f"SupConTask.temperature = {temperature}: expected a positive one")
        self.temperature = temperature

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss (nats), and the numbers of `monitors.health`."""
        z0, z1 = self.output(out, "query0"), self.output(out, "query1")
        gathered = distributed.gather(z0), distributed.gather(z1)
        labels = separate_unlabelled(distributed.gather_detached(batch.targets["class"]))
        offset = distributed.offset(z0)
        loss = contrastive.supervised_contrastive(
            torch.stack((z0, z1)), labels[offset : offset + len(z0)], self.temperature,
            torch.stack(gathered), labels, offset,
        )  # fmt: skip
        return {"loss": loss, **monitors.health(*gathered)}


def separate_unlabelled(labels: Tensor) -> Tensor:
    """Labels [B], each `IGNORED` one replaced by a distinct number below `IGNORED`."""
    own = IGNORED - 1 - torch.arange(len(labels), device=labels.device)
    return torch.where(labels == IGNORED, own, labels)
