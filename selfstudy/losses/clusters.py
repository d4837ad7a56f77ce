"""Losses over prototypes: each view predicts the cluster assignment of the other.

Letters in shapes: B rows, N rows of all processes, K prototypes, V views.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy.losses.precision import full_precision


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp: balanced soft assignments (Cuturi 2013; SwAV, arXiv 2006.09882).

    Starting from exp(scores / epsilon), alternately normalises columns (prototypes) and rows;
    on logarithms, so that nothing overflows.

    Args:
        scores: [N, K]; of all processes (and of a queue), over which assignments balance.
        epsilon: entropy regularisation; smaller gives harder assignments.
        iterations: number of column and row normalisations.

    Returns:
        [N, K], rows that sum to 1.
    """
    logs = scores / epsilon
    for _ in range(iterations):
        logs = logs - logs.logsumexp(0, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()


@full_precision
def swav(
    scores: Sequence[Tensor],
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    all_scores: Sequence[Tensor] | None = None,
    offset: int = 0,
) -> Tensor:
    """SwAV (Caron et al., arXiv 2006.09882, eq. 1 to 3) in nats, mean over pairs of views.

    The cross-entropy of each view's softmax over prototypes to the Sinkhorn assignment of
    another view.

    Args:
        scores: V tensors [B, K], products of unit features and unit prototypes; the first two
            views (the full-size crops) make assignments.
        temperature: of the softmax.
        epsilon: of `sinkhorn`.
        iterations: of `sinkhorn`.
        all_scores: two tensors [N, K], from which assignments are computed: the rows of all
            processes, then those of a feature queue if there is one.
        offset: index of the first local row in them.
    """
    logs = [F.log_softmax(item / temperature, 1) for item in scores]
    balanced, losses = scores[:2] if all_scores is None else all_scores, []
    for view, item in enumerate(balanced):
        target = sinkhorn(item, epsilon, iterations)[offset : offset + len(scores[view])]
        losses += [-(target * log).sum(1).mean()
                   for other, log in enumerate(logs) if other != view]  # fmt: skip
    return torch.stack(losses).mean()


@full_precision
def dino(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.04,
) -> Tensor:
    """DINO (Caron et al., arXiv 2104.14294, eq. 1 to 3) in nats, mean over pairs of views.

    Cross-entropy of the student's softmax with the teacher's centred and sharpened one.

    Args:
        student: logits, V tensors [B, K]; the teacher's views come first, in their order.
        teacher: logits of the full-size views, [B, K] each; no gradient.
        centre: [K], the running mean of the teacher's logits.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's.
    """
    logs = [F.log_softmax(item / student_temperature, 1) for item in student]
    losses = []
    for view, item in enumerate(teacher):
        target = ((item.detach() - centre) / teacher_temperature).softmax(1)
        losses += [-(target * log).sum(1).mean()
                   for other, log in enumerate(logs) if other != view]  # fmt: skip
    return torch.stack(losses).mean()
