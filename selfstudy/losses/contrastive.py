"""Contrastive losses: a query's similarity to its key against that to other images' keys.

Letters in shapes: B rows of this process, N of all processes, K of the queue, V views, D.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfstudy.losses.precision import full_precision
from selfstudy.losses.queue import queue_logsumexp
from util.errors import UserError

WATCHED = 4096  # rows for mean cosines; reading a long queue again takes 5 % of the loss


class Contrast(NamedTuple):
    """A loss, and statistics as detached 0-d tensors.

    Attributes:
        loss: with its gradient.
        top1, top5: share of queries whose positive has the highest, or one of the five highest,
            of its 1 + negatives logits, ties counted as errors; None without negatives.
        positive: mean cosine of the positive pairs.
        negative: mean cosine of the negative pairs, of a long queue those with its first
            `WATCHED` rows; None without negatives.
    """

    loss: Tensor
    top1: Tensor | None
    top5: Tensor | None
    positive: Tensor
    negative: Tensor | None


@full_precision
def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    queue: Tensor | None = None,
    in_batch: bool = False,
    all_keys: Tensor | None = None,
    offset: int = 0,
    log_margin: float = 0.0,
) -> Contrast:
    """Cross-entropy of the positive among the negatives, in nats.

    InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4) as MoCo uses it (He et al., arXiv
    1911.05722, eq. 1): the mean over queries of -log(e^p / (e^p + sum of e^n)), where p and n
    are inner products with the key and with the negatives, divided by T. With `log_margin` =
    log(alpha / number of negatives) the negatives count as if there were alpha of them (EqCo,
    Zhu et al., arXiv 2010.01929).

    Args:
        queries: [B, D].
        keys: [B, D], each query's positive; they get a gradient if they require one.
        temperature: T.
        queue: [K, D] negatives for every query, without gradient.
        in_batch: use the other images' keys in the batch as negatives.
        all_keys: [N, D], the keys of all processes; by default `keys`.
        offset: index of the first row of `keys` in `all_keys`.
        log_margin: added to the negatives' logits in the loss (top-1 and top-5 ignore it).

    Raises:
        UserError: there is no negative.
    """
    positive = (queries * keys).sum(1) / temperature
    sums, above = [], torch.zeros_like(positive)
    others = _others(queries, keys, all_keys, offset) if in_batch else None
    if others is not None:
        logits = others / temperature
        sums.append(logits.logsumexp(1))
        above = above + _above(logits, positive)
    if queue is not None and len(queue):
        logsum, count = queue_logsumexp(queries, queue, positive, temperature)
        sums.append(logsum)
        above = above + count
    if not sums:
        raise UserError(
            "the loss 'ce' compares with negatives and has none: take them from the queue or "
            "from a batch of two images or more"
        )
    negative = torch.stack(sums).logsumexp(0) + log_margin
    # softplus(n - p) = -log(e^p / (e^p + e^n)); beyond 40 it is n - p to the last digit.
    loss = F.softplus(negative - positive, threshold=40).mean()
    return _contrast(loss, above, queries, keys, queue, in_batch, all_keys)


@full_precision
def bce(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    queue: Tensor | None = None,
    in_batch: bool = False,
    all_keys: Tensor | None = None,
    offset: int = 0,
) -> Contrast:
    """Binary cross-entropy of the logits of `info_nce`, times their number, in nats.

    Each logit classifies by itself whether its pair is of one image: the mean over queries of
    softplus(-p) + the sum of softplus(n). Arguments as in `info_nce`; works without negatives.
    """
    positive, negatives = _products(queries, keys, queue, in_batch, all_keys, offset)
    repulsion = F.softplus(negatives / temperature).sum(1)
    loss = (F.softplus(-positive / temperature) + repulsion).mean()
    above = _above(negatives, positive)
    return _contrast(loss, above, queries, keys, queue, in_batch, all_keys)


@full_precision
def inner_product(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor | None = None,
    in_batch: bool = False,
    all_keys: Tensor | None = None,
    offset: int = 0,
) -> Contrast:
    """Mean over all logits of 1 - p for the positive and 1 + n for a negative; no unit.

    p and n are plain inner products, cosines on the unit sphere. Without negatives it is half
    of BYOL's loss (Grill et al., arXiv 2006.07733, eq. 2). Arguments as in `info_nce`.
    """
    positive, negatives = _products(queries, keys, queue, in_batch, all_keys, offset)
    own = negatives == -torch.inf  # a query's own key in the batch, which is no negative
    repulsion = (1 + negatives.masked_fill(own, -1)).sum(1)
    count = _negatives(keys, queue, in_batch, all_keys)
    loss = ((1 - positive + repulsion) / (1 + count)).mean()
    above = _above(negatives, positive)
    return _contrast(loss, above, queries, keys, queue, in_batch, all_keys)


@full_precision
def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float,
    all_z0: Tensor | None = None,
    all_z1: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """SimCLR's loss (Chen et al., arXiv 2002.05709, eq. 1) in nats, mean over both views.

    Each of the 2N rows classifies its other view among the 2N - 1 rows that are not itself.

    Args:
        z0: [B, D], one view, on the unit sphere in the paper.
        z1: [B, D], the other view.
        temperature: T.
        all_z0: [N, D], z0 of all processes; by default the local rows.
        all_z1: the same of z1.
        offset: index of the first local row in them.
    """
    rows = torch.cat((z0, z1))
    columns, total = None, len(z0)
    if all_z0 is not None and all_z1 is not None and all_z0 is not z0:
        columns, total = torch.cat((all_z0, all_z1)), len(all_z0)
    own = _own(2, len(z0), total, offset, z0.device)
    return _SoftmaxContrast.apply(rows, columns, own.roll(len(z0)), own, temperature)


@full_precision
def cross_view(
    z0: Tensor,
    z1: Tensor,
    temperature: float,
    all_z0: Tensor | None = None,
    all_z1: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Cross-entropy of N x N pairs across the views in nats, the mean of both directions.

    Like `nt_xent` without negatives of a row's own view; the same arguments. The code of
    untitled-ai/self_supervised adds the two directions: twice this value.
    """
    if all_z0 is None or all_z1 is None:
        all_z0, all_z1 = z0, z1
    own = _own(1, len(z0), len(all_z0), offset, z0.device)
    first = _SoftmaxContrast.apply(z0, all_z1, own, None, temperature)
    return (first + _SoftmaxContrast.apply(z1, all_z0, own, None, temperature)) / 2


@full_precision
def supervised_contrastive(
    z: Tensor,
    labels: Tensor,
    temperature: float,
    all_z: Tensor | None = None,
    all_labels: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """L_out of Khosla et al. (arXiv 2004.11362, eq. 2) in nats, mean over anchors.

    For each of the V N rows: the mean over the other rows p of its class of -log of p's share
    in the softmax over all rows but itself. A row without another of its class counts as 0.

    Args:
        z: [V, B, D], on the unit sphere in the paper.
        labels: [B], classes.
        temperature: T.
        all_z: [V, N, D], of all processes; by default the local rows.
        all_labels: [N], their classes.
        offset: index of the first local row in them.
    """
    if all_z is None or all_labels is None:
        all_z, all_labels = z, labels
    own = _own(len(z), len(labels), len(all_labels), offset, z.device)[:, None]
    logits = z.flatten(0, 1) @ all_z.flatten(0, 1).T / temperature
    logsum = logits.scatter(1, own, -torch.inf).logsumexp(1)
    same = (labels[:, None] == all_labels).repeat(len(z), len(z)).scatter(1, own, False)
    count = same.sum(1)
    near = (logits * same).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, logsum - near, 0).mean()


class _SoftmaxContrast(torch.autograd.Function):
    """Mean cross-entropy of rows' positives among columns; forward computes the gradient too.

    Backward only scales it, and at most two R x C matrices are in memory.
    """

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,  # [R, D]
        columns: Tensor | None,  # [C, D]; None: the rows
        positive: Tensor,  # [R], the column of each row's positive
        own: Tensor | None,  # [R], the column that is masked for each row
        temperature: float,
    ) -> Tensor:
        others = rows if columns is None else columns
        logits = (rows / temperature) @ others.T
        near = logits.gather(1, positive[:, None])
        if own is not None:
            logits.scatter_(1, own[:, None], -torch.inf)
        shares = torch.softmax(logits, 1)
        # The greatest share is 1 / (sum of the exponentials, each less the greatest logit).
        logsum = logits.amax(1, True) - shares.amax(1, True).log()
        scale = 1 / (len(rows) * temperature)
        grad_rows = grad_columns = None
        if ctx.needs_input_grad[0]:
            if columns is None:  # one product for both sides; adding the transpose is slow
                shares = logits.copy_(shares.T).add_(shares)
            grad_rows = (shares @ others).sub_(others.index_select(0, positive)).mul_(scale)
            if columns is None:
                grad_rows.index_add_(0, positive, rows, alpha=-scale)
        if ctx.needs_input_grad[1]:
            grad_columns = shares.T @ rows
            grad_columns = grad_columns.index_add_(0, positive, rows, alpha=-1).mul_(scale)
        ctx.save_for_backward(grad_rows, grad_columns)
        return (logsum - near).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        rows, columns = (None if item is None else grad * item for item in ctx.saved_tensors)
        return rows, columns, None, None, None


def _own(views: int, count: int, total: int, offset: int, device: torch.device) -> Tensor:
    """Indices [V B] of this process's rows among the V N rows of all processes."""
    first = torch.arange(views, device=device)[:, None] * total + offset
    return (first + torch.arange(count, device=device)).flatten()


def _others(
    queries: Tensor, keys: Tensor, all_keys: Tensor | None, offset: int
) -> Tensor | None:
    """Products with the batch's keys, [B, N], a query's own at -inf; None for one image."""
    all_keys = keys if all_keys is None else all_keys
    if len(all_keys) < 2:
        return None
    own = _own(1, len(keys), len(all_keys), offset, keys.device)
    return (queries @ all_keys.T).scatter(1, own[:, None], -torch.inf)


def _products(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor | None,
    in_batch: bool,
    all_keys: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor]:
    """Inner products with the positive [B] and with all negatives [B, n], own keys at -inf."""
    others = _others(queries, keys, all_keys, offset) if in_batch else None
    parts = [queries[:, :0]] if others is None else [others]
    if queue is not None:
        parts.append(queries @ queue.detach().T)
    return (queries * keys).sum(1), torch.cat(parts, 1)


def _above(negatives: Tensor, positive: Tensor) -> Tensor:
    """Number [B] of negatives [B, n] that are at least the positive [B]."""
    return (negatives.detach() >= positive.detach()[:, None]).sum(1)


def _negatives(
    keys: Tensor, queue: Tensor | None, in_batch: bool, all_keys: Tensor | None
) -> int:
    """Number of negatives of each query."""
    batch = len(keys if all_keys is None else all_keys) - 1 if in_batch else 0
    return batch + (0 if queue is None else len(queue))


@torch.no_grad()
def _contrast(
    loss: Tensor,
    above: Tensor,
    queries: Tensor,
    keys: Tensor,
    queue: Tensor | None,
    in_batch: bool,
    all_keys: Tensor | None,
) -> Contrast:
    """The loss with its accuracies and mean cosines, which need no matrix of pairs."""
    queries, keys = F.normalize(queries), F.normalize(keys)
    positive = (queries * keys).sum(1).mean()
    count = _negatives(keys, queue, in_batch, all_keys)
    if not count:
        return Contrast(loss, None, None, positive, None)
    # The mean of q . k over all pairs is the product of mean q and mean k.
    total = torch.zeros_like(queries[0])
    if in_batch:
        total = (keys if all_keys is None else F.normalize(all_keys)).sum(0)
    if queue is not None and len(queue):
        seen = queue[:WATCHED]
        total = total + len(queue) / len(seen) * F.normalize(seen).sum(0)
    negative = queries.mean(0) @ total - (positive if in_batch else 0)
    top1, top5 = (above < 1).float().mean(), (above < 5).float().mean()
    return Contrast(loss, top1, top5, positive, negative / count)
