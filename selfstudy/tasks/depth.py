"""Depth of each pixel, by regression."""

from torch import Tensor

from selfstudy.registry import configurable, register
from selfstudy.tasks.base import ProbeTask, States
from selfstudy.types import Batch, DataInfo, Output
from util.errors import UserError


@register("task")
@configurable(denylist=["info"])
class DepthTask(ProbeTask):
    """L1 loss of the linear and the MLP head at each position of the feature map.

    Needs `Wrapper.dense_pred`. Pixels without a surface are excluded from the loss and
    all metrics. `accuracy` is the linear head's share of pixels with max(d/d*, d*/d) below
    1.25; see `depth_errors` for the others.

    Args:
        info: description of the data set.
        use_l2: mean squared error instead.
    """

    def __init__(self, info: DataInfo, use_l2: bool = False):
        super().__init__(info)
        self.use_l2 = use_l2
        if "depth" not in info.targets:
            have = ", ".join(info.targets) or "none"
            raise UserError(
                f"DepthTask needs 'depth' and the targets of the data are: {have}; with a "
                "rendered set type -p 'SynDataset.dense = [\"depth\"]'"
            )

    def evaluate(self, batch: Batch, out: Output) -> tuple[Tensor, States]:
        """Mean loss of the two heads, in units of 25 cm (published)."""
        return self.evaluate_heads(batch, out, "depth", self.use_l2)
