"""Results: every trial is read or named, whatever its folder holds, without torch and Ray."""

import csv
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from misc import results as tool
from selfstudy.analysis import results
from selfstudy.storage import manifest as manifests
from selfstudy.storage.manifest import Manifest
from util.errors import UserError

RATES = (0.1, 0.2, 0.3)
NAMES = [f"e_lr={rate}_{number:04d}" for number, rate in enumerate(RATES)]
HOST = socket.gethostname()
pytestmark = pytest.mark.usefixtures("exp_dir")


def line(number: int, rounds: int = 3, **more) -> dict:
    return {
        "train_loss": 1 / number, "valid_accuracy": number / 10, "mean_accuracy": number / 10,
        "best_accuracy": number / 10, "learning_rate": 0.1, "round_s": 2.0,
        "total_s": 2.0 * number, "round": number, "training_iteration": number,
        "rounds": rounds, "is_finished": number == rounds, "done": number == rounds,
        "time": 1e9 + number,
    } | more  # fmt: skip


def write_lines(path: Path, lines: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def trial(folder: Path, name: str, params: dict, lines: list) -> Path:
    write_lines(folder / name / "result.json", lines)
    (folder / name / "params.json").write_text(json.dumps(params))
    text = "".join(f"{key} = {value!r}\n" for key, value in params.items())
    (folder / name / "config.gin").write_text(f"# Parameters:\n# =====\n{text}")
    return folder / name


def plan(folder: Path, rows: list, exp_args=None, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": 1, "exp_id": folder.name, "ray": "grid_search", "command": "python main.py",
        "spec": {"gin": ["digits/r9/classify"], "params": ["optimizer.optim_fn = 'SGD'"]},
        "exp_args": exp_args or {}, "rows": rows,
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(content | more))
    return folder


@pytest.fixture
def grid(exp_dir) -> Path:
    """Three trials with learning rates: 3 of 3 rounds, 2 of 3, and none."""
    params = [{"optimizer.lr": rate} for rate in RATES]
    rows = [{"name": name, "overrides": one} for name, one in zip(NAMES, params, strict=True)]
    folder = plan(exp_dir / "grid", rows)
    trial(folder, NAMES[0], params[0], [line(1), line(2), line(3)])
    trial(folder, NAMES[1], params[1], [line(1), line(2)])
    return folder


def journal(folder: Path, *events: dict) -> None:
    write_lines(folder / "journal.jsonl", [{"time": time.time()} | event for event in events])


def begin(pid: int | None = None, host: str = HOST) -> dict:
    return {"event": "begin", "host": host, "pid": pid or os.getpid(), "command": "main.py"}


def happened(name: str, status: str, why: str | None = None) -> dict:
    return {"event": "trial", "name": name, "status": status, "why": why, "round": 1}


def statuses(folder: Path) -> list[str]:
    return [one.status for one in results.read(folder).trials]


# ---- the manifest ---------------------------------------------------------------------------


def test_trials_of_the_journal_follow_those_of_the_plan(grid):
    rows = [{"event": "row", "name": name, "overrides": {"optimizer.lr": 9}, "suggestion": None}
            for name in ("e_b", NAMES[0], "e_a", "../../x", "e_b")]  # fmt: skip
    journal(grid, begin(), *rows, {"event": "end", "code": 0})
    read = Manifest.read(grid)
    assert [row["name"] for row in read.rows] == [*NAMES, "e_b", "e_a"]
    assert read.rows[0]["overrides"] == {"optimizer.lr": 0.1}  # the plan's, not the journal's
    assert read.torn == 1  # the name that is none


def test_without_a_driver_a_trial_is_done_interrupted_or_planned(grid):
    assert statuses(grid) == ["done", "interrupted", "planned"]
    journal(grid, begin(), happened(NAMES[2], "started"), {"event": "end", "code": 130})
    assert statuses(grid) == ["done", "interrupted", "planned"]


def test_under_a_driver_a_trial_runs(grid):
    journal(grid, begin(), happened(NAMES[2], "started"))
    assert statuses(grid) == ["done", "running", "running"]
    journal(grid, begin())
    assert statuses(grid) == ["done", "running", "planned"]


def test_a_driver_that_has_died_holds_nothing(grid):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, 0, -1, 2**70, True, "1", None):
        journal(grid, begin() | {"pid": pid})
        assert not Manifest.read(grid).is_running, pid


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells when one started")
def test_a_process_that_inherited_the_number_holds_nothing(grid):
    journal(grid, begin())
    assert Manifest.read(grid).is_running
    journal(grid, begin() | {"time": time.time() - 1e6})  # long before this process
    assert not Manifest.read(grid).is_running


def test_a_driver_elsewhere_is_known_by_what_it_writes(grid):
    journal(grid, begin(host="elsewhere"))
    assert Manifest.read(grid).is_running
    old = time.time() - 2 * manifests.FRESH
    for path in grid.rglob("*"):
        os.utime(path, (old, old))
    assert not Manifest.read(grid).is_running
    os.utime(grid / NAMES[1] / "result.json")
    assert Manifest.read(grid).is_running


def test_what_last_happened_counts(grid):
    name = NAMES[1]
    for events, status, why in (
        (["failed"], "failed", "boom"),
        (["failed", "started"], "interrupted", "boom"),
        (["failed", "retried", "stopped"], "stopped", "boom"),
        (["done"], "interrupted", "boom"),  # its last line is lost: --resume writes it again
    ):
        ended = {"event": "end", "code": 3}
        journal(grid, begin(), *(happened(name, event, "boom") for event in events), ended)
        found = results.read(grid).trials[1]
        assert (found.status, found.why) == (status, why)


def test_results_win_over_the_journal(grid):
    journal(grid, begin(), *(happened(name, "failed") for name in NAMES))
    trial(grid, NAMES[1], {}, [line(1), line(2, diverged=True, done=True, train_loss=None)])
    assert statuses(grid) == ["done", "diverged", "failed"]


BROKEN_PLANS = {
    "no JSON": "{",
    "a list": "[]",
    "deep": "[" * 100_000,
    "nested": '{"schema": 1, "x": %s}' % ("[" * 60 + "]" * 60),
    "no rows": {"rows": None},
    "text as rows": {"rows": "abc"},
    "no name": {"rows": [{"overrides": {}}]},
    "a path": {"rows": [{"name": "e_/../../x", "overrides": {}}]},
    "a number": {"rows": [{"name": 3, "overrides": {}}]},
    "no overrides": {"rows": [{"name": "e_1", "overrides": []}]},
    "twice": {"rows": [{"name": "e_1", "overrides": {}}] * 2},
    "no gin": {"spec": {"params": []}},
    "numbers as gin": {"spec": {"gin": [1], "params": []}},
    "no arguments": {"exp_args": 3},
    "too long a number": '{"schema": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("broken", BROKEN_PLANS)
def test_a_damaged_plan_is_named_and_the_trials_are_read_all_the_same(
    grid, broken, results_command
):
    content = BROKEN_PLANS[broken]
    if isinstance(content, dict):
        content = json.dumps(json.loads((grid / "plan.json").read_text()) | content)
    (grid / "plan.json").write_text(content)
    with pytest.raises(UserError, match="plan.json is damaged"):
        Manifest.read(grid)
    found = results.read("grid")
    assert [one.name for one in found.trials] == NAMES[:2]
    assert [one.status for one in found.trials] == ["done", "interrupted"]
    assert "damaged" in found.unreadable[0]
    code, out, err = results_command("ls", "grid")
    assert code == 0 and NAMES[0] in out and "plan.json is damaged" in err


def test_a_missing_plan_is_an_error_of_its_own(exp_dir):
    with pytest.raises(UserError, match="holds no experiment"):
        Manifest.read(exp_dir)


def test_links_and_pipes_are_not_read(grid, tmp_path):
    secret = tmp_path / "secret"
    write_lines(secret, [line(3)])
    results_file = grid / NAMES[1] / "result.json"
    results_file.unlink()
    results_file.symlink_to(secret)
    os.mkfifo(grid / NAMES[0] / "pipe")
    os.replace(grid / NAMES[0] / "pipe", grid / NAMES[0] / "result.json")
    (grid / NAMES[2]).symlink_to(tmp_path)
    found = results.read("grid")
    assert [one.rounds for one in found.trials] == [[], [], []]
    assert len(found.unreadable) == 3
    assert all(name in text for name, text in zip(NAMES, sorted(found.unreadable), strict=True))


# ---- reading --------------------------------------------------------------------------------


def test_later_attempts_replace_what_they_wrote_again():
    lines = [line(1, a=1), line(2, a=1), line(3, a=1), line(2, a=2), line(3, a=2)]
    kept = results.merge_attempts(lines)
    assert [(one["round"], one["a"]) for one in kept] == [(1, 1), (2, 2), (3, 2)]
    assert [one["round"] for one in results.merge_attempts([*lines, line(1)])] == [
        1
    ]  # from scratch


def test_a_line_without_a_round_is_no_result(grid):
    odd = [{"round": value} for value in (None, "1", True, -1, 1.5, [], float("inf"), 10**30)]
    write_lines(grid / NAMES[0] / "result.json", [line(1), *odd, {}, {"loss": 1}])
    found = results.read("grid")
    assert [one["round"] for one in found.trials[0].rounds] == [1]
    assert found.torn == len(odd) + 2


@pytest.mark.parametrize("cut", range(1, 201))
def test_a_cut_file_loses_its_last_lines_only(grid, cut):
    file = grid / NAMES[0] / "result.json"
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    left = [json.loads(text) for text in content[:-cut].split(b"\n")[:-1]]
    last = content[:-cut].split(b"\n")[-1]
    whole = cut == 1  # only the line's end is gone
    found = results.read("grid")
    rounds = [one["round"] for one in found.trials[0].rounds]
    assert rounds == [one["round"] for one in left] + ([3] if whole else [])
    assert found.torn == (1 if last and not whole else 0)


def test_any_bytes_are_read_without_a_fault(grid, results_command):
    """Files with bytes changed, lines swapped and pieces repeated: read, or named."""
    dice = random.Random(2)
    files = [grid / "plan.json", *(grid / name / "result.json" for name in NAMES[:2]),
             grid / NAMES[0] / "params.json", grid / NAMES[0] / "config.gin"]  # fmt: skip
    whole = {file: file.read_bytes() for file in files}
    for _ in range(150):
        file = dice.choice(files)
        content = bytearray(whole[file])
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(content))
            piece = bytes(dice.choices(b'{}[]",:-0eE\\\x1b\xff\n NaNInfinity', k=3))
            content[at : at + dice.randrange(4)] = piece
        file.write_bytes(content)
        assert len(results.trials("grid")) >= 2
        for words in (["ls", "grid"], ["show", f"grid/{NAMES[0]}"]):
            code, out, _ = results_command(*words)
            assert code == 0 and "\x1b" not in out
        assert results_command("best", "grid")[0] in (0, 2)
        file.write_bytes(whole[file])


HOSTILE = {
    "scalar": 1, "deep": json.loads("[" * 20 + "]" * 20), "huge": 10**400, "inf": 1e308 * 10,
    "nan": float("nan"), "\ud800": "\udfff", "\x1b]0;x\x07": "\x1b[31m", "exp": 3, "trial": 4,
    "status": [], "list": [1], "object": {"a": 1}, "text": "=1+1", "big": 2**63,
}  # fmt: skip


def test_hostile_values_reach_neither_terminal_nor_frame(grid, results_command, tmp_path):
    rows = [{"name": "e_0", "overrides": HOSTILE}, {"name": "e_1", "overrides": {"list": 2}}]
    plan(grid, rows, exp_args={"metric": {"a": 1}, "mode": [[]]})
    trial(grid, "e_0", {}, [HOSTILE | line(1), HOSTILE | line(2)])
    (grid / "\x1b[2Jname").mkdir()
    (grid / "\x1b[2Jname" / "params.json").write_text("{}")
    (grid / os.fsdecode(b"\xff")).mkdir()
    (grid / os.fsdecode(b"\xff") / "params.json").write_text("{}")
    frame = results.trials("grid")
    assert frame.loc[0, ["exp", "trial", "status"]].tolist() == ["grid", "e_0", "interrupted"]
    curves = results.rounds("grid")
    assert curves["inf"].isna().all() and curves["huge"].isna().all()
    for words in (
        ["ls"], ["ls", "grid"], ["show", "grid/e_0"], ["diff", "grid/e_0", "grid/e_1"],
        ["best", "grid", "--metric", "valid_accuracy"], ["diff", "grid", "grid/e_1"],
    ):  # fmt: skip
        code, out, err = results_command(*words)
        assert code == 0 and "\x1b" not in out + err
        code, out, err = results_command(*words, "--json")
        assert code == 0 and out.isascii() and "\x1b" not in err
        json.loads(out, parse_constant=pytest.fail)
    for flag in ("--csv", "--parquet"):
        assert results_command("export", "grid", flag, tmp_path / "out")[0] == 0


# ---- trials that were moved -----------------------------------------------------------------


def card(folder: Path, name: str, number: int, params: dict, **more) -> Path:
    """A snapshot as `move_snapshots.py` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"trial": name, "result": line(number), "overrides": params, "size": 1}
    (folder / "card.json").write_text(json.dumps(content | more))
    (folder / "snapshot").write_bytes(b"x")
    return folder


def test_trials_without_a_plan_are_read(grid):
    (grid / "plan.json").unlink()
    frame = results.trials("grid")
    assert frame["trial"].tolist() == NAMES[:2]
    assert frame["optimizer.lr"].tolist() == [0.1, 0.2]
    assert frame["status"].tolist() == ["done", "interrupted"]
    assert frame.attrs == {"unreadable": [], "torn": 0}


def test_a_renamed_trial_keeps_its_row(grid, results_command):
    os.rename(grid / NAMES[1], grid / "middle")
    found = results.read("grid")
    assert [one.name for one in found.trials] == NAMES
    assert found.trials[1].last["round"] == 2
    for name in (f"grid/{NAMES[1]}", "grid/middle", "grid/0001"):
        assert NAMES[1] in results_command("show", name)[1]


def test_a_copied_trial_is_one_more(grid):
    trial(grid, "from-elsewhere", {"optimizer.lr": 0.5}, [line(1)])
    trial(grid, "again", {"optimizer.lr": 0.1}, [line(1)])  # that of the plan has its own
    assert [one.name for one in results.read("grid").trials] == [*NAMES, "again",
                                                                 "from-elsewhere"]  # fmt: skip


def test_a_moved_snapshot_is_named_in_its_trials_row(grid):
    card(grid / "lr" / "0.1", NAMES[0], 2, {"optimizer.lr": 0.1})
    frame = results.trials("grid")
    assert frame["snapshot"].tolist()[0] == "grid/lr/0.1"
    assert frame["round"].tolist() == [3, 2, 0]  # its own lines know more than the card


def test_a_snapshot_whose_trial_is_gone_stands_for_it(grid, exp_dir, results_command):
    card(grid / "slow", NAMES[2], 3, {"optimizer.lr": 0.3})
    card(exp_dir / "moved" / "fast", "e_x", 1, {"optimizer.lr": 0.7})
    frame = results.trials("grid", "moved")
    assert frame["trial"].tolist() == [*NAMES, "fast"]
    assert frame["round"].tolist() == [3, 2, 3, 1]
    assert frame["optimizer.lr"].tolist() == [0.1, 0.2, 0.3, 0.7]
    assert results_command("show", "moved/fast")[0] == 0


def test_the_only_trials_snapshot_may_be_the_experiments(exp_dir, results_command):
    folder = plan(exp_dir / "one", [{"name": "e_0000", "overrides": {}}])
    card(folder, "e_0000", 3, {})
    (found,) = results.read("one").trials
    assert (found.name, found.snapshot, found.status) == ("e_0000", "one", "done")
    assert results_command("show", "one")[0] == 0


def test_a_damaged_card_is_named(grid):
    folder = card(grid / "slow", NAMES[2], 3, {})
    (folder / "card.json").write_text("{")
    assert "grid/slow: card.json" in results.read("grid").unreadable[0]


def test_trained_with_the_population_a_trial_has_its_latest_values(grid):
    trial(grid, NAMES[0], {"optimizer.lr": 0.7}, [line(1), line(2, exploited=NAMES[1])])
    found = results.read("grid").trials[0]
    assert found.overrides == {"optimizer.lr": 0.7}
    assert "took over" in tool.command(results.read("grid"), found)[1]


# ---- frames ---------------------------------------------------------------------------------


def test_a_row_per_trial(grid):
    (grid / NAMES[2]).mkdir()
    (grid / NAMES[2] / "error.txt").write_text("Traceback\n\nValueError: no\x1b data\n")
    frame = results.trials("grid")
    first = ["exp", "trial", "status", "why", "round", "rounds", "total_s", "snapshot"]
    assert list(frame.columns[:8]) == first
    assert frame["round"].tolist() == [3, 2, 0]
    assert frame["valid_accuracy"].tolist()[:2] == [0.3, 0.2]
    assert frame["train_loss"].tolist()[0] == frame["best_train_loss"].tolist()[0] == 1 / 3
    assert frame["optimizer.lr"].tolist() == list(RATES)
    assert frame["why"].tolist()[2] == "ValueError: no  data"
    assert frame["valid_accuracy"].isna().tolist() == [False, False, True]
    assert "best_learning_rate" not in frame and "best_best_accuracy" not in frame
    assert not {"done", "is_finished", "time", "training_iteration"} & set(frame)


def test_best_is_over_all_rounds_and_last_is_last(grid):
    lines = [line(1, valid_accuracy=0.9, train_loss=0.1), line(2, valid_accuracy=None)]
    trial(grid, NAMES[0], {}, [*lines, line(3, valid_accuracy=0.5, train_loss=0.4)])
    row = results.trials("grid").iloc[0]
    assert (row["valid_accuracy"], row["best_valid_accuracy"]) == (0.5, 0.9)
    assert (row["train_loss"], row["best_train_loss"]) == (0.4, 0.1)


def test_a_row_per_round(grid):
    frame = results.rounds("grid")
    assert frame[["trial", "round"]].values.tolist() == [
        [NAMES[0], 1], [NAMES[0], 2], [NAMES[0], 3], [NAMES[1], 1], [NAMES[1], 2],
    ]  # fmt: skip
    assert frame["valid_accuracy"].dtype == float
    joined = frame.merge(results.trials("grid")[["exp", "trial", "optimizer.lr"]])
    assert joined["optimizer.lr"].tolist() == [0.1] * 3 + [0.2] * 2


def test_several_experiments_and_paths_make_one_frame(grid, tmp_path, monkeypatch):
    other = plan(tmp_path / "copied", [{"name": "e_0", "overrides": {"a.x": [1, [2]]}}])
    monkeypatch.chdir(tmp_path)
    frame = results.trials("grid", other, "copied")
    assert len(frame) == 5
    assert frame["exp"].tolist()[3:] == [str(other)] * 2
    assert frame.groupby("a.x", dropna=True).size().to_dict() == {(1, (2,)): 2}


def test_an_empty_plan_makes_an_empty_frame(exp_dir):
    plan(exp_dir / "none", [])
    assert len(results.trials("none")) == len(results.rounds("none")) == 0
    assert "status" in results.trials("none")


def test_wrong_names_are_answered_with_the_nearest(grid, exp_dir, tmp_path):
    (exp_dir / "out").symlink_to(tmp_path)
    for name in ("gird", "", "../exp", "grid\0", "out", "a" * 5000, str(tmp_path / "no")):
        with pytest.raises(UserError):
            results.trials(name)
    with pytest.raises(UserError, match="did you mean 'grid'"):
        results.trials("gird")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="no trials in"):
        results.trials(tmp_path / "other")


def test_a_thousand_trials_load_in_seconds(exp_dir):
    import pandas  # noqa: F401  (only reading is measured)

    rows = [{"name": f"e_{n:04d}", "overrides": {"optimizer.lr": n}} for n in range(1000)]
    folder = plan(exp_dir / "many", rows)
    for row in rows:
        trial(folder, row["name"], row["overrides"], [line(3)])
    start = time.process_time()
    assert len(results.trials("many")) == 1000
    assert time.process_time() - start < 3
    text = "".join(json.dumps(line(n, 100)) + "\n" for n in range(1, 101))
    for row in rows:
        (folder / row["name"] / "result.json").write_text(text)
    start = time.process_time()
    assert len(results.rounds("many")) == 100_000
    assert time.process_time() - start < 5


def test_the_command_of_a_trial_that_chose_its_files_names_them(exp_dir):
    rows = [{"name": "e_0000", "overrides": {"include": ["digits/r9/vae", "base/frozen"],
                                             "session.seed": 1}},
            {"name": "e_0001", "overrides": {"include": "-r evil"}}]  # fmt: skip
    plan(exp_dir / "x", rows, spec={"gin": [], "params": []})
    found = results.read("x")
    line, _ = tool.command(found, found.trials[0])
    assert line == "python main.py -g digits/r9/vae base/frozen -p 'session.seed = 1'"
    assert tool.command(found, found.trials[1])[0] is None


# ---- the command line -----------------------------------------------------------------------


def test_ls_shows_what_varies_and_counts(grid, results_command):
    code, out, err = results_command("ls", "grid")
    lines = [text.split() for text in out.splitlines()]
    assert code == 0 and err == ""
    assert lines[0] == ["trial", "lr", "status", "round", "mean_accuracy", "best"]
    assert lines[1] == [NAMES[0], "0.1", "done", "3/3", "0.3", "0.3"]
    assert lines[3] == [NAMES[2], "0.3", "planned", "0", "-", "-"]
    assert out.splitlines()[-1] == "3 trials: 1 done, 1 interrupted, 1 planned"


def test_ls_shows_the_metrics_of_the_search(grid, results_command):
    content = json.loads((grid / "plan.json").read_text())
    content["exp_args"] = {"metric": ["valid_accuracy", "train_loss"], "mode": ["max", "min"]}
    (grid / "plan.json").write_text(json.dumps(content))
    header = results_command("ls", "grid")[1].splitlines()[0].split()
    assert header[4:] == ["valid_accuracy", "best", "train_loss", "best"]
    assert results.read("grid").goals() == [("valid_accuracy", "max"), ("train_loss", "min")]


def test_ls_without_a_name_lists_the_experiments(grid, exp_dir, results_command):
    plan(exp_dir / "study" / "inner", [{"name": "e_0", "overrides": {}}])
    trial(exp_dir / "bare", "e_1", {}, [line(1)])
    (exp_dir / "empty").mkdir()
    code, out, _ = results_command("ls", "--json")
    found = json.loads(out)["experiments"]
    assert code == 0
    assert [(one["exp"], one["trials"]) for one in found] == [
        ("bare", 1), ("grid", 3), ("study/inner", 1),
    ]  # fmt: skip
    assert found[1]["counts"] == {"done": 1, "interrupted": 1, "planned": 1}
    assert [text.split()[0] for text in results_command("ls")[1].splitlines()] == [
        "experiment", "bare", "grid", "study/inner",
    ]  # fmt: skip


def test_nothing_is_dropped_in_silence(grid, results_command):
    with open(grid / NAMES[0] / "result.json", "a") as file:
        file.write('{"round": 4, "valid')
    (grid / NAMES[1] / "result.json").unlink()
    (grid / NAMES[1] / "result.json").mkdir()
    _, out, err = results_command("ls", "grid", "--json")
    told = json.loads(out)
    assert told["torn"] == 1 and len(told["unreadable"]) == 1
    assert [one["trial"] for one in told["trials"]] == NAMES
    _, out, err = results_command("ls", "grid")
    assert "1 damaged line left out" in err and f"unreadable: grid/{NAMES[1]}" in err
    assert results.trials("grid").attrs["torn"] == 1


def test_best_ranks_by_the_last_round(grid, results_command):
    trial(grid, NAMES[2], {}, [line(1, valid_accuracy=0.99), line(2, valid_accuracy=0.25)])
    _, out, err = results_command(
        "best", "grid", "-k", "2", "--metric", "valid_accuracy", "--json"
    )
    told = json.loads(out)
    assert [one["trial"] for one in told["trials"]] == [NAMES[0], NAMES[2]]
    assert "last round" in err
    _, out, _ = results_command("best", "grid", "--metric", "train_loss", "--json")
    assert json.loads(out)["mode"] == "min"
    _, out, _ = results_command("best", "grid", "--mode", "min")
    assert [text.split()[0] for text in out.splitlines()[1:]] == [NAMES[1], NAMES[2], NAMES[0]]


def test_best_says_how_many_it_leaves_out(grid, results_command):
    trial(grid, NAMES[1], {}, [line(1), line(2, diverged=True, done=True, mean_accuracy=None)])
    _, out, err = results_command("best", "grid")
    assert len(out.splitlines()) == 2 and "2 without one left out" in err


MISTAKES = {
    ("ls", "gird"): "did you mean 'grid'",
    ("best", "grid", "--metric", "valid_acuracy"): "did you mean 'valid_accuracy'",
    ("best", "grid", "-k", "0"): "expected 1 or more",
    ("show", "grid"): "has 3 trials",
    ("show", "grid/e_lr=0.2_001"): f"did you mean '{NAMES[1]}'",
    ("show", "gird/e_lr"): "did you mean 'grid'",
    ("diff", "grid", "nothing"): "no experiment 'nothing'",
    ("export", "grid", "--csv", "no/such/folder/x.csv"): "cannot write",
    ("export", "grid", "--parquet", "no/such/folder/x.parquet"): "cannot write",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(grid, results_command, words):
    code, out, err = results_command(*words)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert MISTAKES[words] in err


def test_show_prints_a_command_that_repeats_the_trial(exp_dir, results_command):
    params = {"SynDataset.dataset_choice": "it's $HOME", "augment.size": [0.1, None, True]}
    folder = plan(exp_dir / "odd", [{"name": "e_0", "overrides": params}])
    trial(folder, "e_0", params, [line(1)])
    code, out, _ = results_command("show", "odd/e_0")
    typed = out.splitlines()[-1].strip()
    words = shlex.split(typed)
    args = main.parser().parse_args(words[2:])
    assert code == 0 and words[:2] == ["python", "main.py"]
    assert args.gin_config == ["digits/r9/classify"]
    assert args.gin_param == [
        "optimizer.optim_fn = 'SGD'",
        'SynDataset.dataset_choice = "it\'s $HOME"',
        "augment.size = [0.1, None, True]",
    ]
    told = json.loads(results_command("show", "odd/e_0", "--json")[1])
    assert told["command"] == typed and told["folder"] == str(folder / "e_0")
    assert told["config"]["augment.size"] == "[0.1, None, True]"


@pytest.mark.parametrize("spec", [
    {"gin": ["-a"], "params": []},
    {"gin": ["x;rm"], "params": []},
    {"gin": [], "params": ["--address=1.2.3.4:1"]},
    {"gin": [], "params": ["a.b = 1\n"]},
    {"gin": [], "params": ["a.b = '\x1b'"]},
])  # fmt: skip
def test_show_suggests_no_command_of_a_strangers_plan(grid, results_command, spec):
    rows = [{"name": NAMES[0], "overrides": {}}]
    plan(grid, rows, spec=spec)
    code, out, err = results_command("show", f"grid/{NAMES[0]}", "--json")
    assert code == 0 and json.loads(out)["command"] is None
    assert "no gin file or binding" in err


def test_config_gin_is_read_as_gin_writes_it(grid):
    text = (
        "# Parameters for x:\n# ====\nx.long = \\\n    'a b'\nx.list = \\\n    [1,\n     2]\n"
        "\ny/x.short = %macro\nimport os\n"
    )
    (grid / NAMES[0] / "config.gin").write_text(text)
    found = results.config(results.read("grid").trials[0])
    assert found == {"x.long": "'a b'", "x.list": "[1, 2]", "y/x.short": "%macro"}


def test_diff_of_trials_and_of_experiments(grid, exp_dir, results_command):
    code, out, err = results_command("diff", f"grid/{NAMES[0]}", f"grid/{NAMES[1]}", "--json")
    told = json.loads(out)
    assert code == 0 and err == ""
    assert told["differences"] == [{"name": "optimizer.lr", "a": ["0.1"], "b": ["0.2"]}]
    _, _, err = results_command("diff", f"grid/{NAMES[0]}", f"grid/{NAMES[2]}")
    assert "no config.gin yet" in err
    other = plan(exp_dir / "other", [{"name": "e_0", "overrides": {}}], {"num_samples": 2})
    trial(other, "e_0", {"optimizer.lr": 0.1, "session.seed": 1}, [line(1)])
    told = json.loads(results_command("diff", "grid", "other", "--json")[1])
    differ = {one["name"]: (one["a"], one["b"]) for one in told["differences"]}
    assert differ["exp_args num_samples"] == (None, ["2"])
    assert differ["session.seed"] == (None, ["1"])
    assert differ["optimizer.lr"][1] == ["0.1"] and "0.3" in differ["optimizer.lr"][0]
    assert results_command("diff", "grid", "grid") == (0, "", "no differences\n")


FORMULAS = ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1"]


def test_csv_holds_numbers_as_they_are_and_no_formulas(exp_dir, results_command, tmp_path):
    values = [*FORMULAS, "a,b\nc", -1, -1.5, [1, "="], None, "plain"]
    rows = [{"name": f"e_{n:02d}", "overrides": {"=a.x": value, "b.y": -n}}
            for n, value in enumerate(values)]  # fmt: skip
    plan(exp_dir / "odd", rows)
    code, out, err = results_command("export", "odd", "--csv", tmp_path / "x.csv")
    assert code == 0 and out == "" and "12 trials" in err
    with open(tmp_path / "x.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["'=a.x"] for row in read] == [
        *(f"'{text}" for text in FORMULAS[:-1]), "' =1", "a,b\nc", "'-1", "'-1.5",
        '[1, "="]', "", "plain",
    ]  # fmt: skip
    assert [row["b.y"] for row in read] == [str(-n) for n in range(12)]
    assert results_command("export", "odd", "--csv", "-")[1] == (tmp_path / "x.csv").read_text()


def test_parquet_reads_back(grid, results_command, tmp_path):
    import pandas

    rows = [{"name": name, "overrides": {"a.mixed": value, "a.flag": value is None}}
            for name, value in zip(NAMES, (1, "x", [1, 2]), strict=True)]  # fmt: skip
    plan(grid, rows)
    assert results_command("export", "grid", "--parquet", tmp_path / "x.parquet")[0] == 0
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    assert frame["trial"].tolist() == NAMES
    assert frame["a.mixed"].tolist() == ["1", "x", "[1, 2]"]
    assert frame["a.flag"].dtype == bool
    assert [path.name for path in tmp_path.glob(".x*")] == []


@pytest.mark.slow
def test_neither_torch_nor_ray_nor_pandas_is_needed_to_look(grid, cli):
    for words in (["--help"], ["ls"], ["ls", "grid", "--json"], ["show", f"grid/{NAMES[0]}"]):
        ran = cli(*words, script="misc/results.py")
        assert ran.code == 0 and not {"torch", "ray", "pandas", "gin"} & ran.modules, ran.err
    ran = cli("export", "grid", "--csv", "-", script="misc/results.py")
    assert ran.code == 0 and ran.out.startswith("exp,trial,")
    assert not {"torch", "ray", "gin"} & ran.modules
