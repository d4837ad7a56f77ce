"""SwAV (Caron et al., NeurIPS 2020, arXiv 2006.09882): swapped cluster assignments.

Each view's features are assigned to prototypes, balanced over the batch, and each view predicts
the assignment of the other. Two views; the paper's multi-crop is not implemented.
Published: ResNet-50 on ImageNet, 400 epochs without small crops, 70.1 % linear accuracy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy import distributed
from selfstudy.losses import clusters, monitors
from selfstudy.models.siamese import ScheduledFlags, Siamese, enqueue
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError

VIEWS = 2


@register("backbone", "swav")
@configurable(denylist=["info", "run_selfsup"])
class SwAVModel(Siamese):
    """An encoder, a projector, and prototypes: learned unit vectors.

    Args:
        info: description of the data set.
        run_selfsup: False builds the encoder only.
        prototypes: K.
        frozen: share of the run during which prototypes stay at their initial values
            (published: the first of 800 epochs).
        queue_size: latest features of each view that are assigned together with a batch too
            small to use all prototypes; 0 keeps none (published: 3,840 for batches of 256).
        queue_start: share of the run from which on they take part (published: 15 epochs).
    """

    queue: Tensor
    place: Tensor

    def __init__(
        self,
        info: DataInfo,
        run_selfsup: bool,
        prototypes: int = 3000,
        frozen: float = 0.0,
        queue_size: int = 0,
        queue_start: float = 0.075,
    ):
        super().__init__(info, run_selfsup)
        if prototypes < 2 or queue_size < 0:
            raise UserError(
                f"SwAVModel.prototypes = {prototypes}, queue_size = {queue_size}: expected 2 "
                "or more prototypes, and 0 or more rows"
            )
        self.new_rows: list[Tensor] = []  # features of this step, for the queue
        if run_selfsup:
            self.scheduled = ScheduledFlags(
                {"SwAVModel.frozen": frozen, "SwAVModel.queue_start": queue_start}
            )
            dims = self.projector.out_feats
            self.prototypes = nn.Linear(dims, prototypes, bias=False)
            self._to_sphere()
            rows = F.normalize(torch.randn(VIEWS, queue_size, dims), dim=2)
            self.register_buffer("queue", rows)
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def _to_sphere(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight))

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """'query...' and their products with prototypes, 'scores...' [B, K], of each view.

        Once the queue is in use also its products [Q, K], 'queued...', without gradient.
        """
        outputs = super().selfsup(feats, batch)
        weight = self.prototypes.weight
        if not self.scheduled.due["SwAVModel.frozen"]:
            weight = weight.detach()  # no gradient at all, so no optimizer moves it
        rows = list(outputs.values())
        outputs |= {f"scores{view}": F.linear(z, weight) for view, z in enumerate(rows)}
        if len(self.queue[0]):
            self.new_rows = [z.detach() for z in rows] if self.training else []
            if self.scheduled.due["SwAVModel.queue_start"]:
                outputs |= {f"queued{view}": F.linear(self.queue[view], weight.detach())
                            for view in range(VIEWS)}  # fmt: skip
        return outputs

    def after_step(self, progress: float) -> None:
        """Normalise the prototypes, and enqueue the features of this step."""
        self.scheduled.after_step(progress)
        self._to_sphere()
        if self.new_rows:
            gathered = [distributed.gather_detached(rows) for rows in self.new_rows]
            enqueue(self.queue, self.place, torch.stack(gathered))
        self.new_rows = []


@register("task")
@configurable(denylist=["info"])
class SwAVTask(PretextTask):
    """Cross-entropy of each view's softmax to the other's assignment.

    Args:
        info: description of the data set.
        temperature: of the softmax, T.
        epsilon: smoothness of the assignments.
        iterations: of the Sinkhorn algorithm that makes them.
    """

    backbone = "swav"
    batch_dependent = of_minibatch("loss", "negative", "spread")

    def __init__(
        self,
        info: DataInfo,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
    ):
        super().__init__(info)
        if min(temperature, epsilon) <= 0 or iterations < 1:
            raise UserError(
                f"SwAVTask.temperature = {temperature}, epsilon = {epsilon}, iterations = "
                f"{iterations}: expected positive numbers, such as 0.1, 0.05 and 3"
            )
        self.options = {
            "temperature": temperature,
            "epsilon": epsilon,
            "iterations": iterations,
        }

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss (nats), and the numbers of `monitors.health`."""
        self.output(out, "query0")
        outputs = out.selfsup
        scores = [outputs[f"scores{view}"] for view in range(VIEWS)]
        all_scores = [distributed.gather_detached(item) for item in scores]
        if "queued0" in outputs:
            all_scores = [torch.cat((item, outputs[f"queued{view}"]))
                          for view, item in enumerate(all_scores)]  # fmt: skip
        offset = distributed.offset(scores[0])
        loss = clusters.swav(scores, all_scores=all_scores, offset=offset, **self.options)
        views = map(distributed.gather_detached, (outputs["query0"], outputs["query1"]))
        return {"loss": loss, **monitors.health(*views)}
