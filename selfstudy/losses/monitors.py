"""Metrics of representation quality and collapse; detached, on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy.losses.precision import full_precision

ROWS = 1000  # queries compared with a bank at a time


@torch.no_grad()
@full_precision
def rank_me(z: Tensor, eps: float = 1e-7) -> Tensor:
    """RankMe (Garrido et al., arXiv 2210.02885, eq. 1 and 2): the effective rank, 1 to D.

    The exponential of the entropy of the singular values' shares.

    Args:
        z: [N, D] with N >= D.
        eps: added to the shares.
    """
    values = torch.linalg.svdvals(z)
    shares = values / values.sum().clamp(min=eps) + eps
    return torch.exp(-(shares * shares.log()).sum())


@torch.no_grad()
@full_precision
def feature_std(z: Tensor) -> Tensor:
    """Spread on the unit sphere: 0 for a collapse to a point, 1 for isotropic features.

    The mean over dimensions of the standard deviation of the normalised features [N, D], times
    sqrt(D) (SimSiam, arXiv 2011.10566, section 4.1).
    """
    return F.normalize(z).std(0, correction=0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
@full_precision
def cosines(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of a row of z0 with its own row of z1, and with the other rows, [N, D]."""
    a, b = F.normalize(z0), F.normalize(z1)
    positive = (a * b).sum(1).mean()
    # The sum of all pairs' products is the product of sums.
    negative = (a.sum(0) @ b.sum(0) / len(a) - positive) / max(1, len(a) - 1)
    return positive, negative


@torch.no_grad()
@full_precision
def retrieval(
    queries: Tensor, keys: Tensor, all_keys: Tensor | None = None, offset: int = 0
) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5 accuracy of finding a query's own key by cosine.

    Args:
        queries: [B, D].
        keys: [B, D], keys of the same images, in the order of `queries`.
        all_keys: [N, D], the candidates; by default `keys`.
        offset: index of the first of `keys` in `all_keys`.
    """
    all_keys = keys if all_keys is None else all_keys
    scores = F.normalize(queries) @ F.normalize(all_keys).T
    own = offset + torch.arange(len(queries), device=queries.device)[:, None]
    # Other keys with an equal score rank above the own key.
    above = (scores >= scores.gather(1, own)).sum(1) - 1
    return (above < 1).float().mean(), (above < 5).float().mean()


@torch.no_grad()
@full_precision
def nearest_classes(
    queries: Tensor, bank: Tensor, classes: Tensor, neighbours: int, temperature: float
) -> Tensor:
    """Classes [M] of queries [M, D] by a vote of their nearest neighbours in a bank [N, D].

    A neighbour's vote weighs exp(cosine / temperature) (Wu et al., arXiv 1805.01978, section
    3.4). Of classes with equal votes the lowest number wins.

    Args:
        queries: [M, D].
        bank: [N, D].
        classes: [N] int64 from 0, of the bank.
        neighbours: k, at most N.
        temperature: of the votes.
    """
    winners, bank, count = [], F.normalize(bank), int(classes.max()) + 1
    for rows in F.normalize(queries).split(ROWS):
        scores, where = (rows @ bank.T).topk(min(neighbours, len(bank)))
        votes = scores.new_zeros(len(rows), count)
        votes.scatter_add_(1, classes[where], ((scores - 1) / temperature).exp())
        winners.append(votes.argmax(1))
    return torch.cat(winners)


def health(z0: Tensor, z1: Tensor) -> dict[str, Tensor]:
    """'positive' and 'negative', mean cosines of pairs, and 'spread', see `feature_std`."""
    positive, negative = cosines(z0, z1)
    return {"positive": positive, "negative": negative, "spread": feature_std(z0)}
