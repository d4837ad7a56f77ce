"""The record of an experiment, read without torch: which trials, and what became of them.

`plan.json` lists the trials that were planned, `journal.jsonl` those that a search added and
what has happened; how far a trial is stands in its own `result.json`. The folder may be a
stranger's, so everything is checked before it is used, and nothing in it is executed.
"""

import dataclasses
import functools
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import paths
from util import files
from util.errors import UserError

STATUSES = ("done", "stopped", "diverged", "failed", "interrupted", "running", "planned")
FRESH = 300.0  # seconds without a heartbeat after which another machine's driver counts as dead
_NAME = re.compile(r"e_[A-Za-z0-9._=+-]{1,253}")
_TRIAL_EVENTS = {"started", "retried", "stopped", "failed", "diverged", "interrupted", "done"}
_SHAPE = {"schema": int, "spec": dict, "ray": str, "exp_args": dict, "rows": list,
          "command": str}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The plan and journal of an experiment.

    Attributes:
        folder: the experiment's folder.
        plan: the content of `plan.json`.
        rows: `name` and `overrides` of each trial: those planned, then those added, in order.
        events: the well-formed lines of the journal.
        torn: number of damaged journal lines, such as a last one that was cut.
    """

    folder: Path
    plan: dict[str, Any]
    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]
    torn: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The record in an experiment's folder.

        Raises:
            UserError: `plan.json` is missing or damaged, or the journal cannot be read.
        """
        folder = Path(folder)
        plan = _plan(folder / paths.PLAN)
        lines, torn = files.scan_lines(folder / paths.JOURNAL)
        events = [line for line in lines if _is_event(line)]
        rows = {row["name"]: row for row in plan["rows"]}
        for event in (event for event in events if event["event"] == "row"):
            rows.setdefault(event["name"], event)
        kept = [{key: row[key] for key in ("name", "overrides")} for row in rows.values()]
        return cls(folder, plan, kept, events, torn + len(lines) - len(events))

    @functools.cached_property
    def is_running(self) -> bool:
        """Whether a driver is running the experiment.

        On this machine its process must be alive; of another machine's driver only what it
        writes can be seen.
        """
        drivers = [event for event in self.events if event["event"] in ("begin", "end")]
        if not drivers or drivers[-1]["event"] == "end":
            return False
        begin = drivers[-1]
        if begin.get("host") == socket.gethostname():
            return _is_alive(begin.get("pid"), begin["time"])
        written = [self.folder / paths.JOURNAL, self.folder / ".owner"]
        written += [self.folder / row["name"] / paths.RESULT for row in self.rows]
        return time.time() - max(map(_mtime, written)) < FRESH

    @functools.cached_property
    def _latest(self) -> dict[str, dict[str, Any]]:
        """Trial -> the last thing that happened to it."""
        return {event["name"]: event for event in self.events if event["event"] == "trial"}

    def status(self, name: str, last: dict[str, Any]) -> str:
        """One of `STATUSES`: what became of a trial.

        Args:
            name: of the trial.
            last: the last line of its `result.json`, empty when there is none.
        """
        if last.get("diverged"):
            return "diverged"
        if last.get("done"):
            return "done"
        event = self._latest.get(name, {}).get("status")
        if event in ("stopped", "failed"):
            return event
        if self.is_running and (last or event in ("started", "retried")):
            return "running"
        return "interrupted" if last else "planned"

    def why(self, name: str) -> str | None:
        """The reason that the journal gives for what last happened to a trial."""
        why = self._latest.get(name, {}).get("why")
        return why if isinstance(why, str) and why else None


def _plan(path: Path) -> dict[str, Any]:
    """A checked `plan.json`."""
    try:
        plan = files.read_object(path)
        for key, kind in _SHAPE.items():
            if not isinstance(plan.get(key), kind):
                raise ValueError(f"'{key}' is missing or no {kind.__name__}")
        for key in ("gin", "params"):
            if not _all_are(plan["spec"].get(key), str):
                raise ValueError(f"spec['{key}'] is no list of texts")
        _check_rows(plan["rows"])
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder holds no experiment") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return plan


def _all_are(items: Any, kind: type) -> bool:
    return isinstance(items, list) and all(isinstance(item, kind) for item in items)


def _check_rows(rows: list[Any]) -> None:
    names = set()
    for row in rows:
        if not isinstance(row, dict) or not _is_row(row):
            raise ValueError(f"{str(row)[:80]!r} is no trial")
        if row["name"] in names:
            raise ValueError(f"two trials are called '{row['name']}'")
        names.add(row["name"])


def _is_row(row: dict[str, Any]) -> bool:
    """A trial needs a name that is one plain folder, and the values that it overrides."""
    name = row.get("name")
    plain = isinstance(name, str) and bool(_NAME.fullmatch(name))
    return plain and isinstance(row.get("overrides"), dict)


def _is_event(line: dict[str, Any]) -> bool:
    kind, when = line.get("event"), line.get("time")
    if isinstance(when, bool) or not isinstance(when, (int, float)):
        return False
    if kind == "row":
        return _is_row(line)
    if kind == "trial":
        return isinstance(line.get("name"), str) and line.get("status") in _TRIAL_EVENTS
    return kind in ("begin", "end")


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_alive(pid: Any, begun: float) -> bool:
    """Whether process `pid` of this machine, which wrote at `begun`, is still there."""
    if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        pass  # another user's
    except (OSError, OverflowError):
        return False
    started = _start_time(pid)
    return started is None or started < begun + 10  # else it has only inherited the number


def _start_time(pid: int) -> float | None:
    """When a process has started, in seconds since 1970 (Linux; None elsewhere)."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
        return int(boot[1]) + int(ticks) / os.sysconf("SC_CLK_TCK") if boot else None
    except (OSError, ValueError, IndexError):
        return None
