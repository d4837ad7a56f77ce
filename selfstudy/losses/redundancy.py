"""Losses without negatives: agreement of the views, and terms against collapse."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfstudy.losses.precision import full_precision


@full_precision
def vicreg(
    z0: Tensor,
    z1: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
    halve_variance: bool = False,
    all_z0: Tensor | None = None,
    all_z1: Tensor | None = None,
) -> Tensor:
    """VICReg (Bardes et al., arXiv 2105.04906, eq. 1 to 6); a weighted sum without a unit.

    invariance * mean((z0 - z1)^2) + variance * (v(z0) + v(z1)) + covariance * (c(z0) + c(z1)),
    where v is the mean over dimensions of max(0, 1 - sqrt(variance + eps)) and c the sum of
    the squared off-diagonal covariances divided by D, both unbiased.

    Args:
        z0: [B, D], one view, not normalised.
        z1: [B, D], the other view.
        invariance: weight of the squared distance.
        variance: weight of v.
        covariance: weight of c.
        eps: in the root of the variance.
        halve_variance: v divided by 2, as in the paper's published code, where its equation
            and the code of untitled-ai/self_supervised have no half.
        all_z0: [N, D], z0 of all processes, for the statistics; by default the local rows.
        all_z1: the same of z1.
    """
    distance = F.mse_loss(z0, z1)
    views = (z0, z1) if all_z0 is None or all_z1 is None else (all_z0, all_z1)
    spread = sum(F.relu(1 - (z.var(0) + eps).sqrt()).mean() for z in views)
    redundant = sum(_covariance(z) for z in views)
    half = 0.5 if halve_variance else 1.0
    return invariance * distance + half * variance * spread + covariance * redundant


def _covariance(z: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, divided by D."""
    centred = z - z.mean(0)
    return _off_diagonal(centred, centred) / ((len(z) - 1) ** 2 * z.shape[1])


def _off_diagonal(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the squared off-diagonal elements of a^T b, both [N, D].

    |a^T b|^2 = tr(a a^T b b^T): where N < D the two N x N matrices are the smaller ones.
    """
    if len(a) < a.shape[1]:
        left = a @ a.T
        total = (left * (left if a is b else b @ b.T)).sum()
    else:
        total = (a.T @ b).square().sum()
    return total - (a * b).sum(0).square().sum()


@full_precision
def barlow_twins(
    z0: Tensor,
    z1: Tensor,
    off_diagonal: float = 5e-3,
    all_z0: Tensor | None = None,
    all_z1: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Barlow Twins (Zbontar et al., arXiv 2103.03230, eq. 1 and 2); no unit.

    The distance of the views' cross-correlation C from the identity: the sum of
    (1 - C_ii)^2 plus `off_diagonal` times the sum of the other C_ij^2.

    Args:
        z0: [B, D], one view.
        z1: [B, D], the other view.
        off_diagonal: lambda.
        all_z0: [N, D], z0 of all processes; by default the local rows.
        all_z1: the same of z1.
        eps: added to the biased variance, as in batch norm.
    """
    views = (z0, z1) if all_z0 is None or all_z1 is None else (all_z0, all_z1)
    a, b = (_standardise(z, eps) for z in views)
    on = (1 - (a * b).mean(0)).square().sum()
    return on + off_diagonal * _off_diagonal(a, b) / len(a) ** 2


def _standardise(z: Tensor, eps: float) -> Tensor:
    """Scale each dimension to mean 0 and variance 1 over the rows."""
    variance, mean = torch.var_mean(z, 0, correction=0)
    return (z - mean) * (variance + eps).rsqrt()


@full_precision
def byol(p: Tensor, z: Tensor) -> Tensor:
    """BYOL (Grill et al., arXiv 2006.07733, eq. 2): mean of 2 - 2 cos(p, z); no unit.

    Args:
        p: [B, D], predictions.
        z: [B, D], the teacher's projections of the other view; they get no gradient.
    """
    return 2 - 2 * F.cosine_similarity(p, z.detach()).mean()


@full_precision
def simsiam(p: Tensor, z: Tensor) -> Tensor:
    """SimSiam (Chen, He, arXiv 2011.10566, eq. 1 and 3): mean of -cos(p, z); no unit.

    Args:
        p: [B, D], predictions.
        z: [B, D], projections of the other view; they get no gradient.
    """
    return -F.cosine_similarity(p, z.detach()).mean()
