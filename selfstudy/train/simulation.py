"""A job whose accuracy is a formula: tests searches, clusters and restarts in seconds.

It takes a session's place (`trial.job = 'simulation'`), needs no data, and its numbers depend
on its configuration and the round alone, so that an interrupted search can be compared with an
uninterrupted one row by row.
"""

import math
import os
import signal
import time
from typing import Any, Literal

import torch

from selfstudy.job import DataUse, Report, round_entries, silent
from selfstudy.registry import configurable, register
from util.errors import UserError


@register("job", "simulation")
@configurable("simulation", denylist=["device"])
class Simulation:
    """Approaches an accuracy that depends on `x` and `y`, a share `rate` of the way a round.

    The limit is exp(-((log10(x) + 2)^2 + (y - 0.5)^2)), so x = 0.01 and y = 0.5 are best. The
    step is a recursion, so a run whose configuration changes on the way (population based
    training) goes on from where it is.

    Args:
        device: not used.
        rounds: length of the run.
        x: as a learning rate would be searched, positive.
        y: as a momentum would be, 0 to 1.
        rate: share of the remaining distance to the limit that a round covers, 0 to 1.
        seconds: how long a round takes.
        steps: simulated minibatches of a round.
        size: numbers in its state, for checkpoints as large as a model's.
        fault: what goes wrong before `fault_round` ends: 'nan' gives infinite losses, 'error'
            raises, 'kill' ends the process. Only a run that began in this process has it: one
            that was continued from a checkpoint goes on.
        fault_round: in which round.
        seed: not used; repeats of a configuration differ in it.

    Raises:
        UserError: a value out of its range.
    """

    leaves_weights = False

    def __init__(
        self,
        device: torch.device,
        rounds: int = 9,
        x: float = 0.01,
        y: float = 0.5,
        rate: float = 0.3,
        seconds: float = 0.0,
        steps: int = 10,
        size: int = 1,
        fault: Literal["none", "nan", "error", "kill"] = "none",
        fault_round: int = 1,
        seed: int = 0,
    ):
        if rounds < 1 or x <= 0 or not 0 < rate <= 1:
            raise UserError(
                f"simulation: rounds = {rounds}, x = {x} and rate = {rate} are to be positive, "
                "rate at most 1"
            )
        self.rounds, self.seed = rounds, seed
        self.rate, self.seconds, self.steps, self.size = rate, seconds, steps, size
        self.limit = math.exp(-((math.log10(x) + 2) ** 2) - (y - 0.5) ** 2)
        self.fault, self.fault_round = fault, fault_round
        self.rounds_done, self.accuracy, self.best_accuracy = 0, 0.0, 0.0

    @classmethod
    def length(cls, parts: dict[str, dict[str, Any]]) -> float:
        """`simulation.rounds`."""
        return parts["simulation"]["rounds"]

    @property
    def finished(self) -> bool:
        """Whether the last round is done."""
        return self.rounds_done >= self.rounds

    def data(self) -> list[DataUse]:
        """It reads none."""
        return []

    def notes(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def estimate(self) -> float:
        """Seconds that its rounds will wait."""
        return self.rounds * self.seconds

    def rehearse(self) -> list[str]:
        """The metrics of a round; there is nothing else to try."""
        return ["train_loss", "train_accuracy", "valid_accuracy"]

    def round(self, report: Report = silent) -> dict[str, Any]:
        """One round: the same keys as a session's."""
        start = time.perf_counter()
        for step in range(self.steps):
            time.sleep(self.seconds / self.steps)
            report("train", step + 1, self.steps)
        self.rounds_done += 1
        self.accuracy += self.rate * (self.limit - self.accuracy)
        self.best_accuracy = max(self.accuracy, self.best_accuracy)
        failing = self.fault if self.rounds_done == self.fault_round else "none"
        if failing == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if failing == "error":
            raise RuntimeError("the simulated error")
        return {
            "train_loss": math.inf if failing == "nan" else -math.log(self.accuracy),
            "train_accuracy": self.accuracy,
            "valid_accuracy": self.accuracy,
            "mean_accuracy": self.accuracy,
            "best_accuracy": self.best_accuracy,
            "round_s": time.perf_counter() - start,
            **round_entries(self.rounds_done, self.rounds),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {
            "rounds_done": self.rounds_done,
            "accuracy": self.accuracy,
            "best_accuracy": self.best_accuracy,
            "weights": torch.zeros(self.size),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.rounds_done = state["rounds_done"]
        self.accuracy = state["accuracy"]
        self.best_accuracy = state["best_accuracy"]
        self.fault = "none"

    def adopt(self, state: dict[str, Any]) -> None:
        """Continue another run's state under this configuration."""
        self.load_state_dict(state)
