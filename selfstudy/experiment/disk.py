"""Room for checkpoints: an estimate before the start, and a quota while a sweep runs."""

import math
import shutil
from pathlib import Path
from typing import Any

from selfstudy.experiment.plan import Plan, Row
from selfstudy.experiment.rayconfig import size
from selfstudy.storage import checkpoints
from util.errors import UserError


def words(count: float) -> str:
    """Bytes in words: '1.5 GB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def estimate(plan: Plan, bytes_each: int, rounds: float) -> int:
    """Bytes of the checkpoints that a plan will leave, at most.

    Args:
        plan: how many trials there are, and what they save.
        bytes_each: size of one checkpoint.
        rounds: length of a trial.
    """
    rules, whole = plan.exp_args, math.ceil(rounds)
    freq, keep = rules["checkpoint_freq"], rules["keep_checkpoints"]
    count = whole // freq if freq else 0
    if rules["checkpoint_at_end"] and (not freq or whole % freq):
        count += 1
    if keep is not None:
        count = min(count, keep + 1)
    total = plan.total * count * bytes_each
    quota = size(rules["checkpoint_quota"])
    return total if quota is None else min(total, quota)


def check_room(plan: Plan, needed: int) -> str:
    """Compare an estimate with the free disk; returns it in words.

    Raises:
        UserError: the checkpoints cannot fit.
    """
    folder = plan.folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    room = f"checkpoints: {words(needed)} of {words(free)} free"
    if needed > free:
        raise UserError(
            f"{room}: they cannot fit; lower them with --set keep_checkpoints=1 or "
            "--set checkpoint_quota=..., or set SELFSTUDY_EXP to another disk"
        )
    return room


def enforce(plan: Plan) -> list[Path]:
    """Delete checkpoints until the sweep keeps to its quota; returns what was deleted.

    What goes first: of trials that have ended, all but the newest checkpoint; then the newest
    ones, those of the worst trials first. What trials that have not ended continue from stays,
    and so does the best trial's newest.
    """
    quota = size(plan.exp_args["checkpoint_quota"])
    if quota is None:
        return []
    sizes: dict[Path, int] = {}
    older: list[Path] = []
    newest: list[tuple[float, Path]] = []
    statuses = plan.statuses()
    for row in plan.rows:
        folders = checkpoints.checkpoints(plan.folder / row.name)
        sizes |= {folder: _bytes(folder) for folder in folders}
        if statuses[row.name] in ("done", "stopped", "diverged"):
            older += folders[:0:-1]
            newest += [(_worth(plan, row), folder) for folder in folders[:1]]
    newest.sort(key=lambda item: item[0])
    gone = []
    used = sum(sizes.values())
    for folder in older + [folder for _, folder in newest[:-1]]:
        if used <= quota:
            break
        checkpoints.remove(folder)
        used -= sizes[folder]
        gone.append(folder)
    return gone


def _bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # it is being replaced
        return 0


def _worth(plan: Plan, row: Row) -> float:
    """How good a trial is; more is better."""
    (metric, mode), *_ = plan.objectives
    value: Any = plan.last(row).get(metric)
    if not isinstance(value, (int, float)):
        return -math.inf
    return value if mode == "max" else -value
