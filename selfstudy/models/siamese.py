"""Shared by methods with two views of each image: projector, predictor, momentum encoder."""

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
    """An encoder with a projection and, where it has layers, a prediction.

    Args:
        info: what the data are.
        run_selfsup: False when only the encoder is wanted.
        unit_sphere: scale projections to length 1; None is the method's own way.

    Attributes:
        projection: MLP from the embedding to what the loss compares.
        prediction: MLP that foretells a projection; the identity unless `predictor.layers`.
    """

    uses = ("init_resnet", "projector", "predictor")
    on_sphere = True  # the method's own way

    def __init__(self, info: DataInfo, run_selfsup: bool, unit_sphere: bool | None = None):
        super().__init__(info, run_selfsup)
        self.unit_sphere = self.on_sphere if unit_sphere is None else unit_sphere
        if run_selfsup:
            self.projector = projector(self.out_feats)
            self.predictor = predictor(self.projector.out_feats, self.projector.norm)

    def placed(self, rows: Tensor) -> Tensor:
        """[B, D] on the unit sphere, where the method wants that."""
        return F.normalize(rows.float()) if self.unit_sphere else rows

    def queries(self, feats: tuple[Features, ...]) -> list[Tensor]:
        """Projected and predicted features [B, D] of each view."""
        return [self.placed(self.predictor(self.projector(each.pooled))) for each in feats]

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """'query0' and 'query1': [B, D] of each view."""
        check_views(batch)
        return {f"query{index}": rows for index, rows in enumerate(self.queries(feats))}


def check_views(batch: Batch) -> None:
    """Refuse a batch without a second view.

    Raises:
        UserError: it has one view.
    """
    if len(batch.views) < 2:
        raise UserError(
            "this method compares two views of each image: set BaseDataset.double_sample = True"
        )


@configurable(denylist=["info", "run_selfsup"])
class MomentumEncoder(Siamese):
    """With a copy of encoder and projection that follows slowly and makes the keys.

    The copy follows after each optimizer step (the family's code: before it, which is one
    step later). Only parameters follow; batch norms of the copy keep statistics of their own.

    Args:
        info: what the data are.
        run_selfsup: False when only the encoder is wanted.
        momentum: how much of the copy stays at each step (MoCo, arXiv 1911.05722, eq. 2).
        momentum_schedule: let it rise to 1 along a cosine (BYOL, arXiv 2006.07733).
        both_as_queries: each view is compared with the other's key; otherwise only the first
            is a query, and the second passes through the copy alone. None is the method's
            own way.
        shuffle_batch_norm: where several processes train, each makes keys of other images
            than its queries are of, so that batch norm cannot tell which belong together
            (MoCo, section 3.3). For `session.batch_norm = 'local'`; changes nothing else.
    """

    symmetric = False  # the method's own way
    followed: tuple[str, ...] = (
        "encoder",
        "projector",
    )  # what `momentum_encoder` copies, in order

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
            self.momentum_encoder = self.copied()

    def leaders(self) -> list[nn.Module]:
        """The modules of `followed`."""
        return [getattr(self, name) for name in self.followed]

    def copied(self) -> nn.ModuleList:
        """Copies of the leaders as they are now, without gradients."""
        copies = [copy.deepcopy(module) for module in self.leaders()]
        return nn.ModuleList(copies).requires_grad_(False)

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """Projections [B, D] of images by the copy."""
        encoder, projector = self.momentum_encoder[:2]
        mix = distributed.all_to_all if self.shuffle_batch_norm else lambda rows: rows
        return mix(self.placed(projector(encoder(mix(images)).pooled)))

    def selfsup(self, feats: tuple[Features, ...], batch: Batch) -> dict[str, Tensor]:
        """'query0' and 'key1'; with both views as queries 'query1' and 'key0' besides."""
        found = super().selfsup(feats, batch)
        wanted = (1, 0) if self.both else (1,)
        return found | {f"key{index}": self.keys(batch.views[index]) for index in wanted}

    def after_step(self, progress: float) -> None:
        """Let the copy follow."""
        momentum = self.momentum
        if self.momentum_schedule:
            momentum = 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2
        leader = [item for module in self.leaders() for item in module.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(list(self.momentum_encoder.parameters()), leader, 1 - momentum)


def enqueue(queue: Tensor, place: Tensor, rows: Tensor) -> None:
    """Let a queue take the latest rows in, the oldest making room.

    Args:
        queue: [..., K, D], a buffer, K at least 1.
        place: int64 without dimensions, a buffer: where the next row goes.
        rows: [..., B, D]; of more than K the last ones.
    """
    size = queue.shape[-2]
    rows = rows[..., -size:, :].to(queue.dtype)
    steps = torch.arange(rows.shape[-2], device=rows.device)
    queue.index_copy_(queue.ndim - 2, (place + steps) % size, rows)
    place.add_(len(steps)).remainder_(size)


class ScheduledFlags(nn.Module):
    """Tells what a method does only from some share of the run on.

    By flags on the host, since a number on the device would have to be waited for, and one on
    the host that changes at each step would be compiled anew each time. The buffer is for
    snapshots; it is read when one is loaded.

    Args:
        shares: name -> share of the run, 0 to 1, from which on it is due; 0 is from the start.

    Attributes:
        due: name -> whether it is due.

    Raises:
        UserError: a share is below 0 or above 1.
    """

    def __init__(self, shares: dict[str, float]):
        super().__init__()
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UserError(f"{name} = {share}: expected a share of the run, from 0 to 1")
        self.shares = shares
        self.due = {name: share == 0 for name, share in shares.items()}
        self.register_buffer("flags", torch.tensor(list(self.due.values())))
        self.register_load_state_dict_post_hook(_settle)

    def after_step(self, progress: float) -> None:
        """Told after each optimizer step; progress in [0, 1]."""
        due = {name: progress >= share for name, share in self.shares.items()}
        if due != self.due:
            self.due = due
            self.flags.copy_(torch.tensor(list(due.values())))


def _settle(clock: ScheduledFlags, _) -> None:
    """Set the host's flags to those that were loaded."""
    if not clock.flags.is_meta:
        clock.due = dict(zip(clock.shares, clock.flags.tolist(), strict=True))
