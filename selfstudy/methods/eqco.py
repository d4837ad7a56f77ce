"""EqCo (Zhu et al., arXiv 2010.01929): InfoNCE with few negatives, weighted as many.

InfoNCE with K negatives is the same as with alpha of them when each counts alpha / K times: the
margin log(alpha / K) is added to their logits. So a small queue, or the batch alone, does what
MoCo's queue of 65,536 does.
"""

import math

from torch import Tensor

from selfstudy.methods.moco import MoCoModel, MoCoTask
from selfstudy.registry import configurable, register
from selfstudy.types import DataInfo
from util.errors import UserError

register("backbone", "eqco")(MoCoModel)


@register("task")
@configurable(denylist=["info"])
class EqCoTask(MoCoTask):
    """MoCo's loss with the margin.

    Args:
        info: description of the data set.
        alpha: how many negatives the loss is to mimic.
    """

    backbone = "eqco"

    def __init__(self, info: DataInfo, alpha: float = 65536):
        if alpha <= 0:
            raise UserError(f"EqCoTask.alpha = {alpha}: expected a positive number")
        super().__init__(info)
        self.alpha = alpha

    def log_margin(self, batch: int, queue: Tensor | None) -> float:
        """log(alpha / K), K the negatives of the queue and of the batch of all processes."""
        count = (0 if queue is None else len(queue)) + (batch - 1 if self.in_batch else 0)
        return math.log(self.alpha / max(count, 1))
