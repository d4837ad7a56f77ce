"""One trial: a configuration, its job, and what it leaves on disk."""

import contextlib
import dataclasses
import math
import os
import time
import traceback
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import paths
import util.files as files
from selfstudy import configure, devices, registry
from selfstudy.job import Job, Report, job, silent
from selfstudy.storage import checkpoints, snapshot
from selfstudy.storage.mirror import Mirror
from selfstudy.train import online_eval as monitor
from selfstudy.train import tensorboard as hparams
from selfstudy.train.processes import Workers
from util import environment
from util.errors import UserError, cause

SPARE = 3  # checkpoints that nobody asked for, kept while a trial runs: others may adopt them
POLL = 0.5  # seconds between two looks at whether to stop


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """When a trial stops and what it saves.

    Attributes:
        stop: result name -> value at which the trial ends (True for flags).
        checkpoint_freq: rounds between checkpoints; 0 is none.
        checkpoint_at_end: save when the trial ends.
        keep_checkpoints: of these keep so many, the best by `metric`, and the last; None keeps
            all.
        metric: what 'best' means.
        mode: 'max' or 'min'.
    """

    stop: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint_freq: int = 0
    checkpoint_at_end: bool = False
    keep_checkpoints: int | None = None
    metric: str = "mean_accuracy"
    mode: str = "max"

    def asks_for(self, number: int, done: bool) -> bool:
        """Whether a checkpoint is wanted after this round."""
        due = self.checkpoint_freq and number % self.checkpoint_freq == 0
        return bool(due) or (done and self.checkpoint_at_end)


class StopRequested(Exception):
    """The trial was asked to stop within a round."""


class Superseded(Exception):
    """Another process continues this trial; this one was taken for dead and may not write."""


class Trial:
    """Parses a configuration and runs its job; the same with Ray and without.

    The folder holds `params.json`, `config.gin`, `result.json` (a line a round), events, and
    checkpoints. A folder with a checkpoint that verifies is continued from there.

    Args:
        spec: files and `-p` bindings.
        overrides: a search's values, which win.
        folder: where to write.
        rules: when to stop and save.
        command: the command line that planned it, for the cards of its checkpoints.
        device: where to run; None takes the accelerator that this process may use.
        stopping: asked now and then whether to save and stop.
    """

    def __init__(
        self,
        spec: configure.Spec,
        overrides: dict[str, Any],
        folder: Path,
        rules: CheckpointPolicy,
        command: str = "",
        device: str | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.overrides, self.folder, self.policy = dict(overrides), Path(folder), rules
        self.command, self.stopping = command, stopping
        if self.folder.is_symlink():
            raise UserError(f"{self.folder} is a link: a trial writes to a folder of its own")
        self.folder.mkdir(parents=True, exist_ok=True)
        registry.discover()
        configure.load(spec, overrides)
        self.workers = Workers(configure.value("trial", "processes"), device)
        try:
            self._build(spec)
        except BaseException:
            self.workers.close()
            raise

    def _build(self, spec: configure.Spec) -> None:
        self.workers.build(spec, self.overrides)
        self.session: Job = job()(self.workers.device)
        self.config = configure.operative_text()
        self.values = configure.operative()
        self.mirror = self._reach_mirror()
        self.seconds = 0.0
        self.result: dict[str, Any] = {}  # the last line of `result.json`
        self._kept: tuple[dict, dict] | None = None  # state and result of the last round
        self._closed = False
        self._token = uuid.uuid4().hex
        files.write_text(self.folder / paths.WRITER, self._token)
        (self.folder / paths.ERROR).unlink(missing_ok=True)  # of an earlier attempt
        files.write_json(self.folder / paths.PARAMS, self.overrides)
        files.write_text(self.folder / paths.CONFIG, self.config)
        self._continue()
        self.events = _events(self.folder)
        hparams.start(self.events, self.overrides or self.values)

    def _continue(self) -> None:
        """Load the newest checkpoint that verifies, and cut the results back to it."""
        found = snapshot.newest(self.folder)
        rows = files.read_lines(self.folder / paths.RESULT)
        if rows and rows[-1].get("done"):
            self.result = rows[-1]  # it has ended, whatever it has saved
        elif found:
            self.workers.load(self.session, found.state())
            self._go_on_from(found.card["result"], rows)
        else:
            (self.folder / paths.RESULT).unlink(missing_ok=True)

    def _go_on_from(self, last: dict[str, Any], rows: list[dict]) -> None:
        """Make `last` the newest of the result lines."""
        kept = [row for row in rows if row.get("round", 0) < last["round"]] + [last]
        self.seconds, self.result = last["total_s"], last
        files.write_lines(self.folder / paths.RESULT, kept)  # without what a kill has torn

    def adopt(self, folder: Path) -> None:
        """Continue from another trial's checkpoint, under this trial's own configuration.

        Population based training asks for it. It is saved at once; asked for the same again
        after a restart, the trial goes on from what it has.

        Args:
            folder: the checkpoint; when it is gone, the other trial's newest one.
        """
        whole = checkpoints.is_snapshot(folder)
        found = snapshot.Snapshot.open(folder) if whole else snapshot.newest(folder.parent)
        if found is None:
            return
        donor = checkpoints.short_name(found.folder)
        if self.result.get("exploited") == donor:
            return
        self.workers.adopt(self.session, found.state())
        ended = {"exploited": donor, "done": self.session.finished}
        last = found.card["result"] | ended
        self.save(last)  # first, so that a kill leaves the old lines with the old checkpoints
        self._go_on_from(last, files.read_lines(self.folder / paths.RESULT))

    @property
    def done(self) -> bool:
        """Whether the trial has ended."""
        return bool(self.result.get("done"))

    def step(self, report: Report = silent) -> dict[str, Any]:
        """One round; saves when that is due; returns the line of `result.json`.

        A trial that has ended returns its last line again. One that was asked to stop saves
        its last finished round and returns that line with `interrupted`.

        Raises:
            Exception: whatever fails in the job.
        """
        if self.done:
            return self.result
        try:
            return self._step(report)
        except BaseException:
            self.workers.close()
            raise

    def _step(self, report: Report) -> dict[str, Any]:
        start = time.monotonic()
        try:
            if self.stopping():  # within a round it would leave the other processes behind
                raise StopRequested
            result: dict[str, Any] = self.workers.round(self.session, self._watched(report))
        except StopRequested:
            self.workers.close()
            _saved(self.save_last, self.result)
            return self.result | {"interrupted": True}
        self.seconds += time.monotonic() - start
        result |= {"total_s": self.seconds, "time": time.time(), **devices.memory()}
        if "exploited" in self.result:
            result["exploited"] = self.result["exploited"]
        if monitor.collapsed(result):  # and in which round it was so first
            result["collapsed"] = self.result.get("collapsed", result["round"])
        if self.session.rounds_done == 1:
            result |= self.session.notes()
        if not _finite(result.get("train_loss", 0.0)):
            return self._diverge(result)
        result["done"] = reached(result, self.policy.stop) or self.session.finished
        saved = False
        if self.policy.asks_for(self.session.rounds_done, result["done"]):
            saved = _saved(lambda: self.save(result), result)
        if not saved and "unsaved" in self.result:
            result.setdefault("unsaved", self.result["unsaved"])
        self._append(result)
        self._kept = None if saved or self.done else (_copy(self.session.state_dict()), result)
        if self.done:
            self._prune()
            self.close()
        return result

    def _watched(self, report: Report) -> Report:
        """`report`, which also looks every now and then whether to stop."""
        looked = [-POLL]

        def watch(split: str, done: int, count: int) -> None:
            if time.monotonic() - looked[0] >= POLL:
                looked[0] = time.monotonic()
                if self.stopping():
                    raise StopRequested
            report(split, done, count)

        return watch

    def _require_ownership(self) -> None:
        """A worker that was cut off and replaced must not write into its successor's files."""
        with contextlib.suppress(FileNotFoundError):
            if (self.folder / paths.WRITER).read_text() != self._token:
                raise Superseded(f"{self.folder.name} is continued by another process")

    def _append(self, result: dict[str, Any]) -> None:
        self._require_ownership()
        self.result = result
        files.append_line(self.folder / paths.RESULT, result)
        for name, item in result.items():
            if isinstance(item, float) and math.isfinite(item):
                self.events.add_scalar(name, item, result["round"])

    def _diverge(self, result: dict[str, Any]) -> dict[str, Any]:
        """End here; what is saved is the last round whose loss was finite."""
        _saved(self.save_last, result)
        self._append(result | {"done": True, "diverged": True})
        self._prune()
        self.close()
        return self.result

    def save_last(self) -> None:
        """Save the last finished round, unless it is on the disk."""
        if self._kept:
            state, result = self._kept
            self._kept = None
            self._write(state, result)
            self.result.pop("unsaved", None)

    def save(self, result: dict[str, Any]) -> None:
        """Write a checkpoint whose card carries `result`."""
        self._write(self.session.state_dict(), result)
        self._kept = None

    def _write(self, state: dict, result: dict[str, Any]) -> None:
        self._require_ownership()
        folder = self.folder / f"{paths.CHECKPOINT}{result['round']:06d}"
        saved = {key: item for key, item in result.items() if key != "unsaved"}
        card = {
            "trial": self.folder.name,
            "round": result["round"],
            "metrics": {key: item for key, item in result.items() if isinstance(item, float)},
            "result": files.plain(saved),
            "overrides": files.plain(self.overrides),
            "config": files.plain(self.values),
            "command": self.command,
            "seed": self.session.seed,
            **environment.versions(),
        }
        if data := self.session.data():
            card["data"] = dataclasses.asdict(data[0].info)
        snapshot.save(folder, state, self.config, card)
        self._drop_newer(folder)
        self._prune()
        self._upload()

    def _drop_newer(self, saved: Path) -> None:
        """Delete what is newer than `saved`: the trial has left it, to go on from elsewhere."""
        for folder in checkpoints.checkpoints(self.folder):
            if _number(folder, {})[0] <= _number(saved, {})[0]:
                break
            checkpoints.remove(folder)

    def _prune(self) -> None:
        """Delete the checkpoints that the rules do not ask for; the newest goes last of all."""
        folders = checkpoints.checkpoints(self.folder)
        asked = [folder for folder in folders
                 if self.policy.asks_for(*_number(folder, self.result))]  # fmt: skip
        if self.policy.keep_checkpoints is not None:
            best = sorted(asked, key=self._worth, reverse=True)[: self.policy.keep_checkpoints]
            asked = [*best, *asked[:1]]
        whole = self.done and not self.result.get("diverged")
        spare = [] if whole else folders[: SPARE if not self.done else 1]
        for folder in folders:
            if folder not in asked and folder not in spare:
                checkpoints.remove(folder)

    def _worth(self, folder: Path) -> float:
        """How good a checkpoint is; more is better."""
        try:
            value = checkpoints.read_card(folder)["metrics"].get(self.policy.metric)
        except (UserError, KeyError):
            value = None
        if not isinstance(value, (int, float)):
            return -math.inf
        return value if self.policy.mode == "max" else -value

    def _reach_mirror(self) -> Mirror | None:
        """The mirror; the driver has checked it, so that one that is gone now may come back."""
        try:
            return Mirror.from_environment()
        except UserError as error:
            warnings.warn(f"checkpoints stay here alone: {error.text}", stacklevel=2)
            return None

    def _upload(self) -> None:
        """Copy the folder to the mirror; one that cannot be reached does not end the trial."""
        if self.mirror:
            try:
                self.mirror.upload(self.folder)
            except OSError as error:
                warnings.warn(f"the mirror was not reached: {cause(error)}", stacklevel=2)

    def close(self) -> None:
        """Flush what is being written; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        self.workers.close()
        if self.done:
            hparams.end(self.events, bool(self.result.get("diverged")))
        self.events.close()
        self._upload()


def _saved(save: Callable[[], None], result: dict[str, Any]) -> bool:
    """Save; a full disk ends nothing, `result` tells."""
    try:
        save()
    except OSError as error:
        result["unsaved"] = cause(error)
        return False
    return True


def _number(folder: Path, last: dict[str, Any]) -> tuple[int, bool]:
    """The round of a checkpoint, and whether the trial ended with it."""
    number = int(folder.name.strip(".").split("_")[1].split(".")[0])
    return number, bool(last.get("done")) and number == last["round"]


def _copy(value: Any) -> Any:
    """The same state in memory of its own, on the host."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copy(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(item) for item in value)
    return value


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def reached(result: dict[str, Any], stop: dict[str, Any]) -> bool:
    """Whether any of the `stop` values is reached (a flag is true, a number as large)."""
    return any(result.get(name) is not None and result[name] >= limit
               for name, limit in stop.items())  # fmt: skip


def _events(folder: Path):
    # TensorBoard's writer is imported late: it takes a second, and only trials write events.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def note_failure(folder: Path, error: Exception) -> str:
    """Keep the traceback in the trial's folder, with the cause as last line; returns that."""
    text = "".join(traceback.format_exception(error))
    told = _told(error)
    with contextlib.suppress(OSError):  # the disk may be what has failed
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / paths.ERROR, f"{text}\n{told}\n")
    return told


def _told(error: Exception) -> str:
    """The cause in a line, with what helps where memory has run out."""
    if not isinstance(error, torch.OutOfMemoryError):
        return cause(error)
    peak = devices.memory().get("gpu_peak_mb", 0) / 1024
    return (
        f"the GPU's memory is full (peak {peak:.1f} GiB): lower dataloader.batch_size, or ask "
        f"for a larger share with --set resources_per_trial.gpu=... ({cause(error)})"
    )


def is_retryable(error: Exception) -> bool:
    """Whether a second try could end otherwise: files and devices fail by chance.

    A trial draws the same numbers every time, so what its code raises is raised again.
    """
    chance = (OSError, MemoryError, getattr(torch, "AcceleratorError", OSError))
    return isinstance(error, chance) and not isinstance(error, torch.OutOfMemoryError)
