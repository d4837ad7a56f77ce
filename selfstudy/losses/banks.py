"""Noise-contrastive losses over locations of feature maps, and over a memory bank."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy.losses.precision import full_precision
from util.errors import UserError

_CELLS = 2**24  # products with the bank per chunk: 64 MiB in float32


@full_precision
def amdim_nce(
    r_src: Tensor,
    r_trg: Tensor,
    clip: float = 30.0,
    penalty: float = 5e-2,
    all_trg: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """AMDIM's NCE between a global and local features (Bachman et al., arXiv 1906.00910).

    Scores are inner products divided by sqrt(D) and soft-clipped to clip * tanh(score / clip).
    Each location of an image's other view is a separate positive, against all locations of all
    other images (sections 3.2 and 3.3).

    Args:
        r_src: [B, D], features of one view.
        r_trg: [B, D, L], features of the other view at L locations.
        clip: bound of the scores.
        penalty: weight of the mean squared score before clipping.
        all_trg: [N, D, L], `r_trg` of all processes; by default the local rows.
        offset: index of the first local row in `all_trg`.

    Returns:
        The mean over images and locations in nats, and the weighted penalty.

    Raises:
        UserError: the batch has one image.
    """
    all_trg = r_trg if all_trg is None else all_trg
    total, dims, locations = all_trg.shape
    if total < 2:
        raise UserError(
            "AMDIM compares with the other images of a batch and there is only one: set "
            "dataloader.batch_size to 2 or more"
        )
    columns = all_trg.transpose(0, 1).reshape(dims, total * locations)
    scores = (r_src @ columns / dims**0.5).view(len(r_src), total, locations)
    weight = penalty * scores.square().mean()
    scores = clip * torch.tanh(scores / clip)
    own = (offset + torch.arange(len(r_src), device=r_src.device))[:, None, None]
    own = own.expand(-1, 1, locations)
    positive = scores.gather(1, own)[:, 0]
    negative = scores.scatter(1, own, -torch.inf).logsumexp((1, 2))
    nce = F.softplus(negative[:, None] - positive, threshold=40).mean()
    return nce, weight


@full_precision
def bank_nce(
    features: Tensor, bank: Tensor, positives: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """InfoNCE with negatives sampled from a memory bank, in nats, mean over rows.

    Instance discrimination (Wu et al., arXiv 1805.01978) across views, as in CMC (Tian et al.,
    arXiv 1906.05849, eq. 2).

    Args:
        features: [B, D], the only argument that gets a gradient.
        bank: [N, D].
        positives: [B], bank row of each positive.
        negatives: [B, K], bank rows of the negatives.
        temperature: T.
    """
    # Gathering B x K rows of the bank would move K / N times D as much memory as the products
    # with all of it take, and a matrix product is the faster unless N / K is in the fifties.
    bank, columns = bank.detach(), torch.cat((positives[:, None], negatives), 1)
    losses = [
        F.cross_entropy(
            (part @ bank.T).gather(1, where) / temperature,
            torch.zeros_like(where[:, 0]),
            reduction="sum",
        )
        for part, where in zip(
            features.split(max(1, _CELLS // len(bank))),
            columns.split(max(1, _CELLS // len(bank))),
            strict=True,
        )
    ]
    return torch.stack(losses).sum() / len(features)
