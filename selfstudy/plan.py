"""The manifest of an experiment: which trials there are, and which have ended.

`plan.json` is written before the first trial starts and says everything that `--resume`
needs. Whether a trial has ended is read from its own `result.json`; nothing else keeps state.
"""

import contextlib
import dataclasses
import itertools
import re
import runpy
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

import paths
from selfstudy import configure, registry, values
from util import environment, files
from util.checkpoints import under_experiments
from util.errors import UserError, nearest
from util.relocate import safe_name

SCHEMA = 1
DEFAULTS: dict[str, Any] = {
    "stop": {"is_finished": True},
    "num_samples": 1,
    "resources_per_trial": {"cpu": 1},
    "checkpoint_freq": 0,
    "checkpoint_at_end": False,
    "verbose": 1,
    "max_failures": 2,
    "config": {},
}
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
        exp_args: the ray config without its search space, defaults filled in.
        rows: the trials.
        command: the command line that made the plan.
    """

    exp_id: str
    spec: configure.Spec
    ray: str
    exp_args: dict[str, Any]
    rows: list[Row]
    command: str = ""

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return under_experiments(self.exp_id)

    @property
    def rules(self) -> dict[str, Any]:
        """When trials stop and save, as `trial.Rules` takes it."""
        return {
            name: self.exp_args[name]
            for name in ("stop", "checkpoint_freq", "checkpoint_at_end")
        }

    def exists(self) -> bool:
        """Whether the experiment has been planned before."""
        return (self.folder / paths.PLAN).exists()

    def write(self, data: dict[str, Any] | None = None, devices: Sequence[str] = ()) -> None:
        """Write `plan.json` and `environment.json` into the experiment's folder.

        Args:
            data: data file -> SHA-256 of its content.
            devices: names of the accelerators.
        """
        files.write_json(
            self.folder / paths.PLAN, {"schema": SCHEMA, **dataclasses.asdict(self)}
        )
        made_with = {
            **environment.versions(),
            "machine": environment.machine() | {"devices": list(devices)},
            "data": data or {},
            "command": self.command,
        }
        files.write_json(self.folder / paths.ENVIRONMENT, made_with)

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
        """The plan of an experiment's folder."""
        try:
            stored = files.read_json(folder / paths.PLAN)
            spec = configure.Spec(tuple(stored["spec"]["gin"]), tuple(stored["spec"]["params"]))
            rows = [Row(_own(row["name"]), row["overrides"]) for row in stored["rows"]]
            exp_id = str(folder.relative_to(paths.EXP_DIR))
            return cls(exp_id, spec, stored["ray"], stored["exp_args"], rows, stored["command"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / paths.PLAN} is damaged: {error}") from None

    def last(self, row: Row) -> dict[str, Any]:
        """The last line of a trial's results, empty before its first round."""
        lines = files.read_lines(self.folder / row.name / paths.RESULT)
        return lines[-1] if lines else {}

    def unfinished(self) -> list[Row]:
        """The trials that have not ended."""
        return [row for row in self.rows if not self.last(row).get("done")]

    def varying(self) -> list[str]:
        """The overridden names whose values differ between trials."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.overrides))
        return [name for name in names
                if len({repr(row.overrides.get(name)) for row in self.rows}) > 1]  # fmt: skip

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment; a second driver is refused with exit code 4."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / ".lock")
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{self.exp_id} is being run by another process", 4) from None
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; "
                "set SELFSTUDY_EXP to another folder"
            ) from None
        try:
            yield
        finally:
            lock.release()


def fresh_id() -> str:
    """A name for an experiment that has none: the time, and more where that is taken."""
    base = time.strftime("%Y%m%d-%H%M%S")
    taken = (base if not number else f"{base}-{number}" for number in itertools.count())
    return next(name for name in taken if not (paths.EXP_DIR / name).exists())


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


def exp_args(name: str) -> dict[str, Any]:
    """`exp_args` of `config/ray/<name>.py`, checked, with defaults filled in."""
    path = ray_file(name)
    try:
        given = runpy.run_path(str(path))["exp_args"]
    except KeyError:
        raise UserError(f"config/ray/{name}.py defines no exp_args") from None
    except ImportError as error:
        raise UserError(f"config/ray/{name}.py: {error}; pip install {error.name}") from None
    except Exception as error:  # a user's file may fail in any way; it is still one line
        raise UserError(f"config/ray/{name}.py: {type(error).__name__}: {error}") from None
    for key in given:
        if key not in DEFAULTS:
            raise UserError(f"config/ray/{name}.py: no entry '{key}'{nearest(key, DEFAULTS)}")
    return DEFAULTS | given


def make(
    exp_id: str,
    spec: configure.Spec,
    ray: str,
    given: dict[str, Any],
    variants: Variants | None,
) -> Plan:
    """Plan an experiment: every trial with its values and its folder's name.

    Args:
        exp_id: folder below EXP_DIR.
        spec: gin files and `-p` bindings.
        ray: name of the ray config.
        given: its `exp_args`.
        variants: draws `num_samples` times from a search space; None when it has nothing to
            draw. Repeats of the same values get seeds of their own.
    """
    config, samples = given["config"], given["num_samples"]
    drawn = variants(config, samples) if variants else [dict(config)] * samples
    flat = [{name: values.literal(name, value) for name, value in
             values.flatten(one).items()} for one in drawn]  # fmt: skip
    rows = [Row("", overrides) for overrides in _with_seeds(flat, spec)]
    settled = {key: value for key, value in given.items() if key != "config"}
    plan = Plan(exp_id, spec, ray, settled, rows, shlex.join(["python", *sys.argv]))
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
        if repeat and "session.seed" not in overrides:
            registry.discover()
            configure.load(spec, overrides)
            base = configure.value("session", "seed")
            overrides = overrides | {"session.seed": base + repeat}
        rows.append(overrides)
    return rows


def _own(name: str) -> str:
    """A row's name from a file that may be a stranger's: one plain folder, as `_name` makes."""
    if not re.fullmatch(r"e_[A-Za-z0-9._=+-]+", name):
        raise ValueError(f"{name!r} is no trial's name")
    return name


def _name(overrides: dict[str, Any], varying: list[str], number: int) -> str:
    """`e_<leaf>=<value>_..._<number>`, safe and at most 100 bytes long."""
    parts = [f"{name.rpartition('.')[2]}={safe_name(overrides[name])}"
             for name in varying if name in overrides]  # fmt: skip
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
    """How many trials run side by side."""
    limits = [int(have / resources[name]) for name, have in (("cpu", cpus), ("gpu", gpus))
              if resources.get(name)]  # fmt: skip
    return max(1, min(limits, default=1))
