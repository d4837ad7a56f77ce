"""Base models of methods with two views: projector, predictor, momentum encoder, queue."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy import distributed
from selfstudy.models.heads import predictor, projector
from selfstudy.models.resnet import ResnetModel
from selfstudy.registry import configurable
from selfstudy.types import Batch, DataInfo, Features
from util.errors import UserError


@configurable(denylist=["info", "run_selfsup"])
class Siamese(ResnetModel):
    """Encoder, projector and predictor, shared by both views.

    Args:
        info: description of the data set.
        run_selfsup: False builds the encoder only.
        unit_sphere: L2-normalise the rows that the loss compares; None is the method's default.

    Attributes:
        projector: MLP from embeddings to projections.
        predictor: MLP from projections to predictions of the other view's projection; the
            identity if `predictor.layers` is 0.
    """

    uses = ("init_resnet", "projector", "predictor")
    on_sphere = True  # the method's default of `unit_sphere`

    def __init__(self, info: DataInfo, run_selfsup: bool, unit_sphere: bool | None = None):
        super().__init__(info, run_selfsup)
        self.unit_sphere = self.on_sphere if unit_sphere is None else unit_sphere
        if run_selfsup:
            self.projector = projector(self.out_feats)
            self.predictor = predictor(self.projector.out_feats, self.projector.norm)

    def normalise(self, rows: Tensor) -> Tensor:
        """L2-normalised rows [B, D] if `unit_sphere`, else the rows."""
        return F.normalize(rows.float()) if self.unit_sphere else rows

    def queries(self, feats: tuple[Features, ...]) -> list[Tensor]:
        """Predictions [B, D] of each view."""
        return [self.normalise(self.predictor(self.projector(each.pooled))) for each in feats]

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """'query0' and 'query1': predictions [B, D] of each view."""
        check_views(batch)
        return {f"query{index}": rows for index, rows in enumerate(self.queries(feats))}


def check_views(batch: Batch) -> None:
    """Refuse a batch with a single view.

    Raises:
        UserError: the batch has one view.
    """
    if len(batch.views) < 2:
        raise UserError(
            "this method compares two views of each image: set BaseDataset.double_sample = True"
        )


@configurable(denylist=["info", "run_selfsup"])
class MomentumEncoder(Siamese):
    """Siamese model with a momentum encoder (EMA teacher) that computes the keys.

    The teacher's parameters are an exponential moving average of the online encoder's and
    projector's, updated after each optimizer step (the code of untitled-ai/self_supervised
    updates before it, one step later). Buffers are not averaged: the teacher's batch norms keep
    running statistics of their own.

    Args:
        info: description of the data set.
        run_selfsup: False builds the encoder only.
        momentum: EMA decay per step (MoCo, arXiv 1911.05722, eq. 2).
        momentum_schedule: raise `momentum` to 1 by a cosine schedule (BYOL, arXiv 2006.07733).
        both_as_queries: symmetric loss, each view being compared with the other's key;
            otherwise the first view gives the queries and the second the keys. None is the
            method's default.
        shuffle_batch_norm: with several processes, exchange images among them before keys are
            computed, so that batch statistics do not reveal which key belongs to which query
            (shuffling BN, MoCo, section 3.3). For `session.batch_norm = 'local'`; no effect
            otherwise.
    """

    symmetric = False  # the method's default of `both_as_queries`
    averaged: tuple[str, ...] = (
        "encoder",
        "projector",
    )  # modules that the teacher has, in order

    def __init__(
        self,
        info: DataInfo,
        run_selfsup: bool,
        momentum: float = 0.996,
        momentum_schedule: bool = False,
        both_as_queries: bool | None = None,
        shuffle_batch_norm: bool = False,
    ):
        super().__init__(info, run_selfsup)
        if not 0 <= momentum <= 1:
            raise UserError(
                f"MomentumEncoder.momentum = {momentum}: expected 0 to 1, such as 0.996"
            )
        self.momentum, self.momentum_schedule = momentum, momentum_schedule
        self.shuffle_batch_norm = shuffle_batch_norm
        self.both = self.symmetric if both_as_queries is None else both_as_queries
        self.encoded_views = None if self.both else 1
        if run_selfsup:
            self.momentum_encoder = self.copy_online()

    def online_modules(self) -> list[nn.Module]:
        """The modules named in `averaged`."""
        return [getattr(self, name) for name in self.averaged]

    def copy_online(self) -> nn.ModuleList:
        """Copies of the online modules, without gradients: the initial teacher."""
        copies = [copy.deepcopy(module) for module in self.online_modules()]
        return nn.ModuleList(copies).requires_grad_(False)

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """The teacher's projections [B, D] of images."""
        encoder, projector = self.momentum_encoder[:2]
        mix = distributed.all_to_all if self.shuffle_batch_norm else lambda rows: rows
        return mix(self.normalise(projector(encoder(mix(images)).pooled)))

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """'query0' and 'key1' [B, D]; also 'query1' and 'key0' if both views are queries."""
        queries = super().selfsup(feats, batch)
        views = (1, 0) if self.both else (1,)
        return queries | {f"key{view}": self.keys(batch.views[view]) for view in views}

    def after_step(self, progress: float) -> None:
        """Update the teacher's moving average; progress in [0, 1]."""
        momentum = self.momentum
        if self.momentum_schedule:
            momentum = 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2
        online: list[Tensor] = []
        for module in self.online_modules():
            online += module.parameters()
        teacher: list[Tensor] = list(self.momentum_encoder.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(teacher, online, 1 - momentum)


def enqueue(queue: Tensor, place: Tensor, rows: Tensor) -> None:
    """Write rows to a ring buffer, over its oldest ones.

    Args:
        queue: [..., K, D], the buffer, K at least 1.
        place: [] int64, a buffer: position of the next row in the queue.
        rows: [..., B, D]; only the last K of them are written.
    """
    size = queue.shape[-2]
    rows = rows[..., -size:, :].to(queue.dtype)
    steps = torch.arange(rows.shape[-2], device=rows.device)
    queue.index_copy_(queue.ndim - 2, (place + steps) % size, rows)
    place.add_(len(steps)).remainder_(size)


class ScheduledFlags(nn.Module):
    """Switches that turn on once a given share of the run is done.

    The flags are Python values on the host: reading one from the device would synchronise with
    it, and a number that changes at each step would make torch.compile recompile. The buffer
    carries them through snapshots; it is read only when one is loaded.

    Args:
        shares: name -> share of the run, 0 to 1, at which the flag turns on; 0 is the start.

    Attributes:
        due: name -> whether the flag is on.

    Raises:
        UserError: a share is below 0 or above 1.
    """

    flags: Tensor

    def __init__(self, shares: dict[str, float]):
        super().__init__()
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UserError(f"{name} = {share}: expected a share of the run, from 0 to 1")
        self.shares = shares
        self.due = {name: share == 0 for name, share in shares.items()}
        self.register_buffer("flags", torch.tensor(list(self.due.values())))
        self.register_load_state_dict_post_hook(_restore_due)

    def after_step(self, progress: float) -> None:
        """Update the flags; called after each optimizer step with progress in [0, 1]."""
        due = {name: progress >= share for name, share in self.shares.items()}
        if due != self.due:
            self.due = due
            self.flags.copy_(torch.tensor(list(due.values())))


def _restore_due(scheduled: ScheduledFlags, _) -> None:
    """Set the host's flags to the loaded buffer."""
    if not scheduled.flags.is_meta:
        scheduled.due = dict(zip(scheduled.shares, scheduled.flags.tolist(), strict=True))
