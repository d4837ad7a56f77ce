"""Optimizers and learning-rate schedules, by torch's names."""

import inspect
import math
from typing import Annotated, Any

import torch
from torch import nn

from selfstudy.registry import REQUIRED, Names, configurable, get, register
from selfstudy.train import schedules
from selfstudy.train.lars import LARS
from util.errors import UserError, nearest

# L-BFGS wants a closure, SparseAdam sparse gradients, Muon matrices only.
_UNFIT = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
for _name, _cls in inspect.getmembers(torch.optim, inspect.isclass):
    if _name not in _UNFIT:
        register("optimizer", _name)(_cls)
register("optimizer")(LARS)
for _name, _cls in inspect.getmembers(torch.optim.lr_scheduler, inspect.isclass):
    if _name.endswith("LR") or _name == "ReduceLROnPlateau":
        register("scheduler", _name)(_cls)


def check_arguments(name: str, cls: type, arguments: dict[str, Any]) -> None:
    """Refuse arguments that `cls` does not take, with the nearest that it does."""
    known = set(inspect.signature(cls.__init__).parameters) - {"self", "params", "optimizer"}
    for key in arguments:
        if key not in known:
            raise UserError(f"{name}: {cls.__name__} takes no '{key}'{nearest(key, known)}")


def optimizer_arguments(values: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    """The optimizer's class and its arguments, from the arguments of `optimizer`."""
    values = dict(values)
    cls = get("optimizer", values.pop("optim_fn"))
    more = values.pop("arguments") or {}
    exclude = values.pop("exclude", None)
    if exclude is not None and not all(exclude):
        raise UserError(f"optimizer.exclude = {exclude}: '' is in every name; use [] for none")
    if not values["weight_decay"] and "weight_decay" not in inspect.signature(cls).parameters:
        values["weight_decay"] = None  # Rprop has none; 0 asks for none
    given = {key: item for key, item in values.items() if item is not None} | more
    check_arguments("optimizer", cls, given)
    return cls, given


NORM = "norm"  # in `optimizer.exclude`: every parameter of a normalisation layer


def _excluded(model: nn.Module, exclude: list[str]) -> set[int]:
    """The ids of the parameters of `model` that `exclude` names, see `optimizer`."""
    chosen = {id(item) for name, item in model.named_parameters()
              if any(entry in name for entry in exclude)}  # fmt: skip
    if NORM in exclude:
        for module in model.modules():
            if NORM in type(module).__name__.lower():  # BatchNorm2d, GroupNorm, LayerNorm, ...
                chosen |= {id(item) for item in module.parameters(recurse=False)}
    return chosen


def _check_exclude(model: nn.Module, exclude: list[str]) -> None:
    """Raise on an entry of `exclude` that matches no parameter."""
    names = [name for name, _ in model.named_parameters()]
    for entry in exclude:
        if entry != NORM and not any(entry in name for name in names):
            raise UserError(
                f"optimizer.exclude: no parameter of the model has '{entry}' in its name (one "
                f"is '{names[0]}'); '{NORM}' takes all normalisation layers"
            )


def _groups(
    params: nn.Module | list[nn.Parameter], cls: type, exclude: list[str] | None
) -> list[dict[str, Any]]:
    """Parameter groups for `cls`: all, and the excluded ones with their own settings."""
    if not isinstance(params, nn.Module):
        if exclude:
            raise ValueError("a list of parameters has no names; give the module")
        return [{"params": params}]
    trained = [item for item in params.parameters() if item.requires_grad]
    _check_exclude(params, exclude or [])
    if exclude is None:
        exclude = ["bias", NORM] if cls is LARS else []
    excluded = _excluded(params, exclude)
    first = [item for item in trained if id(item) not in excluded]
    second = [item for item in trained if id(item) in excluded]
    settings = {key: item for key, item in (("weight_decay", 0.0), ("adapt", False))
                if key in inspect.signature(cls).parameters}  # fmt: skip
    groups = [{"params": first}, {"params": second} | settings]
    return [group for group in groups if group["params"]]


@configurable(denylist=["params"])
def optimizer(
    params: nn.Module | list[nn.Parameter],
    optim_fn: Annotated[str, Names("optimizer")] = "SGD",
    lr: float = 1.0,
    weight_decay: float = 0.0,
    momentum: float | None = None,
    betas: list[float] | None = None,
    eps: float | None = None,
    exclude: list[str] | None = None,
    arguments: dict | None = None,
) -> torch.optim.Optimizer:
    """Any optimizer of `torch.optim`, its fused form where there is one, or `LARS`.

    Args:
        params: a module, of which everything that requires a gradient is optimised, or a list.
        optim_fn: its class, such as 'Adam'.
        lr: base learning rate; the default schedule gives the rate itself and leaves this at 1.
        weight_decay: L2 penalty, or decoupled decay where the class does that.
        momentum: as torch defines it; None leaves torch's default.
        betas: the same.
        eps: the same.
        exclude: parts of names of parameters that get no weight decay and, with LARS, no rate
            of their own, such as ['.bias', '.bn']; the entry 'norm' takes besides every
            parameter of a normalisation layer, whatever its name. None is [], and for LARS
            ['bias', 'norm'].
        arguments: further arguments of the class, checked against its signature.

    Raises:
        UserError: the class does not take an argument, or `exclude` finds nothing.
    """
    cls, given = optimizer_arguments(
        {"optim_fn": optim_fn, "lr": lr, "weight_decay": weight_decay, "momentum": momentum,
         "betas": betas, "eps": eps, "exclude": exclude, "arguments": arguments}
    )  # fmt: skip
    groups = _groups(params, cls, exclude)
    device = groups[0]["params"][0].device.type
    fits = device in ("cpu", "cuda") and cls.__name__ in _FUSED and not given.get("momentum")
    return cls(groups, **({"fused": True} if fits else {}), **given)


# Only without momentum: with it torch 2.14 fails on a parameter whose gradient is None in the
# first step (frozen prototypes).
_FUSED = {"SGD", "Adam", "AdamW", "Adagrad"}


class Schedule:
    """Learning-rate schedule of a run of `rounds` rounds.

    Either the piecewise-linear table, set before each step from the progress in rounds, or
    a scheduler of torch, stepped once a round.
    """

    def __init__(
        self, optimizer, rounds: float, table=None, scheduler=None, metric="valid_loss"
    ):
        self.optimizer = optimizer
        self.rounds = rounds
        self.table = table
        self.scheduler = scheduler
        self.metric = metric

    def before_step(self, progress: float) -> None:
        """Set the learning rate after `progress` rounds (fractional)."""
        if self.table is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.table(progress)

    def after_round(self, metrics: dict[str, float]) -> None:
        """Step torch's scheduler; ReduceLROnPlateau gets its metric."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if not math.isnan(metrics[self.metric]):  # something counted in this round
                self.scheduler.step(metrics[self.metric])
        elif self.scheduler is not None:
            self.scheduler.step()

    def check_metric(self, known: list[str]) -> None:
        """Raise if ReduceLROnPlateau watches a metric that rounds do not have."""
        wants = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if wants and self.metric not in known:
            raise UserError(f"scheduler.metric = '{self.metric}'{nearest(self.metric, known)}")

    def state_dict(self) -> dict:
        """Torch's scheduler's state; the table needs none."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state_dict` was taken."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)


def table_arguments(milestones: list[float], target_lrs: list[float] | float) -> list[float]:
    """The targets as a list (a number v means [0, v, 0]), checked against the milestones."""
    targets = target_lrs if isinstance(target_lrs, list) else [0.0, target_lrs, 0.0]
    if not milestones or sorted(set(milestones)) != list(milestones) or milestones[0] <= 0:
        raise UserError(f"scheduler.milestones = {milestones}: expected rising rounds, [5, 25]")
    if len(targets) != len(milestones) + 1:
        raise UserError(
            f"scheduler.target_lrs = {target_lrs}: {len(milestones)} milestones need "
            f"{len(milestones) + 1} rates, the first at round 0"
        )
    if min(targets) < 0:
        raise UserError(f"scheduler.target_lrs = {target_lrs}: rates are not negative")
    return targets


@configurable(denylist=["optimizer"])
def scheduler(
    optimizer: torch.optim.Optimizer,
    milestones: list[float] = REQUIRED,
    target_lrs: list[float] | float = REQUIRED,
    exp_factor: float = 0.0,
    scheduler_fn: Annotated[str, Names("scheduler")] = "LambdaLR",
    metric: str = "valid_loss",
    arguments: dict | None = None,
) -> Schedule:
    """The schedule of the learning rate, and with its last milestone the length of the run.

    Args:
        optimizer: whose rates to set.
        milestones: rounds at which the targets are reached; the last one ends the run.
        target_lrs: rates at round 0 and at each milestone; a number v means [0, v, 0].
        exp_factor: how the last segment falls, see `schedules.piecewise_linear`.
        scheduler_fn: 'LambdaLR' is the table above; any other scheduler of torch is stepped
            once a round and starts from `optimizer.lr`.
        metric: what ReduceLROnPlateau looks at.
        arguments: arguments of torch's scheduler, checked against its signature.
    """
    targets = table_arguments(milestones, target_lrs)
    if scheduler_fn == "LambdaLR":
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]

        def table(rounds: float) -> float:
            return schedules.piecewise_linear(rounds, milestones, targets, exp_factor)

        return Schedule(optimizer, milestones[-1], table)
    cls = get("scheduler", scheduler_fn)
    check_arguments("scheduler", cls, arguments or {})
    return Schedule(
        optimizer, milestones[-1], None, cls(optimizer, **(arguments or {})), metric
    )


def check(parts: dict[str, dict[str, Any]]) -> None:
    """Check the arguments of `optimizer` and `scheduler` before anything is built."""
    if "optimizer" in parts:
        optimizer_arguments(parts["optimizer"])
    if "scheduler" in parts:
        values = parts["scheduler"]
        table_arguments(values["milestones"], values["target_lrs"])
        if values["scheduler_fn"] != "LambdaLR":
            check_arguments(
                "scheduler", get("scheduler", values["scheduler_fn"]), values["arguments"] or {}
            )
