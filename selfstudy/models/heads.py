"""Projection and prediction MLPs, and the normalisations that they may have."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy import distributed
from selfstudy.registry import configurable
from util.errors import UserError, nearest

Norm = Literal["bn", "ln", "gn", "br"]
GROUPS = 32  # of 'gn'


def standardised(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Weights with mean 0 and standard deviation 1 for each output (arXiv 1903.10520, eq. 8).

    Args:
        weight: [outputs, ...], at least two numbers each.
        eps: added to the (biased) standard deviation.
    """
    rows = weight.flatten(1)
    std, mean = torch.std_mean(rows, 1, correction=0, keepdim=True)
    return ((rows - mean) / (std + eps)).view_as(weight)


class StandardisedLinear(nn.Linear):
    """A linear layer whose weights are `standardised` before each use."""

    def forward(self, feats: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(feats, standardised(self.weight), self.bias)


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights are `standardised` before each use."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        return self._conv_forward(images, standardised(self.weight), self.bias)


class BatchRenorm(nn.Module):
    """Batch renormalisation (Ioffe, arXiv 1702.03275, algorithm 1) of [B, C].

    Batch norm whose output is corrected towards what the running statistics would give: times
    r and plus d, which carry no gradient and are clipped to [1 / r_max, r_max] and
    [-d_max, d_max]. The bounds open with the number n of training steps seen,
    r_max = 25/35 + 2n/35000 within [1, 3] and d_max = -25/20 + 5n/20000 within [0, 5], so that
    the first 5,000 steps are plain batch norm. What runs is the standard deviation, not the
    variance, and it runs biased.

    Args:
        feats: C.
        eps: added to the variance.
        momentum: share of the batch in the running statistics.
        affine: with a learned scale and shift.

    Attributes:
        synchronised: normalise over the minibatches of all processes.
    """

    synchronised = False

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
        """[B, C] to [B, C] of the same dtype; in training the statistics move on."""
        wide = feats.float() if feats.dtype in (torch.float16, torch.bfloat16) else feats
        if self.training:
            wide = self._renormalised(wide)
        else:
            wide = (wide - self.running_mean) / self.running_std
        if self.weight is not None:
            wide = wide * self.weight + self.bias
        return wide.to(feats.dtype)

    def _renormalised(self, feats: Tensor) -> Tensor:
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
        """r_max and d_max at this step; on the device, since the step is known only there."""
        n = self.steps
        return (n * (2 / 35000) + 25 / 35).clamp(1, 3), (n * (5 / 20000) - 25 / 20).clamp(0, 5)


def _group_norm(feats: int, affine: bool) -> nn.Module:
    if feats % GROUPS or feats == GROUPS:  # a group of one feature is always zero
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
    """The layer in a list, which is empty for None."""
    if norm is None:
        return []
    if norm not in _NORMS:
        raise UserError(f"no norm is called {norm!r}{nearest(norm, _NORMS)}, or None")
    return [_NORMS[norm](feats, affine)]


class Mlp(nn.Sequential):
    """An MLP of `mlp`.

    Attributes:
        out_feats: features that come out.
        norm: the norm of the hidden layers.
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
    """Hidden layers of linear, norm and ReLU, then a plain linear one.

    Args:
        feats_in: features that come in.
        hidden: features of the hidden layers.
        out: features of the last layer.
        layers: linear layers; 1 has no hidden one, and 0 is the identity, whatever `out` is.
        norm: 'bn' batch norm, 'ln' layer norm, 'gn' group norm in 32 groups, 'br' batch
            renormalisation, or None.
        weight_standardisation: make all linear layers `StandardisedLinear`.
        last_norm: `norm` without scale and shift after the last layer too, as SimSiam has it.

    Raises:
        UserError: `layers` is negative, a norm unknown, or 'gn' does not divide the features.
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
    head = Mlp(*parts)  # without a constructor of its own, so that it can be sliced
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
    """The MLP between the encoder's feature and the loss.

    Args:
        feats_in: features of the encoder.
        layers: linear layers; 0 is the identity.
        hidden: features of the hidden layers.
        out: features that the loss sees.
        norm: of the hidden layers: 'bn', 'ln', 'gn', 'br' or None, see `mlp`.
        weight_standardisation: standardise the weights of its linear layers.
        last_norm: `norm` without scale and shift after the last layer too.
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
    """The MLP that foretells the other view's projection: as many features out as in.

    Args:
        feats: features of the projection.
        same: the norm of the projection, `projection(...).norm`.
        layers: linear layers; 0 is the identity.
        hidden: features of the hidden layers.
        norm: of the hidden layers, see `mlp`; 'same' is that of the projection.
        weight_standardisation: standardise the weights of its linear layers.
    """
    chosen = same if norm == "same" else norm
    return mlp(feats, hidden, feats, layers, chosen, weight_standardisation)
