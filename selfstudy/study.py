"""The Ray side: the only module of the package that imports Ray.

Ray schedules and restarts; it records nothing that is ever read back. Each trial writes its
own folder (`trial.py`), and a worker that dies is continued from the newest checkpoint that
verifies there. What is left to do is read from the plan, never from Ray's own state.
"""

import contextlib
import logging
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "1")

import numpy as np
import ray
from ray import tune
from ray.tune.search.variant_generator import generate_variants

import paths
from selfstudy import plan as plans
from selfstudy.trial import Rules, Trial, note_failure, use_threads
from util.environment import cpus
from util.errors import UserError
from util.progress import Progress

TOKEN = Path("~/.ray/auth_token").expanduser()
FORWARDED = ("SELFSTUDY_DATA", "SELFSTUDY_EXP", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def variants(config: dict[str, Any], samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """All trials of a search space: the grid, `samples` times, with its random values drawn."""
    random = np.random.RandomState(seed)
    return [
        drawn
        for _ in range(samples)
        for _, drawn in generate_variants(config, random_state=random)
    ]


class Worker(tune.Trainable):
    """One trial inside a Ray actor; the next trial reuses the actor."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build trial number `config['number']` of the plan in `config['folder']`."""
        self._quiet = contextlib.ExitStack()
        if config["quiet"]:
            nowhere = self._quiet.enter_context(open(os.devnull, "w"))
            self._quiet.enter_context(contextlib.redirect_stdout(nowhere))
            self._quiet.enter_context(contextlib.redirect_stderr(nowhere))
        plan = plans.Plan.read(Path(config["folder"]))
        row = plan.rows[config["number"]]
        self._folder = plan.folder / row.name
        use_threads(config["cpus"])
        self._trial = self._noting(
            lambda: Trial(
                plan.spec, row.overrides, self._folder, Rules(**plan.rules), plan.command
            )
        )

        if plan.exp_args["verbose"] > 1:
            print(self._trial.config)

    def step(self) -> dict[str, Any]:
        """One round."""
        return dict(self._noting(self._trial.step))

    def _noting(self, act):
        try:
            return act()
        except Exception as error:
            note_failure(self._folder, error)
            raise

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process; `Trial` clears gin and seeds everything."""
        self.cleanup()
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Our own checkpoint, in the trial's folder; Ray gets its path."""
        return {"folder": str(self._trial.save(self._trial.result))}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nothing to do: `setup` continues from the newest checkpoint in the folder."""

    def cleanup(self) -> None:
        """Close what the trial writes to."""
        if hasattr(self, "_trial"):
            self._trial.close()
        self._quiet.close()


class _Watch(tune.Callback):
    """Tells the progress what Ray's trials do."""

    def __init__(self, plan: plans.Plan, progress: Progress):
        self.plan, self.progress = plan, progress
        self.failed: dict[str, str] = {}

    def _name(self, trial) -> str:
        return self.plan.rows[trial.config["number"]].name

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        self.progress.round(self._name(trial), result)

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        name = self._name(trial)
        self.progress.say(f"{name}: {_why(self.plan.folder / name)}; it continues")

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.progress.end(self._name(trial))

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        name = self._name(trial)
        self.failed[name] = _why(self.plan.folder / name)
        self.progress.end(name, self.failed[name])


def _why(folder: Path) -> str:
    """Why a trial ended: the last line of its traceback, which a killed worker cannot leave."""
    try:
        lines = (folder / paths.ERROR).read_text(encoding="utf-8").strip().splitlines()
    except OSError:
        return "its worker died"
    return lines[-1] if lines else "unknown"


def check_address(address: str) -> None:
    """Refuse at once an address where nothing listens; Ray itself tries for two minutes.

    Raises:
        UserError: no cluster answers at `address`.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # such as 'auto', which Ray answers by itself
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster at '{address}' ({error.strerror or error}); start one with "
            "'ray start --head', or leave -a out"
        ) from None


def start(address: str | None, quiet: bool) -> tuple[float, float]:
    """Start Ray here, or connect to a cluster; returns its CPUs and GPUs.

    Raises:
        UserError: no cluster answers at `address`, or it refuses our token.
    """
    # Workers put the driver's folder first on their path: a file of the user's called util.py
    # there would replace ours.
    os.chdir(paths.ROOT)
    # A failure is told in one line by `_Watch`, its traceback lies in the trial's folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.CRITICAL}
    if address:
        forwarded = {key: os.environ[key] for key in FORWARDED if key in os.environ}
        options |= {"address": address, "runtime_env": {"env_vars": forwarded}}
        if TOKEN.exists():  # Ray looks for it only when it starts a cluster itself
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    else:
        options |= {"address": "local", "num_cpus": cpus(), "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        where = f"no Ray cluster at '{address}'" if address else "Ray does not start here"
        raise UserError(f"{where}: {first}") from None
    have = ray.cluster_resources()
    return have.get("CPU", 0.0), have.get("GPU", 0.0)


def run(
    plan: plans.Plan, progress: Progress, resources: dict[str, float], quiet: bool
) -> dict[str, str]:
    """Run the unfinished trials on the Ray that `start` reached; returns the failed ones."""
    todo = {row.name for row in plan.unfinished()}
    numbers = [number for number, row in enumerate(plan.rows) if row.name in todo]
    record = plan.folder / ".ray"
    watch = _Watch(plan, progress)
    tuner = tune.Tuner(
        tune.with_resources(Worker, resources),
        param_space={
            "folder": str(plan.folder),
            "number": tune.grid_search(numbers),
            "cpus": resources.get("cpu", 1),
            "quiet": quiet,
        },
        tune_config=tune.TuneConfig(
            reuse_actors=True, trial_dirname_creator=_short, trial_name_creator=_short
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(record),
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=plan.exp_args["max_failures"]),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(record, ignore_errors=True)
    return watch.failed


def _short(trial) -> str:
    return f"{trial.config['number']:04d}"


def stop() -> None:
    """Leave Ray, ending it where `start` had started it."""
    ray.shutdown()
    sys.stderr.flush()
