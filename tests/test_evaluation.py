"""Evaluations as jobs, and the contract that all jobs keep."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import paths
from bench.storm import SPENT
from selfstudy import registry
from selfstudy.configure import Spec
from selfstudy.evaluate.job import Evaluation
from selfstudy.experiment import rehearsal
from selfstudy.job import Job
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.trial import Trial
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-to" / "add-an-evaluation.md"
SMALL = ("scheduler.milestones = [1, 2]",)
SCORE = ("evaluate.snapshot = 'first'", "evaluate.labels = [20, 50, 100]")
FILES = ("eval/frozen", "base/digits")

registry.discover()


def members() -> set[str]:
    """What the contract asks for: its methods, properties and annotated attributes."""
    methods = {name for name in vars(Job) if not name.startswith("_")}
    return methods | set(Job.__annotations__)


def test_the_contract_has_what_the_program_asks_for():
    assert {"rounds", "round", "rehearse", "state_dict", "seed", "data", "adopt"} <= members()


@pytest.mark.parametrize("name", registry.names("job"))
def test_every_job_keeps_the_contract(name):
    cls = registry.get("job", name)
    code = "".join(inspect.getsource(part) for part in cls.__mro__[:-1])
    for member in members():
        assert hasattr(cls, member) or f"self.{member}" in code, member
    for member, asked in vars(Job).items():
        if inspect.isfunction(asked) and not member.startswith("_"):
            wanted = list(inspect.signature(asked).parameters)
            assert list(inspect.signature(getattr(cls, member)).parameters) == wanted, member


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shared_data):
    """An experiments' folder with the snapshot `first`."""
    folder = tmp_path_factory.mktemp("experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "EXP_DIR", folder)
        patch.setattr(paths, "DATA_DIR", shared_data)
        policy = CheckpointPolicy({}, 0, True)
        one = Trial(Spec(("digits/r9/classify",), SMALL), {}, folder / "first" / "e_0", policy,
                    device="cpu")  # fmt: skip
        while not one.done:
            one.step()
    return folder


@pytest.fixture
def experiments(trained, shared_data, monkeypatch):
    monkeypatch.setattr(paths, "EXP_DIR", trained)
    monkeypatch.setattr(paths, "DATA_DIR", shared_data)
    return trained


def rows(folder: Path) -> list[dict]:
    """The result lines, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / paths.RESULT).read_text().splitlines()]
    clock = {"round_s", "total_s", "time", "memory_mb"}
    return [{key: item for key, item in line.items() if key not in clock} for line in lines]


def run(folder: Path, stop_after: int = 99) -> Trial:
    count = 0

    def stopping() -> bool:
        return count >= stop_after

    policy = CheckpointPolicy({}, 1, True)
    trial = Trial(Spec(FILES, SCORE), {}, folder, policy, device="cpu", stopping=stopping)
    while not trial.done and not trial.step().get("interrupted"):
        count += 1
    trial.close()
    return trial


def test_each_round_scores_one_number_of_labels(experiments, tmp_path):
    assert run(tmp_path / "a").done
    lines = rows(tmp_path / "a")
    assert [line["labels"] for line in lines] == [20, 50, 100]
    assert all(0.5 < line["test_accuracy"] <= 1 for line in lines)
    assert [line["mean_accuracy"] for line in lines] == [
        line["valid_accuracy"] for line in lines
    ]
    best = [max(line["valid_accuracy"] for line in lines[: n + 1]) for n in range(3)]
    assert [line["best_accuracy"] for line in lines] == best


def test_a_resumed_evaluation_goes_on_with_the_next_cell(experiments, tmp_path):
    run(tmp_path / "whole")
    assert not run(tmp_path / "parts", stop_after=1).done
    assert len(rows(tmp_path / "parts")) == 1
    assert run(tmp_path / "parts").done
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_the_check_says_what_it_needs_reads_and_leaves(experiments):
    found = rehearsal.check(Spec(FILES, SCORE), {})
    assert found.rounds == 3 and {"valid_accuracy", "test_accuracy"} <= set(found.metrics)
    assert list(found.data) == ["digits/data_16.h5"] and not found.leaves_weights
    with pytest.raises(UserError, match="evaluate.snapshot' has no value"):
        rehearsal.check(Spec(FILES, ()), {})
    with pytest.raises(UserError, match="5000 labels, expected 1 to 1197"):
        rehearsal.check(Spec(FILES, (SCORE[0], "evaluate.labels = [5000]")), {})
    with pytest.raises(UserError, match="no snapshot|there is no"):
        rehearsal.check(Spec(FILES, ("evaluate.snapshot = 'nothing'",)), {})


def test_an_evaluation_cannot_adopt_what_another_has_learnt():
    with pytest.raises(UserError, match="learns nothing"):
        Evaluation(0, 1).adopt({})


def test_the_page_shows_the_job_as_it_is():
    page = PAGE.read_text(encoding="utf-8")
    source = (ROOT / "selfstudy" / "evaluate" / "frozen.py").read_text(encoding="utf-8")
    assert f"```python\n{source}```" in page


# ---- the page's job, in a folder of one's own ----------------------------------------------

WAIT = """
    def _wait(self, report):
        here = Path(__file__).parent
        (here / "waiting").touch()
        while not (here / "go").exists():
            report("waiting", 0, 1)
            time.sleep(0.05)


"""


@pytest.fixture
def mine(tmp_path) -> Path:
    """The page's code under names of its own; before its second cell it waits for a file."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for old, new in (
        ('"evaluate"', '"mine"'),
        ("class FrozenAccuracy", "class Mine"),
        ("from typing", "import time\nfrom pathlib import Path\nfrom typing"),
        ("        columns = {}\n", "        if number == 1:\n            self._wait(report)\n"
                                  "        columns = {}\n"),
    ):  # fmt: skip
        assert old in code
        code = code.replace(old, new)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_evaluation.py").write_text(
        code.rstrip() + "\n" + WAIT.rstrip() + "\n"
    )
    return tmp_path / "mine"


def until(holds, seconds: float = SPENT) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(holds())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-l",), ()], ids=["local", "ray"])
def test_the_page_s_job_is_interrupted_and_resumed(flags, mine, trained, shared_data, tmp_path):
    env = os.environ | {
        "SELFSTUDY_EXTRA": str(mine), "SELFSTUDY_EXP": str(tmp_path / "exp"),
        "SELFSTUDY_DATA": str(shared_data),
    }  # fmt: skip
    shutil.copytree(trained / "first", tmp_path / "exp" / "first")
    scores = [text.replace("evaluate.", "mine.") for text in SCORE]
    start = [sys.executable, str(ROOT / "main.py"), "-e", "scores", *flags]
    new = ["-g", "base/digits", "-p", "trial.job = 'mine'", *scores]
    command = subprocess.Popen([*start, *new], env=env, cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert until(lambda: (mine / "waiting").exists() or command.poll() is not None)
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=SPENT)
    assert command.returncode == 130, out
    (folder,) = (tmp_path / "exp" / "scores").glob("e_*")
    assert [line["labels"] for line in rows(folder)] == [20]
    (mine / "go").touch()
    done = subprocess.run([*start, "--resume"], env=env, cwd=tmp_path, text=True,
                          capture_output=True, timeout=SPENT)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "EXP_DIR", tmp_path / "exp")
        patch.setattr(paths, "DATA_DIR", shared_data)
        run(tmp_path / "shipped")
    assert rows(folder) == rows(tmp_path / "shipped")
