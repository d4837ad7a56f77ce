"""One trial: a configuration, its session, and what it leaves on disk."""

import dataclasses
import math
import os
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

import paths
import util.files as files
from selfstudy import configure, optim, registry, snapshot
from selfstudy.session import Report, Session
from util import environment
from util.errors import UserError, cause


@dataclasses.dataclass(frozen=True)
class Rules:
    """When a trial stops and when it saves.

    Attributes:
        stop: result name -> value at which the trial ends (True for flags).
        checkpoint_freq: rounds between checkpoints; 0 is none.
        checkpoint_at_end: save when the trial ends.
    """

    stop: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint_freq: int = 0
    checkpoint_at_end: bool = False


def best_device() -> torch.device:
    """The accelerator that this process may use, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def check(
    spec: configure.Spec, overrides: dict[str, Any], build: bool = True
) -> dict[str, dict]:
    """Find a trial's mistakes before anything starts.

    Args:
        spec: files and `-p` bindings.
        overrides: a search's values.
        build: also open (and, at first use, prepare) the data set, and build the model
            without memory for its weights.

    Returns:
        Every configurable that the trial would build, with its values; under 'data', the
        SHA-256 of the data file by its path below DATA_DIR.

    Raises:
        UserError: anything in the configuration that cannot work, or missing data.
    """
    registry.discover()
    configure.load(spec, overrides)
    parts = configure.would_build("session")
    optim.check(parts)
    names = parts["session"]
    needed = registry.get("task", names["task"]).backbone
    backbone = parts.get("Wrapper", {}).get("model_choice")
    if (
        needed
        and backbone
        and not issubclass(registry.get("backbone", backbone), registry.get("backbone", needed))
    ):
        raise UserError(
            f"session.task = '{names['task']}' needs Wrapper.model_choice = '{needed}', "
            f"not '{backbone}'"
        )
    if build:
        dataset = _rehearsed().loaders["train"].dataset
        parts["data"] = {_below_data(dataset.path): dataset.attributes.get("sha256")}
    return parts


def _rehearsed() -> Session:
    """The session on a device that computes nothing; what fails there is the user's to mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loading weights into nothing is what is meant
            session = Session(torch.device("meta"))
            session.rehearse()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the session cannot work: {cause(error)}") from error
    return session


def _below_data(path: Path) -> str:
    inside = path.is_relative_to(paths.DATA_DIR)
    return (path.relative_to(paths.DATA_DIR) if inside else path).as_posix()


class Trial:
    """Parses a configuration and runs a session; the same with Ray and without.

    The folder holds `params.json`, `config.gin`, `result.json` (a line a round), events, and
    checkpoints. A folder with a checkpoint that verifies is continued from there.

    Args:
        spec: files and `-p` bindings.
        overrides: a search's values, which win.
        folder: where to write.
        rules: when to stop and save.
        command: the command line that planned it, for the cards of its checkpoints.
        device: where to run; None takes the accelerator that this process may use.
    """

    def __init__(
        self,
        spec: configure.Spec,
        overrides: dict[str, Any],
        folder: Path,
        rules: Rules,
        command: str = "",
        device: str | None = None,
    ):
        self.overrides, self.folder, self.rules = dict(overrides), Path(folder), rules
        self.command = command
        self.folder.mkdir(parents=True, exist_ok=True)
        registry.discover()
        configure.load(spec, overrides)
        self.session = Session(device or best_device())
        self.config = configure.operative_text()
        self.values = configure.operative()
        self.seconds = 0.0
        self.result: dict[str, Any] = {}  # the last line of `result.json`
        (self.folder / paths.ERROR).unlink(missing_ok=True)  # of an earlier attempt
        files.write_json(self.folder / paths.PARAMS, self.overrides)
        files.write_text(self.folder / paths.CONFIG, self.config)
        self._continue()
        self.events = _events(self.folder)

    def _continue(self) -> None:
        """Load the newest checkpoint that verifies, and cut the results back to it."""
        found = snapshot.newest(self.folder)
        results = self.folder / paths.RESULT
        rows = files.read_lines(results)
        kept: list[dict] = []
        if found:
            self.session.load_state_dict(found.state())
            last = found.card["result"]
            kept = [row for row in rows if row.get("round", 0) < last["round"]] + [last]
            self.seconds, self.result = last["total_s"], last
        if rows != kept:
            files.write_lines(results, kept)

    @property
    def done(self) -> bool:
        """Whether the trial has ended."""
        return bool(self.result.get("done"))

    def step(self, report: Report = lambda *_: None) -> dict[str, Any]:
        """One round; saves when that is due; returns the line of `result.json`.

        A trial that has ended returns its last line again.
        """
        if self.done:
            return self.result
        start = time.monotonic()
        result: dict[str, Any] = self.session.round(report)
        self.seconds += time.monotonic() - start
        result |= {"total_s": self.seconds, "time": time.time()}
        weights = getattr(self.session.model, "report", None)
        if weights and self.session.rounds_done == 1:
            result["weights"] = weights
        result["done"] = reached(result, self.rules.stop) or self.session.finished
        freq = self.rules.checkpoint_freq
        due = freq and self.session.rounds_done % freq == 0
        if due or (result["done"] and self.rules.checkpoint_at_end):
            self.save(result)
        self.result = result
        files.append_line(self.folder / paths.RESULT, result)
        for name, item in result.items():
            if isinstance(item, float) and math.isfinite(item):
                self.events.add_scalar(name, item, self.session.rounds_done)
        if self.done:
            self.close()
        return result

    def save(self, result: dict[str, Any]) -> Path:
        """Write a checkpoint whose card carries `result`; returns its folder."""
        folder = self.folder / f"{paths.CHECKPOINT}{self.session.rounds_done:06d}"
        card = {
            "trial": self.folder.name,
            "round": self.session.rounds_done,
            "metrics": {key: item for key, item in result.items() if isinstance(item, float)},
            "result": files.plain(result),
            "overrides": files.plain(self.overrides),
            "config": files.plain(self.values),
            "command": self.command,
            "seed": self.session.seed,
            **environment.versions(),
        }
        snapshot.save(folder, self.session.state_dict(), self.config, card)
        return folder

    def close(self) -> None:
        """Flush what is being written."""
        self.events.close()


def reached(result: dict[str, Any], stop: dict[str, Any]) -> bool:
    """Whether any of the `stop` values is reached (a flag is true, a number as large)."""
    return any(result.get(name) is not None and result[name] >= limit
               for name, limit in stop.items())  # fmt: skip


def _events(folder: Path):
    # TensorBoard's writer is imported late: it takes a second, and only trials write events.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def use_threads(cpus: float) -> None:
    """Let torch compute with as many threads as the trial has CPUs (at least one)."""
    torch.set_num_threads(max(1, int(cpus)))


def note_failure(folder: Path, error: Exception) -> str:
    """Keep the traceback in the trial's folder, with the cause as last line; returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(traceback.format_exception(error))
    files.write_text(folder / paths.ERROR, f"{text}\n{cause(error)}\n")
    return cause(error)


def gpus() -> int:
    """CUDA devices that this process may use."""
    return torch.cuda.device_count()


def devices() -> list[str]:
    """Their names."""
    return [torch.cuda.get_device_name(number) for number in range(gpus())]
