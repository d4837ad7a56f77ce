"""MoCo v1 and v2 (He et al., CVPR 2020, arXiv 1911.05722; Chen et al., arXiv 2003.04297).

InfoNCE between a query and the key of its other view, against a queue of earlier keys. A
momentum encoder computes the keys. v2 adds the MLP projector and stronger augmentation.
Published: ResNet-50 on ImageNet, 200 epochs, 67.5 % linear accuracy (v2).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy import distributed
from selfstudy.losses import contrastive, monitors
from selfstudy.losses.contrastive import Contrast
from selfstudy.models.siamese import MomentumEncoder, enqueue
from selfstudy.registry import configurable, register
from selfstudy.tasks.base import Metrics, PretextTask, of_minibatch
from selfstudy.types import Batch, DataInfo, Features, Output
from util.errors import UserError


@register("backbone", "moco")
@configurable(denylist=["info", "run_selfsup"])
class MoCoModel(MomentumEncoder):
    """Momentum encoder with a queue of the latest keys, which snapshots contain.

    Args:
        info: description of the data set.
        run_selfsup: False builds the encoder only.
        queue_size: K, keys in the queue; 0 has no queue (`MoCoTask.in_batch` is needed then).
    """

    queue: Tensor
    place: Tensor

    def __init__(self, info: DataInfo, run_selfsup: bool, queue_size: int = 65536):
        super().__init__(info, run_selfsup)
        if queue_size < 0:
            raise UserError(f"MoCoModel.queue_size = {queue_size}: expected 0 or more")
        self.new_keys: list[Tensor] = []  # keys of this step, for the queue
        if run_selfsup:
            rows = F.normalize(torch.randn(queue_size, self.projector.out_feats))
            self.register_buffer("queue", rows)
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """Queries and keys of `MomentumEncoder`, and the 'queue' [K, D] before them."""
        outputs = super().selfsup(feats, batch)
        if self.training:
            self.new_keys = [rows for name, rows in outputs.items() if name.startswith("key")]
        return outputs | {"queue": self.queue}

    def after_step(self, progress: float) -> None:
        """Update the teacher, and enqueue the keys of this step."""
        super().after_step(progress)
        for rows in self.new_keys if len(self.queue) else ():
            # Gathered, so that all processes have the same queue.
            enqueue(self.queue, self.place, distributed.gather_detached(rows))
        self.new_keys = []


@register("task")
@configurable(denylist=["info"])
class MoCoTask(PretextTask):
    """A loss between queries, their keys, and negatives of the queue and of the batch.

    Args:
        info: description of the data set.
        temperature: T.
        loss: 'ce' InfoNCE, 'bce' binary cross-entropy of each pair, 'ip' 1 minus the cosine of
            the pair (plus that of negatives).
        in_batch: use other images' keys in the batch as negatives too.
        factor: multiplies the loss.
    """

    backbone = "moco"

    def __init__(
        self,
        info: DataInfo,
        temperature: float = 0.2,
        loss: Literal["ce", "bce", "ip"] = "ce",
        in_batch: bool = False,
        factor: float = 1.0,
    ):
        super().__init__(info)
        if temperature <= 0:
            raise UserError(f"MoCoTask.temperature = {temperature}: expected a positive one")
        self.temperature, self.in_batch, self.factor = temperature, in_batch, factor
        self.compare = self.losses()[loss]
        others = ("loss", "accuracy", "top5", "negative") if in_batch else ()
        self.batch_dependent = of_minibatch("spread", *others)

    def losses(self) -> dict[str, Callable[..., Contrast]]:
        """By name: (queries, keys, queue or None, keys of all, offset) -> `Contrast`."""
        t, batch = self.temperature, self.in_batch
        return {
            "ce": lambda q, k, queue, *all_keys: contrastive.info_nce(
                q,
                k,
                t,
                queue,
                batch,
                all_keys[0],
                all_keys[1],
                self.log_margin(len(all_keys[0]), queue),
            ),
            "bce": lambda q, k, queue, *all_keys: contrastive.bce(
                q, k, t, queue, batch, *all_keys
            ),
            "ip": lambda q, k, queue, *all_keys: contrastive.inner_product(
                q, k, queue, batch, *all_keys
            ),
        }

    def log_margin(self, batch: int, queue: Tensor | None) -> float:
        """Logarithm of the negatives' weight in the loss; 0 is a weight of 1."""
        return 0.0

    def pretext(self, batch: Batch, out: Output) -> Metrics:
        """The loss, summed over both directions where there are two; see `Contrast`."""
        self.output(out, "query0")
        queue = out.selfsup.get("queue")
        pairs = [(f"query{a}", f"key{b}") for a, b in ((0, 1), (1, 0))
                 if f"key{b}" in out.selfsup]  # fmt: skip
        contrasts = [self._contrast(out.selfsup[q], out.selfsup[k], queue) for q, k in pairs]
        first, queries = contrasts[0], distributed.gather_detached(out.selfsup["query0"])
        losses = torch.stack([contrast.loss for contrast in contrasts])
        metrics = {
            "loss": self.factor * losses.sum(),
            "accuracy": first.top1,
            "top5": first.top5,
            "positive": first.positive,
            "negative": first.negative,
            "spread": monitors.feature_std(queries),
        }
        return {name: item for name, item in metrics.items() if item is not None}

    def _contrast(self, queries: Tensor, keys: Tensor, queue: Tensor | None) -> Contrast:
        all_keys = distributed.gather(keys) if self.in_batch else keys
        return self.compare(queries, keys, queue, all_keys, distributed.offset(keys))
