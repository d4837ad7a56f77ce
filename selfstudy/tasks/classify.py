"""Classification of the image, its pose, or each pixel."""

from torch import Tensor

from selfstudy.registry import configurable, register
from selfstudy.tasks.base import ProbeTask, States
from selfstudy.types import Batch, DataInfo, Output
from util.errors import UserError

WAYS_OUT = {
    "class": "use data with labels, or a pretraining task such as -g digits/r9/rotate",
    "pose": "type -p 'BaseDataset.predict_pose = True', with a rendered set",
}


@register("task")
@configurable(denylist=["info"])
class ClassifyTask(ProbeTask):
    """Cross-entropy of the linear and the MLP head; `accuracy` is the linear head's.

    With `Wrapper.dense_pred` it is segmentation; 'foreground' is then the accuracy on the
    objects' pixels only.

    Args:
        info: description of the data set.
        is_pose: predict the pose class instead of the object class.
    """

    def __init__(self, info: DataInfo, is_pose: bool = False):
        super().__init__(info)
        self.target = "pose" if is_pose else "class"
        if self.target in info.targets or ("segment" in info.targets and not is_pose):
            return
        have = ", ".join(info.targets) or "none"
        raise UserError(
            f"ClassifyTask needs '{self.target}' labels and the data have {have}; "
            f"{WAYS_OUT[self.target]}"
        )

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, States]:
        """Mean cross-entropy of the heads of the target."""
        return self.evaluate_heads(batch, out, self._target(batch, out))

    def _target(self, batch: Batch, out: Output) -> str:
        """The target; 'segment' if heads and data have that and not 'class'."""
        known = batch.targets.keys() & {name.partition("/")[2] for name in out.logits}
        pixels = self.target == "class" and "class" not in known and "segment" in known
        return "segment" if pixels else self.target
