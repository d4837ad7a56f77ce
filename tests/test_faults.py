"""What goes wrong, and what is promised then: the table of faults, on one machine.

The trials are simulations, whose numbers are a function of configuration and round. Most tests
run `main.py` in this process with `-l`; where a process must die there is a real one.
"""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial

import pytest
import torch
from doubles import Running
from later import Later
from sockets import listening

import main
import paths
from bench.storm import SPENT, TIMING, problems, processes, quiet, rows_of, until
from selfstudy import configure, job
from selfstudy.experiment import failures, rayconfig, upkeep
from selfstudy.experiment import plan as plans
from selfstudy.experiment.interrupts import Interrupted, Interrupts
from selfstudy.experiment.plan import Plan
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.storage import checkpoints, snapshot
from selfstudy.storage.ownership import Superseded
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.train.simulation import Simulation
from selfstudy.trial import Trial
from util import files
from util.errors import UserError

cluster, search = Later("selfstudy.tune.cluster"), Later("selfstudy.tune.search")
optuna_study = Later("selfstudy.tune.optuna_study")
replay = Later("selfstudy.tune.replay")

SPEC = configure.Spec(("simulation/search",), ())
STUDY = ["-r", "simulated", "-g", "simulation/search"]
PBT = {
    "name": "pbt", "time_attr": "training_iteration", "perturbation_interval": 1,
    "hyperparam_mutations": {"simulation.x": [0.001, 0.01, 0.1], "simulation.y": [0.2, 0.5]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def experiments(tmp_path, monkeypatch):
    """An empty folder for experiments, here and for processes that a test starts."""
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
    monkeypatch.setenv("SELFSTUDY_EXP", str(tmp_path / "exp"))
    monkeypatch.delenv("SELFSTUDY_MIRROR", raising=False)
    (tmp_path / "exp").mkdir()
    yield tmp_path / "exp"
    for pid, _ in processes(tmp_path / "exp"):  # only of this test; none unless it has failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run(call):
    """A function that runs main.py in this process, without Ray; gives code, out and err."""
    return partial(call, main.main, "-l")


def started(*flags, **more):
    """A process of main.py."""
    return subprocess.Popen([sys.executable, str(paths.ROOT / "main.py"), *flags], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # fmt: skip


def trial(folder, policy=None, overrides=None, **more):
    policy = policy or CheckpointPolicy(checkpoint_freq=2, checkpoint_at_end=True)
    return Trial(SPEC, overrides or {}, folder, policy, **more)


def finish(one):
    while not one.done:
        one.step()
    return one


def strict(path):
    """The lines of a file, each strict JSON."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def untimed(folder):
    """A trial's result lines without what no two runs share."""
    lines = strict(folder / paths.RESULT)
    return [{key: item for key, item in line.items() if key not in TIMING} for line in lines]


def fails_after(monkeypatch, done, error):
    """Let a simulation's round raise once so many are done, as if its code had failed."""
    before = Simulation.round

    def round(self, *args):
        if self.rounds_done == done:
            raise error
        return before(self, *args)

    monkeypatch.setattr(Simulation, "round", round)


def stops_after(monkeypatch, rounds, number=signal.SIGTERM):
    """Let a signal come in that round of the whole run; gives a list with an item a round."""
    before, count = Simulation.round, []

    def round(self, *args):
        count.append(1)
        if len(count) == rounds:
            os.kill(os.getpid(), number)
        return before(self, *args)

    monkeypatch.setattr(Simulation, "round", round)
    return count


# ---- workers die, code fails, losses explode ------------------------------------------------


@pytest.mark.slow
def test_every_kind_of_failing_trial_beside_healthy_ones(experiments):
    """One sweep: a worker killed once and one always, errors, NaN; the others never notice."""
    space = {"simulation.fault": {"grid_search": ["none", "nan", "error", "kill"]},
             "simulation.fault_round": {"grid_search": [1, 3]}}  # fmt: skip
    process = started("-e", "s", *STUDY, "--set", f"config={space}", "max_failures=1",
                      "checkpoint_freq=1", "-p", "simulation.rounds = 5")  # fmt: skip
    out, err = process.communicate(timeout=SPENT)
    assert process.returncode == 3, err
    assert "Traceback" not in out + err
    plan, manifest = Plan.stored("s"), Plan.stored("s").manifest()
    found = {}
    for row in plan.rows:
        assert strict(plan.folder / row.name / paths.RESULT) if plan.results(row) else True
        key = row.overrides["simulation.fault"], row.overrides["simulation.fault_round"]
        found[key] = row.name, manifest.status(row.name, plan.last(row)), rows_of(plan, row)
    whole = found["none", 1][2]
    assert [line["round"] for line in whole] == [1, 2, 3, 4, 5]
    for key in (("none", 1), ("none", 3), ("kill", 3)):
        assert found[key][1:] == ("done", whole), key
    assert [event["status"] for event in manifest.events
            if event.get("name") == found["kill", 3][0]] == [
        "started", "retried", "done"]  # fmt: skip
    name, status, lines = found["kill", 1]
    assert status == "failed" and not lines and "its worker died" in manifest.why(name)
    for number in (1, 3):
        name, status, lines = found["error", number]
        events = [event["status"] for event in manifest.events if event.get("name") == name]
        assert status == "failed" and events == ["started", "failed"], "it was tried again"
        assert (
            manifest.why(name) == "RuntimeError: the simulated error"
            and f"{name} failed" in out
        )
        assert len(lines) == number - 1
        name, status, lines = found["nan", number]
        assert status == "diverged" and len(lines) == number and lines[-1]["train_loss"] is None
        good = snapshot.newest(plan.folder / name)
        assert (good and good.card["round"]) == (number - 1 or None)
        assert not good or good.state()["rounds_done"] == number - 1
    assert not quiet(experiments)


# main.py whose workers die twice while they take over another trial: in the main module, so
# that Ray sends this class itself to the workers.
MORTAL = """
import os, signal, sys
import main, paths
from selfstudy.tune import runner

class Mortal(runner.Worker):
    def reset_config(self, new_config):
        for number in (1, 2):
            try:
                (paths.EXP_DIR / f".death-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)

runner.Worker = Mortal
sys.exit(main.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--set", f"scheduler={PBT}")], ids=["grid", "pbt"])
def test_a_worker_that_dies_between_two_trials_costs_neither(experiments, flags):
    """Ray reports that death twice; the second time it would end the next trial as failed."""
    command = [sys.executable, "-c", MORTAL, "-e", "s", *STUDY, *flags]
    done = subprocess.run(
        command, cwd=paths.ROOT, text=True, capture_output=True, timeout=SPENT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(experiments.glob(".death-*"))) == 2, "no worker was used again"
    plan = Plan.stored("s")
    assert problems(plan) == []
    retried = [event for event in plan.manifest().events if event.get("status") == "retried"]
    assert len(retried) == 2


@pytest.mark.slow
def test_a_search_hears_of_every_failure(experiments):
    """Optuna's trials end as failed, ASHA's slots are given to others."""
    optuna = pytest.importorskip("optuna")
    process = started("-e", "s", "-r", "simulated_search", "-g", "simulation/search",
                      "--set", "num_samples=4", "-p", "simulation.fault = 'nan'",
                      "simulation.fault_round = 2", "simulation.rounds = 3")  # fmt: skip
    _, err = process.communicate(timeout=SPENT)
    assert process.returncode == 3, err
    plan = Plan.stored("s")
    statuses = list(plan.statuses().values())
    assert set(statuses) <= {"diverged", "stopped"} and len(statuses) == 4
    backend = optuna.storages.journal.JournalFileBackend(str(plan.folder / optuna_study.OPTUNA))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    states = [one.state.name for one in study.trials]
    assert sorted(states) == sorted(
        "FAIL" if status == "diverged" else "COMPLETE" for status in statuses
    )


def test_an_error_of_the_code_takes_no_other_trial_along(experiments, run):
    code, out, err = run("-e", "s", *STUDY, "-p", "simulation.fault = 'error'",
                         "simulation.fault_round = 4")  # fmt: skip
    assert code == 3 and out.count("RuntimeError: the simulated error") == 6
    plan = Plan.stored("s")
    assert set(plan.statuses().values()) == {"failed"} and len(plan.unfinished()) == 6
    assert [len(plan.results(row)) for row in plan.rows] == [3] * 6
    # Resumed from its checkpoint, a simulation has the fault no more.
    assert run("-e", "s", "--resume")[0] == 0
    assert problems(Plan.stored("s")) == []
    assert not list(plan.folder.glob(f"*/{paths.ERROR}"))


def test_a_full_gpu_is_told_with_what_helps_and_not_tried_again(run, monkeypatch):
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    fails_after(monkeypatch, 2, full)
    code, out, err = run("-e", "s", *STUDY, "--set", "config={}")
    assert code == 3
    assert "the GPU's memory is full" in out and "lower dataloader.batch_size" in out
    assert not failures.is_retryable(full) and failures.is_retryable(
        OSError(errno.EIO, "the disk")
    )


def test_a_loss_that_is_not_finite_ends_its_trial_and_keeps_the_last_good_state(run):
    code, out, err = run("-e", "s", *STUDY, "-p", "simulation.fault = 'nan'",
                         "simulation.fault_round = 6", "--set", "checkpoint_freq=0",
                         "checkpoint_at_end=False")  # fmt: skip
    plan = Plan.stored("s")
    assert code == 3 and set(plan.statuses().values()) == {"diverged"}
    for row in plan.rows:
        last = strict(plan.folder / row.name / paths.RESULT)[-1]
        assert last["round"] == 6 and last["diverged"] and last["train_loss"] is None
        (kept,) = checkpoints.checkpoints(plan.folder / row.name)
        assert snapshot.Snapshot.open(kept).state()["rounds_done"] == 5
    # It is an end: nothing is left to do, and the exit code says again what is wrong.
    code, out, err = run("-e", "s", "--resume")
    assert code == 3 and "0 to run" in out


# ---- disks ----------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(limit):
    """No file may grow beyond `limit` bytes: the system call fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_checkpoint_and_not_the_trial(experiments):
    one = trial(experiments / "s" / "e_0", overrides={"simulation.size": 100_000})
    one.step()
    one.step()
    with small_disk(200_000):
        lines = [one.step() for _ in range(3)]  # round 4 is to be saved; 5 is not
        assert ["unsaved" in line for line in lines] == [False, True, True]
    kept = snapshot.newest(one.folder)
    assert kept.card["round"] == 2 and len(kept.state()["weights"]) == 100_000
    assert not list(one.folder.glob(".checkpoint*")), "half a checkpoint is left"
    line = one.step()
    assert line["round"] == 6 and "unsaved" not in line
    assert snapshot.newest(one.folder).card["round"] == 6
    finish(one)
    assert [line["round"] for line in strict(one.folder / paths.RESULT)] == list(range(1, 10))


def test_a_disk_that_stays_full_is_told_once_and_with_code_3(run):
    size = ("-p", "simulation.size = 100000", "--set", "config={}")
    with small_disk(200_000):
        code, out, err = run("-e", "s", *STUDY, *size)
    assert code == 3 and out.count("its last checkpoint is missing") == 1
    assert err.count("NO CHECKPOINT") == 1
    plan = Plan.stored("s")
    assert plan.statuses() == {"e_0000": "done"} and not list(plan.folder.glob("*/check*"))
    assert len(plan.results(plan.rows[0])) == 9


def test_an_interrupted_trial_on_a_full_disk_still_ends_in_order(experiments):
    stop = []
    one = trial(experiments / "s" / "e_0", overrides={"simulation.size": 100_000},
                stopping=lambda: bool(stop))  # fmt: skip
    for _ in range(3):
        one.step()
    stop.append(1)
    with small_disk(200_000):
        result = one.step()
    assert result["interrupted"] and result["round"] == 3 and "unsaved" in result
    again = finish(trial(one.folder, overrides={"simulation.size": 100_000}))
    rounds = [line["round"] for line in strict(again.folder / paths.RESULT)]
    assert rounds == list(range(1, 10))


def test_a_diverged_trial_on_a_full_disk_is_still_diverged(experiments):
    size = {"simulation.size": 100_000, "simulation.fault": "nan", "simulation.fault_round": 4}
    one = trial(experiments / "s" / "e_0", overrides=size)
    for _ in range(3):
        one.step()
    with small_disk(200_000):
        result = one.step()
    assert result["diverged"] and "unsaved" in result
    assert snapshot.newest(one.folder).card["round"] == 2


def test_a_journal_that_cannot_be_written_ends_the_driver_in_one_line(run, monkeypatch):
    before = files.append_line

    def append_line(path, row):
        if row.get("status") == "done":
            raise OSError(errno.ENOSPC, "No space left on device")
        before(path, row)

    monkeypatch.setattr(files, "append_line", append_line)
    code, out, err = run("-e", "s", *STUDY)
    assert code == 1 and err.strip().splitlines()[-1].startswith("error: ")
    assert "No space left on device; free the disk" in err and "--resume" in err


def damage(file, kind):
    content = file.read_bytes()
    if kind == "cut":
        file.write_bytes(content[:-100])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "flipped":
        file.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif kind == "gone":
        file.unlink()
    else:
        shutil.copy(file.parents[1] / "checkpoint_000002" / file.name, file)


@pytest.mark.parametrize(("file", "kind"), [
    *((paths.SNAPSHOT, kind) for kind in ("cut", "empty", "flipped", "gone", "another's")),
    *((paths.CARD, kind) for kind in ("cut", "empty", "gone")),
])  # fmt: skip
def test_a_damaged_checkpoint_costs_the_rounds_since_the_one_before(experiments, kind, file):
    whole = finish(trial(experiments / "s" / "e_0"))
    one = trial(experiments / "s" / "e_1")
    for _ in range(5):
        one.step()
    # States of two rounds have the same size; their numbers differ.
    damage(one.folder / "checkpoint_000004" / file, kind)
    with pytest.warns(UserWarning, match="checkpoint_000004.*(damaged|missing|read)"):
        again = trial(one.folder)
    assert again.session.rounds_done == 2
    finish(again)
    assert untimed(again.folder) == untimed(whole.folder)
    assert snapshot.newest(again.folder).card["round"] == 9


def test_without_any_whole_checkpoint_only_that_trial_begins_anew(experiments, run):
    assert run("-e", "s", *STUDY)[0] == 0
    plan = Plan.stored("s")
    before = [rows_of(plan, row) for row in plan.rows]
    lost = plan.folder / plan.rows[2].name
    for folder in checkpoints.checkpoints(lost):
        (folder / paths.SNAPSHOT).write_bytes(b"")
    files.write_lines(lost / paths.RESULT, plan.results(plan.rows[2])[:5])
    stamp = (plan.folder / plan.rows[0].name / paths.RESULT).stat().st_mtime_ns
    with warnings.catch_warnings(record=True) as told:
        code, out, err = run("-e", "s", "--resume")
    assert code == 0 and "5 done, 1 to run" in out
    assert any("checkpoint_000008" in str(one.message) for one in told)
    assert [rows_of(plan, row) for row in plan.rows] == before
    assert (plan.folder / plan.rows[0].name / paths.RESULT).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("cut", [1, 30, 150, None])
def test_torn_lines_cost_no_round_and_no_trial(run, cut, monkeypatch):
    with monkeypatch.context() as patch:
        stops_after(patch, 14)
        assert run("-e", "s", *STUDY)[0] == 143
    plan = Plan.stored("s")
    for file in (plan.folder / plan.rows[1].name / paths.RESULT, plan.folder / paths.JOURNAL):
        with open(file, "a") as torn:  # what a machine that lost its power leaves of a line
            torn.write(json.dumps(files.read_lines(file)[-1])[:cut])
    assert run("-e", "s", "--resume")[0] == 0
    plan = Plan.stored("s")
    wrong = [text for text in problems(plan) if "of the journal" not in text]
    assert wrong == [] and plan.manifest().torn <= 1
    begins = [event for event in plan.manifest().events if event["event"] == "begin"]
    assert len(begins) == 2, "the line behind a torn one is lost"


def test_a_line_cut_at_any_byte_is_computed_again(experiments):
    one = trial(experiments / "s" / "e_0")
    for _ in range(5):
        one.step()
    whole = (one.folder / paths.RESULT).read_bytes()
    for cut in range(1, 400, 19):
        (one.folder / paths.RESULT).write_bytes(whole[:-cut])
        again = trial(one.folder)
        assert again.session.rounds_done == 4
        again.step()
        lines = strict(again.folder / paths.RESULT)
        assert [line["round"] for line in lines] == [1, 2, 3, 4, 5], cut


# ---- drivers --------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_drivers_one_proceeds(experiments):
    flags = ["-l", "-e", "s", *STUDY, "-p", "simulation.seconds = 0.05"]
    both = [started(*flags), started(*flags)]
    ended = [(*process.communicate(timeout=SPENT), process.returncode) for process in both]
    assert sorted(code for *_, code in ended) == [0, 4]
    (refused,) = [err for _, err, code in ended if code == 4]
    assert "s is being run by process" in refused or "exists already" in refused
    assert len(refused.strip().splitlines()) == 1
    assert problems(Plan.stored("s")) == []


def other_machine(plan, seconds):
    owner = plan.folder / ".owner"
    files.write_json(owner, {"pid": 1, "host": "elsewhere", "since": 1.0})
    os.utime(owner, (time.time() - seconds,) * 2)
    return owner


def test_a_driver_of_another_machine_counts_while_it_shows_signs_of_life(run, monkeypatch):
    with monkeypatch.context() as patch:
        stops_after(patch, 5)
        assert run("-e", "s", *STUDY)[0] == 143
    plan = Plan.stored("s")
    owner = other_machine(plan, plans.FRESH - 60)
    code, out, err = run("-e", "s", "--resume")
    assert code == 4 and "is being run by process 1 on elsewhere" in err and str(owner) in err
    assert owner.exists(), "it is not ours to delete"
    other_machine(plan, plans.FRESH + 60)
    assert run("-e", "s", "--resume")[0] == 0 and not owner.exists()
    assert problems(Plan.stored("s")) == []


def test_a_driver_shows_signs_of_life_also_without_ray(run, monkeypatch):
    seen, before = [], Plan.beat
    monkeypatch.setattr(upkeep, "EVERY", 0.0)
    monkeypatch.setattr(job, "POLL", 0.0)
    monkeypatch.setattr(Plan, "beat", lambda self: (seen.append(1), before(self)))
    assert run("-e", "s", *STUDY)[0] == 0 and len(seen) > 54


def test_a_driver_that_fails_leaves_no_owner_behind(run, monkeypatch):
    from selfstudy.experiment import local as solo

    def fail(*args):
        raise UserError("no")

    monkeypatch.setattr(solo, "run", fail)
    assert run("-e", "s", *STUDY)[0] == 2
    assert not (paths.EXP_DIR / "s" / ".owner").exists()


# main.py which gives its trials an hour to save, once it was asked to stop.
PATIENT = """
import sys
import main
from selfstudy.experiment import interrupts

interrupts.GRACE = 3600.0
sys.exit(main.main())
"""


@pytest.mark.slow
def test_the_second_signal_ends_at_once(experiments):
    command = [sys.executable, "-c", PATIENT, "-e", "s", *STUDY, "-p",
               "simulation.seconds = 3600", "simulation.steps = 1"]  # fmt: skip
    process = subprocess.Popen(command, cwd=paths.ROOT, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    journal = experiments / "s" / paths.JOURNAL
    assert until(
        lambda: '"started"' in (journal.read_text() if journal.exists() else ""), SPENT
    )
    process.send_signal(signal.SIGTERM)
    assert until(lambda: (experiments / "s" / ".stop").exists(), SPENT)
    ports = listening(pid for pid, _ in processes(experiments))
    assert ports and not ports & {8265, 10001}, "the dashboard or Ray's client listens"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SPENT)  # neither its round nor its grace are over
    assert process.returncode == 143
    assert "stopping: " in err and "-e s --resume" in err and "Traceback" not in err
    assert quiet(experiments) == []
    assert not (experiments / "s" / ".stop").exists()


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])  # fmt: skip
def test_a_signal_saves_what_is_done(run, monkeypatch, number, code):
    count = stops_after(monkeypatch, 6, number)
    ended, out, err = run("-e", "s", *STUDY, "--set", "checkpoint_freq=0")
    assert ended == code and "continue with: python main.py -e s --resume" in err
    plan = Plan.stored("s")
    assert snapshot.newest(plan.folder / plan.rows[0].name).card["round"] == 5
    assert list(plan.statuses().values()) == ["interrupted"] + ["planned"] * 5
    executed = len(count)
    assert run("-e", "s", "--resume")[0] == 0
    assert len(count) - executed == 54 - 5, "rounds were computed again"
    assert problems(Plan.stored("s")) == []


def test_a_signal_while_ray_starts_is_an_interruption(experiments, monkeypatch):

    def init(**options):  # Ray has a handler of its own then, which ends the process
        raise SystemExit(1)

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.os, "chdir", lambda folder: None)
    with pytest.raises(Interrupted) as ended:
        cluster.start(None, True, experiments)
    assert ended.value.code == 143


@pytest.mark.parametrize("ends", [True, False])
def test_leaving_ray_waits_until_its_workers_are_gone(monkeypatch, ends):
    """Ray's own shutdown does not; what has not ended in time is killed."""
    from selfstudy.tune import cluster

    server = subprocess.Popen(["sh", "-c", "sleep 600 & wait"])
    ours = cluster.psutil.Process(server.pid)
    (worker,) = until(ours.children, 60)

    def shutdown():
        server.kill()
        if ends:
            threading.Timer(0.5, worker.terminate).start()

    monkeypatch.setattr(cluster, "_started", [ours])
    monkeypatch.setattr(cluster.ray, "shutdown", shutdown)
    monkeypatch.setattr(cluster, "GONE", 600.0 if ends else 0.2)
    cluster.stop()
    assert not ends or not cluster._runs(worker), "it was not waited for"
    assert until(lambda: not cluster._runs(worker), 60), "it was left"
    server.wait()


def test_a_request_to_stop_that_a_kill_left_behind_stops_nobody(run):
    assert run("-e", "s", *STUDY, "--set", "time_budget_s=0")[0] == 0
    plan = Plan.stored("s")
    assert set(plan.statuses().values()) == {"planned"}
    files.append_line(plan.folder / paths.JOURNAL, {"time": 1.0, "event": "begin"})
    (plan.folder / ".stop").touch()
    with Interrupts(plan.folder) as fresh:
        assert not fresh.request.exists()


def test_a_time_budget_ends_in_order(run):
    flags = ["-p", "simulation.seconds = 0.1", "--set", "time_budget_s=1"]
    code, out, err = run("-e", "s", *STUDY, *flags)
    assert code == 0 and "the time budget is used; interrupted; continue with" in out
    plan = Plan.stored("s")
    done = sum(len(plan.results(row)) for row in plan.rows)
    assert 0 < done < 30
    last = plan.unfinished()[0]
    kept = snapshot.newest(plan.folder / last.name)
    assert (kept.card["round"] if kept else 0) == plan.last(last).get("round", 0)


def test_durations_do_not_follow_a_clock_that_goes_back(run, monkeypatch):
    real, calls = time.time, []

    def back():
        calls.append(1)
        return real() - 3600 * (len(calls) > 40)

    monkeypatch.setattr(time, "time", back)
    assert run("-e", "s", *STUDY)[0] == 0
    plan = Plan.stored("s")
    assert problems(plan) == []
    for row in plan.rows:
        totals = [line["total_s"] for line in plan.results(row)]
        assert totals == sorted(totals) and totals[0] >= 0


# ---- experiments that move ------------------------------------------------------------------


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_an_experiment_goes_on_in_another_place(
    run, results_command, monkeypatch, tmp_path, how
):
    with monkeypatch.context() as patch:
        stops_after(patch, 16)
        assert run("-e", "s", *STUDY)[0] == 143
    other = tmp_path / "elsewhere"
    other.mkdir()
    how(paths.EXP_DIR / "s", other / "renamed")
    monkeypatch.setattr(paths, "EXP_DIR", other)
    assert run("-e", "renamed", "--resume")[0] == 0
    plan = Plan.stored("renamed")
    assert problems(plan) == []
    code, out, _ = results_command("ls", "renamed")
    assert not code and "6 trials: 6 done" in out
    old = tmp_path / "exp" / "s"
    if how is shutil.copytree:  # the original is untouched
        monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
        assert "interrupted" in Plan.stored("s").statuses().values()
    else:
        assert not old.exists()


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_lost_folder_comes_back_from_the_mirror(run, monkeypatch, tmp_path, request, kind):
    uri = f"file://{tmp_path}/mirror"
    if kind == "s3":
        uri = request.getfixturevalue("server").uri("studies/mine")
    monkeypatch.setenv("SELFSTUDY_MIRROR", uri)
    with monkeypatch.context() as patch:
        stops_after(patch, 16)
        assert run("-e", "s", *STUDY)[0] == 143
    shutil.rmtree(paths.EXP_DIR / "s")
    assert run("-e", "s", *STUDY)[0] == 4, "the mirror knows the experiment"
    with monkeypatch.context() as patch:
        count = stops_after(patch, 0)
        code, out, err = run("-e", "s", "--resume")
    assert code == 0 and "files from the mirror" in err and "1 done, 5 to run" in out
    assert len(count) == 54 - 15, "what was saved is computed again"
    assert problems(Plan.stored("s")) == []


def test_a_machine_that_dies_has_left_the_plan_in_the_mirror(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SELFSTUDY_MIRROR", f"file://{tmp_path}/mirror")
    with monkeypatch.context() as patch:
        fails_after(patch, 3, KeyboardInterrupt())  # nothing is tidied up
        patch.setattr(main.run, "upload", None)
        run("-e", "s", *STUDY)
    shutil.rmtree(paths.EXP_DIR / "s")
    assert run("-e", "s", "--resume")[0] == 0
    assert problems(Plan.stored("s")) == []


def test_a_mirror_that_goes_away_ends_nothing(run, monkeypatch, tmp_path):
    from selfstudy.storage.mirror import Mirror

    monkeypatch.setenv("SELFSTUDY_MIRROR", f"file://{tmp_path}/mirror")

    def upload(self, folder):
        raise OSError("no route")

    monkeypatch.setattr(Mirror, "upload", upload)
    with warnings.catch_warnings(record=True):
        code, out, err = run("-e", "s", *STUDY)
    assert code == 0 and "the mirror" in err and problems(Plan.stored("s")) == []


# ---- searches that are resumed --------------------------------------------------------------


def half_done(run, monkeypatch):
    """A grid of which two trials are done, one has diverged and one is in its fifth round."""
    with monkeypatch.context() as patch:
        stops_after(patch, 9 * 3 + 5)
        assert run("-e", "s", *STUDY)[0] == 143
    plan = Plan.stored("s")
    lost = plan.folder / plan.rows[0].name / paths.RESULT
    last = {"mean_accuracy": None, "train_loss": None, "diverged": True}
    files.write_lines(lost, [*files.read_lines(lost)[:-1], files.read_lines(lost)[-1] | last])
    return Plan.stored("s")


@pytest.mark.parametrize("name", ["asha", "median_stopping"])
def test_a_scheduler_is_told_again_what_it_has_seen(run, monkeypatch, name):
    """Also of trials that it would judge otherwise now, and of one without a number."""
    plan = half_done(run, monkeypatch)
    assert sorted(plan.statuses().values()) == [
        "diverged", "done", "done", "interrupted", "planned", "planned"]  # fmt: skip
    given = {"name": name, "grace_period": 1, "time_attr": "training_iteration"}
    made = search.scheduler(RayArgs(scheduler=given))
    made.set_search_properties("mean_accuracy", "max")
    replay.replay(plan, made, lambda one: one.config["number"])
    again = Running(3)
    made.on_trial_add(None, again)
    line = plan.last(plan.rows[3])
    more = line | {"round": 5, "training_iteration": 5}
    assert made.on_trial_result(None, again, more) in ("STOP", "CONTINUE")
    fresh = Running(4)
    made.on_trial_add(None, fresh)
    bad = {"training_iteration": 1, "mean_accuracy": 0.0, "round": 1}
    assert made.on_trial_result(None, fresh, bad) == "STOP"


def test_a_resumed_search_does_not_suggest_the_same_again(experiments):
    pytest.importorskip("optuna")
    ray_args = rayconfig.exp_args("simulated_search")
    plan = plans.make("s", SPEC, "simulated_search", ray_args, None)
    plan.folder.mkdir()
    plan.write()
    for start in range(3):
        inner = search.searcher(rayconfig.exp_args("simulated_search"))
        asked = search.Search(plan, inner, ray_args.config, [], 9, lambda row: None,
                              lambda: False)  # fmt: skip
        asked.suggest(f"{start}a")
        asked.suggest(f"{start}b")
        plan = Plan.stored("s")
    found = [row.overrides["simulation.x"] for row in plan.rows]
    assert len(found) == len(set(found)) == 6


def test_a_search_hears_of_what_ended_unnoticed(experiments):
    optuna = pytest.importorskip("optuna")
    ray_args = rayconfig.exp_args("simulated_search")
    plan = plans.make("s", SPEC, "simulated_search", ray_args, None)
    plan.folder.mkdir()
    plan.write()
    inner = search.searcher(ray_args)
    asked = search.Search(plan, inner, ray_args.config, [], 9, lambda row: None, lambda: False)
    for name in "abc":
        asked.suggest(name)
    for row, more in zip(plan.rows, ({}, {"simulation.fault": "nan"}, {}), strict=True):
        one = trial(plan.folder / row.name, overrides=row.overrides | more)
        finish(one) if row is not plan.rows[2] else one.step()
    search.settle(Plan.stored("s"), rayconfig.exp_args("simulated_search"))
    backend = optuna.storages.journal.JournalFileBackend(str(plan.folder / optuna_study.OPTUNA))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL", "RUNNING"]
    assert study.trials[0].value == plan.last(plan.rows[0])["mean_accuracy"]


# ---- plans ----------------------------------------------------------------------------------


def test_a_changed_ray_config_is_refused_unless_it_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RAY_DIR", tmp_path / "ray")
    (tmp_path / "ray").mkdir()
    text = (paths.CONFIG_DIR / "ray" / "simulated_search.py").read_text()
    (tmp_path / "ray" / "mine.py").write_text(text)
    plan = plans.make("s", SPEC, "mine", rayconfig.exp_args("mine"), None)
    plan.folder.mkdir()
    plan.write()
    (tmp_path / "ray" / "mine.py").write_text(
        text.replace("reduction_factor=3", "reduction_factor=2")
    )
    with pytest.raises(
        UserError, match="mine.py has changed since 's' was planned.*add -r mine"
    ):
        Plan.stored("s").ray_args(False)
    found = Plan.stored("s").ray_args(True)
    assert found.scheduler._reduction_factor == 2
    (tmp_path / "ray" / "mine.py").write_text(text)
    assert Plan.stored("s").ray_args(False).search_alg
    (tmp_path / "ray" / "mine.py").unlink()
    with pytest.raises(UserError, match="no ray config is called 'mine'"):
        Plan.stored("s").ray_args(False)


def test_a_grid_needs_its_ray_config_no_more(run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        stops_after(patch, 5)
        assert run("-e", "s", *STUDY)[0] == 143
    monkeypatch.setattr(paths, "RAY_DIR", tmp_path)
    assert run("-e", "s", "--resume")[0] == 0


def test_a_plan_that_was_never_written_whole_is_begun_anew(run, experiments):
    (experiments / "s").mkdir()
    (experiments / "s" / paths.ENVIRONMENT).write_text("{}")
    (experiments / "s" / ".plan.json.x1").write_text('{"schema": 1, "exp')
    assert run("-e", "s", "--resume")[0] == 2
    assert run("-e", "s", *STUDY)[0] == 0
    assert run("-e", "s", *STUDY)[0] == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"spec": [1, 2]}',
                                     "\0" * 50])  # fmt: skip
def test_a_damaged_plan_is_one_line(run, experiments, content):
    assert run("-e", "s", *STUDY, "--set", "time_budget_s=0")[0] == 0
    (experiments / "s" / paths.PLAN).write_text(content)
    code, out, err = run("-e", "s", "--resume")
    assert code == 2 and err.startswith("error: ") and "plan.json is damaged" in err
    assert len(err.strip().splitlines()) == 1


def test_trials_keep_the_best_and_the_last_checkpoint(run):
    keep = ("--set", "checkpoint_freq=1", "keep_checkpoints=2", "checkpoint_quota=8KB")
    code, out, err = run("-e", "s", *STUDY, *keep)
    plan = Plan.stored("s")
    assert code == 0, err
    kept = [len(checkpoints.checkpoints(plan.folder / row.name)) for row in plan.rows]
    assert sum(kept) < 12 and "deleted: the quota is used" in err
    name = max(plan.rows, key=lambda row: plan.last(row)["mean_accuracy"]).name
    assert snapshot.newest(plan.folder / name).card["round"] == 9, "the best has lost its own"


# ---- two for one trial ----------------------------------------------------------------------


def test_a_worker_that_was_replaced_writes_nothing(experiments):
    stop = []
    old = trial(experiments / "s" / "e_0", stopping=lambda: bool(stop))
    for _ in range(3):
        old.step()
    new = trial(old.folder)
    assert new.session.rounds_done == 2
    new.step()
    before = {path: path.read_bytes() for path in old.folder.rglob("*")
              if path.is_file() and "tfevents" not in path.name}  # fmt: skip
    with pytest.raises(Superseded, match="continued by another process"):
        old.step()
    stop.append(1)
    old._kept = (old.session.state_dict(), old.result)
    with pytest.raises(Superseded):
        old.step()
    assert {path: path.read_bytes() for path in old.folder.rglob("*")
            if path.is_file() and "tfevents" not in path.name} == before  # fmt: skip
    finish(new)
    rounds = [line["round"] for line in strict(new.folder / paths.RESULT)]
    assert rounds == list(range(1, 10))


def adopted(one, donor):
    """What Ray does in population based training: a new worker adopts at once."""
    again = trial(one.folder, overrides={"simulation.x": 0.1})
    again.adopt(donor.folder / f"checkpoint_{donor.result['round']:06d}")
    return again


@pytest.mark.parametrize(("own", "others"), [(2, 4), (4, 4), (6, 2), (7, 4)])
def test_an_adopted_state_is_gone_on_from_wherever_a_kill_comes(experiments, own, others):
    """The donor may be ahead or behind; after a restart there is one line of rounds."""
    donor = trial(experiments / "s" / "e_0", overrides={"simulation.x": 0.01})
    one = trial(experiments / "s" / "e_1", overrides={"simulation.x": 0.1})
    for _ in range(others):
        donor.step()
    for _ in range(own):
        one.step()
    adopted(one, donor)
    again = trial(one.folder, overrides={"simulation.x": 0.1})  # as after a kill
    assert again.session.rounds_done == others
    assert again.session.accuracy == donor.session.accuracy
    assert again.result["exploited"] == f"s/e_0/checkpoint_{others:06d}"
    again.adopt(donor.folder / f"checkpoint_{others:06d}")  # Ray asks for it once more
    finish(again)
    rounds = [line["round"] for line in strict(again.folder / paths.RESULT)]
    assert rounds == [*range(1, min(own, others - 1) + 1), *range(others, 10)]
    assert snapshot.newest(again.folder).card["round"] == 9


@pytest.mark.parametrize("call", ["replace_folder", "remove", "write_lines"])
def test_killed_while_it_adopts_a_trial_is_whole(experiments, monkeypatch, call):
    donor = trial(experiments / "s" / "e_0", overrides={"simulation.x": 0.01})
    one = trial(experiments / "s" / "e_1", overrides={"simulation.x": 0.1})
    for _ in range(2):
        donor.step()
    for _ in range(7):
        one.step()
    module = files if call == "write_lines" else checkpoints

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        again = trial(one.folder, overrides={"simulation.x": 0.1})
        patch.setattr(module, call, killed)
        again.adopt(donor.folder / "checkpoint_000002")
    again = finish(trial(one.folder, overrides={"simulation.x": 0.1}))
    rounds = [line["round"] for line in strict(again.folder / paths.RESULT)]
    assert rounds == list(range(1, 10))
