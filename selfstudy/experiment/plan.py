"""The manifest of an experiment: which trials there are, and what became of them.

`plan.json` is written before the first trial starts and says everything that `--resume`
needs. `journal.jsonl` grows by a line for each trial that a search adds and for whatever
happens to one. How far a trial is stands in its own `result.json`; nothing else keeps state.
"""

import contextlib
import dataclasses
import itertools
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

import paths
from selfstudy import configure, registry, values
from selfstudy.experiment import rayconfig
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.storage import checkpoints
from selfstudy.storage.checkpoints import under_experiments
from selfstudy.storage.manifest import FRESH, Manifest
from selfstudy.storage.relocate import safe_name
from util import environment, files
from util.errors import UserError, nearest

SCHEMA = 1
Variants = Callable[[dict[str, Any], int], list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One trial: the name of its folder, and the values that it overrides."""

    name: str
    overrides: dict[str, Any]


@dataclasses.dataclass
class Plan:
    """An experiment as it was planned.

    Attributes:
        exp_id: folder below EXP_DIR.
        spec: gin files and `-p` bindings.
        ray: name of the ray config.
        exp_args: the ray config without its search space, defaults filled in, as JSON holds
            it: objects of Ray are there as text.
        rows: the trials so far.
        command: the command line that made the plan.
        total: trials in all; a search adds those that are missing.
        settings: texts of `--set`.
        digest: SHA-256 of the ray config's file.
        waiting: names of trials that cannot begin now; not stored.
    """

    exp_id: str
    spec: configure.Spec
    ray: str
    exp_args: dict[str, Any]
    rows: list[Row]
    command: str = ""
    total: int = 0
    settings: tuple[str, ...] = ()
    digest: str = ""
    waiting: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.total = max(self.total, len(self.rows))

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return under_experiments(self.exp_id)

    @property
    def policy(self) -> dict[str, Any]:
        """When trials stop and what they save, as `CheckpointPolicy` takes it."""
        wanted = ("stop", "checkpoint_freq", "checkpoint_at_end", "keep_checkpoints")
        metric, mode = self.objectives[0]
        return {name: self.exp_args[name] for name in wanted} | {"metric": metric, "mode": mode}

    @property
    def objectives(self) -> list[tuple[str, str]]:
        """Metric and mode, the first one first; several for a multi-objective search."""
        metrics, modes = self.exp_args["metric"], self.exp_args["mode"]
        many = isinstance(metrics, list)
        return list(zip(metrics, modes, strict=True)) if many else [(metrics, modes)]

    @property
    def is_ranked(self) -> bool:
        """Whether the trials compete, so that the best one is what is asked for."""
        return bool(self.exp_args["scheduler"] or self.exp_args["search_alg"])

    def exists(self) -> bool:
        """Whether the experiment has been planned before."""
        return (self.folder / paths.PLAN).exists()

    def write(self, data: dict[str, Any] | None = None, devices: Sequence[str] = ()) -> None:
        """Write `plan.json`, `environment.json` and what code differs from its commit.

        Args:
            data: data file -> SHA-256 of its content.
            devices: names of the accelerators.
        """
        made_with = {
            **environment.versions(),
            "machine": environment.machine() | {"devices": list(devices)},
            "data": data or {},
            "command": self.command,
            "code": [self._keep(number, one) for number, one in enumerate(environment.code())],
        }
        files.write_json(self.folder / paths.ENVIRONMENT, made_with)
        self.write_plan()

    def _keep(self, number: int, changes: environment.Changes) -> dict[str, Any]:
        """Write the patch of a folder's changes; returns what `environment.json` says of it."""
        name = paths.PATCH.format(f"-{number}" if number else "")
        if patch := changes.patch():
            files.write_bytes(self.folder / name, patch)
        return {
            "folder": str(changes.folder),
            "commit": changes.commit,
            "sha256": changes.digest,
            "changed": changes.hashes,
            "patch": name if patch else None,
        }

    def write_plan(self) -> None:
        """Write `plan.json`; the trials that a search has added stay in the journal."""
        content = dataclasses.asdict(self)
        del content["waiting"]
        added = {event["name"] for event in self._events() if event["event"] == "row"}
        content["rows"] = [row for row in content["rows"] if row["name"] not in added]
        files.write_json(self.folder / paths.PLAN, {"schema": SCHEMA, **content})

    def _events(self) -> list[dict[str, Any]]:
        return self.manifest().events if self.exists() else []

    def change(self, settings: Sequence[str]) -> None:
        """Take `--set` for the rest of the experiment: how it runs, not what it is.

        A search may be given more trials.

        Raises:
            UserError: an entry that would make it another experiment.
        """
        fixed = {"config", "scheduler", "search_alg", "metric", "mode", "stop"}
        fixed |= set() if self.exp_args["search_alg"] else {"num_samples"}
        for text in settings:
            if (entry := text.partition("=")[0].partition(".")[0].strip()) in fixed:
                raise UserError(
                    f"--resume: '{entry}' of '{self.exp_id}' is settled; choose another -e"
                )
        entries = rayconfig.override(self.exp_args | {"config": {}}, settings)
        rayconfig.check(entries, "--set")
        del entries["config"]
        self.exp_args = entries
        self.settings = (*self.settings, *settings)
        if self.exp_args["search_alg"]:
            self.total = max(len(self.rows), entries["num_samples"])

    @classmethod
    def stored(cls, exp_id: str) -> "Plan":
        """The plan of the experiment called `exp_id`; a `UserError` names the nearest."""
        if not (under_experiments(exp_id) / paths.PLAN).is_file():
            known = [path.parent.name for path in paths.EXP_DIR.glob(f"*/{paths.PLAN}")]
            raise UserError(
                f"no experiment '{exp_id}' in {paths.EXP_DIR}{nearest(exp_id, known)}"
            )
        return cls.read(under_experiments(exp_id))

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """The plan of an experiment's folder, with the trials that a search has added."""
        manifest = Manifest.read(folder)
        stored = manifest.plan
        spec = configure.Spec(tuple(stored["spec"]["gin"]), tuple(stored["spec"]["params"]))
        rows = [Row(row["name"], row["overrides"]) for row in manifest.rows]
        return cls(
            str(folder.relative_to(paths.EXP_DIR)), spec, stored["ray"],
            {key: item for key, item in rayconfig.DEFAULTS.items() if key != "config"}
            | stored["exp_args"],
            rows, stored["command"], stored.get("total", 0),
            tuple(stored.get("settings", ())), stored.get("digest", ""),
        )  # fmt: skip

    def ray_args(self, accept_changes: bool = False) -> RayArgs:
        """The entries of the ray config, with Ray's objects where it needs any.

        A plan that names its scheduler, and whose trials are all known, needs its ray config's
        file no more. Otherwise the file is run again, since objects cannot be stored as text.

        Args:
            accept_changes: take the file although it differs from the one planned with.

        Raises:
            UserError: the file is needed and has changed, or is gone.
        """
        if (
            not rayconfig.has_objects(self.exp_args["scheduler"])
            and not self.exp_args["search_alg"]
        ):
            return RayArgs(**self.exp_args)
        if rayconfig.digest(self.ray) != self.digest and not accept_changes:
            raise UserError(
                f"{rayconfig.label(self.ray)} has changed since '{self.exp_id}' was planned: "
                f"restore it, or add -r {self.ray} to go on with the file as it is"
            )
        live = rayconfig.exp_args(self.ray, self.settings)
        objects = {"scheduler": live.scheduler, "search_alg": live.search_alg}
        return RayArgs(**self.exp_args | objects, config=live.config)

    def forget(self) -> None:
        """Take the plan back if no trial has begun, so that the name is free again."""
        if any(event["event"] in ("trial", "row") for event in self._events()):
            return
        for name in (paths.PLAN, paths.ENVIRONMENT, paths.JOURNAL):
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.glob(paths.PATCH.format("*")):
            path.unlink()

    def manifest(self) -> Manifest:
        """What the folder says now."""
        return Manifest.read(self.folder)

    def begin(self) -> None:
        """Note that a driver starts or resumes."""
        pid, host = os.getpid(), socket.gethostname()
        self.note("begin", pid=pid, host=host, command=shlex.join(["python", *sys.argv]))

    def note(self, event: str, **what: Any) -> None:
        """Append a line to the journal.

        Raises:
            UserError: the disk is full or gone; without the line a resume would be wrong.
        """
        line = {"time": time.time(), "event": event, **what}
        try:
            files.append_line(self.folder / paths.JOURNAL, line)
        except OSError as error:
            raise UserError(
                f"{self.folder / paths.JOURNAL} cannot be written: {error.strerror}; free the "
                f"disk, then: python main.py -e {self.exp_id} --resume", 1
            ) from None  # fmt: skip

    def add(self, overrides: dict[str, Any], **about: Any) -> Row:
        """Add a trial that a search has come up with; it is on the disk before it starts."""
        number = len(self.rows)
        row = Row(_name(overrides, list(overrides), number), overrides)
        self.note("row", name=row.name, overrides=overrides, **about)
        self.rows.append(row)
        return row

    def last(self, row: Row) -> dict[str, Any]:
        """The last line of a trial's results, empty before its first round."""
        lines = self.results(row)
        return lines[-1] if lines else {}

    def results(self, row: Row) -> list[dict[str, Any]]:
        """All lines of a trial's results."""
        return files.read_lines(self.folder / row.name / paths.RESULT)

    def current(self, row: Row) -> dict[str, Any]:
        """What a trial overrides now; population based training changes it on the way."""
        for folder in checkpoints.checkpoints(self.folder / row.name):
            with contextlib.suppress(UserError):
                return row.overrides | checkpoints.read_card(folder).get("overrides", {})
        return row.overrides

    def statuses(self) -> dict[str, str]:
        """What became of each trial, see `selfstudy.storage.manifest.STATUSES`."""
        manifest = self.manifest()
        return {row.name: manifest.status(row.name, self.last(row)) for row in self.rows}

    def unfinished(self) -> list[Row]:
        """The trials that have not ended and can begin; those that failed are among them."""
        ended = ("done", "stopped", "diverged")
        left = {name for name, status in self.statuses().items() if status not in ended}
        return [row for row in self.rows if row.name in left - self.waiting]

    def varying(self) -> list[str]:
        """The overridden names whose values differ between trials."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.overrides))
        return [name for name in names
                if len({repr(row.overrides.get(name)) for row in self.rows}) > 1]  # fmt: skip

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment; a second driver is refused with exit code 4.

        The operating system frees the lock of a process that has died. Where it does not
        reach, between machines, the owner's note counts while its journal shows signs of life.
        """
        owner = self.folder / ".owner"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / ".lock")
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{self.exp_id} is being run by {_owner(owner)}", 4) from None
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; "
                "set SELFSTUDY_EXP to another folder"
            ) from None
        try:
            if _elsewhere(owner):
                raise UserError(
                    f"{self.exp_id} is being run by {_owner(owner)}; if it is not, "
                    f"delete {owner}", 4)  # fmt: skip
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            files.write_json(owner, mine)
            try:
                yield
            finally:  # a machine elsewhere would wait for one that has failed
                owner.unlink(missing_ok=True)
        finally:
            lock.release()

    def beat(self) -> None:
        """Show that the driver lives, for drivers on other machines."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / ".owner")


def _elsewhere(owner: Path) -> bool:
    """Whether a driver on another machine holds the experiment and has moved of late."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        other = files.read_json(owner).get("host") != socket.gethostname()
        return other and time.time() - owner.stat().st_mtime < FRESH
    return False


def _owner(owner: Path) -> str:
    """Who holds an experiment, in words."""
    try:
        note = files.read_json(owner)
        since = time.strftime("%H:%M", time.localtime(note["since"]))
        return f"process {note['pid']} on {note['host']} since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def fresh_id() -> str:
    """A name for an experiment that has none: the time, and more where that is taken."""
    base = time.strftime("%Y%m%d-%H%M%S")
    taken = (base if not number else f"{base}-{number}" for number in itertools.count())
    return next(name for name in taken if not (paths.EXP_DIR / name).exists())


def make(
    exp_id: str,
    spec: configure.Spec,
    ray: str,
    ray_args: RayArgs,
    variants: Variants | None,
    settings: Sequence[str] = (),
) -> Plan:
    """Plan an experiment: every trial with its values and its folder's name.

    Args:
        exp_id: folder below EXP_DIR.
        spec: gin files and `-p` bindings.
        ray: name of the ray config.
        ray_args: its entries.
        variants: generates the trials of a search space, `num_samples` times; None when its
            values are fixed. Repeats of the same values get seeds of their own.
        settings: texts of `--set`, which `ray_args` has already.
    """
    config, samples = ray_args.config, ray_args.num_samples
    if ray_args.search_alg:
        trials = []
    else:
        trials = variants(config, samples) if variants else [dict(config)] * samples
    flat = [{name: values.literal(name, value) for name, value in
             values.flatten(trial).items()} for trial in trials]  # fmt: skip
    rows = [Row("", overrides) for overrides in _with_seeds(flat, spec)]
    entries = {key: rayconfig.as_json(value) for key, value in ray_args.entries.items()
               if key != "config"}  # fmt: skip
    plan = Plan(
        exp_id, spec, ray, entries, rows, shlex.join(["python", *sys.argv]),
        samples if ray_args.search_alg else len(rows), tuple(settings), rayconfig.digest(ray),
    )  # fmt: skip
    varying = plan.varying()
    plan.rows = [Row(_name(row.overrides, varying, number), row.overrides)
                 for number, row in enumerate(rows)]  # fmt: skip
    return plan


def _with_seeds(trials: list[dict[str, Any]], spec: configure.Spec) -> list[dict[str, Any]]:
    """Give the second and further repeats of the same values the next seeds."""
    seen: dict[str, int] = {}
    rows = []
    for overrides in trials:
        repeat = seen[repr(overrides)] = seen.get(repr(overrides), -1) + 1
        if repeat and not any(name.endswith(".seed") for name in overrides):
            registry.discover()
            configure.load(spec, overrides)
            job = configure.value("trial", "job")
            seed = configure.value(job, "seed") + repeat
            overrides = overrides | {f"{job}.seed": seed}
        rows.append(overrides)
    return rows


def _name(overrides: dict[str, Any], varying: list[str], number: int) -> str:
    """`e_<leaf>=<value>_..._<number>`, safe and at most 100 bytes long."""
    shown = {name: overrides[name] for name in varying if name in overrides}
    shown = {name: float(f"{value:.4g}") if isinstance(value, float) else value
             for name, value in shown.items()}  # fmt: skip
    parts = [f"{name.rpartition('.')[2]}={safe_name(value)}" for name, value in shown.items()]
    short = "_".join(parts)[:90]
    return f"e_{short}_{number:04d}" if short else f"e_{number:04d}"
