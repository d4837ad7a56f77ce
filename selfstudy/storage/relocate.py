"""Moving checkpoints to names that are easy to type, without torch.

`relocations` says where each trial's checkpoint would go, and refuses every conflict before
`move` touches the first file.
Names come from strangers' experiments, so a template can only look up `cfg[<gin name>]`, and
every value becomes one plain path component.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import string
import unicodedata
from pathlib import Path
from typing import Any

import paths
from selfstudy.storage.checkpoints import (
    FILES,
    check,
    checkpoints,
    is_snapshot,
    is_trial,
    read_card,
    replace_folder,
    short_name,
    subfolders,
    trials,
    under_experiments,
)
from util.errors import UserError, nearest
from util.files import sync_folder

FIELD = re.compile(r"cfg\[([A-Za-z_][A-Za-z0-9_./]*)\]")
# A width of two digits at most: '{x:>99999999}' would be a name of 100 MB.
SPEC = re.compile(r"[<>^]?\+?\d{0,2}(\.\d{1,2})?[eEfgd]?")
COMPONENT = re.compile(r"[A-Za-z0-9_=+][A-Za-z0-9._=+-]{0,199}")
NAME_BYTES = 100
_RESERVED = {*FILES, paths.PLAN, paths.ENVIRONMENT, paths.PATCH.format(""), paths.PARAMS,
             paths.RESULT}  # fmt: skip

Move = tuple[Path, Path]


# ---- names ----------------------------------------------------------------------------------


def safe_name(value: Any) -> str:
    """`value` as one plain path component of [A-Za-z0-9._=+-], at most 100 bytes.

    `[0, 0.01, 1e-06]` becomes '0-0.01-1e-06', 'a/b' becomes 'a-b', None becomes 'None'. It
    never begins with a dot or a dash (so -1 becomes '_1'), and what is cut ends in a hash.
    """
    if isinstance(value, (list, tuple)) and value:
        text = "-".join(safe_name(item) for item in value)
    else:
        text = unicodedata.normalize("NFKC", str(value))
    text = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text)
    name = re.sub(r"^[.-]+", "_", text).rstrip("-") or "_"
    if len(name) <= NAME_BYTES:
        return name
    return f"{name[: NAME_BYTES - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def format_name(pattern: str, cfg: dict[str, Any]) -> str:
    """`pattern` with each '{cfg[<gin name>]}' replaced by that value's `safe_name`.

    A number may carry a format ('{cfg[optimizer.lr]:.2g}'). Attributes, further indices, nested
    formats and conversions other than '!s' are refused: with `str.format` they reach the
    environment and any object of the process. '/' in the pattern itself makes folders.

    Raises:
        UserError: the template is not of this form, or names a value that `cfg` doesn't hold.
    """
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise UserError(f"the template '{pattern}' is malformed: {error}") from None
    name = "".join(
        text if field is None else text + _field(pattern, field, spec or "", conversion, cfg)
        for text, field, spec, conversion in parts
    )
    for component in name.split("/"):
        if not COMPONENT.fullmatch(component):
            raise UserError(
                f"the template '{pattern}' gives '{name[:300]}': each part between '/' must be "
                "letters, digits and ._=+- (200 at most), not beginning with a dot or a dash"
            )
    return name


def _field(pattern: str, field: str, spec: str, conversion: str | None, cfg: dict) -> str:
    match = FIELD.fullmatch(field)
    if not match or conversion not in (None, "s") or not SPEC.fullmatch(spec):
        raise UserError(
            f"the template '{pattern}' is refused: a field must look like "
            "'{cfg[SynDataset.dataset_choice]}' or '{cfg[optimizer.lr]:.2g}'"
        )
    if match[1] not in cfg:
        raise UserError(f"no trial parameter is called '{match[1]}'{nearest(match[1], cfg)}")
    value = str(cfg[match[1]]) if conversion else cfg[match[1]]
    if not spec:
        return safe_name(value)
    try:
        return safe_name(format(value, spec))
    except (TypeError, ValueError) as error:
        raise UserError(f"{match[1]} = {value!r} has no format '{spec}': {error}") from None


# ---- what goes where ------------------------------------------------------------------------


def relocations(
    exp_id: str,
    pattern: str | None = None,
    best: str | None = None,
    overwrite: bool = False,
) -> tuple[list[Move], list[tuple[Path, str]]]:
    """Where each trial's checkpoint goes; nothing is moved.

    Args:
        exp_id: the experiment's folder, relative to the experiments' folder.
        pattern: a template of the name inside it, see `format_name`; None puts the checkpoint
            of an experiment's only trial into the experiment's folder itself.
        best: a metric of the cards by which a trial's checkpoint is chosen, the largest, or the
            smallest where 'loss' is in its name; None takes the last one.
        overwrite: whether a snapshot that is at a destination may be replaced.

    Returns:
        (source, destination) pairs, and (folder, reason) for all that is left alone: damaged
        checkpoints, trials without a whole one, and trials that were moved before.

    Raises:
        UserError: no such experiment; a refused template; two sources for one destination; a
            destination that exists (code 4), is a link, or is a trial's.
    """
    experiment = under_experiments(exp_id)
    folders = trials(experiment)
    if not folders:
        known = [folder.name for folder in subfolders(paths.EXP_DIR) if trials(folder)]
        raise UserError(f"no trials in '{exp_id}'{nearest(exp_id, known)}")
    if pattern is None and len(folders) > 1:
        raise UserError(
            f"'{exp_id}' holds {len(folders)} trials: name them by what differs, "
            f"such as -p '{_suggest(folders)}'"
        )
    _require_metric(best, folders)
    moves, skipped = [], []
    for trial in folders:
        chosen, damaged = _choose(trial, best)
        skipped += damaged
        if chosen is None:
            skipped.append((trial, f"no whole checkpoint with a {best or 'round'}"))
            continue
        source, card = chosen
        name = format_name(pattern, _values(trial, card)) if pattern is not None else ""
        destination = experiment / name
        if _moved_before(card, destination, best):
            skipped.append((trial, f"moved before to {short_name(destination)}"))
        else:
            moves.append((source, destination))
    _refuse_collisions(moves)
    for source, destination in moves:
        _refuse_destination(experiment, source, destination, overwrite)
    return moves, skipped


def _suggest(folders: list[Path]) -> str:
    """A template of the parameters that differ between trials."""
    params = [_params(trial) for trial in folders]
    keys = {key for trial in params for key in trial}
    differ = sorted(k for k in keys if len({safe_name(trial.get(k)) for trial in params}) > 1)
    return "-".join(f"{{cfg[{key}]}}" for key in differ[:3]) or "{cfg[session.seed]}"


def _params(trial: Path) -> dict:
    try:
        params = json.loads((trial / paths.PARAMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return params if isinstance(params, dict) else {}


def _dict(card: dict, key: str) -> dict:
    return card[key] if isinstance(card.get(key), dict) else {}


def _values(trial: Path, card: dict) -> dict:
    """Every gin value of a trial: what the sweep set wins over what the files said."""
    return {**_dict(card, "config"), **_dict(card, "overrides"), **_params(trial)}


def _metric(card: dict, best: str | None) -> float | None:
    """What checkpoints are compared by, larger is better; None when this one has no value."""
    value = card.get("round", 0) if best is None else _dict(card, "metrics").get(best)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return -value if best is not None and "loss" in best else value


def _require_metric(best: str | None, folders: list[Path]) -> None:
    """Refuse a metric that no card of the experiment has."""
    if best is None:
        return
    known: set[str] = set()
    for folder in (folder for trial in folders for folder in checkpoints(trial)):
        try:
            known.update(_dict(read_card(folder), "metrics"))
        except UserError:
            continue
    if best not in known:
        raise UserError(f"no checkpoint has a metric '{best}'{nearest(best, known)}")


def _choose(
    trial: Path, best: str | None
) -> tuple[tuple[Path, dict] | None, list[tuple[Path, str]]]:
    """The trial's last, or best, whole checkpoint with its card, and the damaged ones."""
    chosen: tuple[Path, dict] | None = None
    highest: float = -math.inf
    damaged = []
    for folder in checkpoints(trial):
        try:
            value = _metric(read_card(folder), best)
            if value is not None and (chosen is None or value > highest):
                chosen, highest = (folder, check(folder)), value
        except UserError as error:
            damaged.append((folder, str(error)))
    return chosen, damaged


def _moved_before(card: dict, destination: Path, best: str | None) -> bool:
    """Whether this trial's better checkpoint is there already, so that a re-run moves nothing.

    The same checkpoint at both places is a move that was interrupted: it is finished instead.
    """
    try:
        there = read_card(destination)
    except UserError:
        return False
    if any(there.get(key) != card.get(key) for key in ("trial", "overrides", "seed")):
        return False
    ours, theirs = _metric(card, best), _metric(there, best)
    return theirs is not None and ours is not None and theirs > ours


def _refuse_collisions(moves: list[Move]) -> None:
    """Refuse two sources for one destination, and a destination inside another."""
    taken: dict[Path, Path] = {}
    for source, destination in moves:
        if destination in taken:
            raise UserError(
                f"{short_name(taken[destination])} and {short_name(source)} would both go to "
                f"{short_name(destination)}: add what differs to the template"
            )
        taken[destination] = source
    for destination in taken:
        inside = [other for other in destination.parents if other in taken]
        if inside:
            raise UserError(f"{short_name(destination)} would lie in {short_name(inside[0])}")


def _refuse_destination(
    experiment: Path, source: Path, destination: Path, overwrite: bool
) -> None:
    """Refuse a destination that is taken, a link, or belongs to the experiment's own files."""
    _refuse_reserved(experiment, destination)
    _refuse_path(experiment, destination)
    # The experiment's own folder always exists; there a finished snapshot is what counts.
    whole_experiment = destination == experiment
    taken = (destination / paths.CARD).exists() if whole_experiment else destination.exists()
    if not taken or _same(source, destination):
        return
    name = short_name(destination)
    if not is_snapshot(destination) or (not whole_experiment and subfolders(destination)):
        raise UserError(f"{name} exists already and holds more than a snapshot", code=4)
    if not overwrite:
        raise UserError(f"{name} exists already: --overwrite replaces it", code=4)


def _refuse_reserved(experiment: Path, destination: Path) -> None:
    """Refuse the names of trials, checkpoints and the files that an experiment writes."""
    for name in destination.relative_to(experiment).parts:
        if name in _RESERVED or name.startswith(("e_", paths.CHECKPOINT)):
            raise UserError(
                f"{short_name(destination)}: the names of trials and of our files cannot be "
                "destinations"
            )


def _refuse_path(experiment: Path, destination: Path) -> None:
    """Refuse links, files and other snapshots between the experiment and the destination."""
    inside = [destination, *destination.parents]
    for part in reversed(inside[: inside.index(experiment)]):
        if part.is_symlink() or (part.exists() and not part.is_dir()):
            raise UserError(f"{short_name(part)} is a link or a file, not a folder", code=4)
        if part.is_dir() and (is_trial(part) or (part != destination and is_snapshot(part))):
            raise UserError(
                f"{short_name(destination)} would lie in the trial or snapshot "
                f"{short_name(part)}"
            )


def _same(source: Path, destination: Path) -> bool:
    """Whether both folders hold the same whole checkpoint."""
    try:
        return check(destination) == check(source)
    except UserError:
        return False


# ---- moving ---------------------------------------------------------------------------------


def move(moves: list[Move]) -> None:
    """Perform what `relocations` returned; after an interruption, ask it again and go on.

    At any time each checkpoint is whole at its source or at its destination.
    """
    for source, destination in moves:
        if _same(source, destination):
            _discard(source)
        elif destination in source.parents:
            _move_files(source, destination)
        else:
            _move_folder(source, destination)


def _discard(folder: Path) -> None:
    """Delete a checkpoint that is safe elsewhere; its card first, so no half looks whole."""
    (folder / paths.CARD).unlink()
    shutil.rmtree(folder)
    sync_folder(folder.parent)


def _move_folder(source: Path, destination: Path) -> None:
    """Rename the folder, or copy, verify and delete it where that crosses file systems."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        replace_folder(source, destination)
        sync_folder(source.parent)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    copy = destination.with_name(f".{destination.name}.moving")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy, symlinks=True)
    check(copy)
    for name in FILES:
        _sync_file(copy / name)
    sync_folder(copy)
    replace_folder(copy, destination)
    _discard(source)


def _move_files(source: Path, experiment: Path) -> None:
    """Bring the files of a checkpoint into its experiment's folder, the card last.

    They are copied before the source goes: renamed one by one, an interruption would leave
    neither place whole.
    """
    (experiment / paths.CARD).unlink(missing_ok=True)
    for name in FILES:
        copy = experiment / f".{name}.moving"
        shutil.copyfile(source / name, copy)
        _sync_file(copy)
        os.replace(copy, experiment / name)
    sync_folder(experiment)
    check(experiment)
    _discard(source)


def _sync_file(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
