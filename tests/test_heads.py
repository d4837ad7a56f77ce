"""Projection and predictor heads: their shapes, and their norms against torch's and timm's."""

import copy

import gin
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfstudy.models.heads import (
    BatchRenorm,
    StandardisedConv2d,
    StandardisedLinear,
    mlp,
    predictor,
    projector,
)
from util.errors import UserError

DOUBLE = torch.float64


def kinds(head):
    return [type(layer).__name__ for layer in head]


def test_the_number_of_layers():
    feats = torch.randn(4, 32)
    identity = mlp(32, 64, 16, layers=0)
    assert identity(feats) is feats and identity.out_feats == 32
    assert kinds(mlp(32, 64, 16, layers=1, norm="bn")) == ["Linear"]
    three = mlp(32, 64, 16, layers=3, norm="bn")
    assert kinds(three) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [(layer.in_features, layer.out_features) for layer in three[::3]] == [
        (32, 64), (64, 64), (64, 16)]  # fmt: skip
    assert three(feats).shape == (4, 16) and three.out_feats == 16


@pytest.mark.parametrize(
    "norm, kind", [("bn", nn.BatchNorm1d), ("ln", nn.LayerNorm), ("gn", nn.GroupNorm),
                   ("br", BatchRenorm), (None, nn.ReLU)]
)  # fmt: skip
@pytest.mark.parametrize("standardise", [False, True])
def test_each_norm_learns(norm, kind, standardise):
    head = mlp(12, 64, 96, 2, norm, standardise, last_norm=True)
    assert type(head[1]) is kind
    assert type(head[0]) is (StandardisedLinear if standardise else nn.Linear)
    if norm is not None:
        assert type(head[-1]) is kind and not list(head[-1].parameters())
        assert isinstance(head[1], nn.GroupNorm) is (norm == "gn")
    feats = torch.randn(8, 12, requires_grad=True)
    (head(feats) * torch.randn(8, 96)).sum().backward()
    assert feats.grad.any() and all(item.grad is not None for item in head.parameters())
    assert head.eval()(feats[:1]).shape == (1, 96)


def test_mistakes_are_said():
    with pytest.raises(UserError, match="no norm is called 'bnn'.*did you mean 'bn'"):
        mlp(8, 64, 8, 2, "bnn")
    for hidden in (40, 32):  # 32 groups of one feature would be all zeros
        with pytest.raises(UserError, match=f"32 groups and an MLP's layer has {hidden}"):
            mlp(8, hidden, 8, 2, "gn")
    with pytest.raises(UserError, match="layers = -1"):
        mlp(8, 40, 8, -1)


def test_projection_and_prediction_are_configurable():
    assert kinds(projector(20)) == ["Linear", "ReLU", "Linear"]
    assert projector(20).out_feats == 128 and kinds(predictor(128)) == []
    gin.parse_config(
        "projector.layers = 3\nprojector.norm = 'br'\nprojector.out = 24\n"
        "predictor.layers = 2\npredictor.hidden = 40"
    )
    first = projector(20)
    assert kinds(first)[1] == "BatchRenorm" and len(first) == 7 and first.norm == "br"
    second = predictor(first.out_feats, first.norm)
    assert kinds(second) == ["Linear", "BatchRenorm", "ReLU", "Linear"]
    assert (second[0].in_features, second[0].out_features, second.out_feats) == (24, 40, 24)
    gin.bind_parameter("predictor.norm", None)
    assert kinds(predictor(24, "br")) == ["Linear", "ReLU", "Linear"]
    gin.bind_parameter("predictor.norm", "ln")
    assert kinds(predictor(24, "br"))[1] == "LayerNorm"


def pair(feats, bounds=None):
    """Batch renorm and batch norm with the same random scale and shift."""
    ours = BatchRenorm(feats).double()
    if bounds:
        ours._bounds = lambda: bounds
    theirs = nn.BatchNorm1d(feats, eps=1e-3, momentum=0.01).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = torch.randn(feats, dtype=DOUBLE)
            getattr(ours, name).copy_(value)
            getattr(theirs, name).copy_(value)
    return ours, theirs


def test_batch_renorm_without_correction_is_batch_norm():
    """In the first 5,000 steps."""
    ours, theirs = pair(6)
    for _ in range(3):
        feats = (3 * torch.randn(16, 6, dtype=DOUBLE) + 1).requires_grad_()
        other, weights = feats.detach().clone().requires_grad_(), torch.randn(16, 6)
        made, expected = ours(feats), theirs(other)
        assert torch.allclose(made, expected, rtol=1e-6)
        for result in (made, expected):
            (result * weights).sum().backward()
        assert torch.allclose(feats.grad, other.grad, rtol=1e-6, atol=1e-9)
        assert torch.allclose(ours.weight.grad, theirs.weight.grad)
    assert torch.allclose(ours.running_mean, theirs.running_mean)
    assert ours.steps == 3


def test_batch_renorm_with_open_bounds_is_its_evaluation():
    """r and d that are not clipped turn the batch's statistics into the running ones."""
    ours, _ = pair(6, (1e9, 1e9))
    ours.running_mean.normal_()
    ours.running_std.uniform_(0.5, 2)
    feats = torch.randn(16, 6, dtype=DOUBLE)
    expected = ours.eval()(feats)
    mean, std = ours.running_mean.clone(), ours.running_std.clone()
    assert torch.allclose(expected, (feats - mean) / std * ours.weight + ours.bias)
    assert torch.allclose(ours.train()(feats), expected)
    now = (feats.var(0, correction=0) + 1e-3).sqrt()
    assert torch.allclose(ours.running_std, 0.99 * std + 0.01 * now)
    assert torch.allclose(ours.running_mean, 0.99 * mean + 0.01 * feats.mean(0))


def test_batch_renorm_by_hand_at_the_bounds():
    """r and d are clipped, and carry no gradient."""
    ours, _ = pair(6, (1.1, 0.2))
    ours.running_mean.normal_(std=3)
    feats = (3 * torch.randn(16, 6, dtype=DOUBLE)).requires_grad_()
    mean, std = feats.mean(0), (feats.var(0, correction=0) + 1e-3).sqrt()
    r = (std / ours.running_std).clamp(1 / 1.1, 1.1).detach()
    d = ((mean - ours.running_mean) / ours.running_std).clamp(-0.2, 0.2).detach()
    expected = ((feats - mean) / std * r + d) * ours.weight + ours.bias
    made = ours(feats)
    assert torch.allclose(made, expected)
    weights = torch.randn(16, 6)
    grads = [torch.autograd.grad((item * weights).sum(), feats)[0] for item in (made, expected)]
    assert torch.allclose(*grads)


@pytest.mark.parametrize(
    "step, r_max, d_max",
    [(0, 1, 0), (5000, 1, 0), (22500, 2, 4.375), (40000, 3, 5), (10**6, 3, 5)],
)
def test_the_bounds_open(step, r_max, d_max):
    norm = BatchRenorm(2)
    norm.steps += step
    assert torch.allclose(torch.stack(norm._bounds()), torch.tensor([r_max, d_max]).float())
    restored = BatchRenorm(2)
    restored.load_state_dict(copy.deepcopy(norm.state_dict()))
    assert restored.steps == step


def test_batch_renorm_keeps_the_dtype():
    norm = BatchRenorm(4)
    assert norm(torch.randn(8, 4).bfloat16()).dtype == torch.bfloat16
    assert norm.running_std.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"stride": 2, "bias": True}, {"groups": 2}])
def test_standardised_convolutions_equal_timms(options):
    """Timm adds eps to the variance and we to the deviation: without its own they agree."""
    from timm.layers import StdConv2d

    theirs = StdConv2d(4, 6, 3, padding=1, eps=1e-12, **options).double()
    ours = StandardisedConv2d(4, 6, 3, padding=1, **{"bias": False} | options).double()
    with torch.no_grad():
        theirs.weight.normal_()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 4, 9, 9, dtype=DOUBLE)
    made, expected = ours(images), theirs(images)
    assert torch.allclose(made, expected, rtol=1e-4, atol=5e-5)
    for result in (made, expected):
        result.square().sum().backward()
    scale = theirs.weight.grad.abs().max()
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-4 * scale)


def test_standardised_linear():
    layer = StandardisedLinear(7, 5).double()
    feats = torch.randn(3, 7, dtype=DOUBLE)
    weight = layer.weight - layer.weight.mean(1, keepdim=True)
    weight = weight / (weight.square().mean(1, keepdim=True).sqrt() + 1e-5)
    assert torch.allclose(layer(feats), F.linear(feats, weight, layer.bias))
    with torch.no_grad():
        layer.weight.fill_(0.5)  # no spread: a layer of zeros, and no nan in its gradient
    layer(feats).sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
