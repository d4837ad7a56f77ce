"""The command line as a user types it: mistakes, plans without data, and tiny real runs."""

import dataclasses
import json
import os
import pickle
import re
import shlex
import socket
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import paths
from selfstudy import configure, devices
from selfstudy.configure import Spec
from selfstudy.experiment import local as solo
from selfstudy.experiment import plan as plans
from selfstudy.experiment import summary
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.storage import snapshot
from util.errors import UserError

pytestmark = pytest.mark.slow

SHORT = ("scheduler.milestones = [1, 2]", "session.train_iters = 2", "session.valid_iters = 1",
         "session.test_iters = 1", "ResNet.width = 0.1")  # fmt: skip


@pytest.fixture
def typed(call, folders, offline, monkeypatch):
    """Run a command line in this process; returns (exit code, stdout, stderr)."""
    # A trial's two threads would wait for each other while other tests use the cores.
    monkeypatch.setattr(devices, "use_share", lambda resources: None)
    return partial(call, main.main)


@pytest.fixture
def no_data(tmp_path, monkeypatch, typed) -> Path:
    """A data folder that does not exist, after `typed` has set its own."""
    folder = tmp_path / "nothing"
    monkeypatch.setattr(paths, "DATA_DIR", folder)
    return folder


# ---- mistakes -------------------------------------------------------------------------------

SEE = "; see python main.py --help"

# Command line -> its one line of stderr; {known} stands for a list of known names.
WRONG = [
    ("positional", f"unrecognized arguments: positional{SEE}"),
    ("-x", f"unrecognized arguments: -x{SEE}"),
    ("-e", f"argument -e/--exp_id: expected one argument{SEE}"),
    ("-g", f"argument -g/--gin_config: expected at least one argument{SEE}"),
    ("-g cifar/r9/clasify", "-g: no config/gin/cifar/r9/clasify.gin - did you mean "
                            "'cifar/r9/classify'? {known}"),
    ("-g ../../etc/passwd", "-g: '../../etc/passwd.gin' must be a plain path inside {gin}"),
    ("-g /etc/passwd", "-g: '/etc/passwd.gin' must be a plain path inside {gin}"),
    ("-g base/r9", "'scheduler.milestones' has no value; add -p 'scheduler.milestones = ...'"),
    ("-r grid_serch", "no ray config is called 'grid_serch' - did you mean 'grid_search'? "
                      "{known}"),
    ("-r ../../main", "no ray config is called '../../main' {known}"),
    ("-e ../x", "'../x' must be a plain path inside {exp}"),
    ("-e /tmp/x", "'/tmp/x' must be a plain path inside {exp}"),
    ("-e .", "'.' must be a plain path inside {exp}"),
    ("-e ..", "'..' must be a plain path inside {exp}"),
    ("--resume", "--resume needs the experiment: python main.py -e EXP_ID --resume"),
    ("-e nope --resume", "no experiment 'nope' in {exp}"),
    ("-p 'dataloader.batchsize=3'", "-p 'dataloader.batchsize=3': 'dataloader' has no "
                                    "parameter 'batchsize' - did you mean 'batch_size'? "
                                    "{known}"),
    ("-p 'scheduler.milestones=[5,2]'", "scheduler.milestones = [5.0, 2.0]: expected rising "
                                        "rounds, [5, 25]"),
    ("-p 'scheduler.target_lrs=[0,1]'", "scheduler.target_lrs = [0.0, 1.0]: 2 milestones need "
                                        "3 rates, the first at round 0"),
    ("""-p 'optimizer.optim_fn="Adem"'""", "-p 'optimizer.optim_fn=\"Adem\"': no optimizer is "
     "called 'Adem' - did you mean 'Adam'? {known}"),
    ("-p 'optimizer.momentum=0.9'", "optimizer: Adam takes no 'momentum' {known}"),
    ("""-p 'scheduler.scheduler_fn="StepLR"' 'scheduler.arguments={"step": 3}'""",
     "scheduler: StepLR takes no 'step' - did you mean 'step_size'? {known}"),
    ("""-p 'session.task="RotateTsk"'""", "-p 'session.task=\"RotateTsk\"': no task is called "
     "'RotateTsk' - did you mean 'RotateTask'? {known}"),
    ("""-p 'session.dataset="Fashion"'""", "-p 'session.dataset=\"Fashion\"': no dataset is "
     "called 'Fashion' - did you mean 'FashionMNISTDataset'? {known}"),
    ("""-p 'Wrapper.model_choice="rotat"'""", "-p 'Wrapper.model_choice=\"rotat\"': no "
     "backbone is called 'rotat' - did you mean 'rotate'? {known}"),
    ("""-p 'session.task="RotateTask"'""", "session.task = 'RotateTask' needs "
     "Wrapper.model_choice = 'rotate', not 'resnet'"),
    ("-p 'session.train_iters=0'", "session.train_iters = 0: -1 is all, else a number"),
    ("-p 'ResNet.feat_layer=9'", "ResNet.feat_layer = 9: resnet9 has 4 stages"),
    ("-p 'Wrapper.out_classes=[5]'", "Wrapper.out_classes = [5]: the data have 10 classes of "
                                     "'class'"),
    ("-p 'BaseDataset.semisupervised=5000000'", "BaseDataset.semisupervised is 5000000, "
                                                "expected 1 to 1197 (the training images there "
                                                "are)"),
    ("-p 'ClassifyTask.is_pose=True'", "ClassifyTask needs 'pose' labels and the data have "
     "class; type -p 'BaseDataset.predict_pose = True', with a rendered set"),
    ("""-p 'session.dataset="FolderDataset"'""", "'FolderDataset.folder' has no value; add -p "
                                                 "'FolderDataset.folder = ...'"),
    ("""-p 'session.dataset="SynDataset"' 'SynDataset.dataset_choice="../.."'""",
     "SynDataset.dataset_choice: '../..' must be a plain path inside {data}/syn"),
    ("-g cifar/r9/classify", "CIFAR-10 is not in {data} and could not be downloaded (no "
                             "network): put cifar-10-batches-py or "
                             "cifar-10-python.tar.gz there"),
    ("""-p 'Wrapper.pretrained="nope/x"'""", "no snapshot is called 'nope/x'"),
    ("""-p 'Wrapper.pretrained="../x"'""", "'../x' must be a plain path inside {exp}"),
    ("""-p 'session.restore_session="nope"'""", "no snapshot is called 'nope'"),
]  # fmt: skip


# The same for searches: entries of ray configs, schedulers and search algorithms.
WRONG_SEARCHES = [
    ("--set", "argument --set: expected at least one argument; see python main.py --help"),
    ("--set num_samples", "--set 'num_samples': expected KEY=VALUE, as in num_samples=40"),
    (
        "--set num_sample=3",
        "--set 'num_sample=3': no entry 'num_sample' - did you mean 'num_samples'? {known}",
    ),
    ("--set num_samples=0", "config/ray/single_run.py: 'num_samples' is 0, the least is 1"),
    ("--set num_samples=many", "config/ray/single_run.py: 'num_samples' takes int, not 'many'"),
    (
        "--set checkpoint_at_end=1",
        "config/ray/single_run.py: 'checkpoint_at_end' takes bool, not 1",
    ),
    (
        "--set keep_checkpoints=-1",
        "config/ray/single_run.py: 'keep_checkpoints' is -1, the least is 0",
    ),
    (
        "--set checkpoint_quota=lots",
        "checkpoint_quota = 'lots': expected a size such as '50GB'",
    ),
    ("--set mode=biggest", "config/ray/single_run.py: 'mode' is 'max' or 'min', not 'biggest'"),
    ("--set metric.a=1", "--set 'metric.a=1': metric has no parts"),
    (
        "--set resources_per_trial.tpu=1",
        "resources_per_trial: no 'tpu' - did you mean 'gpu'? {known}",
    ),
    ("--set resources_per_trial.cpu=-1", "resources_per_trial: cpu = -1 is no amount"),
    (
        "--set scheduler=ahsa",
        "ray config: no scheduler is called 'ahsa' - did you mean 'asha'? {known}",
    ),
    (
        "--set scheduler=asha metric=valid_acuracy",
        "ray config: no metric 'valid_acuracy' - did you mean 'valid_accuracy'? {known}",
    ),
    (
        "--set \"scheduler={'name': 'asha', 'grace': 2}\"",
        "ray config: async_hyperband takes no 'grace' - did you mean 'grace_period'? {known}",
    ),
    (
        "--set \"metric=['train_loss']\"",
        "config/ray/single_run.py: each metric needs a mode: ['train_loss'] has 'max'",
    ),
    (
        "--set \"config={'optimizer.lrr': 1}\"",
        "ray config: 'optimizer' has no parameter 'lrr' - did you mean 'lr'? {known}",
    ),
    (
        "--set \"config={'dataloader.batch_size': '128'}\"",
        "ray config: 'dataloader.batch_size' takes int, not \"128\" (str); the default is 128",
    ),
    (
        "-r asha -l",
        "-l runs one trial after another, and asha compares trials as they run: leave -l out, "
        "or add --set scheduler=None search_alg=None",
    ),
    (
        "-r asha --set time_budget_s=-1",
        "config/ray/asha.py: 'time_budget_s' is -1, the least is 0",
    ),
    (
        "-r grid_search --set search_alg=optuna",
        "ray config: 'scheduler.target_lrs' is a tune.grid_search, which a search algorithm "
        "cannot take: write tune.choice, or leave search_alg out",
    ),
    (
        "-r optuna_asha --set config.optimizer.lrr=1",
        "ray config: 'optimizer' has no parameter 'lrr' - did you mean 'lr'? {known}",
    ),
    (
        "-r optuna_asha --set metric=accuracy",
        "ray config: no metric 'accuracy' - did you mean 'test_accuracy'? {known}",
    ),
    (
        "-r pbt --set search_alg=optuna",
        "ray config: population based training draws its own values: leave search_alg out",
    ),
    (
        "-r optuna --set search_alg=optuma",
        "ray config: no search_alg is called 'optuma' - did you mean 'optuna'? {known}",
    ),
    (
        "-r optuna_multi --set scheduler=asha",
        "ray config: several metrics need a search_alg, and a scheduler takes one metric",
    ),
]


WRONG += WRONG_SEARCHES


@pytest.mark.parametrize(("line", "expected"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_command_line_is_one_line_and_starts_nothing(
    line, expected, typed, tmp_path, monkeypatch
):
    monkeypatch.setattr(main.run, "execute", lambda *args: pytest.fail("it was started"))
    code, out, err = typed(*shlex.split(line))
    text = re.sub(r"\(known: .*\)$", "{known}", err.removesuffix("\n"))
    places = {"gin": paths.GIN_DIR, "exp": paths.EXP_DIR, "data": paths.DATA_DIR}
    assert text == "error: " + expected.format(known="{known}", **places)
    assert (code, out) == (2, "") and not (tmp_path / "exp").exists()


# Found by building the session on the device 'meta' and rehearsing one step there.
REHEARSED = {
    "-p 'dataloader.batch_size=0'": "dataloader.batch_size = 0: expected at least 1",
    "-p 'dataloader.num_workers=-3'": "dataloader.num_workers = -3: expected at least 0",
    "-p 'ResNet.width=-1.0'": "ResNet.width = -1.0: expected a positive factor",
    "-p 'ResNet.out_feats=-4'": "the session cannot work: RuntimeError: ",
    "-p 'optimizer.lr=-1.0'": "the session cannot work: ValueError: Invalid learning rate",
    "-p 'optimizer.betas=[0.9]'": "the session cannot work: IndexError",
    """-p 'scheduler.scheduler_fn="StepLR"'""": "argument: 'step_size'",
    """-p 'scheduler.scheduler_fn="ReduceLROnPlateau"' 'session.valid_iters=0'""":
        "scheduler.metric = 'valid_loss' - did you mean 'train_loss'?",
    "-p 'scheduler.target_lrs=[0, -1, 0]'": "rates are not negative",
    "-p 'session.valid_iters=-5'": "session.valid_iters = -5: -1 is all, else a number",
    "-p 'augment.photo_jitter=[1]'": "augment.photo_jitter is [1.0]; it must be four",
    "-p 'Wrapper.run_classifier=False'": "no probe predicts 'class'",
    "-p 'Wrapper.dense_pred=True'": "no probe predicts 'class'",
    "-p 'Wrapper.finetune_selfsup=False' 'Wrapper.run_classifier=False'":
        "nothing is left to train",
    "-g digits/r9/rotate -p 'Wrapper.run_selfsup=False'": "needs Wrapper.run_selfsup = True",
    "-p 'BaseDataset.input_res=4'": "the session cannot work: RuntimeError: ",
}  # fmt: skip


@pytest.mark.parametrize("line", REHEARSED)
def test_what_cannot_work_is_found_before_anything_starts(line, typed, monkeypatch):
    monkeypatch.setattr(main.run, "execute", lambda *args: pytest.fail("it was started"))
    code, out, err = typed(*shlex.split(line))
    *preparing, last = err.splitlines()  # a new resolution prepares the digits first
    assert (code, out) == (2, "") and last.startswith("error: ") and REHEARSED[line] in last
    assert all(text.startswith("preparing ") for text in preparing)


@pytest.mark.parametrize("gin", [main.DEFAULT_GIN, ("digits/r9/rotate",)])
def test_the_next_commands_carry_the_configuration_on(gin):
    spec = configure.Spec(gin, ("ResNet.width = 0.2",))
    saving = RayArgs(checkpoint_at_end=True)
    one = plans.make("x", spec, "single_run", saving, None)
    move, start, *others = summary.next_commands(one, main.DEFAULT_GIN, True)
    assert move == "python misc/move_snapshots.py -e x -m"
    args = main.parser().parse_args(shlex.split(start)[2:])
    assert tuple(args.gin_config or main.DEFAULT_GIN) == gin
    assert args.gin_param == ["ResNet.width = 0.2", 'Wrapper.pretrained = "x"']
    assert any("cifar" in line for line in others)
    many = plans.make("x", spec, "single_run", dataclasses.replace(saving, num_samples=2), None)
    assert summary.next_commands(many, main.DEFAULT_GIN, True) == [
        "python misc/results.py best x",
        "python misc/move_snapshots.py -e x -p '{cfg[session.seed]}' -m",
    ]
    unsaved = plans.make("x", spec, "single_run", RayArgs(num_samples=2), None)
    assert summary.next_commands(unsaved, main.DEFAULT_GIN, True) == [
        "python misc/results.py best x"
    ]
    assert summary.next_commands(many, main.DEFAULT_GIN, False) == [  # no weights to name
        "python misc/results.py best x"
    ]


def test_in_a_process_of_its_own_a_mistake_is_one_line_and_starts_no_ray(cli):
    for args in (
        ("-g", "cifar/r9/clasify"),
        ("-p", 'session.task = "RotateTsk"'),
        ("-r", "grid_search", "-p", "dataloader.batchsize = 3"),
    ):
        start = time.monotonic()
        ran = cli(*args)
        print(f"{shlex.join(args)}: {time.monotonic() - start:.1f} s, {ran.err.strip()}")
        assert (ran.code, ran.out, ran.left) == (2, "", [])
        assert re.fullmatch(r"error: .*did you mean .*\n", ran.err)
        assert not {"ray", "torch", "torchvision"} & set(ran.modules)


# ---- plans, without data or network ---------------------------------------------------------


def test_a_dry_run_prints_the_trial_and_needs_no_data(typed, no_data, tmp_path):
    code, out, err = typed("--dry-run", "-e", "plan", "-g", "cifar/r9/classify")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["trial", "rounds"]
    assert out.splitlines()[1].split() == ["e_0000", "25"]
    assert f"results in {tmp_path}/exp/plan" in out
    assert not no_data.exists() and not (tmp_path / "exp").exists()


def test_a_dry_run_of_a_grid_lists_its_trials_and_starts_no_ray(cli):
    ran = cli("--dry-run", "-r", "grid_search", "-g", "digits/r9/classify")
    assert (ran.code, ran.err, ran.left) == (0, "", [])
    lines = ran.out.splitlines()
    assert "scheduler.target_lrs" in lines[0] and "BaseDataset.semisupervised" in lines[0]
    assert len({line.split()[0] for line in lines[1:7]}) == 6
    assert lines[7].startswith("6 trials, each cpu 1; ")
    assert "torchvision" not in ran.modules


def test_the_printed_configuration_holds_every_value_and_parses_back(
    typed, no_data, tmp_path, monkeypatch
):
    code, out, err = typed("--print-config", "-g", "cifar/r9/classify", "-p",
                           "valid/dataloader.batch_size = 7")  # fmt: skip
    assert (code, err) == (0, "") and not no_data.exists()
    lines = set(out.splitlines())
    assert lines >= {
        "session.dataset = 'CIFARDataset'",
        "scheduler.milestones = [5.0, 25.0]",
        "train/dataloader.batch_size = 512",
        "valid/dataloader.batch_size = 7",
        "CIFARDataset.to_lab = True",  # a default, as are the next
        "BaseDataset.semisupervised = None",
        "Wrapper.pretrained = None",
        "session.seed = 0",
    }
    configure.load(Spec(("cifar/r9/classify",), ("valid/dataloader.batch_size = 7",)))
    parts = configure.would_build("session")
    monkeypatch.setattr(paths, "GIN_DIR", tmp_path)
    (tmp_path / "printed.gin").write_text(out)
    configure.load(Spec(("printed",)))
    assert configure.would_build("session") == parts


def test_without_files_the_digits_are_meant(typed, no_data):
    assert "session.dataset = 'DigitsDataset'" in typed("--print-config")[1]


def test_repeated_flags_add_up_and_the_later_wins(typed, no_data):
    code, out, _ = typed(
        "-g", "digits/r9/classify", "-p", "session.seed = 1", "optimizer.lr = 0.5",
        "-g", "digits/r9/rotate", "-p", "session.seed = 2", "--print-config",
    )  # fmt: skip
    lines = set(out.splitlines())
    assert code == 0 and lines >= {"session.seed = 2", "optimizer.lr = 0.5",
                                   "session.task = 'RotateTask'",  # the second file
                                   "Wrapper.run_selfsup = False"}  # the first one  # fmt: skip


def test_the_line_with_resnet50_dry_runs_and_runs(typed, tmp_path):
    line = ("-p", 'init_resnet.choice = "resnet50"', "dataloader.batch_size = 128")
    code, out, err = typed(*line, "--dry-run")
    assert (code, err) == (0, "") and "e_0000" in out
    short = ("session.train_iters = 1", "session.valid_iters = 0", "session.test_iters = 0",
             "scheduler.milestones = [1]", "scheduler.target_lrs = [0, 0.01]")  # fmt: skip
    code, out, err = typed(*line, *short, "-l", "-e", "deep")
    assert code == 0, err
    weights = snapshot.resolve("deep/e_0000").weights()
    assert any(key.startswith("backbone.encoder.layers.block4.2.") for key in weights)


# ---- experiments that exist -----------------------------------------------------------------


def planned(exp_id: str, *args: str) -> None:
    """Write the plan of an experiment, without running it."""
    args = main.parser().parse_args(["-e", exp_id, *args])
    plan, _ = main.planned(args)
    with plan.lock():
        plan.write()


def test_an_existing_experiment_is_refused_with_what_to_type(typed):
    planned("mine")
    code, out, err = typed("-e", "mine", "-l")
    assert (code, out) == (4, "")
    assert err == ("error: experiment 'mine' exists already: continue it with python main.py "
                   "-e mine --resume, or choose another -e\n")  # fmt: skip
    assert typed("-e", "mine", "--dry-run")[0] == 0  # a look at it is allowed


def test_an_experiment_that_runs_elsewhere_is_refused(typed):
    planned("mine")
    with main.Plan.stored("mine").lock():
        code, _, err = typed("-e", "mine", "--resume", "-l")
    host, pid = socket.gethostname(), os.getpid()
    assert code == 4
    assert re.fullmatch(rf"error: mine is being run by process {pid} on {host} since .*\n", err)


@pytest.mark.parametrize(("flag", "value", "stored"), [
    ("-g", "digits/r9/rotate", "('digits/r9/classify',)"),
    ("-p", "session.seed = 2", "('session.seed = 1',)"),
    ("-r", "grid_search", "single_run"),
])  # fmt: skip
def test_resuming_with_other_flags_is_refused(flag, value, stored, typed):
    planned("mine", "-p", "session.seed = 1")
    code, _, err = typed("-e", "mine", "--resume", flag, value)
    came = value if flag == "-r" else (value,)
    assert code == 2 and err == (
        f"error: --resume: the stored plan of 'mine' has {flag} {stored}, not {came}; "
        f"leave {flag} out, or choose another -e\n"
    )


def test_resuming_with_the_same_flags_runs_what_is_left(typed, tmp_path):
    flags = ("-g", "digits/r9/classify", "-p", *SHORT)
    planned("mine", *flags)
    code, out, _ = typed("-e", "mine", "--resume", "-l", *flags)
    assert code == 0 and "resuming 1 trials: 0 done, 1 to run" in out
    code, out, _ = typed("-e", "mine", "--resume", "-l")
    assert code == 0 and "resuming 1 trials: 1 done, 0 to run" in out
    rounds = [row["round"] for row in rows_of(tmp_path / "exp/mine/e_0000")]
    assert rounds == [1, 2]  # nothing ran twice


def test_the_nearest_experiment_is_named(typed):
    planned("rotate-small")
    code, _, err = typed("-e", "rotate-smal", "--resume")
    assert code == 2
    assert "no experiment 'rotate-smal' in" in err and "did you mean 'rotate-small'?" in err


@pytest.mark.parametrize("name", ["../../outside", "/tmp/selfstudy-outside", ".."])
def test_a_strangers_plan_cannot_name_folders_elsewhere(name, typed, tmp_path, monkeypatch):
    planned("theirs", "-p", *SHORT)
    path = tmp_path / "exp/theirs/plan.json"
    content = json.loads(path.read_text())
    content["rows"][0]["name"] = name
    path.write_text(json.dumps(content))
    started = []
    monkeypatch.setattr(solo, "_run_one", lambda plan, name, *rest: started.append(name))
    code, _, err = typed("-e", "theirs", "--resume", "-l")
    assert not started and code == 2 and err.count("\n") == 1


# ---- runs -----------------------------------------------------------------------------------


def rows_of(trial: Path) -> list[dict]:
    return [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]


def test_a_run_in_this_process_leaves_its_files_and_loads_no_ray(cli, tmp_path):
    """Among a stranger's files that are named like our modules."""
    for name in ("util.py", "paths.py", "selfstudy.py", "gin.py", "main.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file was imported')\n")
    ran = cli("-l", "-e", "tiny", "-p", *SHORT)
    assert ran.code == 0, ran.err
    assert "ray" not in ran.modules and ran.left == []
    assert {"torch", "gin"} <= ran.modules  # so `modules` does tell what was imported
    experiment, trial = tmp_path / "exp" / "tiny", tmp_path / "exp" / "tiny" / "e_0000"
    assert {path.name for path in experiment.iterdir()} >= {"plan.json", "environment.json"}
    names = {re.sub(r"^events\..*", "events", path.name) for path in trial.glob("[!.]*")}
    assert names == {"params.json", "config.gin", "result.json", "events", "checkpoint_000002"}
    kept = {path.name for path in (trial / "checkpoint_000002").iterdir()}
    assert kept == {"snapshot", "config.gin", "card.json"}

    first, last = rows_of(trial)
    assert (first["round"], last["round"], last["done"], last["is_finished"]) == (1, 2, 1, 1)
    assert "test_accuracy" in last and "test_accuracy" not in first
    assert json.loads((trial / "params.json").read_text()) == {}
    environment = json.loads((experiment / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "--exp_id" not in environment["command"] and "-e tiny" in environment["command"]
    assert f"{last['test_accuracy']:.4f}" in ran.out and str(experiment) in ran.out

    following = [line.strip() for line in ran.out.splitlines() if line.startswith("  python ")]
    assert following[0] == "python misc/move_snapshots.py -e tiny -m"
    moved = cli(*shlex.split(following[0])[2:], script="misc/move_snapshots.py")
    assert (moved.code, moved.err) == (0, "")
    assert moved.out.startswith("Moving from: tiny/e_0000") and "to: tiny\n" in moved.out
    assert {"snapshot", "config.gin", "card.json"} <= {p.name for p in experiment.iterdir()}
    assert not {"torch", "ray", "gin"} & moved.modules


def test_what_a_run_offers_next_parses(typed):
    code, out, err = typed("-l", "-e", "tiny", "-p", *SHORT)
    assert code == 0, err
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("  python main")]
    assert len(lines) == 4
    pretrained = next(line for line in lines if "Wrapper.pretrained" in line[-1])
    code, out, err = typed(*pretrained[2:], *SHORT, "-l", "-e", "second")
    assert code == 0 and "weights from tiny/e_0000" in err
    for line in lines:
        assert typed(*line[2:], "--dry-run")[0] == 0


def test_a_run_writes_no_number_that_its_seed_does_not_give(typed, tmp_path):
    keep = ("train_loss", "valid_loss", "test_accuracy")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert typed("-q", "-l", "-e", name, "-p", *SHORT, f"session.seed = {seed}")[0] == 0
    a, b, c = ([row.get(key) for row in rows_of(tmp_path / "exp" / name / "e_0000")
                for key in keep] for name in "abc")  # fmt: skip
    assert a == b and a != c


def test_a_trial_that_fails_is_reported_with_exit_code_3(typed, tmp_path, monkeypatch):
    from selfstudy.train.session import Session

    def broken(self, report):
        raise FloatingPointError("loss is nan\nand more")

    monkeypatch.setattr(Session, "round", broken)
    code, out, err = typed("-l", "-e", "bad", "-p", *SHORT)
    assert code == 3
    reason = "FloatingPointError: loss is nan"
    assert f"e_0000 failed: {reason}\n" in err
    assert f"e_0000 failed: {reason} (see e_0000/error.txt)" in out
    text = (tmp_path / "exp/bad/e_0000/error.txt").read_text()
    assert text.startswith("Traceback") and text.splitlines()[-1] == reason


def test_an_interrupted_run_says_how_to_continue(typed, tmp_path, monkeypatch):
    from selfstudy.train.session import Session

    def interrupted(self, report):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "round", interrupted)
        code, _, err = typed("-l", "-e", "mine", "-p", *SHORT)
    assert code == 130
    line = err.splitlines()[-1]
    assert line == "interrupted; continue with: python main.py -e mine --resume"
    assert typed(*shlex.split(line)[5:], "-l")[0] == 0
    assert [row["round"] for row in rows_of(tmp_path / "exp/mine/e_0000")] == [1, 2]


def test_quiet_prints_no_progress(typed):
    code, out, err = typed("-q", "-l", "-e", "tiny", "-p", *SHORT)
    assert (code, err) == (0, "") and "e_0000" in out


def test_a_folder_that_cannot_be_written_is_one_line(typed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "file" / "exp")
    code, _, err = typed("-l", "-e", "tiny", "-p", *SHORT)
    assert code == 2 and err == (
        f"error: cannot write to {tmp_path}/file/exp/tiny: Not a directory; set SELFSTUDY_EXP "
        "to another folder\n"
    )


# ---- CIFAR in torchvision's layout ----------------------------------------------------------


def cifar_batch(count: int, classes: int, key: str, random: np.random.RandomState) -> dict:
    """A file's content: classes that differ in brightness, as the published files hold them."""
    labels = np.arange(count) % classes
    pixels = random.randint(0, 60, (count, 3072)) + (labels * 195 // classes)[:, None]
    return {
        "data": pixels.astype(np.uint8),
        key: labels.tolist(),
        "filenames": [f"{number}.png" for number in range(count)],
        "batch_label": "testing batch",
    }


def write_cifar(folder: Path, classes: int) -> None:
    """CIFAR-10 or CIFAR-100 as torchvision unpacks it, with few images."""
    random = np.random.RandomState(0)
    if classes == 10:
        folder = folder / "cifar-10-batches-py"
        files = {f"data_batch_{number}": cifar_batch(60, 10, "labels", random)
                 for number in range(1, 6)}  # fmt: skip
        files["test_batch"] = cifar_batch(40, 10, "labels", random)
        files["batches.meta"] = {"label_names": [f"name{label}" for label in range(10)],
                                 "num_cases_per_batch": 60, "num_vis": 3072}  # fmt: skip
    else:
        folder = folder / "cifar-100-python"
        files = {"train": cifar_batch(300, 100, "fine_labels", random),
                 "test": cifar_batch(100, 100, "fine_labels", random)}  # fmt: skip
        for content in files.values():
            content["coarse_labels"] = [label // 5 for label in content["fine_labels"]]
        files["meta"] = {
            "fine_label_names": [f"name{label}" for label in range(100)],
            "coarse_label_names": [f"group{label}" for label in range(20)],
        }
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))  # as published
    (folder / "readme.html").write_text("<html></html>")


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_in_torchvisions_layout_is_prepared_trained_and_evaluated(
    classes, typed, tmp_path, monkeypatch
):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path / "data")
    write_cifar(tmp_path / "data", classes)
    more = ("CIFARDataset.use_100 = True",) if classes == 100 else ()
    code, out, err = typed("-g", "cifar/r9/classify", "-l", "-e", "c", "-p",
                           "dataloader.batch_size=128", "ResNet.width=0.1",
                           "scheduler.milestones=[1,2]", *more)  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "data" / "cifar" / f"data_32_{classes}.h5").is_file()
    first, last = rows_of(tmp_path / "exp/c/e_0000")
    assert 0 <= last["test_accuracy"] <= 1 and 0 <= last["valid_accuracy"] <= 1
    assert last["train_loss"] < first["train_loss"] < np.log(classes) * 1.5
    found = snapshot.resolve("c/e_0000")
    assert found.weights()["probes.fc/class.weight"].shape[0] == classes
    assert found.card["config"]["train/dataloader.batch_size"] == 128


def test_a_start_that_is_refused_leaves_the_name_free(typed, tmp_path, monkeypatch):
    def refused(*args):
        raise UserError("no such cluster")

    monkeypatch.setattr(main.run, "_run", refused)
    for _ in range(2):
        assert typed("-e", "mine", "-l")[::2] == (2, "error: no such cluster\n")
    assert not (tmp_path / "exp/mine/plan.json").exists()
