"""Gin files, ray configs and Python files: ours, and those of folders in SELFSTUDY_EXTRA.

A gin file or ray config goes by its name: its path below `config/gin`, `config/ray`, or the
`gin/`, `ray/` of an extra folder, without its ending. A name stands for one file: what is in
two places is refused, since a plan that stores the name could not say which one it was.

The `*.py` directly inside an extra folder are imported as members of a package of their own,
so that they may import one another (`from .helpers import x`) and replace no module of ours or
of the standard library: the folder itself is never on the search path.
"""

import hashlib
import importlib
import os
import sys
import traceback
import types
from pathlib import Path

import paths
from util.errors import UserError, cause

ENDINGS = {"gin": ".gin", "ray": ".py"}


def folders() -> tuple[Path, ...]:
    """The extra folders.

    Raises:
        UserError: one is missing.
    """
    for folder in paths.EXTRA_DIRS:
        if not folder.is_dir():
            raise UserError(
                f"SELFSTUDY_EXTRA: no folder {folder}; correct it, or unset the variable"
            )
    return paths.EXTRA_DIRS


def _places(kind: str) -> list[Path]:
    """Where files of a kind, 'gin' or 'ray', lie: ours first."""
    ours = {"gin": paths.GIN_DIR, "ray": paths.RAY_DIR}[kind]
    return [ours, *(folder / kind for folder in folders())]


def names(kind: str) -> list[str]:
    """All names of a kind, sorted."""
    end = ENDINGS[kind]
    return sorted({
        path.relative_to(place).as_posix().removesuffix(end)
        for place in _places(kind) for path in place.rglob(f"*{end}")
    })  # fmt: skip


def find(kind: str, name: str) -> Path:
    """The file called `name`; where there is none, the path that it would have among ours.

    Raises:
        ValueError: the name leads out of its place.
        UserError: two places have a file of this name.
    """
    candidates = [paths.under(place, name + ENDINGS[kind]) for place in _places(kind)]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        raise UserError(
            f"'{name}' is both {found[0]} and {found[1]}: give one of them another name"
        )
    return found[0] if found else candidates[0]


def label(kind: str, name: str) -> str:
    """How messages name the file: `config/gin/<name>.gin`, or its path in an extra folder."""
    file = name + ENDINGS[kind]
    own = [place / file for place in _places(kind)[1:] if (place / file).is_file()]
    return str(own[0]) if own else f"config/{kind}/{file}"


def gin_name(text: str) -> str:
    """The name of a gin file that is given by name or by path."""
    return _name("gin", text)


def ray_name(text: str) -> str:
    """The name of a ray config that is given by name or by path."""
    return _name("ray", text)


def _name(kind: str, text: str) -> str:
    """The name of a file; of what is no file in any place, the text without its ending.

    A path counts from the current folder, then from the project's.
    """
    end = ENDINGS[kind]
    name, places = text.removesuffix(end), _places(kind)
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if inside and any((place / (name + end)).is_file() for place in places):
        return name
    for start in (Path.cwd(), paths.ROOT):
        path = Path(os.path.abspath(start / (name + end)))
        if not path.is_file():
            continue
        for place in places:
            for file, root in ((path, place), (path.resolve(), place.resolve())):
                if file.is_relative_to(root):
                    return file.relative_to(root).as_posix().removesuffix(end)
    return name


def load() -> None:
    """Import the Python files of the extra folders, in the order of names, each once.

    Files whose names begin with '_' are left to those that import them.

    Raises:
        UserError: a folder is missing, or a file raises, with its path and line.
    """
    for folder in folders():
        package = _package(folder)
        for path in sorted(folder.glob("[!_.]*.py")):
            try:
                importlib.import_module(f"{package}.{path.stem}")
            except (Exception, SystemExit) as error:  # a user's file may fail in any way
                lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                         if frame.filename == str(path)]  # fmt: skip
                where = f"{path}:{lines[-1]}" if lines else path
                raise UserError(f"{where}: {cause(error)}") from error


def _package(folder: Path) -> str:
    """The name of a package whose modules are the folder's files, the same in every process."""
    name = f"selfstudy_extra_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    return name
