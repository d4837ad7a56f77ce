"""Folders of trials and checkpoints, read without torch: what lies where, and is it whole?

A checkpoint folder holds `snapshot`, `config.gin` and `card.json`; the card was written last
and records the size and the SHA-256 of the snapshot.
"""

import json
import os
import re
import shutil
from pathlib import Path

import paths
from util.errors import UserError
from util.files import sha256, sync_folder

FILES = (paths.SNAPSHOT, paths.CONFIG, paths.CARD)
# '.checkpoint_000012.old' is what `replace_folder` leaves when it is killed half-way.
_CHECKPOINT = re.compile(rf"{paths.CHECKPOINT}(\d+)|\.{paths.CHECKPOINT}(\d+)\.old")


def under_experiments(name: str) -> Path:
    """The path of `name` in the experiments' folder; a `UserError` when it would leave it."""
    try:
        return paths.under(paths.EXP_DIR, name)
    except ValueError as error:
        raise UserError(str(error)) from None


def short_name(folder: Path) -> str:
    """`folder` relative to the experiments' folder, as users type it ("EXP/name")."""
    if folder.is_relative_to(paths.EXP_DIR):
        return folder.relative_to(paths.EXP_DIR).as_posix()
    return str(folder)


def trials(experiment: Path) -> list[Path]:
    """The trial folders of an experiment, by name; links are not followed."""
    return [folder for folder in subfolders(experiment) if is_trial(folder)]


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in `folder`, by name; links are not followed."""
    if not folder.is_dir():
        return []
    folders = (
        Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)
    )
    return sorted(path for path in folders if not path.name.startswith("."))


def is_trial(folder: Path) -> bool:
    """Whether `folder` was written by a trial."""
    return (folder / paths.PARAMS).is_file() or bool(checkpoints(folder))


def is_snapshot(folder: Path) -> bool:
    """Whether `folder` claims to be a checkpoint; `check` verifies it."""
    return (folder / paths.CARD).is_file() or (folder / paths.SNAPSHOT).is_file()


def checkpoints(trial: Path) -> list[Path]:
    """The checkpoint folders of a trial, whole or not, the newest first."""
    if not trial.is_dir():
        return []
    folders = []
    for entry in os.scandir(trial):
        match = _CHECKPOINT.fullmatch(entry.name)
        if match and entry.is_dir(follow_symlinks=False):
            is_final = match[1] is not None
            folders.append((int(match[1] or match[2]), is_final, Path(entry.path)))
    return [path for _, _, path in sorted(folders, reverse=True)]


def round_of(folder: Path) -> int:
    """The round after which a checkpoint folder was written."""
    match = _CHECKPOINT.fullmatch(folder.name)
    if not match:
        raise ValueError(f"{folder} is no checkpoint")
    return int(match[1] or match[2])


def read_card(folder: Path) -> dict:
    """The card of a checkpoint folder.

    Raises:
        UserError: the folder has no card (it was never finished), or it isn't readable.
    """
    file = folder / paths.CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: the checkpoint was never finished") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    known = isinstance(card, dict) and isinstance(card.get("size"), int)
    if not known or not isinstance(card.get("sha256"), str):
        raise UserError(f"{file} is damaged: it has no size and sha256 of the snapshot")
    return card


def check(folder: Path) -> dict:
    """Compare the snapshot in `folder` with its card, byte for byte, and return the card.

    Raises:
        UserError: a file is missing, a link, cut, or differs; it names the file.
    """
    card = read_card(folder)
    for file in (folder / name for name in FILES):
        if file.is_symlink() or not file.is_file():
            raise UserError(f"{file} is missing, or is not a plain file")
    file = folder / paths.SNAPSHOT
    size = file.stat().st_size
    if size != card["size"]:
        raise UserError(f"{file} is damaged: it has {size} bytes of {card['size']}")
    if sha256(file) != card["sha256"]:
        raise UserError(f"{file} is damaged: its sha256 differs from the one in {paths.CARD}")
    return card


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, in the place of one that may be there, and sync the parent.

    There is no atomic exchange of folders in Python, so an old one steps aside under the name
    '.<name>.old' for the time of two renames; `checkpoints` finds it there after a kill.
    """
    aside = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            os.replace(aside, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint; killed half-way it is not whole, since the card goes first."""
    (folder / paths.CARD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
