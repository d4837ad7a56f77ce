"""Classification of the object, its pose, or each pixel."""

import gin
import torch
from torch import Tensor

from selfstudy.registry import register
from selfstudy.tasks.base import Metrics, Task, probe_losses
from selfstudy.types import Batch, DataInfo, Output
from util.errors import UserError


@register("task")
@gin.configurable(denylist=["info"])
class ClassifyTask(Task):
    """Cross-entropy of the linear and the MLP head; `accuracy` is the linear head's.

    With `Wrapper.dense_pred` it is the classification of pixels.

    Args:
        info: what the data are.
        is_pose: predict the pose class instead of the object's.
    """

    def __init__(self, info: DataInfo, is_pose: bool = False):
        super().__init__(info)
        self.target = "pose" if is_pose else "class"
        if self.target not in info.targets and "segment" not in info.targets:
            have = ", ".join(info.targets) or "none"
            raise UserError(
                f"ClassifyTask needs '{self.target}' labels and the data have {have}; use data "
                "with labels, or a pretraining task such as -g digits/r9/rotate"
            )

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, Metrics]:
        """Mean cross-entropy of the heads of the target."""
        target = self.target if self.target in batch.targets else "segment"
        losses, metrics = probe_losses(batch, out, target)
        if not losses:
            raise UserError(
                f"no probe predicts '{target}' at this resolution: see Wrapper.run_classifier, "
                "Wrapper.out_classes and Wrapper.dense_pred"
            )
        loss = torch.stack(losses).mean()
        accuracy = metrics[f"fc_{target}_accuracy"]
        return loss, {"accuracy": accuracy, "loss": loss.detach()} | metrics
