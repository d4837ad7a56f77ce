"""Ray configs: how many trials, what varies, how they are judged, and what each may use.

A file below `config/ray/`, or the `ray/` of an extra folder, defines `exp_args`; `--set`
changes its entries. Schedulers, search algorithms and search spaces may be objects of Ray,
which no text can store: a plan that needs them runs its file again when it is resumed.
"""

import ast
import dataclasses
import hashlib
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfstudy import extra
from selfstudy.experiment import rayenv  # noqa: F401  (ray configs import Ray)
from util.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class RayArgs:
    """The entries of a ray config, filled in; docs/reference/ray-config.md explains each.

    `scheduler`, `search_alg` and values of `config` may be objects of Ray. The plan stores all
    entries but `config`, as JSON (`Plan.exp_args`).
    """

    stop: dict[str, Any] = dataclasses.field(default_factory=lambda: {"is_finished": True})
    num_samples: int = 1
    resources_per_trial: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"cpu": 1}
    )
    checkpoint_freq: int = 0
    checkpoint_at_end: bool = False
    keep_checkpoints: int | None = None
    checkpoint_quota: int | float | str | None = None
    verbose: int = 1
    max_failures: int = 2
    scheduler: Any = None
    search_alg: Any = None
    metric: str | list[str] = "mean_accuracy"
    mode: str | list[str] = "max"
    max_concurrent: int | None = None
    time_budget_s: int | float | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def entries(self) -> dict[str, Any]:
        """Entry -> value, as a ray config writes them."""
        return dict(vars(self))


DEFAULTS: dict[str, Any] = RayArgs().entries
# Entry -> what it takes.
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


def override(entries: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A ray config's entries after `--set KEY=VALUE`.

    KEY is an entry, or `entry.key` of an entry that is a dict, such as
    `resources_per_trial.gpu`. VALUE is a Python literal; what is none is text.
    """
    entries = dict(entries)
    for text in settings:
        key, value = _pair(text)
        entry, dot, inner = key.partition(".")
        if entry not in DEFAULTS:
            raise UserError(f"--set '{text}': no entry '{entry}'{nearest(entry, DEFAULTS)}")
        if dot and not isinstance(entries[entry], dict):
            raise UserError(f"--set '{text}': {entry} has no parts")
        entries[entry] = {**entries[entry], inner: value} if dot else value
    return entries


def _pair(text: str) -> tuple[str, Any]:
    """Key and value of a text of `--set`; a value that is no Python literal is text."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value:
        raise UserError(f"--set '{text}': expected KEY=VALUE, as in num_samples=40")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def has_variants(config: dict[str, Any]) -> bool:
    """Whether a search space has values that Ray must generate, such as a grid's."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return "grid_search" not in value and all(map(plain, value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or isinstance(value, (bool, int, float, str))

    return not plain(config)


def ray_file(name: str) -> Path:
    """The path of the ray config `name`, or a `UserError` with the nearest known name."""
    known = extra.names("ray")
    if name.removesuffix(".py") not in known:
        raise UserError(f"no ray config is called '{name}'{nearest(name, known)}")
    return extra.find("ray", name.removesuffix(".py"))


def label(name: str) -> str:
    """How messages name the file of a ray config."""
    return extra.label("ray", name.removesuffix(".py"))


def _contents(name: str) -> dict[str, Any]:
    """What the file of a ray config defines."""
    path = ray_file(name)
    try:
        return runpy.run_path(str(path))
    except ImportError as error:
        raise UserError(f"{label(name)}: {error}; pip install {error.name or name}") from None
    except Exception as error:  # a user's file may fail in any way; it is still one line
        raise UserError(f"{label(name)}: {type(error).__name__}: {error}") from None


def exp_args(name: str, settings: Sequence[str] = ()) -> RayArgs:
    """`exp_args` of the ray config `name`, checked, with defaults and `--set` filled in."""
    contents = _contents(name)
    if "exp_args" not in contents:
        raise UserError(f"{label(name)} defines no exp_args")
    return _complete(contents["exp_args"], settings, label(name))


def _complete(entries: dict[str, Any], settings: Sequence[str], where: str) -> RayArgs:
    for key in entries:
        if key not in DEFAULTS:
            raise UserError(f"{where}: no entry '{key}'{nearest(key, DEFAULTS)}")
    entries = override(DEFAULTS | entries, settings)
    check(entries, where)
    return RayArgs(**entries)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a study: an experiment of its own.

    Attributes:
        name: folder below the study's.
        gin, params: its files and bindings.
        move: a template by which its trials' checkpoints are named when it has ended, see
            `selfstudy.storage.relocate.format_name`; None leaves them where they are.
        trials: what each trial overrides.
        ray_args: entries as of a ray config, filled in.
    """

    name: str
    gin: tuple[str, ...]
    params: tuple[str, ...]
    move: str | None
    trials: list[dict[str, Any]]
    ray_args: RayArgs


def is_study(name: str) -> bool:
    """Whether the ray config `name` defines a `study` instead of `exp_args`."""
    return "study" in _contents(name)


def study(
    name: str, exp_id: str, settings: Sequence[str] = ()
) -> tuple[str, dict[str, Any], list[Stage]]:
    """The question, the settings and the stages of a study.

    Its file defines `presets`, a dict of settings for each preset, the first of them the
    default, and `study(exp, **settings)`, which returns its `question` and its `stages`: for
    each the `trials`, a dict of gin names and values for each, entries as in `exp_args`, and
    `gin`, `params` and `move` as `Stage` has them.

    Args:
        name: of the ray config.
        exp_id: the study's experiment, below which snapshots will lie.
        settings: texts of `--set`: `preset=NAME`, or `KEY=VALUE` of a preset's keys.
    """
    contents, where = _contents(name), label(name)
    chosen = _settings(contents.get("presets", {}), settings, where)
    try:
        options = {key: value for key, value in chosen.items() if key != "preset"}
        returned = contents["study"](exp_id, **options)
        question, stages = returned["question"], returned["stages"]
    except Exception as error:
        raise UserError(f"{where}: {type(error).__name__}: {error}") from None
    return question, chosen, [_stage(key, dict(item), where) for key, item in stages.items()]


def _settings(
    presets: dict[str, dict[str, Any]], settings: Sequence[str], where: str
) -> dict[str, Any]:
    """A preset's settings after `--set`."""
    changed = dict(map(_pair, settings))
    preset = changed.setdefault("preset", next(iter(presets), ""))
    if presets and preset not in presets:
        raise UserError(f"--set preset={preset}: {where} has none{nearest(preset, presets)}")
    known = {"preset": preset} | presets.get(preset, {})
    for key, value in changed.items():
        if key not in known:
            raise UserError(f"--set '{key}': {where} has no setting of this name"
                            f"{nearest(key, known)}")  # fmt: skip
        if type(value) is not type(known[key]) and not (
            isinstance(value, (int, float)) and isinstance(known[key], (int, float))
        ):
            raise UserError(f"--set {key}={value!r}: expected such as {known[key]!r}")
    return known | changed


def _stage(name: str, item: dict[str, Any], where: str) -> Stage:
    where = f"{where}: stage '{name}'"
    gin, params = tuple(item.pop("gin", ())), tuple(item.pop("params", ()))
    move, trials = item.pop("move", None), item.pop("trials", None)
    ray_args = _complete(item, (), where)
    if not trials or not all(isinstance(trial, dict) for trial in trials):
        raise UserError(f"{where}: 'trials' is a list of dicts, one for each trial")
    if ray_args.search_alg or ray_args.scheduler or ray_args.config:
        raise UserError(f"{where} has its 'trials': it takes no search, scheduler or config")
    return Stage(name, gin, params, move, trials, ray_args)


def check(entries: dict[str, Any], where: str) -> None:
    """Refuse entries of a wrong kind or size."""
    for key, kinds in _KINDS.items():
        value = entries[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("None" if kind is type(None) else kind.__name__
                                 for kind in kinds)  # fmt: skip
            raise UserError(f"{where}: '{key}' takes {wanted}, not {value!r}")
    least = {"num_samples": 1, "checkpoint_freq": 0, "keep_checkpoints": 0, "verbose": 0,
             "max_failures": -1, "max_concurrent": 1, "time_budget_s": 0}  # fmt: skip
    for key, smallest in least.items():
        if entries[key] is not None and entries[key] < smallest:
            raise UserError(f"{where}: '{key}' is {entries[key]}, the least is {smallest}")
    metrics, modes = entries["metric"], entries["mode"]
    many = isinstance(metrics, list)
    if many != isinstance(modes, list) or (many and len(metrics) != len(modes)):
        raise UserError(f"{where}: each metric needs a mode: {metrics!r} has {modes!r}")
    for mode in modes if many else [modes]:
        if mode not in ("max", "min"):
            raise UserError(f"{where}: 'mode' is 'max' or 'min', not {mode!r}")
    size(entries["checkpoint_quota"])


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


def as_json(value: Any) -> Any:
    """A ray config's entry as JSON holds it; an object of Ray as text that names its class."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{type(value).__name__}>"


def has_objects(value: Any) -> bool:
    """Whether `as_json` had to write an object as text."""
    if isinstance(value, (dict, list)):
        return any(map(has_objects, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and value.startswith("<")
