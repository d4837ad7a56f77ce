"""Schedules against numpy and torch, optimizers by name, meters against plain sums."""

import math

import numpy as np
import pytest
import torch

from selfstudy import configure, registry
from selfstudy.tasks import metrics
from selfstudy.train import meters, optim
from selfstudy.train.schedules import piecewise_linear
from util.errors import UserError


def weights():
    return [torch.nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize("rounds", [0, 0.5, 2.5, 5, 7.25, 25, 30])
def test_piecewise_linear_is_numpys_interp(rounds):
    expected = np.interp(rounds, [0, 5, 25], [0, 0.01, 1e-6])
    assert piecewise_linear(rounds, [5, 25], [0, 0.01, 1e-6]) == pytest.approx(expected)


def test_exp_factor_bends_the_last_segment_only():
    straight = [piecewise_linear(r, [5, 25], [0, 1, 1]) for r in (3, 5, 15, 25)]
    bent = [piecewise_linear(r, [5, 25], [0, 1, 1], exp_factor=2) for r in (3, 5, 15, 25)]
    assert bent[:2] == straight[:2]
    shares = np.linspace(1, 1e-7, 3) ** 2  # the published table, with three steps
    assert bent[2:] == pytest.approx(list(shares[1:]))


def test_table_drives_every_step_and_a_number_means_up_and_down():
    optimizer = optim.optimizer(weights(), "SGD", lr=2.0)
    schedule = optim.scheduler(optimizer, [1, 4], 0.5)
    seen = []
    for progress in (0, 0.5, 1, 2.5, 4):
        schedule.before_step(progress)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0, 0.5, 1.0, 0.5, 0]) and schedule.rounds == 4


def test_torch_schedulers_by_name_step_once_a_round():
    ours = optim.optimizer(weights(), "SGD", lr=1.0)
    schedule = optim.scheduler(ours, [4], [0, 1], scheduler_fn="StepLR",
                               arguments={"step_size": 2, "gamma": 0.1})  # fmt: skip
    rates = []
    for _ in range(4):
        schedule.before_step(0)
        ours.step()
        schedule.after_round({})
        rates.append(ours.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])
    plateau = optim.scheduler(ours, [4], [0, 1], scheduler_fn="ReduceLROnPlateau", metric="x")
    with pytest.raises(UserError, match="scheduler.metric = 'x'"):
        plateau.check_metric(["valid_loss"])


def rates(optimizer, schedule, rounds):
    """The rate of each round."""
    seen = []
    for _ in range(rounds):
        schedule.before_step(0)
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_round({})
    return seen


def from_command_line(*params):
    """An optimizer and its schedule from `-p` bindings."""
    registry.discover()
    needed = ("scheduler.milestones = [10]", "scheduler.target_lrs = [0, 1]")
    configure.load(configure.Spec(params=(*needed, *params)))
    optim.check(configure.would_build("session"))
    optimizer = optim.optimizer(weights())
    return optimizer, optim.scheduler(optimizer)


def test_cosine_per_round_down_to_a_final_value():
    found = rates(*from_command_line(
        "optimizer.lr = 0.3", "scheduler.scheduler_fn = 'CosineAnnealingLR'",
        "scheduler.arguments = {'T_max': 10, 'eta_min': 0.002}"), 11)  # fmt: skip
    expected = 0.002 + (0.3 - 0.002) * (1 + np.cos(np.pi * np.arange(11) / 10)) / 2
    assert found == pytest.approx(list(expected)) and found[-1] == pytest.approx(0.002)


def test_steps_at_60_and_80_percent():
    found = rates(*from_command_line(
        "optimizer.lr = 30", "optimizer.momentum = 0.9",
        "scheduler.scheduler_fn = 'MultiStepLR'",
        "scheduler.arguments = {'milestones': [6, 8], 'gamma': 0.1}"), 10)  # fmt: skip
    assert found == pytest.approx([30.0] * 6 + [3.0] * 2 + [0.3] * 2)


def test_lars_and_its_exclusions_bind():
    optimizer, _ = from_command_line(
        "optimizer.optim_fn = 'LARS'", "optimizer.weight_decay = 1e-4",
        "optimizer.arguments = {'eta': 0.02, 'warmup_steps': 10}")  # fmt: skip
    group = optimizer.param_groups[0]
    assert (group["eta"], group["warmup_steps"], group["weight_decay"]) == (0.02, 10, 1e-4)
    with pytest.raises(UserError, match="did you mean 'warmup_steps'"):
        from_command_line("optimizer.optim_fn = 'LARS'", "optimizer.arguments = {'warmup': 1}")
    with pytest.raises(UserError, match="'' is in every name"):
        from_command_line("optimizer.exclude = ['']")


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_every_optimizer_builds_with_its_defaults_and_steps(name):
    params = weights()
    optimizer = optim.optimizer(params, name, lr=0.1)
    params[0].grad = torch.ones(3)
    optimizer.step()
    assert torch.isfinite(params[0]).all()


@pytest.mark.parametrize(
    "milestones, targets, text",
    [([5, 25], [0, 1], "need 3 rates"), ([], [0], "rising"), ([5, 5], [0, 1, 0], "rising"),
     ([9, 5], 1.0, "rising")],
)  # fmt: skip
def test_wrong_tables_are_refused(milestones, targets, text):
    with pytest.raises(UserError, match=text):
        optim.table_arguments(milestones, targets)


def test_optimizers_take_what_torch_takes():
    adam = optim.optimizer(weights(), "Adam", lr=1, betas=[0.8, 0.999], weight_decay=1e-4)
    assert type(adam) is torch.optim.Adam and adam.defaults["fused"]
    rms = optim.optimizer(weights(), "RMSprop", lr=0.1, arguments={"alpha": 0.9})
    assert rms.defaults["alpha"] == 0.9
    with pytest.raises(UserError, match="Adam takes no 'momentum'"):
        optim.optimizer(weights(), "Adam", momentum=0.9)
    with pytest.raises(UserError, match="did you mean 'nesterov'"):
        optim.optimizer(weights(), "SGD", arguments={"nestrov": True})


def test_fused_steps_equal_plain_ones():
    ours, plain = weights(), weights()
    a = optim.optimizer(ours, "Adam", lr=0.1, betas=[0.8, 0.999], eps=1e-8, weight_decay=1e-4)
    b = torch.optim.Adam(plain, lr=0.1, betas=(0.8, 0.999), eps=1e-8, weight_decay=1e-4)
    for _ in range(5):
        for params, optimizer in ((ours, a), (plain, b)):
            params[0].grad = params[0].detach() * 2 - 1
            optimizer.step()
    assert torch.allclose(ours[0], plain[0], atol=1e-6)


def rows(values: list[float], counted: list[bool]) -> dict[str, metrics.Metric]:
    return {"loss": metrics.ratio(torch.tensor(values), torch.tensor(counted))}


def test_running_mean_keeps_95_percent():
    meter, expected = meters.RunningMeter(), None
    for value in (1.0, 3.0, -2.0):
        meter.update(rows([value] * 4, [True] * 4))
        expected = value if expected is None else 0.95 * expected + 0.05 * value
    assert meters.read({"train": meter}) == pytest.approx({"train_loss": expected})
    copy = meters.RunningMeter()
    copy.load_state_dict(meter.state_dict(), torch.device("cpu"))
    for one in (meter, copy):
        one.update(rows([5.0] * 4, [True] * 4))
    assert meters.read({"train": copy}) == meters.read({"train": meter})


def test_running_mean_weighs_minibatches_by_what_counted():
    meter = meters.RunningMeter()
    meter.update(rows([1.0, 9.0], [True, False]))
    meter.update(rows([9.0, 9.0], [False, False]))  # changes nothing
    assert meters.read({"train": meter}) == pytest.approx({"train_loss": 1.0})
    meter.update(rows([4.0, 6.0], [True, True]))
    kept, new = 0.95**2, 0.05 * 2
    expected = (kept * 1.0 + new * 5.0) / (kept + new)
    assert meters.read({"train": meter}) == pytest.approx({"train_loss": expected})


def test_a_meter_sums_over_minibatches_and_says_where_nothing_counted():
    meter = meters.Meter()
    meter.update(rows([1.0, 2.0, 9.0], [True, True, False]))
    meter.update(rows([6.0], [True]))
    assert meters.read({"valid": meter, "test": meters.Meter()}) == {"valid_loss": 3.0}
    empty = meters.Meter()
    empty.update(rows([6.0], [False]))
    assert math.isnan(meters.read({"valid": empty})["valid_loss"])
    assert meter.has_counted("loss") and not empty.has_counted("loss")
