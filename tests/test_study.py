"""Trials with Ray and without: the same files, the same numbers, continued after a kill."""

import json
import os
import signal
import subprocess
import sys

import gin
import pytest

import paths
from bench.storm import SPENT, TIMING, processes, until, workers
from selfstudy import configure, devices
from selfstudy.experiment import plan as plans
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.trial import Trial
from util import files

pytestmark = pytest.mark.slow
SPEC = configure.Spec(
    ("digits/r9/classify",),
    ("ResNet.width = 0.125", "scheduler.milestones = [1, 3]", "session.train_iters = 4"),
)
FLAGS = ["-g", *SPEC.gin, "-p", *SPEC.params]


@pytest.fixture
def experiments(tmp_path, monkeypatch, shared_data):
    monkeypatch.setattr(paths, "DATA_DIR", shared_data)
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)
    monkeypatch.setenv("SELFSTUDY_DATA", str(shared_data))
    monkeypatch.setenv("SELFSTUDY_EXP", str(tmp_path))
    devices.use_share({"cpu": 1})
    return tmp_path


def main(*flags, **more):
    return subprocess.run([sys.executable, str(paths.ROOT / "main.py"), *flags], text=True,
                          capture_output=True, timeout=SPENT, **more)  # fmt: skip


def numbers(folder):
    rows = files.read_lines(folder / paths.RESULT)
    return [{key: item for key, item in row.items() if key not in TIMING} for row in rows]


def test_a_trial_leaves_what_is_promised(experiments):
    one = Trial(
        SPEC, {"session.seed": 3}, experiments / "x" / "e_0", CheckpointPolicy({}, 2, True)
    )
    while not one.done:
        one.step()
    assert one.step() == one.result  # a trial that has ended stays ended
    found = {path.name for path in one.folder.iterdir()}
    assert {"params.json", "config.gin", "result.json", "checkpoint_000002",
            "checkpoint_000003"} < found  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in found)
    assert json.loads((one.folder / "params.json").read_text()) == {"session.seed": 3}
    rows = numbers(one.folder)
    assert [row["round"] for row in rows] == [1, 2, 3] and rows[-1]["done"]
    card = json.loads((one.folder / "checkpoint_000003" / "card.json").read_text())
    assert card["overrides"] == {"session.seed": 3} and card["seed"] == 3
    assert card["config"]["ResNet.width"] == 0.125 and card["metrics"]["test_accuracy"] >= 0
    gin.clear_config()  # the recorded configuration parses to the same again
    configure._bind_all(
        configure._in_text(
            (one.folder / "config.gin").read_text(), "config.gin", ("config.gin",)
        )
    )
    assert configure.current_bindings()["scheduler.milestones"] == [1.0, 3.0]


def test_a_trial_continues_from_its_newest_whole_checkpoint(experiments):
    reference = Trial(SPEC, {}, experiments / "a", CheckpointPolicy({}, 1, False))
    while not reference.done:
        reference.step()
    broken = Trial(SPEC, {}, experiments / "b", CheckpointPolicy({}, 1, False))
    broken.step()
    broken.step()
    newest = experiments / "b" / "checkpoint_000002" / "snapshot"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="checkpoint_000002"):
        again = Trial(SPEC, {}, experiments / "b", CheckpointPolicy({}, 1, False))
    assert again.session.rounds_done == 1 and len(numbers(again.folder)) == 1
    while not again.done:
        again.step()
    assert numbers(experiments / "a") == numbers(experiments / "b")


def test_stop_rules_end_a_trial(experiments):
    one = Trial(SPEC, {}, experiments / "c", CheckpointPolicy({"training_iteration": 2}))
    one.step()
    assert not one.done
    one.step()
    assert one.done


@pytest.mark.filterwarnings("ignore")  # Ray warns of the older form
def test_search_spaces_are_drawn_as_ray_would():
    from ray import tune

    from selfstudy.tune import search

    space = {
        "a.b": tune.grid_search([1, 2]),
        "c.d": tune.sample_from(lambda config: config["a.b"] * 10),
        "e.f": tune.sample_from(lambda spec: spec.config["a.b"] + 0.5),
        "g.h": tune.uniform(0, 1),
        "i.j": [1, [2, None]],
    }
    drawn = search.variants(space, 2)
    assert [(one["a.b"], one["c.d"], one["e.f"]) for one in drawn] == [
        (1, 10, 1.5), (2, 20, 2.5), (1, 10, 1.5), (2, 20, 2.5)]  # fmt: skip
    assert len({one["g.h"] for one in drawn}) == 4 and drawn == search.variants(space, 2)
    assert all(one["i.j"] == [1, [2, None]] for one in drawn)


def test_ray_and_local_runs_give_the_same_rows_and_resume(experiments):
    """A grid by Ray, the same by -l, and both again from half-way; numbers agree row by row."""
    done = main("-e", "ray", "-r", "grid_search", *FLAGS)
    assert done.returncode == 0, done.stderr
    local = main("-e", "local", "-r", "grid_search", "-l", *FLAGS)
    assert local.returncode == 0, local.stderr
    names = [row.name for row in plans.Plan.stored("ray").rows]
    assert len(names) == 6 and names[0] == "e_target_lrs=0-0.003-0_semisupervised=100_0000"
    for name in names:
        rows = numbers(experiments / "ray" / name)
        assert len(rows) == 3 and rows == numbers(experiments / "local" / name)
        assert (experiments / "ray" / name / "checkpoint_000003" / "card.json").exists()
    assert not (experiments / "ray" / ".ray").exists()  # Ray's own record is not kept
    assert not [line for _, line in processes(experiments) if "ray" in line]

    lost = experiments / "ray" / names[4]
    before = numbers(lost)
    for path in sorted(lost.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = main("-e", "ray", "--resume", "-l")
    assert again.returncode == 0 and "5 done, 1 to run" in again.stdout
    assert numbers(lost) == before

    move = [sys.executable, str(paths.ROOT / "misc/move_snapshots.py"), "-e", "ray", "-m", "-p",
            "{cfg[scheduler.target_lrs]}-{cfg[BaseDataset.semisupervised]}"]  # fmt: skip
    moved = subprocess.run(move, text=True, capture_output=True, timeout=SPENT)
    assert moved.returncode == 0 and moved.stdout.count("Moving from: ") == 6
    assert (experiments / "ray" / "0-0.01-0-500" / "card.json").exists()
    start = main("-l", "-e", "fine", *FLAGS, 'Wrapper.pretrained = "ray/0-0.01-0-500"')
    assert start.returncode == 0 and "weights from ray/0-0.01-0-500" in start.stderr


def test_a_killed_worker_is_continued(experiments):
    flags = ["-e", "kill", "-r", "single_run", "-c", *FLAGS, "scheduler.milestones = [1, 80]",
             "session.train_iters = 6", "session.valid_iters = 1"]  # fmt: skip
    run = subprocess.Popen([sys.executable, str(paths.ROOT / "main.py"), *flags], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    results = experiments / "kill" / "e_0000" / paths.RESULT
    until(lambda: len(files.read_lines(results)) >= 3, SPENT)
    found = until(lambda: workers(experiments), SPENT)
    assert found, "no worker was found"
    os.kill(found[0], signal.SIGKILL)
    out, err = run.communicate(timeout=SPENT)
    assert run.returncode == 0, err
    assert "e_0000: its worker died, killed or out of memory" in err and "it continues" in err
    assert [row["round"] for row in files.read_lines(results)] == list(range(1, 81))


def test_a_trial_that_cannot_go_on_is_told_in_one_line_and_with_code_3(experiments):
    flags = ["-e", "bad", "-g", "digits/r9/classify", "-p", "dataloader.batch_size = 1",
             "BaseDataset.input_res = 8", "ResNet.width = 0.125"]  # fmt: skip
    done = main(*flags)  # one value a channel, which batch norm refuses in the first step
    assert done.returncode == 3 and "Traceback" not in done.stderr + done.stdout
    failed = [line for line in done.stderr.splitlines() if line.startswith("e_0000 failed: ")]
    assert len(failed) == 1 and "more than 1 value per channel" in failed[0]
    assert "Traceback" in (experiments / "bad" / "e_0000" / paths.ERROR).read_text()
