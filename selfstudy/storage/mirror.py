"""A copy of the experiments' folder, in a bucket or on another disk.

`SELFSTUDY_MIRROR=s3://bucket/prefix`, or another URI that pyarrow understands (gs, abfs, file),
stands for the folder EXP_DIR. Experiments are written and read locally; what is new is copied
there, and an experiment that is missing here is brought back from there. A checkpoint's card is
uploaded last and a checkpoint is verified before it is put in its place, so that neither side
ever takes half a checkpoint for a whole one. Hidden files stay where they are.
"""

import contextlib
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paths
from selfstudy.storage.checkpoints import (
    FILES,
    check,
    checkpoints,
    is_snapshot,
    is_trial,
    under_experiments,
)
from util.errors import UserError, cause, printable
from util.fetch import within
from util.files import sync_folder

VARIABLE = "SELFSTUDY_MIRROR"
SECONDS = 10  # until the first answer must have come
THREADS = 8  # folders at once: most files are small, and each costs a round trip
_LAST = (paths.JOURNAL, paths.PLAN)  # of a download: they say that all the rest is there
_S3_LIMITS = {"connect_timeout": 3, "request_timeout": 5}  # seconds, of each of three attempts
# In these stores a file appears when it is complete; elsewhere it is renamed into place.
_OBJECT_STORES = ("s3", "gcs", "abfs")


class Mirror:
    """The experiments' folder at another place.

    Args:
        filesystem: a `pyarrow.fs.FileSystem`.
        root: the folder in it that stands for EXP_DIR.
    """

    def __init__(self, filesystem: Any, root: str):
        self.filesystem, self.root = filesystem, root.rstrip("/")
        self._there: dict[str, Any] = {}  # name -> its FileInfo when it was first listed
        self._listed: set[Path] = set()
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of what was sent

    @classmethod
    def from_environment(cls) -> "Mirror | None":
        """The mirror that SELFSTUDY_MIRROR names, or None without one.

        Raises:
            UserError: pyarrow cannot read the URI, or nothing answers there within seconds.
        """
        uri = os.environ.get(VARIABLE)
        if not uri:
            return None
        try:
            return within(SECONDS, lambda: cls._open(uri))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{VARIABLE}={_without_secrets(uri)} cannot be used: "
                f"{_without_secrets(printable(error))[:300]}; it must be a URI such as "
                f"s3://bucket/prefix or file:///folder (unset {VARIABLE} to do without)"
            ) from None

    @classmethod
    def _open(cls, uri: str) -> "Mirror":
        from pyarrow import fs

        if uri.startswith(("gs:", "gcs:")) and "retry_limit_seconds" not in uri:
            # Otherwise a failing upload would be tried for a quarter of an hour.
            uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={SECONDS}"
        with _as_os_errors():
            filesystem, root = fs.FileSystem.from_uri(uri)
            if filesystem.type_name == "s3":
                # A URI can set no limits, and the default ones hold a process for minutes when
                # a server is silent. Building it anew, as pickle does, also limits retries.
                build, (options,) = filesystem.__reduce__()
                filesystem = build(options | _S3_LIMITS)
            mirror = cls(filesystem, root)
            mirror._require_root()
        return mirror

    def _require_root(self) -> None:
        """Make the root, or refuse a bucket that isn't there."""
        if self.filesystem.type_name == "local":
            root, experiments = Path(self.root or "/").resolve(), paths.EXP_DIR.resolve()
            if root.is_relative_to(experiments):
                raise ValueError(f"it lies in {experiments}, which it would mirror")
        if not self._stores_objects:
            self.filesystem.create_dir(self.root or "/")
            return
        bucket = self.root.partition("/")[0]
        if not bucket:
            raise ValueError("it names no bucket")
        # The bucket comes second: who may only use a part of it may not ask for the whole.
        for name in (self.root, bucket):
            if self.filesystem.get_file_info(name).type.name != "NotFound":
                return
        raise FileNotFoundError(f"there is no bucket '{bucket}'")

    @property
    def _stores_objects(self) -> bool:
        return self.filesystem.type_name in _OBJECT_STORES

    def has(self, exp_id: str) -> bool:
        """Whether the experiment is in the mirror."""
        folder = under_experiments(exp_id)
        records = [self._at(_name(folder / name)) for name in (paths.PLAN, paths.STUDY)]
        with _as_os_errors():
            return any(info.is_file for info in self.filesystem.get_file_info(records))

    # ---- up ---------------------------------------------------------------------------------

    def upload(self, folder: Path) -> int:
        """Copy what is new or changed in `folder` to the mirror.

        Args:
            folder: that of an experiment, or any below it.

        Returns:
            How many files were copied.

        Raises:
            OSError: the mirror cannot be reached or written; a retry resumes.
        """
        folder = Path(folder)
        with _as_os_errors(), ThreadPoolExecutor(THREADS) as pool:
            self._list_once(folder)
            return sum(pool.map(self._send_folder, _folders(folder)))

    def _list_once(self, folder: Path) -> None:
        """Learn what an earlier process sent."""
        if self._listed.isdisjoint((folder, *folder.parents)):
            self._there.update(self._files(_name(folder)))
            self._listed.add(folder)

    def _send_folder(self, folder: Path) -> int:
        files = {entry.name: Path(entry.path) for entry in _entries(folder)
                 if entry.is_file(follow_symlinks=False)}  # fmt: skip
        count = 0
        if files.keys() >= set(FILES):
            count = self._send_checkpoint([files.pop(name) for name in FILES])
        return count + sum(map(self._send, files.values()))

    def _send_checkpoint(self, files: list[Path]) -> int:
        """Send a checkpoint unless its card says that it is there; the card goes last."""
        *weights, card = files
        try:
            stamp, text = _stamp(card), _bytes(card)
            if self._has_checkpoint(files, text):
                return 0
            for file in weights:
                self._put(file)
            if _bytes(card) != text:  # replaced meanwhile: the next upload sends it whole
                return 0
            self._put(card)
        except _Vanished:
            return 0
        self._sent[_name(card)] = stamp
        return len(files)

    def _has_checkpoint(self, files: list[Path], text: bytes) -> bool:
        """Whether a checkpoint's files are in the mirror, with the same card."""
        *_, card = names = [_name(file) for file in files]
        if card in self._sent:
            return self._sent[card] == _stamp(files[-1])
        there = [self._there[name].size for name in names if name in self._there]
        return there == [_stamp(file)[0] for file in files] and self._read(card) == text

    def _send(self, file: Path) -> int:
        """Send a file unless the same is there; returns how many were sent."""
        try:
            stamp, name = _stamp(file), _name(file)
            if name in self._sent:
                same = self._sent[name] == stamp
            else:
                there = self._there.get(name)
                same = there and there.size == stamp[0] and there.mtime_ns >= stamp[1]
            if same:
                return 0
            self._put(file)
        except _Vanished:
            return 0
        self._sent[name] = stamp
        return 1

    def _put(self, file: Path) -> None:
        target = self._at(_name(file))
        aside = target
        with _local(file) as source:
            if not self._stores_objects:
                folder, _, last = target.rpartition("/")
                self.filesystem.create_dir(folder)
                # The driver and a worker may send the same file at the same time.
                aside = f"{folder}/.{last}.{uuid.uuid4().hex}.part"
            with self.filesystem.open_output_stream(aside, compression=None) as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
        if aside != target:
            self.filesystem.move(aside, target)

    def prune(self, folder: Path) -> int:
        """Delete in the mirror what was deleted here: checkpoints, and errors that are mended.

        Only those checkpoints go for which the trial has a newer one here: a folder that was
        lost, or not downloaded yet, takes nothing with it.

        Args:
            folder: that of an experiment or of a trial.

        Returns:
            How many checkpoints and files were deleted.

        Raises:
            OSError: the mirror cannot be reached or written.
        """
        count = 0
        with _as_os_errors():
            names = self._files(_name(folder))
            for name in filter(_is_resolved_error, names):
                self.filesystem.delete_file(self._at(name))
                count += 1
            for place in sorted({name.rpartition("/")[0] for name in names}):
                if _is_outdated(paths.EXP_DIR / place):
                    if f"{place}/{paths.CARD}" in names:  # first, so that no half looks whole
                        self.filesystem.delete_file(self._at(f"{place}/{paths.CARD}"))
                    self.filesystem.delete_dir(self._at(place))
                    count += 1
        return count

    # ---- down -------------------------------------------------------------------------------

    def download(self, exp_id: str) -> int:
        """Bring an experiment here where it is missing or older; newer files here stay.

        An experiment whose journal here holds all lines of the mirror's was last run here, and
        nothing is downloaded. Checkpoints that are damaged in the mirror are warned of and
        left there.

        Returns:
            How many files were written, 0 when the mirror has no such experiment.

        Raises:
            UserError: the mirror holds a name that leads out of the experiment's folder.
            OSError: the mirror cannot be reached, or the disk be written; a retry resumes.
        """
        folder = under_experiments(exp_id)
        with _as_os_errors():
            remote = self._files(_name(folder))
            _require_inside(folder, remote)
            if self._is_current(folder, remote):
                return 0
            places = {name.rpartition("/")[0] for name in remote}
            complete = [place for place in places
                     if all(f"{place}/{name}" in remote for name in FILES)]  # fmt: skip
            last = [_name(folder / name) for name in _LAST]
            plain = [name for name in remote if name not in last and _is_plain(name, remote)]
            with ThreadPoolExecutor(THREADS) as pool:
                count = sum(
                    pool.map(lambda place: self._get_checkpoint(place, remote), complete)
                )
                count += sum(pool.map(lambda name: self._get(name, remote), plain))
            return count + sum(self._get(name, remote) for name in last if name in remote)

    def _is_current(self, folder: Path, remote: dict[str, Any]) -> bool:
        """Whether nobody else has run the experiment since this machine did."""
        ours, theirs = folder / paths.JOURNAL, _name(folder / paths.JOURNAL)
        if theirs not in remote or not ours.is_file() or not (folder / paths.PLAN).is_file():
            return False
        return ours.read_bytes().startswith(self._read(theirs))

    def _get(self, name: str, remote: dict[str, Any]) -> int:
        """Bring a file, unless what is here is newer or begins with the same."""
        target, theirs, time = paths.EXP_DIR / name, self._read(name), remote[name].mtime_ns
        if target.is_file():
            extended = target.read_bytes().startswith(theirs)
            if extended or target.stat().st_mtime_ns >= time:
                return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.part")
        try:
            aside.write_bytes(theirs)
            os.utime(aside, ns=(time, time))
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
        return 1

    def _get_checkpoint(self, place: str, remote: dict[str, Any]) -> int:
        """Bring a checkpoint, unless the same or a newer one is here; the card comes last."""
        folder = paths.EXP_DIR / place
        infos = {name: remote[f"{place}/{name}"] for name in FILES}
        if self._is_here(folder, place, infos):
            return 0
        aside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            for name, info in infos.items():
                with self._open_there(f"{place}/{name}") as stream:
                    with (aside / name).open("wb") as file:
                        shutil.copyfileobj(stream, file, 1 << 20)
                os.utime(aside / name, ns=(info.mtime_ns, info.mtime_ns))
            if not _verifies(aside):
                warnings.warn(f"skipped: {place} is damaged in the mirror", stacklevel=2)
                return 0
            folder.mkdir(exist_ok=True)
            (folder / paths.CARD).unlink(missing_ok=True)
            for name in FILES:
                os.replace(aside / name, folder / name)
            sync_folder(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return len(FILES)

    def _is_here(self, folder: Path, place: str, infos: dict[str, Any]) -> bool:
        if not all((folder / name).is_file() for name in infos):
            return False
        card = folder / paths.CARD
        if card.stat().st_mtime_ns > infos[paths.CARD].mtime_ns:
            return True
        sizes = all((folder / name).stat().st_size == info.size for name, info in infos.items())
        return sizes and card.read_bytes() == self._read(f"{place}/{paths.CARD}")

    # ---- the other side ---------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _read(self, name: str) -> bytes:
        with self._open_there(name) as stream:
            return stream.read()

    def _open_there(self, name: str) -> Any:
        # Otherwise a name that ends in '.gz' would be unpacked.
        return self.filesystem.open_input_stream(self._at(name), compression=None)

    def _files(self, name: str) -> dict[str, Any]:
        """Name below EXP_DIR -> FileInfo of each visible file in a folder of the mirror."""
        from pyarrow.fs import FileSelector

        chosen = FileSelector(self._at(name), allow_not_found=True, recursive=True)
        infos = [info for info in self.filesystem.get_file_info(chosen) if info.is_file]
        by_path = {info.path[len(self.root) + 1 :]: info for info in infos}
        return {name: info for name, info in by_path.items() if not _is_hidden(name)}


# ---- names and files ------------------------------------------------------------------------


class _Vanished(Exception):
    """A file was deleted here before it could be sent, as old checkpoints are."""


def _name(path: Path) -> str:
    """Where `path` lies below EXP_DIR, as it is called in the mirror."""
    return Path(path).relative_to(paths.EXP_DIR).as_posix()


@contextlib.contextmanager
def _local(file: Path) -> Iterator[Any]:
    try:
        source = file.open("rb")
    except FileNotFoundError:
        raise _Vanished(file) from None
    with source:
        yield source


def _bytes(file: Path) -> bytes:
    with _local(file) as source:
        return source.read()


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file, which change when it does."""
    try:
        status = file.stat()
    except FileNotFoundError:
        raise _Vanished(file) from None
    return status.st_size, status.st_mtime_ns


def _entries(folder: Path) -> list[os.DirEntry]:
    """What is visible in a folder, nothing when it was deleted meanwhile."""
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def _folders(folder: Path) -> Iterator[Path]:
    """`folder` and all below it; hidden ones and links are left out."""
    yield folder
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _folders(Path(entry.path))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def _is_plain(name: str, remote: dict[str, Any]) -> bool:
    """Whether a file is of no checkpoint, whole or half."""
    place, _, last = name.rpartition("/")
    if place.rpartition("/")[2].startswith(paths.CHECKPOINT):
        return False
    return last not in FILES or f"{place}/{paths.SNAPSHOT}" not in remote


def _require_inside(folder: Path, names: Iterable[str]) -> None:
    """Refuse the names of a listing if one of them leads out of the experiment's folder."""
    for name in names:
        try:
            paths.under(folder, name.removeprefix(f"{_name(folder)}/"))
        except ValueError as error:
            raise UserError(f"nothing was downloaded, the mirror is damaged: {error}") from None


def _is_outdated(place: Path) -> bool:
    """Whether a checkpoint is gone here while the trial has a newer one."""
    if not place.name.startswith(paths.CHECKPOINT) or place.exists():
        return False
    return any(here.name > place.name and is_snapshot(here)
               for here in checkpoints(place.parent))  # fmt: skip


def _is_resolved_error(name: str) -> bool:
    """Whether a file is the error of a trial that has been tried again since."""
    file = paths.EXP_DIR / name
    return file.name == paths.ERROR and is_trial(file.parent) and not file.exists()


def _verifies(folder: Path) -> bool:
    try:
        check(folder)
    except UserError:
        return False
    return True


# ---- reaching it ----------------------------------------------------------------------------


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn pyarrow's errors into OSError, the one kind that callers handle."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, UnicodeError) as error:
        raise OSError(printable(error)) from error


def _without_secrets(text: str) -> str:
    """`text` without the KEY:SECRET@ that a URI may hold."""
    return re.sub(r"//\S*@", "//***@", text)


def uploader() -> Callable[[Path], None]:
    """A function that copies a trial's folder to the mirror and only warns when it cannot.

    The driver has checked the mirror before the start; one that is gone since may come back.
    """
    try:
        mirror = Mirror.from_environment()
    except UserError as error:
        warnings.warn(f"checkpoints stay here alone: {error.text}", stacklevel=2)
        mirror = None

    def upload(folder: Path) -> None:
        if mirror is None:
            return
        try:
            mirror.upload(folder)
        except OSError as error:
            warnings.warn(f"the mirror was not reached: {cause(error)}", stacklevel=2)

    return upload
