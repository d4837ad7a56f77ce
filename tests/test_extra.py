"""Folders of SELFSTUDY_EXTRA: names, registrations, refusals, and trials that use them."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import gin
import numpy as np
import pytest
import torch
from later import Later
from test_docs import DATASET, ENCODER, METHOD, ROOT, blocks
from test_study import numbers

import main
import paths
from bench.storm import SPENT
from selfstudy import configure, extra, registry
from selfstudy.experiment import rayconfig
from util import environment
from util.errors import UserError

cluster = Later("selfstudy.tune.cluster")

EVALUATION = ROOT / "docs" / "how-to" / "add-an-evaluation.md"
PART = """
from selfstudy.registry import configurable, register
@register("encoder")
@configurable(denylist=["in_channels", "choice"])
class {name}:
    \"\"\"Nothing.\"\"\"
    def __init__(self, in_channels: int, choice: str, size: int = 1):
        self.size = size
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An extra folder; what its files register is forgotten afterwards."""
    place = tmp_path / "mine"
    for name in ("gin", "ray"):
        (place / name).mkdir(parents=True)
    monkeypatch.setattr(paths, "EXTRA_DIRS", (place,))
    registry.discover()
    known = {kind: dict(found) for kind, found in registry._known.items()}
    monkeypatch.setattr(registry, "_known", registry.defaultdict(dict, known))
    selectors = gin.config._REGISTRY.copy()
    caches = (environment.code, environment.git, environment.versions)
    for cache in caches:  # what earlier tests of this process have asked
        cache.cache_clear()
    yield place
    for cache in caches:
        cache.cache_clear()
    gin.config._REGISTRY = selectors


def refusal(act, *args) -> str:
    with pytest.raises(UserError) as error:
        act(*args)
    assert error.value.code == 2
    return error.value.text


# ---- names ----------------------------------------------------------------------------------


def test_gin_files_of_both_include_each_other(folder, tmp_path, monkeypatch):
    (folder / "gin" / "mine").mkdir()
    (folder / "gin" / "base").mkdir()
    (folder / "gin" / "base" / "part.gin").write_text("session.seed = 7\n")
    (folder / "gin" / "mine" / "run.gin").write_text(
        "include 'digits/r9/classify.gin'\ninclude 'base/part'\n"
    )
    configure.load(configure.Spec(("mine/run",)))
    assert configure.current_bindings()["session.seed"] == 7
    assert configure.current_bindings()["session.dataset"] == "DigitsDataset"
    configure.load(configure.Spec(("digits/r9/classify",)), {"include": "mine/run"})
    assert configure.current_bindings()["session.seed"] == 7
    assert "mine/run" in configure.gin_files() and "base/part" not in configure.gin_files()
    ours = tmp_path / "gin"
    ours.mkdir()
    (ours / "top.gin").write_text("include 'base/part.gin'\n")
    monkeypatch.setattr(paths, "GIN_DIR", ours)
    configure.load(configure.Spec(("top",)))
    assert configure.current_bindings()["session.seed"] == 7


def test_mistakes_in_a_file_carry_its_path(folder):
    path = folder / "gin" / "wrong.gin"
    path.write_text("session.seed = 1\nsession.sed = 1\n")
    spec = configure.Spec(("wrong",))
    assert refusal(configure.load, spec).startswith(f"{path}:2: 'session' has no parameter")
    path.write_text("include 'wrong'\n")
    assert refusal(configure.load, spec) == f"{path}:1: {path} includes itself"
    (folder / "ray" / "wrong.py").write_text("exp_args = {'stopp': 1}\n")
    text = refusal(rayconfig.exp_args, "wrong")
    assert text.startswith(f"{folder}/ray/wrong.py: no entry 'stopp'")
    assert "'wrong'" in refusal(rayconfig.ray_file, "wrongs")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../../secret"])
def test_names_stay_inside(folder, name):
    (folder.parent / "secret.gin").write_text("session.seed = 1\n")
    text = refusal(configure.load, configure.Spec((name,)))
    assert "must be a plain path inside" in text


@pytest.mark.parametrize(("kind", "name", "act"), [
    ("gin", "digits/r9/classify.gin", lambda: configure.load(
        configure.Spec(("digits/r9/classify",)))),
    ("ray", "grid_search.py", lambda: rayconfig.exp_args("grid_search")),
])  # fmt: skip
def test_a_name_in_two_places_is_refused_with_both(folder, kind, name, act):
    path = folder / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(paths.CONFIG_DIR / kind / name, path)
    assert f"is both {paths.CONFIG_DIR / kind / name} and {path}" in refusal(act)


def test_files_are_known_by_name_and_by_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, end in (("gin", ".gin"), ("ray", ".py")):
        (folder / kind / "a").mkdir()
        (folder / kind / f"a/mine.v2{end}").touch()
    (tmp_path / "link").symlink_to(folder)
    ours = "config/gin/digits/r9/classify"
    for text in ("digits/r9/classify", "digits/r9/classify.gin", ours, f"{ours}.gin",
                 f"{ROOT}/{ours}.gin", f"{os.path.relpath(ROOT)}/{ours}.gin"):  # fmt: skip
        assert extra.gin_name(text) == "digits/r9/classify"
    for text in ("a/mine.v2", "mine/gin/a/mine.v2.gin", f"{folder}/gin/a/mine.v2.gin",
                 "./mine/../mine/gin/a/mine.v2.gin", "link/gin/a/mine.v2.gin"):  # fmt: skip
        assert extra.gin_name(text) == "a/mine.v2"
    for text in ("mine/ray/a/mine.v2.py", f"{folder}/ray/a/mine.v2"):
        assert extra.ray_name(text) == "a/mine.v2"
    assert extra.ray_name("config/ray/grid_search.py") == "grid_search"
    for text in ("no/such", "/etc/passwd", "../mine"):
        assert extra.gin_name(text) == text


def test_the_command_line_takes_paths_and_plans_names(folder, call, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
    (folder / "gin" / "mine.gin").write_text("include 'simulation/search.gin'\n")
    args = main.parser().parse_args(["-g", f"{folder}/gin/mine.gin", "-e", "x",
                                     "-r", "config/ray/grid_search.py"])  # fmt: skip
    assert (args.gin_config, args.ray_config) == (["mine"], "grid_search")
    words = ["-e", "x", "-l", "-q", "-g", folder / "gin" / "mine.gin", "-r",
             "config/ray/single_run.py", "-p", "simulation.rounds = 1"]  # fmt: skip
    code, _, err = call(main.main, *words)
    assert code == 0, err
    plan = json.loads((tmp_path / "exp" / "x" / "plan.json").read_text())
    assert (plan["spec"]["gin"], plan["ray"]) == (["mine"], "single_run")
    (code,) = json.loads((tmp_path / "exp" / "x" / "environment.json").read_text())["code"][1:]
    assert code["folder"] == str(folder) and list(code["changed"]) == ["gin/mine.gin"]
    again = ["-e", "x", "-l", "-q", "--resume", "-g", folder / "gin" / "mine.gin"]
    assert call(main.main, *again)[0] == 0
    assert "--resume: the stored plan" in call(main.main, *again[:-1], "digits/r9/moco")[2]


# ---- Python files ---------------------------------------------------------------------------


def test_files_register_in_order_and_import_one_another(folder):
    (folder / "b.py").write_text("from ._names import NAME\nfrom . import a\n"
                                 + PART.format(name="Second"))  # fmt: skip
    (folder / "a.py").write_text("import util.errors\nassert hasattr(util.errors, 'nearest')\n"
                                 + PART.format(name="First"))  # fmt: skip
    (folder / "_names.py").write_text("NAME = 3\n")
    (folder / "util.py").write_text("")  # replaces nothing
    (folder / "ray" / "never.py").write_text("raise ValueError\n")
    before = list(sys.path)
    registry.discover()
    registry.discover()  # once
    assert {"First", "Second"} <= set(registry.names("encoder"))
    assert sys.path == before and sys.modules["util"].__file__ == f"{ROOT}/util/__init__.py"
    configure.load(configure.Spec((), ("First.size = 3",)))
    assert registry.get("encoder", "First")(3, "First").size == 3
    assert "First.size = 3" in configure.operative_text()


BROKEN = {
    "raise ValueError('no\\nway')": "{path}:1: ValueError: no",
    "\nimport no_such_package": "{path}:2: ModuleNotFoundError: No module named",
    "import sys\nsys.exit(0)": "{path}:2: SystemExit: 0",
    "x = = 1": "{path}: SyntaxError: invalid syntax (broken.py, line 1)",
    PART.format(name="ViT"): "{path}:4: ValueError: 'ViT' is already the configurable "
                             "selfstudy.models.vit.ViT",
    "from selfstudy.registry import register\n@register('encoder', 'vit')\nclass Mine: ...":
        "{path}:2: ValueError: encoder 'vit' is both <class 'selfstudy.models.vit.ViT'> and ",
    "from util.errors import UserError\nraise UserError('buy a GPU')": "{path}:2: buy a GPU",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_fails_is_one_line_with_its_path(folder, text):
    path = folder / "broken.py"
    path.write_text(text)
    message = refusal(registry.discover)
    assert message.startswith(BROKEN[text].format(path=path)) and "\n" not in message


def test_two_extra_files_cannot_register_one_name(folder):
    (folder / "one.py").write_text(PART.format(name="Same"))
    (folder / "two.py").write_text(PART.format(name="Same"))
    text = refusal(registry.discover)
    assert text.startswith(f"{folder}/two.py:") and "'Same' is already" in text


def test_a_missing_folder_is_said_by_every_command(call, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXTRA_DIRS", (tmp_path / "none",))
    expected = f"error: SELFSTUDY_EXTRA: no folder {tmp_path}/none; correct it, or unset the "
    for words in ([], ["-g", "digits/r9/classify"], ["-r", "grid_search", "--dry-run"]):
        code, out, err = call(main.main, *words)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(expected)


def test_folders_are_read_from_the_variable(tmp_path):
    code = (
        "import paths; print(*paths.EXTRA_DIRS, paths.exported()['SELFSTUDY_EXTRA'], sep='|')"
    )
    given = os.pathsep.join(["a", "", "/b", "~/c", f"{tmp_path}/a"])
    env = os.environ | {"SELFSTUDY_EXTRA": given, "HOME": "/h", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True,
                          capture_output=True, check=True)  # fmt: skip
    named = [f"{tmp_path}/a", "/b", "/h/c"]
    assert done.stdout.strip().split("|") == [*named, os.pathsep.join(named)]


# ---- other processes ------------------------------------------------------------------------


def test_workers_of_a_running_cluster_get_absolute_folders(folder, monkeypatch):
    monkeypatch.delenv("SELFSTUDY_EXP", raising=False)
    monkeypatch.setenv("SELFSTUDY_DATA", "data")
    found = cluster._forwarded()
    assert found["SELFSTUDY_EXTRA"] == str(folder)
    assert found["SELFSTUDY_DATA"] == str(paths.DATA_DIR) and "SELFSTUDY_EXP" not in found
    before = dict(os.environ)
    with cluster._environment(paths.exported()):
        assert os.environ["SELFSTUDY_EXTRA"] == str(folder)
        assert os.environ["SELFSTUDY_EXP"] == str(paths.EXP_DIR)
    assert dict(os.environ) == before


@pytest.fixture
def mine(tmp_path, monkeypatch, shared_data):
    """A folder with the pages' job, method, data set and encoder; the data lie in `data/`."""
    place, data = tmp_path / "mine", tmp_path / "data"
    (place / "ray").mkdir(parents=True)
    for page, module, gin_file in (
        (METHOD, "tico", "digits/r9/tico"),
        (DATASET, "tiles", "tiles/r9/classify"),
        (ENCODER, "timm_encoder", "digits/timm"),
    ):
        text = page.read_text(encoding="utf-8")
        (place / f"{module}.py").write_text(blocks(text, "python")[0])
        path = place / "gin" / f"{gin_file}.gin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(blocks(text, "gin")[0])
    text = blocks(EVALUATION.read_text(encoding="utf-8"), "python")[0]
    for old, new in (('"evaluate"', '"mine"'), ("FrozenAccuracy", "MyAccuracy")):
        text = text.replace(old, new)
    (place / "my_job.py").write_text(text)
    shutil.copytree(shared_data, data)
    (data / "tiles").mkdir()
    images = np.random.RandomState(0).randint(0, 256, (100, 3, 16, 16)).astype(np.uint8)
    np.savez(data / "tiles" / "tiles.npz", images=images, labels=np.arange(100) % 2)
    monkeypatch.setenv("SELFSTUDY_EXTRA", str(place))
    monkeypatch.setenv("SELFSTUDY_DATA", str(data))
    monkeypatch.setenv("SELFSTUDY_EXP", str(tmp_path / "exp"))
    return place


def run(*words, cwd, **env):
    done = subprocess.run(words, cwd=cwd, env=os.environ | env, capture_output=True, text=True,
                          timeout=SPENT)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


SWEEP = """
from ray import tune
INCLUDED = ["digits/r9/tico", "digits/timm", "tiles/r9/classify"]
exp_args = {
    "checkpoint_at_end": True,
    "config": {"include": tune.grid_search(INCLUDED)},
}
"""
TINY = ["-p", "session.train_iters = 2", "session.valid_iters = 1", "session.test_iters = 1",
        "scheduler.milestones = [1, 2]", "Timm.weights = None", "ResNet.width = 0.125",
        "projector.hidden = 16", "projector.out = 8", "monitor.every = 0",
        "dataloader.batch_size = 16"]  # fmt: skip


@pytest.mark.slow
def test_everything_of_an_extra_folder_works_with_ray_and_without(mine, tmp_path):
    pytest.importorskip("timm")
    (mine / "ray" / "mine.py").write_text(SWEEP)
    (mine / "util.py").write_text("VALUE = 1\n")  # of the name of a package of ours
    script = str(ROOT / "main.py")
    sweep = ["-r", "mine/ray/mine.py", *TINY]
    for name, *flags in (("ray",), ("local", "-l")):
        words = [sys.executable, script, "-e", name, *flags, *sweep]
        relative = {"SELFSTUDY_EXTRA": "mine", "SELFSTUDY_DATA": "data", "SELFSTUDY_EXP": "exp"}
        code, out, err = run(*words, cwd=tmp_path, **relative)
        assert code == 0, err
    trials = sorted(path.name for path in (tmp_path / "exp" / "ray").glob("e_*"))
    assert len(trials) == 3
    for name in trials:
        rows = numbers(tmp_path / "exp" / "ray" / name)
        assert len(rows) == 2 and rows == numbers(tmp_path / "exp" / "local" / name)
    kept = json.loads((tmp_path / "exp" / "ray" / "environment.json").read_text())["code"][1]
    assert kept["folder"] == str(mine) and "ray/mine.py" in kept["changed"]


@pytest.mark.slow
def test_processes_of_a_trial_and_a_job_see_the_extra_folder(mine, tmp_path):
    scores = ["-p", "trial.job = 'mine'", "mine.snapshot = 'two'", "mine.labels = [10]",
              "mine.dataset = 'TilesDataset'"]  # fmt: skip
    for name, flags in (("two", [*TINY, "trial.processes = 2"]), ("scores", scores)):
        words = ["-l", "-e", name, "-g", "tiles/r9/classify", *flags]
        code, _, err = run(sys.executable, str(ROOT / "main.py"), *words, cwd=tmp_path)
        assert code == 0, err
    (trained,) = (tmp_path / "exp" / "two").glob("e_*")
    (scored,) = (tmp_path / "exp" / "scores").glob("e_*")
    assert len(numbers(trained)) == 2 and numbers(scored)[0]["labels"] == 10


@pytest.mark.slow
def test_the_page_about_encoders_runs_as_written(mine, tmp_path):
    pytest.importorskip("timm")
    text = ENCODER.read_text(encoding="utf-8")
    make, use = blocks(text, "text")
    (line,) = make.splitlines()
    words = shlex.split(line.replace("pretrained=True", "pretrained=False"))  # no network
    weights = tmp_path / "data" / "weights"
    weights.mkdir()
    assert run(sys.executable, *words[1:], cwd=weights)[0] == 0
    first, *commands = use.splitlines()
    assert first == "export SELFSTUDY_EXTRA=mine"
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "main.py"]
        local = [] if "-l" in words else ["-l"]
        tiny = ["scheduler.milestones = [1, 2]", "session.train_iters = 2",
                "session.valid_iters = 1", "session.test_iters = 1"]  # fmt: skip
        code, out, err = run(sys.executable, str(ROOT / "main.py"), *words[2:], *local, "-p",
                             *tiny, cwd=tmp_path, SELFSTUDY_EXTRA="mine")  # fmt: skip
        assert code == 0, err
    trained = torch.load(weights / "resnet18.pt", weights_only=True)
    for name, same in (("probes", True), ("finetuned", False), ("untrained", False)):
        (path,) = (tmp_path / "exp" / name).glob("e_*/checkpoint_*/snapshot")
        model = torch.load(path, weights_only=True)["model"]
        found = model["backbone.encoder.net.conv1.weight"]
        assert torch.equal(found, trained["conv1.weight"]) == same, name
