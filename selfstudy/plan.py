"""The manifest of an experiment: which trials there are, and what became of them.

`plan.json` is written before the first trial starts and says everything that `--resume`
needs. `journal.jsonl` grows by a line for each trial that a search adds and for whatever
happens to one. How far a trial is stands in its own `result.json`; nothing else keeps state.
"""

import ast
import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import runpy
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

import paths
from selfstudy import configure, rayenv, registry, values  # noqa: F401  (rayenv: see there)
from util import checkpoints, environment, files
from util.checkpoints import under_experiments
from util.errors import UserError, nearest
from util.manifest import Manifest
from util.relocate import safe_name

SCHEMA = 1
DEFAULTS: dict[str, Any] = {
    "stop": {"is_finished": True},
    "num_samples": 1,
    "resources_per_trial": {"cpu": 1},
    "checkpoint_freq": 0,
    "checkpoint_at_end": False,
    "keep_checkpoints": None,
    "checkpoint_quota": None,
    "verbose": 1,
    "max_failures": 2,
    "scheduler": None,
    "search_alg": None,
    "metric": "mean_accuracy",
    "mode": "max",
    "max_concurrent": None,
    "time_budget_s": None,
    "config": {},
}
# Entry -> what it takes; the first word of each is checked.
_KINDS: dict[str, tuple[type, ...]] = {
    "stop": (dict,), "num_samples": (int,), "resources_per_trial": (dict,),
    "checkpoint_freq": (int,), "checkpoint_at_end": (bool,),
    "keep_checkpoints": (int, type(None)), "checkpoint_quota": (int, float, str, type(None)),
    "verbose": (int,), "max_failures": (int,), "metric": (str, list), "mode": (str, list),
    "max_concurrent": (int, type(None)), "time_budget_s": (int, float, type(None)),
    "config": (dict,),
}  # fmt: skip
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
Variants = Callable[[dict[str, Any], int], list[dict[str, Any]]]
HEARTBEAT = 60.0  # seconds between two signs of life of the driver
STALE = 5 * HEARTBEAT  # without one for so long, another machine's driver counts as gone


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

    def __post_init__(self) -> None:
        self.total = max(self.total, len(self.rows))

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return under_experiments(self.exp_id)

    @property
    def rules(self) -> dict[str, Any]:
        """When trials stop and what they save, as `trial.Rules` takes it."""
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
        """Write `plan.json` and `environment.json` into the experiment's folder.

        Args:
            data: data file -> SHA-256 of its content.
            devices: names of the accelerators.
        """
        made_with = {
            **environment.versions(),
            "machine": environment.machine() | {"devices": list(devices)},
            "data": data or {},
            "command": self.command,
        }
        files.write_json(self.folder / paths.ENVIRONMENT, made_with)
        self.write_plan()

    def write_plan(self) -> None:
        """Write `plan.json`; the trials that a search has added stay in the journal."""
        content = dataclasses.asdict(self)
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
        given = overridden(self.exp_args | {"config": {}}, settings)
        _check_args(given, "--set")
        del given["config"]
        self.exp_args = given
        self.settings = (*self.settings, *settings)
        if self.exp_args["search_alg"]:
            self.total = max(len(self.rows), given["num_samples"])

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
            {key: item for key, item in DEFAULTS.items() if key != "config"}
            | stored["exp_args"],
            rows, stored["command"], stored.get("total", 0),
            tuple(stored.get("settings", ())), stored.get("digest", ""),
        )  # fmt: skip

    def forget(self) -> None:
        """Take the plan back if no trial has begun, so that the name is free again."""
        if any(event["event"] in ("trial", "row") for event in self._events()):
            return
        for name in (paths.PLAN, paths.ENVIRONMENT, paths.JOURNAL):
            (self.folder / name).unlink(missing_ok=True)

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
        """What became of each trial, see `util.manifest.STATUSES`."""
        manifest = self.manifest()
        return {row.name: manifest.status(row.name, self.last(row)) for row in self.rows}

    def unfinished(self) -> list[Row]:
        """The trials that have not ended; those that failed are among them."""
        ended = ("done", "stopped", "diverged")
        statuses = self.statuses()
        return [row for row in self.rows if statuses[row.name] not in ended]

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
        return other and time.time() - owner.stat().st_mtime < STALE
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


def overridden(given: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A ray config's entries after `--set KEY=VALUE`.

    KEY is an entry, or `entry.key` of an entry that is a dict, such as
    `resources_per_trial.gpu`. VALUE is a Python literal; what is none is text.
    """
    given = dict(given)
    for text in settings:
        key, equals, value = (part.strip() for part in text.partition("="))
        entry, dot, inner = key.partition(".")
        if not equals or not value:
            raise UserError(f"--set '{text}': expected KEY=VALUE, as in num_samples=40")
        if entry not in DEFAULTS:
            raise UserError(f"--set '{text}': no entry '{entry}'{nearest(entry, DEFAULTS)}")
        if dot and not isinstance(given[entry], dict):
            raise UserError(f"--set '{text}': {entry} has no parts")
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = value
        given[entry] = {**given[entry], inner: parsed} if dot else parsed
    return given


def is_drawn(config: dict[str, Any]) -> bool:
    """Whether a search space has values that are still to be drawn, such as a grid's."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return "grid_search" not in value and all(map(plain, value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or isinstance(value, (bool, int, float, str))

    return not plain(config)


def ray_file(name: str) -> Path:
    """The path of `config/ray/<name>.py`, or a `UserError` with the nearest known name."""
    known = sorted(str(path.relative_to(paths.RAY_DIR).with_suffix(""))
                   for path in paths.RAY_DIR.rglob("*.py"))  # fmt: skip
    if name.removesuffix(".py") not in known:
        raise UserError(f"no ray config is called '{name}'{nearest(name, known)}")
    return paths.under(paths.RAY_DIR, name.removesuffix(".py") + ".py")


def exp_args(name: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """`exp_args` of `config/ray/<name>.py`, checked, with defaults and `--set` filled in."""
    path = ray_file(name)
    try:
        given = runpy.run_path(str(path))["exp_args"]
    except KeyError:
        raise UserError(f"config/ray/{name}.py defines no exp_args") from None
    except ImportError as error:
        raise UserError(
            f"config/ray/{name}.py: {error}; pip install {error.name or name}"
        ) from None
    except Exception as error:  # a user's file may fail in any way; it is still one line
        raise UserError(f"config/ray/{name}.py: {type(error).__name__}: {error}") from None
    for key in given:
        if key not in DEFAULTS:
            raise UserError(f"config/ray/{name}.py: no entry '{key}'{nearest(key, DEFAULTS)}")
    given = overridden(DEFAULTS | given, settings)
    _check_args(given, f"config/ray/{name}.py")
    return given


def _check_args(given: dict[str, Any], where: str) -> None:
    """Refuse entries of a wrong kind or size."""
    for key, kinds in _KINDS.items():
        value = given[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("None" if kind is type(None) else kind.__name__
                                 for kind in kinds)  # fmt: skip
            raise UserError(f"{where}: '{key}' takes {wanted}, not {value!r}")
    least = {"num_samples": 1, "checkpoint_freq": 0, "keep_checkpoints": 0, "verbose": 0,
             "max_failures": -1, "max_concurrent": 1, "time_budget_s": 0}  # fmt: skip
    for key, smallest in least.items():
        if given[key] is not None and given[key] < smallest:
            raise UserError(f"{where}: '{key}' is {given[key]}, the least is {smallest}")
    metrics, modes = given["metric"], given["mode"]
    many = isinstance(metrics, list)
    if many != isinstance(modes, list) or (many and len(metrics) != len(modes)):
        raise UserError(f"{where}: each metric needs a mode: {metrics!r} has {modes!r}")
    for mode in modes if many else [modes]:
        if mode not in ("max", "min"):
            raise UserError(f"{where}: 'mode' is 'max' or 'min', not {mode!r}")
    size(given["checkpoint_quota"])


def size(text: int | float | str | None) -> int | None:
    """Bytes that a text such as '50GB' or '1.5 TiB' says."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2].upper() not in _UNITS:
        raise UserError(f"checkpoint_quota = {text!r}: expected a size such as '50GB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def digest(name: str) -> str:
    """SHA-256 of a ray config's file."""
    return hashlib.sha256(ray_file(name).read_bytes()).hexdigest()


def stored_args(plan: Plan, accept_changes: bool) -> dict[str, Any]:
    """The entries of a stored plan, with Ray's objects where it needs any.

    A plan that names its scheduler, and whose trials are all known, needs its ray config's
    file no more. Otherwise the file is run again, since objects cannot be stored as text.

    Args:
        plan: as stored.
        accept_changes: take the file although it differs from the one that was planned with.

    Raises:
        UserError: the file is needed and has changed, or is gone.
    """
    if not _has_objects(plan.exp_args["scheduler"]) and not plan.exp_args["search_alg"]:
        return plan.exp_args | {"config": {}}
    if digest(plan.ray) != plan.digest and not accept_changes:
        raise UserError(
            f"config/ray/{plan.ray}.py has changed since '{plan.exp_id}' was planned: restore "
            f"it, or add -r {plan.ray} to go on with the file as it is"
        )
    return exp_args(plan.ray, plan.settings)


def make(
    exp_id: str,
    spec: configure.Spec,
    ray: str,
    given: dict[str, Any],
    variants: Variants | None,
    settings: Sequence[str] = (),
) -> Plan:
    """Plan an experiment: every trial with its values and its folder's name.

    Args:
        exp_id: folder below EXP_DIR.
        spec: gin files and `-p` bindings.
        ray: name of the ray config.
        given: its `exp_args`.
        variants: draws `num_samples` times from a search space; None when it has nothing to
            draw. Repeats of the same values get seeds of their own.
        settings: texts of `--set`, which `given` has already.
    """
    config, samples = given["config"], given["num_samples"]
    if given["search_alg"]:
        drawn = []
    else:
        drawn = variants(config, samples) if variants else [dict(config)] * samples
    flat = [{name: values.literal(name, value) for name, value in
             values.flatten(one).items()} for one in drawn]  # fmt: skip
    rows = [Row("", overrides) for overrides in _with_seeds(flat, spec)]
    settled = {key: _settled(value) for key, value in given.items() if key != "config"}
    plan = Plan(
        exp_id, spec, ray, settled, rows, shlex.join(["python", *sys.argv]),
        samples if given["search_alg"] else len(rows), tuple(settings), digest(ray),
    )  # fmt: skip
    varying = plan.varying()
    plan.rows = [Row(_name(row.overrides, varying, number), row.overrides)
                 for number, row in enumerate(rows)]  # fmt: skip
    return plan


def _with_seeds(drawn: list[dict[str, Any]], spec: configure.Spec) -> list[dict[str, Any]]:
    """Give the second and further repeats of the same values the next seeds."""
    seen: dict[str, int] = {}
    rows = []
    for overrides in drawn:
        repeat = seen[repr(overrides)] = seen.get(repr(overrides), -1) + 1
        if repeat and not any(name.endswith(".seed") for name in overrides):
            registry.discover()
            configure.load(spec, overrides)
            job = configure.value("trial", "job")
            seed = configure.value(job, "seed") + repeat
            overrides = overrides | {f"{job}.seed": seed}
        rows.append(overrides)
    return rows


def _settled(value: Any) -> Any:
    """A ray config's entry as JSON holds it; an object of Ray as text that names its class."""
    if isinstance(value, dict):
        return {key: _settled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_settled(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{type(value).__name__}>"


def _has_objects(value: Any) -> bool:
    """Whether `_settled` had to write an object as text."""
    if isinstance(value, (dict, list)):
        return any(map(_has_objects, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and value.startswith("<")


def _name(overrides: dict[str, Any], varying: list[str], number: int) -> str:
    """`e_<leaf>=<value>_..._<number>`, safe and at most 100 bytes long."""
    shown = {name: overrides[name] for name in varying if name in overrides}
    shown = {name: float(f"{value:.4g}") if isinstance(value, float) else value
             for name, value in shown.items()}  # fmt: skip
    parts = [f"{name.rpartition('.')[2]}={safe_name(value)}" for name, value in shown.items()]
    short = "_".join(parts)[:90]
    return f"e_{short}_{number:04d}" if short else f"e_{number:04d}"


def fit_resources(wanted: dict[str, float], cpus: float, gpus: float) -> tuple[dict, list[str]]:
    """What a trial can have of what it wants, and lines that say what was changed.

    A GPU on a machine without one is dropped; more than there is can never be met.

    Raises:
        UserError: an unknown resource, or more CPUs or GPUs than there are.
    """
    have = {"cpu": cpus, "gpu": gpus}
    notes = []
    fitted = {}
    for name, amount in wanted.items():
        if name not in have:
            raise UserError(f"resources_per_trial: no '{name}'{nearest(name, have)}")
        if not isinstance(amount, (int, float)) or amount < 0:
            raise UserError(f"resources_per_trial: {name} = {amount!r} is no amount")
        if name == "gpu" and amount and not gpus:
            notes.append(f"no GPU here: each trial asks for gpu {amount:g} and runs on the CPU")
        elif amount > have[name]:
            raise UserError(
                f"resources_per_trial: {name} {amount:g} can never be met, there are "
                f"{have[name]:g}; lower it in the ray config"
            )
        else:
            fitted[name] = amount
    return fitted, notes


def at_once(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many trials run side by side; no trial spans two GPUs with a fraction of each."""
    limits = []
    if cpu := resources.get("cpu"):
        limits.append(int(cpus / cpu + 1e-9))
    if gpu := resources.get("gpu"):
        limits.append(int(gpus) * int(1 / gpu + 1e-9) if gpu < 1 else int(gpus / gpu))
    return max(1, min(limits, default=1))


def packing(resources: dict[str, float], cpus: float, gpus: float) -> str:
    """How trials share the machine, in words."""
    asked = ", ".join(f"{name} {amount:g}" for name, amount in resources.items())
    gpu, words = resources.get("gpu", 0), []
    if 0 < gpu < 1:
        words.append(f"{int(1 / gpu + 1e-9)} trials per GPU")
    if gpu:
        words.append(f"{gpus:g} GPUs" if gpus != 1 else "1 GPU")
    words.append(f"{at_once(resources, cpus, gpus)} at once")
    return f"each {asked or 'without CPUs'}; {', '.join(words)}"


def gpu_fit(peak_mb: float, total_mb: float, share: float) -> str:
    """Whether trials with this peak of GPU memory fit side by side, in words."""
    fits, wanted = int(total_mb / max(peak_mb, 1)), int(1 / share + 1e-9) if share < 1 else 1
    text = f"peak {peak_mb / 1024:.1f} GiB of {total_mb / 1024:.1f} GiB: {fits} fit on a GPU"
    if fits < wanted:
        return f"{text}, NOT the {wanted} that gpu {share:g} packs: raise it"
    return f"{text}, {wanted} are packed"
