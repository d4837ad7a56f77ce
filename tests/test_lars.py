"""LARS against two steps by hand, lightly's and timm's, and where its numbers stay."""

import math

import pytest
import torch
from torch import nn

from selfstudy.train import optim
from selfstudy.train.lars import LARS
from util.errors import UserError


def tensors(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(4, 3), (5,), (2, 3, 2)][:count]
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def run(optimizer, params, steps, rates=None):
    """Steps with the same gradients each time this is called."""
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rates[step] if rates else group["lr"]
        for item, grad in zip(params, tensors(len(params), seed=9 + step), strict=True):
            item.grad = grad.clone()
        optimizer.step()
    return params


def fresh(seed=0):
    return [nn.Parameter(item) for item in tensors(seed=seed)]


def test_two_steps_by_hand_with_the_rate_inside_the_buffer():
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    ours = LARS([weight], lr=0.5, momentum=0.9, weight_decay=0.1, eta=0.02)
    weight.grad = torch.tensor([0.0, 2.0], dtype=torch.float64)
    ours.step()
    local = 0.02 * 5 / (2 + 0.1 * 5)
    buffer = [0.5 * local * 0.1 * 3, 0.5 * local * (2 + 0.1 * 4)]
    x, y = 3 - buffer[0], 4 - buffer[1]
    assert weight.tolist() == pytest.approx([x, y], rel=1e-14)
    ours.param_groups[0]["lr"] = 0.05  # the buffer keeps the length that it has
    weight.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
    ours.step()
    norm = math.hypot(x, y)
    local = 0.02 * norm / (1 + 0.1 * norm)
    buffer = [0.9 * buffer[0] + 0.05 * local * (1 + 0.1 * x),
              0.9 * buffer[1] + 0.05 * local * 0.1 * y]  # fmt: skip
    assert weight.tolist() == pytest.approx([x - buffer[0], y - buffer[1]], rel=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_at_a_constant_rate_it_is_lightlys_and_timms(momentum):
    from lightly.utils.lars import LARS as Lightly
    from timm.optim import Lars as Timm

    given = {"lr": 0.3, "momentum": momentum, "weight_decay": 1e-4}
    ours, theirs, others = fresh(), fresh(), fresh()
    run(LARS(ours, eta=0.02, **given), ours, 5)
    run(Lightly(theirs, trust_coefficient=0.02, eps=0.0, **given), theirs, 5)
    run(Timm(others, trust_coeff=0.02, eps=0.0, **given), others, 5)
    for a, b, c in zip(ours, theirs, others, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0) and torch.allclose(b, c, rtol=1e-12)


def test_at_a_changing_rate_it_differs_from_lightlys():
    from lightly.utils.lars import LARS as Lightly

    given = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4}
    ours, theirs = fresh(), fresh()
    run(LARS(ours, eta=0.02, **given), ours, 3, [0.3, 0.2, 0.1])
    run(Lightly(theirs, trust_coefficient=0.02, **given), theirs, 3, [0.3, 0.2, 0.1])
    assert not torch.allclose(ours[0], theirs[0], rtol=1e-6)


def test_without_adaptation_it_is_momentum_with_the_rate_inside():
    ours, theirs = fresh(), fresh()
    run(LARS(ours, lr=0.1, momentum=0.9, weight_decay=0.01, adapt=False), ours, 4)
    run(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01), theirs, 4)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(ours, theirs, strict=True))


def test_warm_up_counts_steps_and_is_the_rate_of_a_schedule():
    ours, theirs = fresh(), fresh()
    run(LARS(ours, lr=0.8, warmup_steps=4), ours, 6)
    run(LARS(theirs, lr=0.8), theirs, 6, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_weight_at_zero_leaves_it_and_a_zero_gradient_harms_nothing(decay):
    zero, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    zero.grad, still.grad = torch.ones(3), torch.zeros(3)
    LARS([zero, still], lr=0.5, weight_decay=decay).step()
    assert torch.equal(zero.detach(), torch.full((3,), -0.5))
    assert torch.allclose(still.detach(), torch.full((3,), 1 - 0.5 * decay))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit():
    whole, first = fresh(), fresh()
    given = {"lr": 0.5, "weight_decay": 0.01, "warmup_steps": 5}
    run(LARS(whole, **given), whole, 3)
    half = LARS(first, **given)
    run(half, first, 2)
    second = [nn.Parameter(item.detach().clone()) for item in first]
    resumed = LARS(second, **given)
    resumed.load_state_dict(half.state_dict())
    for item, grad in zip(second, tensors(seed=11), strict=True):
        item.grad = grad
    resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))
    assert resumed.state_dict()["state"]["steps"] == 3


def test_a_step_never_looks_at_a_value(monkeypatch):
    """Nothing is read back: on 'meta' there is nothing to read."""
    params = [nn.Parameter(item.to("meta")) for item in tensors()]
    for item in params:
        item.grad = torch.ones_like(item)
    optimizer = LARS(params, lr=0.5, weight_decay=0.1, warmup_steps=3)
    optimizer.step()
    assert all(optimizer.state[item]["momentum_buffer"].is_meta for item in params)


def network():
    return nn.ModuleDict({
        "first": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "last": nn.Linear(4, 2),
    })  # fmt: skip


def names_left_out(model, optimizer):
    names = {id(item): name for name, item in model.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(item)] for item in groups[1]["params"]} if len(groups) > 1 else set()


@pytest.mark.parametrize(("exclude", "expected"), [
    (None, {"first.bias", "last.bias", "bn.weight", "bn.bias"}),
    ([], set()),
    ([".bias"], {"first.bias", "last.bias", "bn.bias"}),
    (["norm"], {"bn.weight", "bn.bias"}),
    (["last.", "bn"], {"last.weight", "last.bias", "bn.weight", "bn.bias"}),
])  # fmt: skip
def test_excluded_parameters_get_neither_rate_nor_decay(exclude, expected):
    model = network()
    optimizer = optim.optimizer(
        model, "LARS", lr=0.3, weight_decay=0.1, momentum=0.9, exclude=exclude,
        arguments={"eta": 0.02, "warmup_steps": 10},
    )  # fmt: skip
    assert type(optimizer) is LARS and names_left_out(model, optimizer) == expected
    before = {name: item.detach().clone() for name, item in model.named_parameters()}
    for item in model.parameters():
        item.grad = torch.ones_like(item)
    optimizer.step()
    for name, item in model.named_parameters():
        old = before[name]
        grad, local = torch.ones_like(old), 1.0
        if name not in expected:
            local = 0.02 * old.norm() / (grad.norm() + 0.1 * old.norm()) if old.any() else 1.0
            grad = grad + 0.1 * old
        assert torch.allclose(item, old - 0.03 * local * grad, atol=1e-7), name


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_excluded_parameters_get_no_decay_from_torchs_optimizers(name):
    model = network()
    optimizer = optim.optimizer(model, name, lr=0.1, weight_decay=0.5, exclude=["bias", "norm"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert names_left_out(model, optimizer) == {
        "first.bias", "last.bias", "bn.weight", "bn.bias"}  # fmt: skip
    for item in model.parameters():
        item.grad = torch.zeros_like(item)
    before = {key: item.clone() for key, item in model.state_dict().items()}
    optimizer.step()
    moved = {key for key, item in model.named_parameters() if not item.equal(before[key])}
    assert moved == {"first.weight", "last.weight"}


def test_an_exclusion_that_changes_nothing_is_said():
    with pytest.raises(UserError, match="no parameter of the model has '.bn1' in its name"):
        optim.optimizer(network(), "LARS", exclude=[".bn1"])
    with pytest.raises(UserError, match="'' is in every name"):
        optim.optimizer(network(), "SGD", exclude=[""])
    with pytest.raises(ValueError, match="give the module"):
        optim.optimizer(list(network().parameters()), "SGD", exclude=["bias"])


def test_only_what_requires_a_gradient_is_optimised():
    model = network()
    model["first"].requires_grad_(False)
    optimizer = optim.optimizer(model, "LARS", exclude=["first", "bias"])
    held = {id(item) for group in optimizer.param_groups for item in group["params"]}
    assert held == {id(item) for item in model.parameters() if item.requires_grad}
    assert names_left_out(model, optimizer) == {"bn.bias", "last.bias"}
