"""The Ray side: trials as actors, a cluster, and what to do when something dies.

Ray schedules and restarts; it records nothing that is ever read back. Each trial writes its
own folder (`trial.py`), and a worker that dies is continued from the newest checkpoint that
verifies there. What is left to do is read from the manifest, never from Ray's own state.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# ruff: isort: off
from selfstudy import devices
from selfstudy.experiment.resources import gpu_fit, trials_at_once
from selfstudy.experiment import rayenv  # noqa: F401  (before Ray)
# ruff: isort: on

from ray import tune
from ray.tune.schedulers import FIFOScheduler

import paths
from selfstudy.experiment import plan as plans
from selfstudy.experiment import summary
from selfstudy.experiment.failures import is_retryable, record_failure
from selfstudy.experiment.interrupts import Interrupts
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.experiment.upkeep import Upkeep
from selfstudy.storage import checkpoints
from selfstudy.storage.ownership import Superseded
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.trial import Trial
from selfstudy.tune import controller, search
from selfstudy.tune.replay import replay
from util import files
from util.progress import ProgressTable

OWN = "selfstudy"  # the key of a worker's configuration that is no gin name


class Worker(tune.Trainable):
    """One trial inside a Ray actor; the next trial reuses the actor.

    The trial is built when its first round is asked for, not in `setup`: Ray starts actors
    ahead, and gives a trial whose actor still starts to one that has become free. That one may
    have finished the trial when the first comes to its `setup`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the configuration.

        It has `selfstudy` (the experiment's folder, resources, quiet) and, in population based
        training, gin names with the values that hold now.
        """
        logging.getLogger("ray").setLevel(logging.WARNING)  # not each checkpoint is news
        self._about = config[OWN]
        self._mutated = {key: item for key, item in config.items() if "." in key}
        self._failed: str | None = None
        self._trial: Trial | None = None
        self._quiet = contextlib.ExitStack()

    def _build(self) -> None:
        """Build the trial that Ray's trial is named after."""
        about = self._about
        if about["quiet"]:
            nowhere = self._quiet.enter_context(open(os.devnull, "w"))
            self._quiet.enter_context(contextlib.redirect_stdout(nowhere))
            self._quiet.enter_context(contextlib.redirect_stderr(nowhere))
        plan = plans.Plan.read(Path(about["folder"]))
        # The name, since population based training copies configurations between trials.
        row = next(row for row in plan.rows if row.name == self.trial_name)
        self._folder, self._metrics = plan.folder / row.name, plan.objectives
        devices.use_share(about["resources"])
        self._trial = self._record_failure(
            lambda: Trial(
                plan.spec,
                row.overrides | self._mutated,
                self._folder,
                CheckpointPolicy(**plan.policy),
                plan.command,
                stopping=(plan.folder / ".stop").exists,
            )  # fmt: skip
        )
        if self._trial and plan.exp_args["verbose"] > 1:
            print(self._trial.config)

    def step(self) -> dict[str, Any]:
        """One round; `failed` and `interrupted` tell of one that was none."""
        if not (self._trial or self._failed):
            self._build()
        trial = self._trial
        if trial and not self._failed:
            result = self._record_failure(trial.step)
            if result is not None:
                if result.get("interrupted"):
                    time.sleep(0.2)  # Ray asks again until the experiment ends
                    return self._without_round(interrupted=True)
                return self._for_ray(result) | {"ended": result["done"]}
        return self._without_round(failed=self._failed, done=True)

    def _for_ray(self, row: dict[str, Any]) -> dict[str, Any]:
        """What schedulers and searches look at; the line itself goes along as text.

        Of each number Ray's driver keeps averages and windows, several kilobytes a trial.
        """
        names = {"training_iteration", "round", "total_s", "done", "diverged", "train_loss"}
        names |= {metric for metric, _ in self._metrics}
        return {name: row[name] for name in names if name in row} | {
            "line": json.dumps(files.plain(row))
        }

    def _without_round(self, **what: Any) -> dict[str, Any]:
        """A result that schedulers can read though there was no round."""
        last = self._trial.result if self._trial else {}
        empty = {metric: float("nan") for metric, _ in self._metrics}
        seen = {"training_iteration": 0, **self._for_ray(last), "ended": False}
        return empty | seen | what

    def _record_failure(self, act: Callable[[], Any]) -> Any:
        """Run `act`; record a failure, re-raise it if Ray should retry."""
        try:
            return act()
        except Superseded:
            raise
        except Exception as error:
            self._failed = record_failure(self._folder, error)
            if is_retryable(error):
                raise
        return None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process; `Trial` clears gin and seeds everything."""
        self.cleanup()
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Our own checkpoint, in the trial's folder; Ray gets its path."""
        if not self._trial or self._failed:
            return {"folder": ""}
        self._record_failure(self._trial.save_last)
        folders = checkpoints.checkpoints(self._folder)
        return {"folder": str(folders[0]) if folders else ""}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over another trial's state; from its own, a trial continues by itself."""
        folder = Path(checkpoint["folder"])
        if checkpoint["folder"] and folder.parent.name != self.trial_name:
            self._build()
            if trial := self._trial:
                self._record_failure(lambda: trial.adopt(folder))

    def cleanup(self) -> None:
        """Close what the trial writes to."""
        if self._trial:
            self._trial.close()
        self._quiet.close()


class _Watch(tune.Callback):
    """Writes down and shows what Ray's trials do."""

    def __init__(
        self,
        plan: plans.Plan,
        progress: ProgressTable,
        interrupts: Interrupts,
        resources: dict[str, float],
        have: dict[str, float],
    ):
        self.plan, self.progress, self.interrupts = plan, progress, interrupts
        self.resources, self.have = resources, have
        self.failed: dict[str, str] = {}
        self.unsaved: dict[str, str] = {}
        self.running: set[str] = set()
        self.saved: set[str] = set()
        self.at_work: set[str] | None = None  # while stopping: without those that pause
        self.upkeep = Upkeep(plan, progress, interrupts)
        self.memory_reported = False

    def __getstate__(self) -> dict:
        return {}  # Ray stores its callbacks

    def _show_slots(self) -> None:
        used = {name: len(self.running) * share for name, share in self.resources.items()}
        self.progress.slots = " ".join(
            f"{name.upper()} {used[name]:g}/{self.have[name]:g}" for name in used
        )

    def _end(self, name: str, status: str, why: str | None, result: dict) -> None:
        self.running.discard(name)
        self._show_slots()
        number = result.get("round", 0)
        self.plan.note("trial", name=name, status=status, why=why, round=number)
        self.progress.end(name, status, why)

    def setup(self, **info) -> None:
        """Take SIGUSR1 back, which Ray has just taken whatever its settings say."""
        self.interrupts.listen()

    def on_step_begin(self, iteration, trials, **info) -> None:
        """Look after the experiment, and who is at work while it stops."""
        self.upkeep.look()
        if self.interrupts.stopping:
            self.at_work = {str(trial) for trial in trials if trial.status == "RUNNING"}

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        name = str(trial)
        if name not in self.running:
            self.plan.note("trial", name=name, status="started", why=None, round=0)
            self.progress.start(name)
        self.running.add(name)
        self._show_slots()

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        name = str(trial)
        if result.get("failed"):
            return
        line = json.loads(result["line"])
        self._unsaved(name, line.get("unsaved"))
        if result.get("interrupted"):
            self.saved.add(name)
        else:
            self.progress.round(name, line)
            if line.get("collapsed") == line["round"]:
                self.progress.say(summary.collapse(name, line), "diverged")
            self._memory(name, line)

    def _unsaved(self, name: str, why: str | None) -> None:
        if why and name not in self.unsaved:
            self.progress.say(f"{name}: NO CHECKPOINT could be written: {why}; it goes on")
        if why:
            self.unsaved[name] = why
        else:
            self.unsaved.pop(name, None)

    def _memory(self, name: str, result: dict[str, Any]) -> None:
        """Say once what share of a GPU a trial really takes."""
        share = self.plan.exp_args["resources_per_trial"].get("gpu", 0)
        if "gpu_peak_mb" in result and share and not self.memory_reported:
            self.memory_reported = True
            text = gpu_fit(result["gpu_peak_mb"], result["gpu_total_mb"], share)
            self.progress.say(f"{name}: {text}")

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        name = str(trial)
        why = _why(self.plan.folder / name, _line(trial))
        self.plan.note("trial", name=name, status="retried", why=why, round=0)
        self.progress.retry(name, why)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        name, result = str(trial), trial.last_result or {}
        if why := result.get("failed"):
            self.failed[name] = why
            self._end(name, "failed", why, result)
        elif result.get("diverged"):
            self._end(name, "diverged", f"its loss was {result.get('train_loss')}", result)
        elif not result.get("interrupted"):
            self._end(name, "done" if result.get("ended") else "stopped", None, result)

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        name = str(trial)
        self.failed[name] = _why(self.plan.folder / name, _line(trial))
        self._end(name, "failed", self.failed[name], trial.last_result or {})

    def end(self) -> None:
        """Note what was left running when the experiment was stopped."""
        why = None if self.interrupts.stopping else "the experiment ended"
        rows = {row.name: row for row in self.plan.rows}
        for name in sorted(self.running):
            self._end(name, "interrupted", why, self.plan.last(rows[name]))
        self.upkeep.tidy()


class _Stop(tune.Stopper):
    """Ends the experiment once the trials that were asked to stop have saved."""

    def __init__(self, watch: _Watch):
        self.watch = watch

    def __getstate__(self) -> dict:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end."""
        asked, at_work = self.watch.interrupts, self.watch.at_work
        return asked.overdue or (at_work is not None and at_work <= self.watch.saved)


def _line(trial: Any) -> dict[str, Any]:
    """The last line that one of Ray's trials has sent."""
    return json.loads((trial.last_result or {}).get("line", "{}"))


def _why(folder: Path, last: dict[str, Any]) -> str:
    """Why a trial ended: the last line of its traceback, which a killed worker cannot leave."""
    with contextlib.suppress(OSError):
        lines = (folder / paths.ERROR).read_text(encoding="utf-8").strip().splitlines()
        if lines:
            return lines[-1]
    used = last.get("memory_mb")
    memory = f"; it had used {used / 1024:.1f} GiB" if used else ""
    return f"its worker died, killed or out of memory{memory}"


def run(
    plan: plans.Plan,
    ray_args: RayArgs,
    progress: ProgressTable,
    resources: dict[str, float],
    interrupts: Interrupts,
    quiet: bool,
    have: tuple[float, float],
    rounds: float = 0,
) -> tuple[dict[str, str], dict[str, str]]:
    """Run the unfinished trials on the Ray that `start` reached.

    Args:
        plan: as written to disk.
        ray_args: the ray config's entries, with its scheduler, search algorithm and space.
        progress: shows what happens.
        resources: of one trial.
        interrupts: tells when to stop.
        quiet: nothing that workers print.
        have: CPUs and GPUs that there are.
        rounds: length of a trial that a search adds.

    Returns:
        The failed trials with why, and those whose last checkpoint could not be written.
    """
    todo = {row.name for row in plan.unfinished()}
    numbers = [number for number, row in enumerate(plan.rows) if row.name in todo]
    scheduler, inner = search.scheduler(ray_args) or FIFOScheduler(), search.searcher(ray_args)
    total = {"cpu": have[0], "gpu": have[1]}
    watch = _Watch(plan, progress, interrupts, resources, total)
    progress.rung = search.rung(scheduler)
    most = min(trials_at_once(resources, *have), ray_args.max_concurrent or sys.maxsize)
    space: dict[str, Any] = {
        OWN: {"folder": str(plan.folder), "resources": resources, "quiet": quiet},
        "number": tune.grid_search(numbers),
    }
    samples, algorithm = 1, None
    if inner:
        algorithm = search.Search(
            plan, inner, ray_args.config, numbers, most,
            lambda row: progress.add(row.name, row.overrides, rounds),
            lambda: interrupts.stopping,
        )  # fmt: skip
        samples = len(numbers) + plan.total - len(plan.rows)
        del space["number"]
    space |= _mutable(plan, scheduler)
    if getattr(scheduler, "_metric", None) is None:
        scheduler.set_search_properties(*plan.objectives[0])
    replay(plan, scheduler, lambda trial: trial.config["number"])
    record = plan.folder / ".ray"
    if record.is_symlink():
        record.unlink()
    # Ray prepares so many trials ahead; a search should know the results of the others first.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1" if inner else str(max(2, most))
    tuner = tune.Tuner(
        tune.with_resources(Worker, resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=samples, search_alg=algorithm, scheduler=scheduler, reuse_actors=True,
            max_concurrent_trials=None if inner else ray_args.max_concurrent,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
            trial_name_creator=lambda trial: plan.rows[trial.config["number"]].name,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(record),
            stop=_Stop(watch),
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=ray_args.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_at_end=ray_args.checkpoint_at_end
            ),
            verbose=0,
        ),
    )  # fmt: skip
    controller.mend()
    try:
        tuner.fit()
    finally:
        watch.end()
        shutil.rmtree(record, ignore_errors=True)
    return watch.failed, watch.unsaved


def _mutable(plan: plans.Plan, scheduler: Any) -> dict[str, Any]:
    """What population based training changes, from where each trial stands now."""
    names = search.mutations(scheduler)
    now = [plan.current(row) for row in plan.rows] if names else []

    def drawer(name: str) -> Any:
        return tune.sample_from(lambda config: now[config["number"]][name])

    return {name: drawer(name) for name in names if all(name in one for one in now)}
