"""Evaluations as jobs: a trial scores a snapshot, a cell of a table each round."""

import math
import time
from typing import Any

from selfstudy.job import Report, round_entries, silent
from util.errors import UserError


class Evaluation:
    """The part of the contract (`selfstudy.job.Job`) that all evaluations share.

    A round computes one cell, which depends on the configuration and the cell's number alone,
    so that a resumed evaluation goes on with the next cell. A subclass adds `length`,
    `rehearse`, `data` and `cell`.

    Args:
        seed: of everything random.
        rounds: how many cells.
    """

    leaves_weights = False

    def __init__(self, seed: int, rounds: int):
        self.seed, self.rounds, self.rounds_done = seed, rounds, 0
        self.best_accuracy: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the last cell is done."""
        return self.rounds_done >= self.rounds

    def cell(self, number: int, report: Report) -> dict[str, Any]:
        """The numbers of cell `number`, from 0; 'valid_accuracy' ranks the trials."""
        raise NotImplementedError

    def round(self, report: Report = silent) -> dict[str, Any]:
        """The next cell, with the entries that every round has."""
        start = time.perf_counter()
        numbers = self.cell(self.rounds_done, report)
        self.rounds_done += 1
        if (accuracy := numbers.get("valid_accuracy")) is not None:
            if not math.isnan(accuracy):  # something counted
                self.best_accuracy = max(accuracy, self.best_accuracy or 0.0)
            best = math.nan if self.best_accuracy is None else self.best_accuracy
            numbers |= {"mean_accuracy": accuracy, "best_accuracy": best}
        return numbers | {
            "round_s": time.perf_counter() - start,
            **round_entries(self.rounds_done, self.rounds),
        }

    def state_dict(self) -> dict[str, Any]:
        """Which cells are done."""
        return {"rounds_done": self.rounds_done, "best_accuracy": self.best_accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the next cell."""
        self.rounds_done = state["rounds_done"]
        self.best_accuracy = state["best_accuracy"]

    def adopt(self, state: dict[str, Any]) -> None:
        """Population based training has nothing to change here."""
        raise UserError("an evaluation learns nothing that another trial could adopt")

    def notes(self) -> dict[str, Any]:
        """Nothing besides the numbers."""
        return {}

    def estimate(self) -> float | None:
        """Not known: the time depends on the encoder, the data and the solver."""
        return None
