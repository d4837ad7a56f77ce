"""Projector and predictor MLPs, and their normalisation layers."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy import distributed
from selfstudy.registry import configurable
from util.errors import UserError, nearest

Norm = Literal["bn", "ln", "gn", "br"]
GROUPS = 32  # of the norm 'gn'


def standardise(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Scale each output's weights to mean 0 and standard deviation 1 (arXiv 1903.10520, eq. 8).

    Args:
        weight: [outputs, ...], at least two weights per output.
        eps: added to the (biased) standard deviation.
    """
    rows = weight.flatten(1)
    std, mean = torch.std_mean(rows, 1, correction=0, keepdim=True)
    return ((rows - mean) / (std + eps)).view_as(weight)


class StandardisedLinear(nn.Linear):
    """Linear layer with weight standardisation."""

    def forward(self, feats: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(feats, standardise(self.weight), self.bias)


class StandardisedConv2d(nn.Conv2d):
    """Convolution with weight standardisation."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        return self._conv_forward(images, standardise(self.weight), self.bias)


class BatchRenorm(nn.Module):
    """Batch renormalisation (Ioffe, arXiv 1702.03275, algorithm 1) of [B, C].

    Batch norm whose output is corrected towards the one by running statistics: multiplied by r,
    then d added, both without gradient and clipped to [1 / r_max, r_max] and [-d_max, d_max].
    The bounds grow with the number n of training steps: r_max = 25/35 + 2n/35000 within [1, 3]
    and d_max = -25/20 + 5n/20000 within [0, 5], so that the first 5,000 steps are plain batch
    norm. The running statistics are the mean and the biased standard deviation (batch norm
    keeps the unbiased variance).

    Args:
        feats: C.
        eps: added to the variance.
        momentum: weight of the batch in the running statistics.
        affine: with learned scale and shift.

    Attributes:
        synchronised: compute statistics over the minibatches of all processes.
    """

    synchronised = False
    running_mean: Tensor
    running_std: Tensor
    steps: Tensor

    def __init__(
        self,
        feats: int,
        eps: float = 1e-3,
        momentum: float = 0.01,
        affine: bool = True,
    ):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(feats)) if affine else None
        self.bias = nn.Parameter(torch.zeros(feats)) if affine else None
        self.register_buffer("running_mean", torch.zeros(feats))
        self.register_buffer("running_std", torch.ones(feats))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, feats: Tensor) -> Tensor:
        """[B, C] to [B, C] of the same dtype; in training mode updates the statistics."""
        wide = feats.float() if feats.dtype in (torch.float16, torch.bfloat16) else feats
        if self.training:
            wide = self._renormalise(wide)
        else:
            wide = (wide - self.running_mean) / self.running_std
        if self.weight is not None and self.bias is not None:
            wide = wide * self.weight + self.bias
        return wide.to(feats.dtype)

    def _renormalise(self, feats: Tensor) -> Tensor:
        """The training mode's [B, C] to [B, C], without scale and shift."""
        variance, mean = torch.var_mean(feats, 0, correction=0)
        if self.synchronised:
            mean, variance = distributed.pool_moments(mean, variance)
        std = (variance + self.eps).sqrt()
        with torch.no_grad():
            r_max, d_max = self._bounds()
            r = (std / self.running_std).clamp(1 / r_max, r_max)
            d = ((mean - self.running_mean) / self.running_std).clamp(-d_max, d_max)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_std.lerp_(std.to(self.running_std), self.momentum)
            self.steps += 1
        return (feats - mean) / std * r + d

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """r_max and d_max at this step, on the device: reading the step would synchronise."""
        n = self.steps
        return (n * (2 / 35000) + 25 / 35).clamp(1, 3), (n * (5 / 20000) - 25 / 20).clamp(0, 5)


def _group_norm(feats: int, affine: bool) -> nn.Module:
    if feats % GROUPS or feats == GROUPS:  # groups of one feature would be all zeros
        raise UserError(
            f"norm = 'gn' has {GROUPS} groups and an MLP's layer has {feats} features: take "
            f"{2 * GROUPS}, {3 * GROUPS} or another multiple of {GROUPS}"
        )
    return nn.GroupNorm(GROUPS, feats, affine=affine)


_NORMS: dict[str, Callable[[int, bool], nn.Module]] = {
    "bn": lambda feats, affine: nn.BatchNorm1d(feats, affine=affine),
    "ln": lambda feats, affine: nn.LayerNorm(feats, elementwise_affine=affine),
    "gn": _group_norm,
    "br": lambda feats, affine: BatchRenorm(feats, affine=affine),
}


def _norm(norm: str | None, feats: int, affine: bool = True) -> list[nn.Module]:
    """A list of the norm layer, empty for None."""
    if norm is None:
        return []
    if norm not in _NORMS:
        raise UserError(f"no norm is called {norm!r}{nearest(norm, _NORMS)}, or None")
    return [_NORMS[norm](feats, affine)]


class Mlp(nn.Sequential):
    """An MLP, made by `mlp`.

    Attributes:
        out_feats: output width.
        norm: the hidden layers' norm.
    """

    out_feats: int
    norm: Norm | None


def mlp(
    feats_in: int,
    hidden: int,
    out: int,
    layers: int,
    norm: Norm | None = None,
    weight_standardisation: bool = False,
    last_norm: bool = False,
) -> Mlp:
    """Build hidden layers of linear, norm and ReLU, then a linear layer.

    Args:
        feats_in: input width.
        hidden: width of the hidden layers.
        out: output width.
        layers: number of linear layers; 1 has no hidden layer, 0 is the identity (`out` is
            ignored).
        norm: 'bn' batch norm, 'ln' layer norm, 'gn' group norm in 32 groups, 'br' batch
            renormalisation, or None.
        weight_standardisation: make all linear layers `StandardisedLinear`.
        last_norm: append `norm` without scale and shift to the last layer, as SimSiam does.

    Raises:
        UserError: `layers` is negative, `norm` unknown, or 32 does not divide widths for 'gn'.
    """
    if layers < 0:
        raise UserError(f"layers = {layers}: an MLP has 0 linear layers (the identity) or more")
    linear = StandardisedLinear if weight_standardisation else nn.Linear
    parts: list[nn.Module] = []
    feats = feats_in
    for _ in range(layers - 1):
        parts += [linear(feats, hidden), *_norm(norm, hidden), nn.ReLU(inplace=True)]
        feats = hidden
    if layers:
        parts.append(linear(feats, out))
        feats = out
        parts += _norm(norm, out, affine=False) if last_norm else []
    head = Mlp(*parts)  # attributes are set here: slicing calls the constructor of Sequential
    head.out_feats, head.norm = feats, norm
    return head


@configurable(denylist=["feats_in"])
def projector(
    feats_in: int,
    layers: int = 2,
    hidden: int = 512,
    out: int = 128,
    norm: Norm | None = None,
    weight_standardisation: bool = False,
    last_norm: bool = False,
) -> Mlp:
    """Projector MLP between the encoder and the loss (SimCLR's g).

    Args:
        feats_in: width of the embedding.
        layers: number of linear layers; 0 is the identity.
        hidden: width of the hidden layers.
        out: output width, the loss's D.
        norm: of the hidden layers: 'bn', 'ln', 'gn', 'br' or None, see `mlp`.
        weight_standardisation: standardise the weights of the linear layers.
        last_norm: append `norm` without scale and shift to the last layer.
    """
    return mlp(feats_in, hidden, out, layers, norm, weight_standardisation, last_norm)


@configurable(denylist=["feats", "same"])
def predictor(
    feats: int,
    same: Norm | None = None,
    layers: int = 0,
    hidden: int = 512,
    norm: Literal["same", "bn", "ln", "gn", "br"] | None = "same",
    weight_standardisation: bool = False,
) -> Mlp:
    """Predictor MLP (BYOL's q); output width = input width.

    Args:
        feats: width of the projections.
        same: the projector's norm, `projector(...).norm`.
        layers: number of linear layers; 0 is the identity.
        hidden: width of the hidden layers.
        norm: of the hidden layers, see `mlp`; 'same' is the projector's.
        weight_standardisation: standardise the weights of the linear layers.
    """
    chosen = same if norm == "same" else norm
    return mlp(feats, hidden, feats, layers, chosen, weight_standardisation)
