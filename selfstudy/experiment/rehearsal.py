"""Rehearsal of a trial on the device 'meta', to find before the start what cannot work."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch

import paths
from selfstudy import configure, registry
from selfstudy.data.dataset import BaseDataset, NotPrepared
from selfstudy.job import Job, job
from selfstudy.train import optim, processes
from util.errors import UserError, cause, nearest

CARD_BYTES = 10_000  # of a checkpoint beside its tensors


@dataclasses.dataclass(frozen=True)
class Checked:
    """Result of `check` of one trial.

    Attributes:
        parts: every configurable that it would build, with its values.
        rounds: how long it is.
        metrics: names of the numbers that each round has; empty when it was not built.
        bytes: size of one checkpoint; 0 when it was not built.
        data: SHA-256 of its data files by their paths below DATA_DIR.
        leaves_weights: whether a checkpoint holds a network.
    """

    parts: dict[str, dict[str, Any]]
    rounds: float
    metrics: tuple[str, ...] = ()
    bytes: int = 0
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    leaves_weights: bool = True


OF_A_ROUND = ("mean_accuracy", "best_accuracy", "learning_rate", "images_per_s", "round_s",
              "total_s", "round", "training_iteration")  # fmt: skip


def check(
    spec: configure.Spec,
    overrides: dict[str, Any],
    build: bool = True,
    prepare: bool = True,
) -> Checked:
    """Find a trial's mistakes before anything starts.

    Args:
        spec: files and `-p` bindings.
        overrides: a search's values.
        build: also open the data set, and build the model without memory for its weights.
        prepare: make a data file that is missing; else such a trial is not built.

    Raises:
        UserError: anything in the configuration that cannot work, or missing data.
    """
    registry.discover()
    configure.load(spec, overrides)
    parts = configure.would_build("trial")
    optim.check(parts)
    processes.check(parts)
    _check_backbone(parts)
    _check_used(overrides, parts)
    kind: type[Job] = registry.get("job", parts["trial"]["job"])
    known = Checked(parts, kind.length(parts), leaves_weights=kind.leaves_weights)
    if not build:
        return known
    try:
        with BaseDataset.allow_preparing(prepare):
            built, metrics = _rehearsed()
    except NotPrepared:
        return known
    size = CARD_BYTES + sum(
        item.numel() * item.element_size() for item in _tensors(built.state_dict())
    )
    data = {_below_data(use.path): use.sha256 for use in built.data() if use.sha256}
    return dataclasses.replace(known, metrics=(*metrics, *OF_A_ROUND), bytes=size, data=data)


def _check_used(overrides: dict[str, Any], parts: dict[str, dict[str, Any]]) -> None:
    """Refuse a search over something that the trial never builds: it would change nothing."""
    for name in overrides.keys() - {configure.INCLUDE}:
        component = configure.component(name)
        if not any(part == component or part.endswith(f"/{component}") for part in parts):
            raise UserError(
                f"ray config: '{name}' changes nothing here, since this configuration uses no "
                f"{component}{nearest(component, parts)}"
            )


def _check_backbone(parts: dict[str, dict[str, Any]]) -> None:
    names = parts.get("session", {})
    backbone = parts.get("Wrapper", {}).get("model_choice")
    needed = registry.get("task", names["task"]).backbone if names else None
    if (
        needed
        and backbone
        and not issubclass(registry.get("backbone", backbone), registry.get("backbone", needed))
    ):
        raise UserError(
            f"session.task = '{names['task']}' needs Wrapper.model_choice = '{needed}', "
            f"not '{backbone}'"
        )


def _rehearsed() -> tuple[Job, list[str]]:
    """The job on a device that computes nothing; what fails there is the user's to mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loading weights into nothing is what is meant
            built = job()(torch.device("meta"))
            return built, built.rehearse()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the session cannot work: {cause(error)}") from error


def _below_data(path: Path) -> str:
    inside = path.is_relative_to(paths.DATA_DIR)
    return (path.relative_to(paths.DATA_DIR) if inside else path).as_posix()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, (dict, list, tuple))
    return [tensor for item in items for tensor in _tensors(item)] if nested else []
