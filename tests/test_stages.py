"""A study of two stages, in this process: named snapshots, resumption, what cannot work."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

import main
import paths
from selfstudy import run as driver
from selfstudy import study as stages
from selfstudy.analysis import results
from selfstudy.configure import Spec
from selfstudy.experiment import duration as cost
from selfstudy.experiment import rayconfig
from selfstudy.train import preview
from util import files
from util.errors import UserError

FILE = """
presets = {
    "small": {"methods": ["rotate", "simclr"], "labels": [20, 40], "seeds": 1, "lr": 0.003},
    "large": {"methods": ["rotate"], "labels": [20], "seeds": 5, "lr": 0.003},
}


def study(exp, methods, labels, seeds, lr):
    size = {"BaseDataset.input_res": 16, "ResNet.width": 0.125, "session.train_iters": 2,
            "scheduler.milestones": [1, 2], "dataloader.batch_size": 16}
    each = {"checkpoint_at_end": True}
    return {
        "question": "Does it work?",
        "stages": {
            "pretrain": each | {
                "trials": [size | {"include": f"digits/r9/{method}",
                                   "scheduler.target_lrs": [0, lr, 0]} for method in methods],
                "move": "{cfg[Wrapper.model_choice]}",
            },
            "finetune": each | {
                "trials": [size | {"include": "digits/r9/classify", "session.seed": seed,
                                   "BaseDataset.semisupervised": amount,
                                   "Wrapper.pretrained": method and f"{exp}/pretrain/{method}"}
                           for amount in labels for seed in range(seeds)
                           for method in [None, *methods]],
            },
        },
    }
"""


@pytest.fixture
def file(folders, monkeypatch):
    monkeypatch.setattr(paths, "RAY_DIR", folders / "ray")
    path = folders / "ray" / "tiny.py"
    path.parent.mkdir()
    path.write_text(FILE)
    return path


def planned(exp_id, *settings, params=()):
    return stages.make(exp_id, "tiny", settings, params)


def run(study, resumed=False):
    checked = stages.check(study, prepare=True, resumed=resumed)
    return stages.run(study, checked, driver.RunOptions(local=True, quiet=True))


def numbers(exp_id):
    """Last result of each trial without times."""
    found = results.read(exp_id).trials
    timed = ("images_per_s", "round_s", "total_s", "time", "memory_mb")
    return {trial.name: {k: v for k, v in trial.last.items() if k not in timed}
            for trial in found}  # fmt: skip


def test_a_study_from_nothing_to_its_report(file, capsys):
    assert run(planned("u")) == 0
    assert json.loads((paths.EXP_DIR / "u" / paths.STUDY).read_text())["stages"] == [
        "pretrain", "finetune"]  # fmt: skip
    for method in ("rotate", "simclr"):
        assert (paths.EXP_DIR / "u/pretrain" / method / paths.CARD).is_file()
    frame = results.trials("u/finetune")
    assert list(frame["status"]) == ["done"] * 6
    assert set(frame["Wrapper.pretrained"].dropna()) == {
        "u/pretrain/rotate",
        "u/pretrain/simclr",
    }
    page = (paths.EXP_DIR / "u" / stages.REPORT).read_text()
    assert "Does it work?" in page and "simclr" in page
    out = capsys.readouterr().out
    assert "stage 1 of 2: pretrain, 2 trials" in out and "stage 2 of 2: finetune, 6" in out
    with pytest.raises(UserError, match="exists already") as error:
        run(planned("u"))
    assert error.value.code == 4


def test_interrupted_and_resumed_it_finds_the_same(file, monkeypatch):
    assert run(planned("whole", "labels=[20]")) == 0
    # Interrupted after the second trial of the second stage, and before that in the first.
    for stop_after in (1, 2):
        study = planned("cut", "labels=[20]") if stop_after == 1 else stages.stored("cut")
        begun = []

        def say(self, name, begun=begun, limit=stop_after):
            begun.append(name)
            if len(begun) > limit:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("util.progress.ProgressTable.start", say)
            assert run(study, resumed=stop_after > 1) == 130
    # A process of its own, which has imported nothing of what the plans need.
    start = ("import sys, pathlib, paths; paths.RAY_DIR = pathlib.Path(sys.argv.pop(1)); "
             "import main; main.main()")  # fmt: skip
    words = [sys.executable, "-c", start, str(file.parent), "-e", "cut", "--resume", "-l", "-q"]
    folders = {"SELFSTUDY_EXP": str(paths.EXP_DIR), "SELFSTUDY_DATA": str(paths.DATA_DIR)}
    done = subprocess.run(words, env=os.environ | folders, cwd=paths.ROOT, text=True,
                          capture_output=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stage in ("pretrain", "finetune"):
        assert [list(line.values()) for line in numbers(f"cut/{stage}").values()] == [
            list(line.values()) for line in numbers(f"whole/{stage}").values()
        ]
    pretrained = files.read_lines(paths.EXP_DIR / "cut/pretrain" / paths.JOURNAL)
    done = [line["name"] for line in pretrained if line.get("status") == "done"]
    assert len(done) == len(set(done)) == 2  # each pretraining was done once


def test_what_waits_for_a_pretraining_that_diverged(file, capsys):
    file.write_text(FILE.replace("[0, lr, 0]", '[0, lr if method == "rotate" else 1e30, 0]'))
    assert run(planned("u", "labels=[20]")) == 3
    frame = results.trials("u/finetune").set_index("Wrapper.pretrained")
    assert frame.loc["u/pretrain/rotate", "status"] == "done"
    assert frame.loc["u/pretrain/simclr", "status"] == "planned"
    assert not (paths.EXP_DIR / "u/pretrain/simclr").exists()
    assert "1 of 3 trials cannot begin" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_tells_the_stages(file, capsys):
    study = planned("u")
    checked = stages.check(study, prepare=False, resumed=False)
    stages.show(study, checked, driver.RunOptions(local=True))
    out = capsys.readouterr().out
    assert "Does it work?" in out and "2 semisupervised x 3 pretrained" in out
    assert "from a few minibatches of each kind of trial" in out
    assert not paths.EXP_DIR.exists()


def test_a_trial_on_a_cluster_may_want_more_than_there_is_here(file, capsys):
    wanted = '"checkpoint_at_end": True, "resources_per_trial": {"cpu": 4096}}'
    file.write_text(FILE.replace('"checkpoint_at_end": True}', wanted))
    study = planned("u", "labels=[20]")
    checked = stages.check(study, prepare=False, resumed=False)
    stages.show(study, checked, driver.RunOptions(address="head:6379"))
    assert "time: not known: no data here, or a cluster" in capsys.readouterr().out
    with pytest.raises(UserError, match="cpu 4096 can never be met"):
        stages.show(study, checked, driver.RunOptions(local=True))


def test_settings_change_a_preset(file):
    study = planned("u", "preset=large", "seeds=2")
    assert [len(plan.rows) for _, plan in study.stages] == [1, 4]
    assert study.chosen["seeds"] == 2 and study.chosen["preset"] == "large"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("preset=smal", "did you mean 'small'"),
        ("sedes=3", "did you mean 'seeds'"),
        ("seeds=many", "expected such as 1"),
        ("labels=20", "expected such as \\[20, 40\\]"),
    ],
)
def test_settings_that_are_none(file, setting, words):
    with pytest.raises(UserError, match=words):
        planned("u", setting)


def test_a_snapshot_that_no_stage_makes(file):
    file.write_text(FILE.replace("pretrain/{method}", "pretrain/the_{method}"))
    with pytest.raises(
        UserError, match="no earlier stage makes the snapshot 'u/pretrain/the_r"
    ):
        stages.check(planned("u"), prepare=True, resumed=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FILE.replace('"trials": [size | {"include": f', '"trails": [size | {"include": f'),
         "no entry 'trails'"),
        (FILE.replace('each = {"', 'each = {"scheduler": "asha", "'), "takes no search"),
        (FILE.replace("def study(exp, methods", "def study(exp, method"), "TypeError"),
        (FILE.replace('"question"', '"ask"'), "KeyError"),
    ],
)  # fmt: skip
def test_files_that_cannot_work(file, text, words):
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        planned("u")


def test_a_file_that_has_changed_is_told(file):
    study = planned("u")
    study.write()
    file.write_text(FILE + "# more\n")
    with pytest.raises(UserError, match="has changed since 'u' was planned"):
        stages.stored("u")
    assert stages.stored("u", accept_changes=True).question == "Does it work?"


@pytest.mark.parametrize("flags", [["-g", "digits/r9/classify"], ["--print-config"]])
def test_flags_that_a_study_does_not_take(file, flags):
    args = main.parser().parse_args(["-e", "u", "-r", "tiny", *flags])
    with pytest.raises(UserError, match="is a study"):
        main.run_study(args, "tiny")


@pytest.mark.parametrize("preset", ["smoke", "mini", "paper"])
def test_the_utility_study_asks_for_what_it_says(preset):
    question, chosen, (pretrain, finetune) = rayconfig.study(
        "studies/utility", "u", [f"preset={preset}"]
    )
    variants, methods = len(chosen["variants"]), len(chosen["methods"])
    assert len(pretrain.trials) == variants * methods
    cells = variants * (methods + 1) * len(chosen["labels"]) * chosen["seeds"]
    assert len(finetune.trials) == cells
    starts = {trial["Wrapper.pretrained"] for trial in finetune.trials}
    assert len(starts) == variants * methods + 1
    for trial in finetune.trials:  # never the network of another variant
        start = trial["Wrapper.pretrained"]
        assert start is None or start.endswith("/" + trial["SynDataset.dataset_choice"])
        assert trial["session.seed"] == trial["BaseDataset.label_seed"]
        halves = trial.get("Wrapper.model_choice"), trial.get("ResNet.is_half")
        assert halves == (("cmc", True) if "/cmc/" in str(start) else (None, None))


def test_the_example_of_the_documentation_is_a_study(file):
    page = (paths.ROOT / "docs/how-to/studies.md").read_text(encoding="utf-8")
    file.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    study = planned("u", "labels=[20]")
    assert [len(checked.rounds) for checked in stages.check(study, True, False)] == [2, 3]


# ---- cost -----------------------------------------------------------------------------------


def test_cost_counts_all_images_of_all_rounds():
    @dataclasses.dataclass
    class Loader:
        batch_size: int
        views: int
        dataset: object

        def __len__(self):
            return 7

    class Data:
        rows = list(range(100))

    class Fake:
        device = type("cpu", (), {"type": "cpu"})
        rounds, test_every = 5, 0

        def __init__(self):
            self.iters = {"train": -1, "valid": -1, "test": 2}
            self.loaders = {"train": Loader(256, 2, Data), "valid": Loader(8, 1, Data),
                            "test": Loader(8, 1, Data)}  # fmt: skip

        def round(self):
            assert self.loaders.keys() == {"train"} and self.iters["train"] == preview.STEPS
            assert self.loaders["train"].batch_size == preview.SMALL
            return {"images_per_s": 10.0}

    images = 5 * 7 * 256 * 2 + (5 * 100 + 16) / 3
    assert preview.seconds(Fake()) == pytest.approx(images / 10)


def test_cost_of_a_real_trial_and_of_data_that_are_not_there(folders):
    spec = Spec(("digits/r9/classify",), ("ResNet.width = 0.125", "BaseDataset.input_res = 16"))
    known = cost.seconds(spec, {}, {"cpu": 1})
    assert known and 0 < known < 600
    assert cost.seconds(spec, {"BaseDataset.input_res": 24}, {"cpu": 1}) is None
