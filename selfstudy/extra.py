"""Gin files, ray configs and Python files: ours, and those of folders in SELFSTUDY_EXTRA.

A gin file or ray config is identified by its name: its path below `config/gin`, `config/ray`,
or the `gin/`, `ray/` of an extra folder, without suffix. Names must be unique: a name in two
places is refused, since the plan that stores it would be ambiguous.

The `*.py` directly inside an extra folder are imported as modules of a separate package, so
that they can import one another (`from .helpers import x`) and never shadow a module of ours or
of the standard library: the folder itself is not put on `sys.path`.
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
    """Folders with files of a kind, 'gin' or 'ray': ours first."""
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
    """Path of the file `name`; if there is none, the path it would have in our folder.

    Raises:
        ValueError: the name leads out of its folder.
        UserError: two folders have a file of this name.
    """
    candidates = [paths.under(place, name + ENDINGS[kind]) for place in _places(kind)]
    files = [path for path in candidates if path.is_file()]
    if len(files) > 1:
        raise UserError(
            f"'{name}' is both {files[0]} and {files[1]}: give one of them another name"
        )
    return files[0] if files else candidates[0]


def label(kind: str, name: str) -> str:
    """Name of the file in messages: `config/gin/<name>.gin`, or its path in an extra folder."""
    file = name + ENDINGS[kind]
    own = [place / file for place in _places(kind)[1:] if (place / file).is_file()]
    return str(own[0]) if own else f"config/{kind}/{file}"


def gin_name(text: str) -> str:
    """The name of a gin file given by name or path."""
    return _name("gin", text)


def ray_name(text: str) -> str:
    """The name of a ray config given by name or path."""
    return _name("ray", text)


def _name(kind: str, text: str) -> str:
    """The name of a file; `text` without its suffix where there is no such file.

    A path is relative to the current folder, else to the project's.
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

    Files whose names begin with '_' are not imported here.

    Raises:
        UserError: a folder is missing, or a file raises, with its path and line.
    """
    for folder in folders():
        package = _package(folder)
        for path in sorted(folder.glob("[!_.]*.py")):
            try:
                importlib.import_module(f"{package}.{path.stem}")
            except (Exception, SystemExit) as error:  # a user's file may raise any exception
                lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                         if frame.filename == str(path)]  # fmt: skip
                where = f"{path}:{lines[-1]}" if lines else path
                raise UserError(f"{where}: {cause(error)}") from error


def _package(folder: Path) -> str:
    """Create a package of the folder's files; its name is the same in every process."""
    name = f"selfstudy_extra_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    return name
