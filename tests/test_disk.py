"""Checkpoints within a disk: the estimate, the quota, and what a trial keeps."""

import shutil

import pytest

import paths
from selfstudy import configure
from selfstudy.experiment import disk, rayconfig
from selfstudy.experiment import plan as plans
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.storage import checkpoints, snapshot
from selfstudy.storage.retention import CheckpointPolicy as Policy
from selfstudy.trial import Trial
from util import files
from util.errors import UserError

SPEC = configure.Spec(("simulation/search",), ())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)
    return tmp_path


def planned(count=4, **more):
    plan = plans.make("x", SPEC, "single_run", RayArgs(num_samples=count, **more), None)
    plan.folder.mkdir()
    plan.write()
    return plan


@pytest.mark.parametrize(("more", "count"), [
    ({}, 0),
    ({"checkpoint_at_end": True}, 1),
    ({"checkpoint_freq": 2}, 4),
    ({"checkpoint_freq": 2, "checkpoint_at_end": True}, 5),  # rounds 2, 4, 6, 8 and 9
    ({"checkpoint_freq": 3, "checkpoint_at_end": True}, 3),
    ({"checkpoint_freq": 1, "keep_checkpoints": 2}, 3),
    ({"checkpoint_freq": 1, "keep_checkpoints": 0}, 1),
])  # fmt: skip
def test_the_estimate_counts_what_trials_will_leave(more, count):
    assert disk.estimate(planned(**more), 1000, 9.0) == 4 * count * 1000


def test_a_quota_bounds_the_estimate():
    plan = planned(checkpoint_at_end=True, checkpoint_quota="2 KB")
    assert disk.estimate(plan, 1000, 9.0) == 2000


def test_what_cannot_fit_is_refused(monkeypatch):
    plan = planned()
    usage = shutil.disk_usage(plan.folder)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=5000))
    assert disk.check_room(plan, 4000) == "checkpoints: 4 KB of 5 KB free"
    with pytest.raises(
        UserError, match="6 KB of 5 KB free: they cannot fit; .*keep_checkpoints"
    ):
        disk.check_room(plan, 6000)


@pytest.mark.parametrize(("text", "size"), [
    ("50GB", 50e9), ("1.5 TiB", 1.5 * 2**40), (7, 7), ("10 kb", 10_000), (None, None),
])  # fmt: skip
def test_sizes_in_words(text, size):
    assert rayconfig.size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-3GB", "1e3GB"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="expected a size such as '50GB'"):
        rayconfig.size(text)


def checkpoint(plan, row, number, kilobytes):
    folder = plan.folder / plan.rows[row].name / f"checkpoint_{number:06d}"
    folder.mkdir(parents=True)
    (folder / paths.SNAPSHOT).write_bytes(b"0" * kilobytes * 1000)
    return folder


def ended(plan, row, value, done=True):
    folder = plan.folder / plan.rows[row].name
    folder.mkdir(exist_ok=True)
    line = {"round": 9, "mean_accuracy": value, "done": done}
    files.append_line(folder / paths.RESULT, line)


def test_the_quota_takes_older_ones_first_then_the_worst_trials():
    plan = planned(checkpoint_quota="35 KB")
    old = [checkpoint(plan, row, 3, 10) for row in range(3)]
    new = [checkpoint(plan, row, 9, 10) for row in range(3)]
    running = checkpoint(plan, 3, 4, 10)
    for row, value in enumerate((0.9, 0.1, 0.5)):
        ended(plan, row, value)
    ended(plan, 3, 0.0, done=False)
    gone = disk.enforce(plan)
    assert gone == [*old, new[1]]  # then 30 KB are left
    assert not any(folder.exists() for folder in gone)
    assert running.exists() and new[0].exists() and new[2].exists()
    assert disk.enforce(plan) == []


def test_the_best_trials_newest_and_what_is_continued_stay_whatever_the_quota():
    plan = planned(checkpoint_quota=1)
    best, worse = checkpoint(plan, 0, 9, 10), checkpoint(plan, 1, 9, 10)
    running = [checkpoint(plan, 2, number, 10) for number in (3, 4)]
    ended(plan, 0, 0.9)
    ended(plan, 1, 0.1)
    ended(plan, 2, 0.2, done=False)
    assert disk.enforce(plan) == [worse]
    assert best.exists() and all(folder.exists() for folder in running)


def test_without_a_quota_nothing_goes():
    plan = planned()
    checkpoint(plan, 0, 9, 10)
    assert disk.enforce(plan) == []


# ---- one trial ------------------------------------------------------------------------------


def run(folder, policy, *params):
    trial = Trial(configure.Spec(SPEC.gin, params), {}, folder / "t" / "e_0", policy)
    while not trial.done:
        trial.step()
    found = checkpoints.checkpoints(trial.folder)
    return trial, [int(path.name[-6:]) for path in found]


@pytest.mark.parametrize(("policy", "kept"), [
    (Policy(), []),
    (Policy(checkpoint_at_end=True), [9]),
    (Policy(checkpoint_freq=4), [8, 4]),
    (Policy(checkpoint_freq=4, checkpoint_at_end=True), [9, 8, 4]),
    (Policy(checkpoint_freq=1, keep_checkpoints=2), [9, 8]),
    (Policy(checkpoint_freq=1, keep_checkpoints=0), [9]),
    (Policy(checkpoint_freq=1, keep_checkpoints=2, metric="train_loss", mode="max"), [9, 2, 1]),
    (Policy(checkpoint_freq=3, keep_checkpoints=1, metric="train_loss", mode="min"), [9]),
])  # fmt: skip
def test_a_trial_keeps_what_its_rules_ask_for(folder, policy, kept):
    assert run(folder, policy)[1] == kept


def test_a_stop_saves_the_last_round_and_the_end_tidies_up(folder):
    asked = []
    policy = Policy(checkpoint_at_end=True)
    trial = Trial(SPEC, {}, folder / "t" / "e_0", policy, stopping=lambda: bool(asked))
    for _ in range(4):
        trial.step()
    assert checkpoints.checkpoints(trial.folder) == []  # none was due
    asked.append(True)
    result = trial.step()
    assert result["interrupted"] and result["round"] == 4 and not result["done"]
    assert trial.step()["interrupted"]  # however often it is asked
    (saved,) = checkpoints.checkpoints(trial.folder)
    assert snapshot.Snapshot.open(saved).state()["rounds_done"] == 4
    again, kept = run(folder, policy)
    assert [row["round"] for row in files.read_lines(again.folder / paths.RESULT)] == [
        *range(1, 10)
    ]
    assert kept == [9]


def test_a_diverged_trial_ends_with_its_last_good_checkpoint(folder):
    trial, kept = run(
        folder, Policy(), "simulation.fault = 'nan'", "simulation.fault_round = 4"
    )
    assert kept == [3] and trial.result["diverged"] and trial.result["done"]
    rows = files.read_lines(trial.folder / paths.RESULT)
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["train_loss"] is None and "Infinity" not in (
        trial.folder / paths.RESULT).read_text()  # fmt: skip
    assert snapshot.newest(trial.folder).state()["rounds_done"] == 3
    one = Trial(SPEC, {}, trial.folder, Policy())
    assert one.done and one.step()["diverged"]  # it has ended, also for a process that asks


def test_another_trials_state_is_taken_over(folder):
    donor = Trial(SPEC, {"simulation.x": 0.01}, folder / "t" / "e_0", Policy(checkpoint_freq=2))
    worst = Trial(SPEC, {"simulation.x": 0.5}, folder / "t" / "e_1", Policy())
    for _ in range(4):
        donor.step()
    for _ in range(2):
        worst.step()
    state = donor.folder / "checkpoint_000004"
    worst.adopt(state)
    assert worst.session.accuracy == donor.session.accuracy
    again = Trial(SPEC, {"simulation.x": 0.5}, folder / "t" / "e_1", Policy())
    again.adopt(state)  # asked again after a restart: it is there already
    assert again.session.rounds_done == 4
    result = again.step()
    assert result["round"] == 5 and result["exploited"] == "t/e_0/checkpoint_000004"
    assert result["valid_accuracy"] < donor.step()["valid_accuracy"]  # under its own x
    rows = files.read_lines(again.folder / paths.RESULT)
    assert [row["round"] for row in rows] == [1, 2, 4, 5]
    while not again.done:
        again.step()
    assert again.result["round"] == 9


def test_a_finished_state_that_is_taken_over_ends_the_trial(folder):
    donor, _ = run(folder, Policy(checkpoint_at_end=True))
    worst = Trial(SPEC, {}, folder / "t" / "e_1", Policy())
    worst.step()
    worst.adopt(donor.folder / "checkpoint_000009")
    assert worst.done and worst.step()["round"] == 9


def test_a_trial_is_closed_as_often_as_one_likes(folder):
    trial, _ = run(folder, Policy())
    for _ in range(3):
        trial.close()  # a worker closes the trial that has closed itself at its end
    assert trial.step() == trial.result


@pytest.mark.parametrize("name", [paths.WRITER, paths.PARAMS, paths.CONFIG])
def test_nothing_is_written_through_a_link(folder, name):
    victim, trial = folder / "victim", folder / "t" / "e_0"
    victim.write_text("precious")
    trial.mkdir(parents=True)
    (trial / name).symlink_to(victim)
    run(folder, Policy(checkpoint_freq=1))
    assert victim.read_text() == "precious"


def test_results_are_not_read_through_a_link(folder):
    victim, trial = folder / "victim", folder / "t" / "e_0"
    victim.write_text('{"round": 1, "done": true}\n')
    trial.mkdir(parents=True)
    (trial / paths.RESULT).symlink_to(victim)
    with pytest.raises(UserError, match="result.json cannot be read"):
        run(folder, Policy(checkpoint_freq=1))
    assert victim.read_text() == '{"round": 1, "done": true}\n'


def test_a_trials_folder_is_no_link(folder):
    (folder / "elsewhere").mkdir()
    (folder / "t").mkdir()
    (folder / "t" / "e_0").symlink_to(folder / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        run(folder, Policy())
    assert not list((folder / "elsewhere").iterdir())
