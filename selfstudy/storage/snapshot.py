"""Folders of weights: written whole or not at all, verified before they are read.

A snapshot folder holds `snapshot` (torch), `config.gin` (the configuration it was made under)
and `card.json`, which is written last and so marks the folder as complete. Snapshots of
strangers are data: only tensors and plain values are read, never pickled code, and there is no
fallback.
"""

import os
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paths
from selfstudy.storage import checkpoints
from util.errors import UserError, nearest
from util.files import sha256, sync_folder, write_json, write_text

SCHEMA = 1
# Former name -> name of a module, as a part of a tensor's name in snapshots of former versions.
RENAMED = {
    "lagging": "momentum_encoder",
    "projection": "projector",
    "prediction": "predictor",
    "clock": "scheduled",
}
_CONTAINERS = (list, tuple)
_MAPPINGS = (dict, OrderedDict)
_PLAIN = (int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device)


def save(folder: Path, state: dict, config: str, card: dict) -> None:
    """Write a snapshot to `folder`, replacing one that is there.

    Everything is written to a hidden folder beside, synced to the disk, then renamed: a kill at
    any point leaves the old snapshot or the new one.

    Args:
        folder: where to; its parents are made.
        state: tensors and plain Python values, nested in dicts, lists and tuples.
        config: text of `config.gin`.
        card: plain values that describe the snapshot; `schema`, `sha256` and `size` (bytes) of
            the snapshot are added.

    Raises:
        TypeError: `state` holds something that could not be read back.
        OSError: the disk is full or failing; nothing partial is left.
    """
    _require_plain(state, "state")
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed save of the same round left
    aside.mkdir(parents=True)
    try:
        with open(aside / paths.SNAPSHOT, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        write_text(aside / paths.CONFIG, config)
        digest = sha256(aside / paths.SNAPSHOT)
        card = {**card, "schema": SCHEMA, "sha256": digest, "size": size}
        write_json(aside / paths.CARD, card)
        sync_folder(aside)
        checkpoints.replace_folder(aside, folder)
    except RuntimeError as error:  # torch's own words for a failed write name no cause
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{folder} could not be written: is the disk full? ({error})") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _require_plain(value: Any, where: str) -> None:
    """Refuse at once what `torch.load(weights_only=True)` would refuse after the training."""
    if type(value) in _MAPPINGS:
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in _CONTAINERS:
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif not isinstance(value, Tensor) and type(value) not in _PLAIN:
        raise TypeError(
            f"{where} is a {type(value)}: a snapshot holds tensors and plain values"
        )


@dataclass(frozen=True)
class Snapshot:
    """A snapshot folder, described without reading its weights.

    Attributes:
        folder: where it lies.
        name: relative to the experiments' folder, as `resolve` takes it.
        config: text of its `config.gin`.
        card: round, metrics, overrides, config, command, versions, git, seed, sha256, size.
    """

    folder: Path
    name: str
    config: str
    card: dict

    @classmethod
    def open(cls, folder: Path) -> "Snapshot":
        """Read card and configuration; `UserError` when the folder was never finished."""
        card = checkpoints.read_card(folder)
        file = folder / paths.CONFIG
        try:
            config = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        return cls(folder, checkpoints.short_name(folder), config, card)

    def state(self) -> dict:
        """The state that was saved, on the CPU, after comparing the file with its card.

        Raises:
            UserError: the file is missing, empty, cut, changed, not made by `torch.save`, or
                holds pickled code, which is refused without running it.
        """
        checkpoints.check(self.folder)
        file = self.folder / paths.SNAPSHOT
        if not zipfile.is_zipfile(file):
            raise UserError(f"{file} is not a file of torch.save")
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{file} cannot be read: {_reason(error)}") from None
        if not isinstance(state, dict):
            raise UserError(f"{file} holds a {type(state).__name__}, not a dict of tensors")
        return state

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by name, on the CPU; `UserError` when there are none."""
        weights = self.state().get("model")
        if not isinstance(weights, dict):
            raise UserError(f"{self.name} holds no model's weights")
        return weights


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "weights_only" in text or "Weights only" in text:
        return "it holds pickled code or objects, which are refused; only tensors are read"
    return text.splitlines()[0]


def newest(trial: Path) -> Snapshot | None:
    """The newest snapshot of a trial that verifies; damaged ones are warned of and skipped."""
    for folder in checkpoints.checkpoints(Path(trial)):
        try:
            checkpoints.check(folder)
            return Snapshot.open(folder)
        except UserError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    return None


def resolve(name: str) -> Snapshot:
    """The snapshot that "EXP/name" stands for, in gin files and on command lines.

    `name` is a snapshot's folder, or a trial's or an experiment's with exactly one trial, which
    mean their newest snapshot.

    Raises:
        UserError: nothing of this name, more than one trial, or no snapshot that verifies.
    """
    folder = checkpoints.under_experiments(name)
    if checkpoints.is_snapshot(folder):
        return Snapshot.open(folder)
    trial = folder if checkpoints.is_trial(folder) else _only_trial(folder, name)
    path = newest(trial)
    if path is None:
        raise UserError(f"'{name}' has no checkpoint that is whole")
    return path


def _only_trial(folder: Path, name: str) -> Path:
    """The trial of an experiment that has one."""
    trials = checkpoints.trials(folder)
    if len(trials) == 1:
        return trials[0]
    if trials:
        raise UserError(
            f"'{name}' holds {len(trials)} trials: choose one, such as "
            f'"{checkpoints.short_name(trials[0])}", or name them with '
            f"misc/move_snapshots.py -e {name} -p '{{cfg[...]}}' -m"
        )
    raise UserError(f"no snapshot is called '{name}'{nearest(name, _names(folder))}")


def _names(folder: Path) -> list[str]:
    """Candidates for the error's hint: what lies in the deepest folder that exists."""
    root = folder
    while not root.is_dir() and root != paths.EXP_DIR and root != root.parent:
        root = root.parent
    inside = [
        child
        for child in checkpoints.subfolders(root)
        if root == paths.EXP_DIR
        or checkpoints.is_snapshot(child)
        or checkpoints.is_trial(child)
    ]
    return [checkpoints.short_name(child) for child in inside]


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did; prints as one line.

    Attributes:
        matched: names of the tensors that were loaded.
        left_out: name -> why it was left out.
    """

    matched: tuple[str, ...]
    left_out: dict[str, str]

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            reasons.setdefault(why, []).append(name)
        parts = [f"{len(self.matched)} tensors loaded"]
        parts += [f"{len(names)} {why} ({_few(names)})" for why, names in reasons.items()]
        return "; ".join(parts)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def copy_to_cpu(value: Any) -> Any:
    """Deep copy of a state on the CPU: tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, copy_to_cpu(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(copy_to_cpu(item) for item in value)
    return value


def load_weights(
    model: nn.Module, state: dict[str, Tensor], skip: Callable[[str], bool]
) -> LoadReport:
    """Copy `state` into `model`: what fits is loaded, and what doesn't is an error.

    Args:
        model: gets the weights; it is untouched when an error is raised.
        state: tensor by name, as of `state_dict()`.
        skip: whether a name may stay behind, on either side, such as the heads of probes;
            where such a tensor has a partner of the same shape it is loaded too.

    Returns:
        What was loaded, and what was left out and why.

    Raises:
        UserError: a tensor outside `skip` is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    state = {name if name in own else _present_name(name): value
             for name, value in state.items()}  # fmt: skip
    differs = {name: why for name in own | state if (why := _difference(name, own, state))}
    wrong = [_both(name, own, state) for name in differs if not skip(name)]
    if wrong:
        raise UserError(
            f"the snapshot does not fit the model in {len(wrong)} tensors: {_few(wrong)}; "
            "build the model with the settings of the snapshot's config.gin"
        )
    matched = [name for name in own if name not in differs]
    model.load_state_dict({name: state[name] for name in matched}, strict=False)
    return LoadReport(tuple(matched), differs)


def _present_name(name: str) -> str:
    """What a tensor of a former version is called now."""
    return ".".join(RENAMED.get(part, part) for part in name.split("."))


def _difference(name: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> str | None:
    """Why a tensor of this name cannot be loaded, or None."""
    if name not in own:
        return "left out, not in the model"
    if name not in state:
        return "start anew"
    return "of another shape" if _shape(name, own) != _shape(name, state) else None


def _shape(name: str, tensors: dict[str, Tensor]) -> str:
    value = tensors.get(name)
    return str(list(value.shape)) if isinstance(value, Tensor) else "missing"


def _both(name: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    return f"{name} ({_shape(name, state)} in the snapshot, {_shape(name, own)} in the model)"
