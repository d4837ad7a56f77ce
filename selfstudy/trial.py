"""One trial: a configuration, its job, and its folder on disk."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paths
from selfstudy import configure, devices, registry
from selfstudy.job import Job, Report, StopRequested, job, silent, watched
from selfstudy.storage import checkpoints, mirror, retention, snapshot
from selfstudy.storage.ownership import Ownership
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.train import online_eval, tensorboard
from selfstudy.train.processes import Workers
from util import environment, files
from util.errors import UserError, cause


class Trial:
    """Parses a configuration and runs its job; the same with Ray and without.

    The folder holds `params.json`, `config.gin`, `result.json` (a line a round), events, and
    checkpoints. A folder with a checkpoint that verifies is continued from there.

    Args:
        spec: files and `-p` bindings.
        overrides: a search's values, which win.
        folder: where to write.
        policy: when to stop and save.
        command: the command line that planned it, for the cards of its checkpoints.
        device: where to run; None takes the accelerator that this process may use.
        stopping: polled; true asks the trial to save and stop.
    """

    def __init__(
        self,
        spec: configure.Spec,
        overrides: dict[str, Any],
        folder: Path,
        policy: CheckpointPolicy,
        command: str = "",
        device: str | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.overrides, self.folder, self.policy = dict(overrides), Path(folder), policy
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
        self._upload = mirror.uploader()
        self.seconds = 0.0
        self.result: dict[str, Any] = {}  # the last line of `result.json`
        self._kept: tuple[dict, dict] | None = None  # state and result of the last round
        self._closed = False
        self._owner = Ownership(self.folder)
        (self.folder / paths.ERROR).unlink(missing_ok=True)  # of an earlier attempt
        files.write_json(self.folder / paths.PARAMS, self.overrides)
        files.write_text(self.folder / paths.CONFIG, self.config)
        self._continue()
        self.events = tensorboard.open_writer(self.folder)
        tensorboard.start(self.events, self.overrides or self.values)

    def _continue(self) -> None:
        """Resume from the newest checkpoint that verifies; drop later result lines."""
        found = snapshot.newest(self.folder)
        rows = files.read_lines(self.folder / paths.RESULT)
        if rows and rows[-1].get("done"):
            self.result = rows[-1]  # the trial has ended, with or without a checkpoint
        elif found:
            self.workers.load(self.session, found.state())
            self._go_on_from(found.card["result"], rows)
        else:
            (self.folder / paths.RESULT).unlink(missing_ok=True)

    def _go_on_from(self, last: dict[str, Any], rows: list[dict]) -> None:
        """Make `last` the newest of the result lines."""
        kept = [row for row in rows if row.get("round", 0) < last["round"]] + [last]
        self.seconds, self.result = last["total_s"], last
        files.write_lines(
            self.folder / paths.RESULT, kept
        )  # without a line that a kill has cut

    def adopt(self, folder: Path) -> None:
        """Continue from another trial's checkpoint, under this trial's own configuration.

        For population based training. The state is saved at once; adopting the same
        checkpoint again after a restart does nothing.

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

        A trial that has ended returns its last line again. When `stopping`, it saves its last
        finished round and returns that line with `interrupted`.

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
            if self.stopping():  # before the other processes start the round
                raise StopRequested
            result: dict[str, Any] = self.workers.round(
                self.session, watched(report, self.stopping)
            )
        except StopRequested:
            self.workers.close()
            _saved(self.save_last, self.result)
            return self.result | {"interrupted": True}
        self.seconds += time.monotonic() - start
        result |= {"total_s": self.seconds, "time": time.time(), **devices.memory()}
        if "exploited" in self.result:
            result["exploited"] = self.result["exploited"]
        if online_eval.has_collapsed(result):  # and the first round in which it was
            result["collapsed"] = self.result.get("collapsed", result["round"])
        if self.session.rounds_done == 1:
            result |= self.session.notes()
        counted = result.get("train_counted", True)
        if counted and not _finite(result.get("train_loss", 0.0)):
            return self._diverge(result)
        result["done"] = reached(result, self.policy.stop) or self.session.finished
        saved = False
        if self.policy.asks_for(self.session.rounds_done, result["done"]):
            saved = _saved(lambda: self.save(result), result)
        if not saved and "unsaved" in self.result:
            result.setdefault("unsaved", self.result["unsaved"])
        self._append(result)
        self._kept = (
            None
            if saved or self.done
            else (snapshot.copy_to_cpu(self.session.state_dict()), result)
        )
        if self.done:
            self._prune()
            self.close()
        return result

    def _append(self, result: dict[str, Any]) -> None:
        self._owner.require()
        self.result = result
        files.append_line(self.folder / paths.RESULT, result)
        tensorboard.add_numbers(self.events, result)

    def _diverge(self, result: dict[str, Any]) -> dict[str, Any]:
        """End the trial; the last round with a finite loss is saved."""
        _saved(self.save_last, result)
        self._append(result | {"done": True, "diverged": True})
        self._prune()
        self.close()
        return self.result

    def save_last(self) -> None:
        """Save the last finished round, unless it is saved already."""
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
        self._owner.require()
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
        retention.drop_newer(self.folder, folder)
        self._prune()
        self._upload(self.folder)

    def _prune(self) -> None:
        retention.prune(self.folder, self.policy, self.result)

    def close(self) -> None:
        """Close processes and files; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.workers.close()
        if self.done:
            tensorboard.end(self.events, bool(self.result.get("diverged")))
        self.events.close()
        self._upload(self.folder)


def _saved(save: Callable[[], None], result: dict[str, Any]) -> bool:
    """Run `save`; a failure does not end the trial, it is noted in `result`."""
    try:
        save()
    except OSError as error:
        result["unsaved"] = cause(error)
        return False
    return True


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def reached(result: dict[str, Any], stop: dict[str, Any]) -> bool:
    """Whether a flag of `stop` is true or a number has reached its limit."""
    return any(result.get(name) is not None and result[name] >= limit
               for name, limit in stop.items())  # fmt: skip
