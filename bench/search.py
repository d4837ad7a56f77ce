"""The search service: overhead per trial, size at a thousand trials, and savings by ASHA.

python -m bench.search overhead     300 short trials, against Ray Tune's defaults (5 minutes)
python -m bench.search many         1,000 simulated trials (4 minutes)
python -m bench.search asha         ASHA against the whole search, three seeds (20 minutes)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import paths
from bench.common import table
from util import files

SHORT = ["-g", "digits/r9/search", "-p", "session.train_iters = 3", "session.valid_iters = 1",
         "scheduler.milestones = [1]", "scheduler.target_lrs = [0.01, 0]"]  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """Environment for a run: experiments in `folder`, the project's data."""
    return os.environ | {"SELFSTUDY_EXP": str(folder), "SELFSTUDY_DATA": str(paths.DATA_DIR)}


# One CPU each, nothing stored but results.
BARE = ("checkpoint_freq=0", "checkpoint_at_end=False", "resources_per_trial={'cpu': 1}")


def run(
    folder: Path, name: str, *flags: str, watch: list[tuple[int, int]] | None = None
) -> float:
    """Run an experiment; returns its seconds.

    Args:
        folder: parent folder of the experiment.
        name: of the experiment.
        flags: of main.py.
        watch: list, extended once a second by (ended trials, driver's memory in KB).
    """
    command = [sys.executable, str(paths.ROOT / "main.py"), "-e", name, "-q", *flags]
    start = time.monotonic()
    with open(folder / f"{name}.log", "w") as log:
        driver = subprocess.Popen(command, env=environment(folder), stdout=log, stderr=log)
        while driver.poll() is None:
            if watch is not None:
                watch.append((len(end_times(folder / name)), memory(driver.pid)))
            time.sleep(1)
    if driver.returncode:
        sys.exit((folder / f"{name}.log").read_text())
    return time.monotonic() - start


def memory(pid: int) -> int:
    """Resident memory of a process in KB, without file pages (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")
    )


def end_times(experiment: Path) -> list[float]:
    """End times of its trials."""
    return [
        line["time"]
        for line in files.read_lines(experiment / paths.JOURNAL)
        if line.get("status") in ("done", "stopped")
    ]


def last_results(experiment: Path) -> list[dict]:
    """The last result of each trial."""
    results = sorted(experiment.glob(f"e_*/{paths.RESULT}"))
    return [files.read_lines(path)[-1] for path in results]


def marginal(times: Sequence[float]) -> float:
    """Seconds between ends of trials, excluding the start of the first workers."""
    late = sorted(times)[len(times) // 6 :]
    return (late[-1] - late[0]) / (len(late) - 1)


# ---- (a) ------------------------------------------------------------------------------------


def overhead(folder: Path, trials: int, plain: int) -> None:
    """Overhead per trial beside training: ours, and Ray Tune's defaults."""
    slots = len(os.sched_getaffinity(0))
    seconds = run(folder, "ours", "-r", "single_run", *SHORT, "--set", f"num_samples={trials}",
                  *BARE)  # fmt: skip
    training = statistics.mean(last["total_s"] for last in last_results(folder / "ours"))
    ours = marginal(end_times(folder / "ours")) - training / slots
    command = [sys.executable, "-m", "bench.search", "plain", str(plain), str(folder)]
    output = subprocess.run(command, cwd=paths.ROOT, env=environment(folder), text=True,
                          check=True, stdout=subprocess.PIPE).stdout  # fmt: skip
    measurement = json.loads(output.splitlines()[-1])
    theirs = marginal(measurement["ended"]) - measurement["training"] / slots
    rows = [
        ("training of one trial", training, ""),
        (f"ours, {trials} trials: overhead of one more", ours, "<= 0.3"),
        (f"ours, {trials} trials: all but the training, start included",
         seconds / trials - training / slots, ""),
        (f"Ray Tune's defaults, {plain} trials: overhead of one more", theirs, ""),
        ("ratio", theirs / ours, ">= 8"),
    ]  # fmt: skip
    print(table(rows, ["what", f"seconds ({slots} CPUs)", "goal"]))


def plain(trials: int, folder: Path) -> None:
    """The same trials by Ray's Tuner with its defaults: an actor per trial, all loggers."""
    import ray
    from ray import tune

    from selfstudy.configure import Spec
    from selfstudy.storage.retention import CheckpointPolicy
    from selfstudy.trial import Trial

    spec = Spec((SHORT[1],), tuple(SHORT[3:]))
    done, training = [], []

    class Plain(tune.Trainable):
        """One of our trials as a Ray Trainable."""

        def setup(self, config: dict) -> None:
            where = folder / "plain" / self.trial_id
            self.trial = Trial(
                spec, {"session.seed": config["seed"]}, where, CheckpointPolicy()
            )

        def step(self) -> dict:
            return dict(self.trial.step())

        def save_checkpoint(self, checkpoint_dir: str) -> dict:
            return {}

        def load_checkpoint(self, checkpoint: dict) -> None:
            pass

    class Watch(tune.Callback):
        """Callback that records end times of trials."""

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            done.append(time.time())
            training.append(trial.last_result["total_s"])

    ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(paths.ROOT)}}, logging_level="ERROR")
    tune.Tuner(
        tune.with_resources(Plain, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(trials)))},
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), callbacks=[Watch()]),
    ).fit()
    print("\n" + json.dumps({"ended": done, "training": statistics.mean(training)}))


# ---- (b) ------------------------------------------------------------------------------------


def many(folder: Path, trials: int) -> None:
    """Disk space, driver memory and listing time of a thousand trials."""
    seen: list[tuple[int, int]] = []
    seconds = run(folder, "many", "-r", "single_run", "-g", "simulation/search", "-p",
                  "simulation.rounds = 1", "--set", f"num_samples={trials}", *BARE,
                  watch=seen)  # fmt: skip
    sizes = [path.stat().st_size for path in (folder / "many").rglob("*") if path.is_file()]
    early, late = [next(item for item in seen if item[0] >= trials * share)
                   for share in (0.2, 0.95)]  # fmt: skip
    growth = (late[1] - early[1]) / (late[0] - early[0])
    listing = (
        "import runpy, sys, time; sys.argv = ['results.py', 'ls', 'many'];"
        "import pandas, rich, selfstudy.analysis.results; start = time.monotonic()\n"
        "try: runpy.run_path('misc/results.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(time.monotonic() - start, file=sys.stderr)"
    )
    listed = subprocess.run([sys.executable, "-c", listing], cwd=paths.ROOT, text=True,
                          env=environment(folder), capture_output=True, check=True)  # fmt: skip
    rows = [
        ("seconds in all", seconds, ""),
        ("folder, KB a trial", sum(sizes) / trials / 1000, "< 40"),
        ("driver's growth, KB a trial", growth, "<= 50"),
        ("results.py ls, seconds after imports", float(listed.stderr.split()[-1]), "< 3"),
    ]
    print(table(rows, [f"{trials} trials of one round", "measured", "goal"]))


# ---- (c) ------------------------------------------------------------------------------------


def asha(folder: Path, seeds: int, trials: int) -> None:
    """Best accuracy and rounds of ASHA, against running all trials to the end."""
    rows = []
    for seed in range(seeds):
        flags = ["-r", "asha", "-g", "fashion/r9/search", "-p", f"session.seed = {seed}",
                 "--set", f"num_samples={trials}", "checkpoint_at_end=False"]  # fmt: skip
        run(folder, f"asha{seed}", *flags)
        run(folder, f"whole{seed}", *flags, "scheduler=None")
        stopped, complete = (
            last_results(folder / f"asha{seed}"),
            last_results(folder / f"whole{seed}"),
        )
        best = [max(last["mean_accuracy"] for last in some) for some in (stopped, complete)]
        rounds = [sum(last["round"] for last in some) for some in (stopped, complete)]
        rows.append((seed, *(f"{value:.4f}" for value in best), f"{best[1] - best[0]:+.4f}",
                     *map(int, rounds), f"{rounds[0] / rounds[1]:.3f}"))  # fmt: skip
        heads = ["seed", "ASHA's best", "whole search's", "behind (<= 0.005)", "ASHA's rounds",
                 "whole", "share (<= 0.35)"]  # fmt: skip
        print(table(rows, heads), flush=True)


def main() -> None:
    """Run one of the measurements."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("what", choices=["overhead", "many", "asha", "plain"])
    flags.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.what == "plain":
        plain(int(args.rest[0]), Path(args.rest[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what == "overhead":
            overhead(folder, 300, 24)
        elif args.what == "many":
            many(folder, 1000)
        else:
            asha(folder, 3, 64)


if __name__ == "__main__":
    main()
