"""What a trial runs, and the contract that each kind of job keeps.

A job is registered by `@register("job", NAME)`, chosen by `trial.job = NAME`, and built with
the device as its only argument; everything else is bound by the configuration. `Session`
(training), `Simulation` (a formula) and evaluations keep it; nobody asks a job what it is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch

from selfstudy import registry
from selfstudy.registry import Names, configurable
from selfstudy.types import DataInfo

Report = Callable[[str, int, int], None]  # split or stage, steps done, steps in all


POLL = 0.5  # seconds between two looks at whether to stop


class StopRequested(Exception):
    """The trial was asked to stop within a round."""


def silent(stage: str, done: int, count: int) -> None:
    """The `Report` that shows nothing."""


def watched(report: Report, stopping: Callable[[], bool]) -> Report:
    """`report`, which asks `stopping` every `POLL` seconds, to raise `StopRequested`."""
    last = -POLL

    def watch(stage: str, done: int, count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= POLL:
            last = time.monotonic()
            if stopping():
                raise StopRequested
        report(stage, done, count)

    return watch


@dataclass(frozen=True)
class DataUse:
    """A prepared data file that a job reads.

    Attributes:
        path: the file.
        sha256: of its content, or None where the file does not say.
        info: what the data are, for cards.
    """

    path: Path
    sha256: str | None
    info: DataInfo


class Job(Protocol):
    """One run, a round at a time; a trial resumes it from the state after any round.

    Everything random in a round derives from `seed` and the round's number, so that a resumed
    run equals an uninterrupted one.
    """

    seed: int
    rounds_done: int
    leaves_weights: bool  # whether a checkpoint holds a network that others may start from

    @classmethod
    def length(cls, parts: dict[str, dict[str, Any]]) -> float:
        """Rounds of a run that is not built yet.

        Args:
            parts: every configurable that it would build, with its values.
        """
        ...

    @property
    def rounds(self) -> float:
        """Rounds in the whole run."""
        ...

    @property
    def finished(self) -> bool:
        """Whether there is no round left."""
        ...

    def rehearse(self) -> list[str]:
        """Try one step on the device 'meta', which computes nothing.

        Returns:
            Names of the metrics that each round will have.
        """
        ...

    def round(self, report: Report = silent) -> dict[str, Any]:
        """One round; returns its numbers, with 'round', 'training_iteration' and 'rounds'."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...

    def adopt(self, state: dict[str, Any]) -> None:
        """Continue another run's state under this configuration (population based training)."""
        ...

    def data(self) -> list[DataUse]:
        """The data files that it reads, the one that names its card first."""
        ...

    def notes(self) -> dict[str, Any]:
        """What the line of the first round says besides its numbers, such as loaded weights."""
        ...

    def estimate(self) -> float | None:
        """Seconds of the whole run, measured on few steps, or None where nobody can tell.

        The job is not used afterwards.
        """
        ...


def round_entries(done: int, rounds: float) -> dict[str, Any]:
    """The entries that every result line has, after `done` of `rounds` rounds."""
    return {
        "round": done,
        "training_iteration": done,
        "rounds": rounds,
        "is_finished": done >= rounds,
    }


@configurable("trial")
def job(
    job: Annotated[str, Names("job")] = "session", processes: int = 1
) -> Callable[[torch.device], Job]:
    """What a trial runs.

    Args:
        job: 'session' trains; 'evaluate' scores a snapshot's frozen features; 'simulation' is a
            formula that needs no data.
        processes: how many train together, each on a GPU of its own or with its part of the
            CPUs. `resources_per_trial` is what they have together, and
            `dataloader.batch_size` the minibatch that they share.
    """
    return registry.get("job", job)
