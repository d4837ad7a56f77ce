"""Which checkpoints of a trial stay on the disk."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from selfstudy.storage import checkpoints
from util.errors import UserError

SPARE = 3  # newest checkpoints kept while a trial runs: population based training may copy them


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """When a trial stops and what it saves.

    Attributes:
        stop: result name -> value at which the trial ends (True for flags).
        checkpoint_freq: rounds between checkpoints; 0 is none.
        checkpoint_at_end: save when the trial ends.
        keep_checkpoints: number to keep, the best by `metric`, and the last; None keeps
            all.
        metric: what 'best' means.
        mode: 'max' or 'min'.
    """

    stop: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint_freq: int = 0
    checkpoint_at_end: bool = False
    keep_checkpoints: int | None = None
    metric: str = "mean_accuracy"
    mode: str = "max"

    def asks_for(self, number: int, done: bool) -> bool:
        """Whether a checkpoint is wanted after this round."""
        due = self.checkpoint_freq and number % self.checkpoint_freq == 0
        return bool(due) or (done and self.checkpoint_at_end)


def drop_newer(trial: Path, saved: Path) -> None:
    """Delete the checkpoints newer than `saved`, when a trial has adopted another state."""
    for folder in checkpoints.checkpoints(trial):
        if checkpoints.round_of(folder) <= checkpoints.round_of(saved):
            break
        checkpoints.remove(folder)


def prune(trial: Path, policy: CheckpointPolicy, last: dict[str, Any]) -> None:
    """Delete the checkpoints that the policy does not ask for, the newest last of all.

    Args:
        trial: the trial's folder.
        policy: what to keep.
        last: the trial's last result; while it is not done, `SPARE` more are kept.
    """
    folders = checkpoints.checkpoints(trial)
    done = bool(last.get("done"))
    asked = []
    for folder in folders:
        number = checkpoints.round_of(folder)
        if policy.asks_for(number, done and number == last["round"]):
            asked.append(folder)
    if policy.keep_checkpoints is not None:
        best = sorted(asked, key=lambda folder: _score(folder, policy), reverse=True)
        asked = [*best[: policy.keep_checkpoints], *asked[:1]]
    complete = done and not last.get("diverged")
    spare = [] if complete else folders[: 1 if done else SPARE]
    for folder in folders:
        if folder not in asked and folder not in spare:
            checkpoints.remove(folder)


def _score(folder: Path, policy: CheckpointPolicy) -> float:
    """The policy's metric of a checkpoint, so that more is better; -inf where it has none."""
    try:
        value = checkpoints.read_card(folder)["metrics"].get(policy.metric)
    except (UserError, KeyError):
        value = None
    if not isinstance(value, (int, float)):
        return -math.inf
    return value if policy.mode == "max" else -value
