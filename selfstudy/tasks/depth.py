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

    Needs `Wrapper.dense_pred`. Pixels without a surface count neither in the loss nor in a
    metric. `accuracy` is the linear head's share of pixels whose depth is less than 1.25
    times too large or too small; see `depth_errors` for the others.

    Args:
        info: what the data are.
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
        return self.trained(batch, out, "depth", self.use_l2)
