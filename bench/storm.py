"""Fault injection: kills a study at random times, resumes it, and checks that nothing is lost.

`python -m bench.storm --kills 50` does so with the grid of -r simulated, whose numbers are a
function of configuration and round. It compares the trials with those of an
undisturbed study, and exits with code 1 if anything is missing, duplicated or different.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import paths
from bench.common import table
from selfstudy.configure import Spec
from selfstudy.experiment import rehearsal, summary
from selfstudy.experiment.plan import Plan, Row
from selfstudy.experiment.resources import trials_at_once
from selfstudy.train.simulation import Simulation
from util import files
from util.environment import cpus

TIMING = ("images_per_s", "round_s", "total_s", "time", "memory_mb")
METRICS = ("train_loss", "train_accuracy", "valid_accuracy", "mean_accuracy", "best_accuracy")
KINDS = ("worker SIGKILL", "driver SIGKILL", "SIGINT", "SIGTERM")
SPENT = 600.0  # seconds allowed for one start of main.py, on a busy machine
GONE = 30.0  # seconds after which the processes of an ended driver must be gone
ORPHANS = 100.0  # the same for a killed driver: Ray's agents time out after a minute
SIGNALS = {"driver SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
CODES = {"driver SIGKILL": 137, "SIGINT": 130, "SIGTERM": 143}


# ---- processes ------------------------------------------------------------------------------


def processes(experiments: Path) -> Iterator[tuple[int, str]]:
    """Process ids and command lines of processes for these experiments (Linux)."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            environ = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            if f"SELFSTUDY_EXP={experiments}".encode() in environ:
                line = Path(f"/proc/{name}/cmdline").read_text().replace("\0", " ")
                if line:  # else a zombie
                    yield int(name), line


def workers(experiments: Path) -> list[int]:
    """Process ids of workers that run a trial; Ray calls them so within and between rounds."""
    names = ("ray::ResourceTrainable", "ray::Worker")
    return [pid for pid, line in processes(experiments) if line.startswith(names)]


def until(condition: Callable[[], Any], seconds: float) -> Any:
    """Poll `condition` until it is true or time is up; returns its last value."""
    deadline = time.monotonic() + seconds
    while not (outcome := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return outcome


def quiet(experiments: Path, seconds: float = GONE, but: Collection[int] = ()) -> list[str]:
    """Command lines of processes still alive after `seconds`."""

    def left() -> list[str]:
        return [line for pid, line in processes(experiments) if pid not in but]

    until(lambda: not left(), seconds)
    return left()


def as_in_a_shell(code: int) -> int:
    """Exit code as in a shell: 128 + number for a process killed by a signal."""
    return 128 - code if code < 0 else code


# ---- invariants -----------------------------------------------------------------------------


def rows_of(plan: Plan, row: Row) -> list[dict[str, Any]]:
    """A trial's result lines without fields that differ between runs."""
    lines = plan.results(row)
    return [{key: item for key, item in line.items() if key not in TIMING} for line in lines]


def simulation(spec: Spec, overrides: dict[str, Any]) -> Simulation:
    """The simulated trial, without its delay."""
    values = rehearsal.check(spec, overrides, build=False).parts["simulation"]
    still = {"seconds": 0.0, "fault": "none"}
    return Simulation(torch.device("meta"), **(values | still))


def problems(plan: Plan) -> list[str]:
    """Inconsistencies of a completed study of simulations."""
    names = [row.name for row in plan.rows]
    folders = sorted(path.name for path in plan.folder.iterdir() if path.is_dir())
    folders = [name for name in folders if not name.startswith(".")]
    faults = []
    if len(names) != plan.total:
        faults.append(f"{len(names)} of {plan.total} trials")
    if folders != sorted(set(names)) or len(set(names)) != len(names):
        faults.append(f"folders and trials differ: {sorted(set(folders) ^ set(names))}")
    if torn := files.scan_lines(plan.folder / paths.JOURNAL)[1]:
        faults.append(f"{torn} lines of the journal are torn")
    statuses = plan.statuses()
    for row in plan.rows:
        lines, status = plan.results(row), statuses[row.name]
        if status not in ("done", "stopped"):
            faults.append(f"{row.name} is {status}")
        if files.scan_lines(plan.folder / row.name / paths.RESULT)[1]:
            faults.append(f"{row.name} has torn lines")
        wrong = _jumps if any("exploited" in line for line in lines) else _differs
        faults += [f"{row.name}: {text}" for text in wrong(plan, row, lines)]
        if status == "done" and (not lines or lines[-1]["round"] != lines[-1]["rounds"]):
            faults.append(f"{row.name} is done and not complete")
    return faults + _optuna_faults(plan, statuses)


def _differs(plan: Plan, row: Row, lines: list[dict[str, Any]]) -> Iterator[str]:
    """Compare a trial's lines with the simulation, exactly."""
    formula = simulation(plan.spec, row.overrides)
    numbers = [line["round"] for line in lines]
    if numbers != list(range(1, len(lines) + 1)):
        yield f"its rounds are {numbers}"
    for line in lines:
        expected = formula.round()
        wrong = [name for name in METRICS if line.get(name) != expected[name]]
        if wrong:
            yield f"round {line['round']}: {wrong} differ"


def _jumps(plan: Plan, row: Row, lines: list[dict[str, Any]]) -> Iterator[str]:
    """Check a trial that adopted other states: each round follows from the previous one.

    Its configuration changed in between, so only the last one is compared with the simulation.
    """
    formula = simulation(plan.spec, plan.current(row))
    numbers = [line["round"] for line in lines]
    if numbers != sorted(set(numbers)):
        yield f"its rounds are {numbers}"
    for before, line in zip(lines, lines[1:], strict=False):
        adopted = line.get("exploited") != before.get("exploited")
        if not adopted and line["round"] != before["round"] + 1:
            yield f"round {line['round']} follows {before['round']}"
        if not adopted and not 0 < _limit(formula.rate, before, line) <= 1 + 1e-9:
            yield f"round {line['round']} does not follow from the one before"
    if len(lines) > 1 and lines[-1].get("exploited") == lines[-2].get("exploited"):
        limit = _limit(formula.rate, *lines[-2:])
        if abs(limit - formula.limit) > 1e-9:
            yield f"its last round tends to {limit:.6f}, its values to {formula.limit:.6f}"


def _limit(rate: float, before: dict[str, Any], line: dict[str, Any]) -> float:
    """The accuracy that a round converges to."""
    old, new = before["mean_accuracy"], line["mean_accuracy"]
    return old + (new - old) / rate


def _optuna_faults(plan: Plan, statuses: dict[str, str]) -> list[str]:
    """Differences between Optuna's journal and the experiment."""
    file = plan.folder / "optuna.journal"
    if not file.exists():
        return []
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(file)))
    (study,) = optuna.get_all_study_summaries(storage)
    trials = storage.get_all_trials(study._study_id)
    open_ones = [trial.number for trial in trials if not trial.state.is_finished()]
    completed = sum(trial.state.name == "COMPLETE" for trial in trials)
    faults = [f"Optuna's trials {open_ones} are open"] if open_ones else []
    if completed != len(statuses):
        faults.append(f"Optuna knows {completed} values of {len(statuses)} trials")
    return faults


def differences(reference: Plan, plan: Plan) -> list[str]:
    """Names of a grid's trials that differ from the undisturbed study."""
    expected = {row.name: rows_of(reference, row) for row in reference.rows}
    came = {row.name: rows_of(plan, row) for row in plan.rows}
    return [name for name in expected | came if expected.get(name) != came.get(name)]


def best(plan: Plan) -> tuple[str, float]:
    """The best trial and its value, from the files only."""
    metric, _ = plan.objectives[0]
    values = {row.name: plan.last(row).get(metric, 0.0) for row in plan.rows}
    name = max(values, key=lambda trial: values[trial])
    return name, values[name]


def results(plan: Plan) -> str:
    """Status, rounds and last metric of the trials as a table."""
    metric, _ = plan.objectives[0]
    lasts = [(row.name, plan.last(row)) for row in plan.rows]
    rows = [[name, last.get("round", 0), f"{last.get(metric, float('nan')):.6f}"]
            for name, last in lasts]  # fmt: skip
    return table(rows, ["trial", "rounds", metric])


# ---- fault injection -------------------------------------------------------------------------


class Rounds(threading.Thread):
    """Counts executed rounds, also those whose lines are dropped on resume."""

    def __init__(self, experiments: Path):
        super().__init__(daemon=True)
        self.experiments, self.over = experiments, threading.Event()
        self.seen: set[tuple[str, float]] = set()
        self.looked: dict[Path, int] = {}

    def run(self) -> None:
        """Poll for new lines until `over`."""
        while not self.over.wait(0.1):
            self.look()

    def look(self) -> None:
        """Record new executions; each has its own timestamp."""
        for file in self.experiments.glob(f"storm*/e_*/{paths.RESULT}"):
            with contextlib.suppress(OSError):
                changed = file.stat().st_mtime_ns
                if self.looked.get(file) != changed:
                    self.looked[file] = changed
                    self.seen |= {(str(file), line["time"]) for line in files.read_lines(file)}


@dataclasses.dataclass
class Storm:
    """Runs studies that are killed and resumed, up to a number of kills.

    Attributes:
        experiments: folder of experiments (SELFSTUDY_EXP).
        ray: name of the ray config.
        flags: more flags of main.py, such as `--set`.
        seconds: of a round.
        draw: random generator of times and kinds.
        kinds: kinds of kills.
        early: share of the kills that may occur while Ray starts.
        kills: kinds of the kills so far.
        faults: violations found while running.
        executed: (trial, time) of each computed round.
        orphans: processes of killed drivers, which exit by themselves.
    """

    experiments: Path
    ray: str
    flags: tuple[str, ...]
    seconds: float
    draw: random.Random
    kinds: tuple[str, ...] = KINDS
    early: float = 0.2
    kills: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    executed: set = dataclasses.field(default_factory=set)
    orphans: set[int] = dataclasses.field(default_factory=set)

    def start(self, *flags: str) -> subprocess.Popen:
        """Start `main.py` in its own process group, with its output in a file."""
        env = os.environ | {
            "SELFSTUDY_EXP": str(self.experiments),
            "RAY_TMPDIR": str(self.experiments.parent / "ray"),
        }
        command = [sys.executable, str(paths.ROOT / "main.py"), *flags]
        with open(self.experiments.parent / "output.txt", "ab") as output:
            return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL,
                                    stdout=output, stderr=output,
                                    start_new_session=True)  # fmt: skip

    def fresh(self, name: str) -> list[str]:
        """The flags that start a study."""
        params = ["-p", f"simulation.seconds = {self.seconds}"]
        return ["-e", name, "-r", self.ray, "-g", "simulation/search", *params, *self.flags]

    def run_undisturbed(self, *flags: str) -> Plan:
        """Run the study without kills."""
        process = self.start(*self.fresh("reference"), *flags)
        code = process.wait(SPENT + 60 * self.seconds)
        if code:
            raise RuntimeError(f"the undisturbed study ended with code {code}: {self.tail()}")
        return Plan.stored("reference")

    def rage(self, name: str, kills: int) -> Plan:
        """Run one study: killed at most `kills` times, resumed until it is done."""
        flags, planned = self.fresh(name), self.experiments / name / paths.PLAN
        flags += ["--set", "max_failures=99"]
        watch = Rounds(self.experiments)
        watch.start()
        try:
            while True:
                process = self.start(*flags)
                code = self.disturb(process, watch, kills, planned)
                if code is None:
                    self.faults.append(f"{name}: did not end in time: {self.tail()}")
                    break
                if code == 0 or code not in CODES.values():
                    if code:
                        self.faults.append(f"{name} ended with code {code}: {self.tail()}")
                    break
                flags = ["-e", name, "--resume"] if planned.exists() else flags
        finally:
            watch.over.set()
            watch.join()
            watch.look()
            self.executed |= watch.seen
        left = quiet(self.experiments, but=self.orphans)
        self.faults += [f"still running: {line[:80]}" for line in left]
        return Plan.stored(name)

    def disturb(
        self, process: subprocess.Popen, watch: Rounds, kills: int, planned: Path
    ) -> int | None:
        """Kill something of a running `main.py` until it ends; returns its code."""
        deadline = time.monotonic() + SPENT
        while time.monotonic() < deadline:
            if len(self.kills) >= kills:
                break
            kind = self.draw.choice(self.kinds)
            self.wait_a_while(process, watch, planned)
            if process.poll() is not None:
                return as_in_a_shell(process.returncode)
            if kind != "worker SIGKILL":
                return self.end(process, kind)
            if running := workers(self.experiments):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.draw.choice(running), signal.SIGKILL)
                    self.kills.append(kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return as_in_a_shell(process.wait(max(0.1, deadline - time.monotonic())))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None

    def wait_a_while(self, process: subprocess.Popen, watch: Rounds, planned: Path) -> None:
        """Wait for some more rounds; sometimes for a random time from the plan on."""
        until(lambda: planned.exists() or process.poll() is not None, SPENT)
        if self.draw.random() < self.early:
            moment = time.monotonic() + self.draw.uniform(0, 10)
            until(lambda: time.monotonic() > moment or process.poll() is not None, 15)
            return
        more = len(watch.seen) + self.draw.randint(1, 9)
        until(lambda: len(watch.seen) >= more or process.poll() is not None, SPENT)
        within = time.monotonic() + self.draw.uniform(0, self.seconds)
        until(lambda: time.monotonic() > within, 1 + self.seconds)

    def end(self, process: subprocess.Popen, kind: str) -> int | None:
        """Send a driver its signal; returns its code."""
        to_group = kind == "SIGINT" and self.draw.random() < 0.5  # as from a terminal
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_group else os.kill)(process.pid, SIGNALS[kind])
        try:
            code = as_in_a_shell(process.wait(ORPHANS))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.faults.append(f"{kind}: still there after {ORPHANS:.0f} s: {self.tail()}")
            return None
        if code == 0:  # it has just ended
            return code
        self.kills.append(kind)
        if code != CODES[kind]:
            self.faults.append(f"{kind}: ended with code {code}: {self.tail()}")
        if kind != "driver SIGKILL":
            left = quiet(self.experiments, but=self.orphans)
            self.faults += [f"left by {kind}: {line[:80]}" for line in left]
        elif self.draw.random() < 0.5:  # else it is resumed immediately
            quiet(self.experiments)
        self.orphans |= {pid for pid, _ in processes(self.experiments)}
        return CODES[kind]

    def tail(self) -> str:
        """The last words of `main.py`."""
        lines = (self.experiments.parent / "output.txt").read_text(errors="replace")
        return " | ".join(lines.strip().splitlines()[-4:])


def kept_rounds(plan: Plan) -> int:
    """Number of rounds with a result line."""
    return sum(len(plan.results(row)) for row in plan.rows)


def most_repeated(storm: Storm, plan: Plan) -> int:
    """Upper bound of repeated rounds: those since the last checkpoint, per killed worker."""
    at_once = trials_at_once(plan.exp_args["resources_per_trial"], cpus(), 0)
    count = collections.Counter(storm.kills)
    interval = plan.exp_args["checkpoint_freq"] or int(plan.last(plan.rows[0])["rounds"])
    return interval * (count["worker SIGKILL"] + at_once * count["driver SIGKILL"])


def run(
    folder: Path,
    kills: int = 3,
    ray: str = "simulated",
    flags: tuple[str, ...] = (),
    seconds: float = 0.3,
    seed: int = 0,
    reference: Sequence[str] | None = (),
    kinds: tuple[str, ...] = KINDS,
    early: float = 0.2,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Kill and resume studies until `kills` are spent.

    Args:
        folder: a new one, for all files; `paths.EXP_DIR` must be its `exp`.
        kills: number of kills.
        ray: name of the ray config.
        flags: more flags of main.py.
        seconds: of a round.
        seed: of the times and kinds of kills.
        reference: flags of an undisturbed run of the study, with which a grid is compared;
            None for no such run.
        kinds: kinds of kills.
        early: share of the kills that may occur while Ray starts.
        say: called with tables and counts.

    Returns:
        The violations; empty if there are none.
    """
    experiments = folder / "exp"
    experiments.mkdir(parents=True, exist_ok=True)
    storm = Storm(experiments, ray, flags, seconds, random.Random(seed), kinds, early)
    undisturbed = None if reference is None else storm.run_undisturbed(*reference)
    if undisturbed:
        say(f"\nundisturbed:\n{results(undisturbed)}")
        storm.faults += problems(undisturbed)
    start, faults, stays, number, allowed = time.monotonic(), [], 0, 0, 0
    jumps = False
    while not storm.faults and (not number or len(storm.kills) < kills):
        number += 1
        plan = storm.rage(f"storm{number}", kills)
        faults += [f"{plan.exp_id}: {text}" for text in problems(plan)]
        say(f"\nafter {len(storm.kills)} kills:\n{results(plan)}")
        grid = not (plan.exp_args["scheduler"] or plan.exp_args["search_alg"])
        if undisturbed and grid:
            differ = differences(undisturbed, plan)
            faults += [f"{plan.exp_id}: {name} differs" for name in differ]
            say(f"different from the undisturbed study: {', '.join(differ) or 'nothing'}")
        name, value = best(plan)
        if summary.best(plan).split()[1] != name:
            faults.append(f"{plan.exp_id}: the best is {name} with {value}")
        stays += kept_rounds(plan)
        allowed = most_repeated(storm, plan)
        jumps |= any("exploited" in line for row in plan.rows for line in plan.results(row))
    recomputed = len(storm.executed) - stays
    counts = collections.Counter(storm.kills)
    kinds_text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    say(
        f"\n{len(storm.kills)} kills ({kinds_text}) in {number} studies and "
        f"{time.monotonic() - start:.0f} s; {stays} rounds kept, {recomputed} computed again, "
        + ("or given up for another trial's" if jumps else f"at most {allowed}")
    )
    if recomputed > allowed and not jumps:
        faults.append(f"{recomputed} rounds were computed again, more than {allowed}")
    return storm.faults + faults


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--kills", type=int, default=10)
    flags.add_argument("-r", "--ray", default="simulated", help="file below config/ray")
    flags.add_argument("--set", nargs="+", default=[], help="entries of the ray config")
    flags.add_argument("--seconds", type=float, default=0.5, help="of a round")
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    more = ("--set", *args.set) if args.set else ()
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    paths.EXP_DIR = folder / "exp"
    faults = run(folder, args.kills, args.ray, more, args.seconds, args.seed)
    faults += [f"still running: {line[:80]}" for line in quiet(folder / "exp", ORPHANS)]
    for text in faults:
        print(f"WRONG: {text}")
    if faults:
        print(f"see {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    print("nothing lost, nothing doubled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
