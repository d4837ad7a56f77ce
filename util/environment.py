"""The environment of a run: versions, commit, changes, devices; never secrets."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paths
from util import files

PACKAGES = ("torch", "torchvision", "ray", "gin-config", "h5py", "numpy", "optuna")
# What of the project decides a result; new files count where code and configurations lie.
PLACES = ("selfstudy", "config", "util", "misc")
TRACKED = (*PLACES, "main.py", "paths.py", "requirements.txt", "pyproject.toml")
ENDINGS = (".py", ".gin")  # of an extra folder
MOST_PATCH = 1 << 20  # bytes
MOST_HASHED = 1 << 24  # bytes of a file
MOST_FILES = 10_000  # of an extra folder
_PLAIN = re.compile(r"[A-Za-z0-9_.+=@/-]+")  # names that a patch need not quote
# Variables of git that would make it look elsewhere, as they are set inside of a hook.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


def _git(folder: Path, *words: str) -> bytes:
    """What git says in `folder`; nothing where it fails, or there is none."""
    env = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
    command = ["git", "-c", "core.fsmonitor=false", *words]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=10, check=True,
                              env=env | {"GIT_OPTIONAL_LOCKS": "0"}).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return b""


def _list_files(folder: Path, *words: str) -> set[str]:
    """The paths that a command of git prints when it is given -z."""
    return {os.fsdecode(name) for name in _git(folder, *words).split(b"\0") if name}


@dataclasses.dataclass(frozen=True)
class Changes:
    """How the files of a folder differ from the commit that it is at.

    Attributes:
        folder: where they are.
        commit: its name; "" outside of a git checkout.
        edited: paths that differ from the commit.
        new: paths that are in no commit.
        digest: SHA-256 over the names and contents of all files; "" for the checkout.
    """

    folder: Path
    commit: str
    edited: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    digest: str = ""

    @property
    def hashes(self) -> dict[str, str]:
        """Path -> what `fingerprint` says of it, for all files that differ."""
        return {name: fingerprint(self.folder / name)
                for name in sorted({*self.edited, *self.new})}  # fmt: skip

    def patch(self) -> bytes:
        """What `git apply` at the top of a checkout of the commit makes the files of.

        Without a commit it makes them in any folder. New files come after edited ones, in the
        order of names; what would make it larger than MOST_PATCH is left out, as are new files
        that are no text.
        """
        parts = [self._edits()] if self.edited else []
        # Where the folder is only a part of what git knows, its place in there comes first.
        words = ("rev-parse", "--show-prefix")
        prefix = os.fsdecode(_git(self.folder, *words).strip()) if self.commit else ""
        parts += [_addition(prefix + name, self.folder / name) for name in self.new]
        kept, size = [], 0
        for part in parts:
            if size + len(part) <= MOST_PATCH:
                kept.append(part)
                size += len(part)
        return b"".join(kept)

    def _edits(self) -> bytes:
        form = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative",
                "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip
        named = [f":(literal){name}" for name in self.edited]
        return _git(self.folder, "diff", *form, "HEAD", "--", *named)


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file; of a huge one its size, '' where it is gone or no plain file."""
    try:
        if path.is_symlink() or not path.is_file():
            return ""
        size = path.stat().st_size
        return files.sha256(path) if size <= MOST_HASHED else f"{size} bytes"
    except OSError:
        return ""


def _addition(name: str, path: Path) -> bytes:
    """A patch that makes a new text file; nothing for any other."""
    try:
        if path.is_symlink() or path.stat().st_size > MOST_PATCH or not _PLAIN.fullmatch(name):
            return b""
        content = path.read_bytes()
    except OSError:
        return b""
    if b"\0" in content:
        return b""
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n".encode()
    if not content:
        return head + b"index 0000000..e69de29\n"
    ended = content.endswith(b"\n")
    lines = content.removesuffix(b"\n").split(b"\n")
    body = b"".join(b"+" + line + b"\n" for line in lines)
    end = b"" if ended else b"\\ No newline at end of file\n"
    where = f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n".encode()
    return head + where + body + end


def _commit(folder: Path) -> str:
    return _git(folder, "rev-parse", "HEAD").decode().strip()


def _edited_files(folder: Path, places: Sequence[str]) -> tuple[str, ...]:
    words = ("diff", "--name-only", "-z", "--relative", "HEAD", "--", *places)
    return tuple(sorted(_list_files(folder, *words)))


def of_project(folder: Path) -> Changes:
    """How a checkout of the project differs from its commit; nothing outside of one."""
    if not (commit := _commit(folder)):
        return Changes(folder, "")
    words = ("ls-files", "--others", "--exclude-standard", "-z", "--", *PLACES)
    new = tuple(sorted(_list_files(folder, *words)))
    return Changes(folder, commit, _edited_files(folder, TRACKED), new)


def of_extra(folder: Path) -> Changes:
    """How an extra folder differs from its commit; all its files are new where it has none.

    Only Python and gin files count, also those that git ignores.
    """
    own = list(_code(folder))
    digest = hashlib.sha256()
    for name in own:
        digest.update(f"{name}\0{fingerprint(folder / name)}\n".encode(errors="replace"))
    commit = _commit(folder)
    known = _list_files(folder, "ls-files", "-z") if commit else set()
    new = tuple(name for name in own if name not in known)
    edited = _edited_files(folder, [f"*{end}" for end in ENDINGS]) if commit and known else ()
    # What lies in a checkout of something else, which does not know it, has no commit.
    return Changes(folder, commit if known else "", edited, new, digest.hexdigest())


def _code(folder: Path) -> Iterator[str]:
    """Paths of the Python and gin files in a folder, in order; hidden folders are left out."""
    left = MOST_FILES
    for where, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        for name in sorted(names):
            left -= 1
            if left < 0:
                return
            if name.endswith(ENDINGS):
                yield (Path(where) / name).relative_to(folder).as_posix()


@functools.cache
def code() -> tuple[Changes, ...]:
    """The changes of the project and of each extra folder, as they are when first asked."""
    return of_project(paths.ROOT), *map(of_extra, paths.EXTRA_DIRS)


@functools.cache
def git() -> dict[str, Any]:
    """Commit of the project, and whether the code differs from commits; empty outside of one.

    Any file that git knows counts, and new ones in `PLACES` or an extra folder.
    """
    if not (commit := code()[0].commit):
        return {}
    tracked = _git(paths.ROOT, "status", "--porcelain", "--untracked-files=no")
    changed = bool(tracked) or any(file.edited or file.new for file in code())
    return {"commit": commit, "changed": changed}


@functools.cache
def versions() -> dict[str, Any]:
    """`{'versions': {package: version}, 'git': {...}}`, read without importing anything."""
    by_package = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_package[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": by_package, "git": git()}


def cpus() -> int:
    """CPUs that this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def machine() -> dict[str, Any]:
    """Operating system, processor and the number of CPUs this process may use."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": cpus(),
        "python": sys.version.split()[0],
    }
