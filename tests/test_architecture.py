"""The import table is the rule of who may know whom, read from the sources with `ast`."""

import ast
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FREE = set(sys.stdlib_module_names) | {"numpy"}
LEAVES = "util.errors util.files"

# File -> (layer, what it may import beside the standard library and numpy); the first row that
# fits counts. A module may import what its row lists, and nothing from a layer above its own.
TABLE = {
    "paths.py": (0, ""),
    "util/errors.py": (0, ""),
    "util/files.py": (0, "util.errors"),
    "util/schedules.py": (0, ""),
    "util/environment.py": (0, "paths"),
    "util/meters.py": (0, "torch"),
    "util/color.py": (0, "torch"),
    "util/fetch.py": (0, "util.progress util.errors"),
    "util/workers.py": (0, "paths util.errors"),
    "util/parts.py": (0, f"util.hdf5 {LEAVES}"),
    "util/hdf5.py": (0, f"torch h5py filelock {LEAVES}"),
    "util/progress.py": (0, "rich util.live util.errors"),
    "util/live.py": (0, "rich util.errors"),
    "util/manifest.py": (0, "paths util.errors"),
    "util/results.py": (0, "pandas paths util.checkpoints util.manifest util.errors"),
    "util/compare.py": (0, "paths util.results util.utility"),
    "util/listing.py": (0, "util.progress util.results"),
    "util/sheets.py": (0, "pandas util.files"),
    "util/utility.py": (0, ""),
    "util/efficiency.py": (0, "pandas util.utility"),
    "util/figures/*.py": (
        0,
        "matplotlib pandas sklearn util.efficiency util.figures* util.progress util.results "
        f"util.sheets util.utility {LEAVES}",
    ),
    "util/report/*.py": (
        0,
        "jinja2 markupsafe matplotlib pandas paths util.checkpoints util.compare "
        "util.efficiency util.figures* util.listing util.manifest util.progress util.report* "
        f"util.results util.sheets {LEAVES}",
    ),
    "util/published/*.py": (
        0,
        "matplotlib util.errors util.figures* util.progress util.published* util.results "
        "util.utility",
    ),
    "util/vis.py": (0, "util.figures util.published*"),
    "util/mirror.py": (0, f"pyarrow paths util.checkpoints util.fetch {LEAVES}"),
    "util/hparams.py": (0, "tensorboard"),
    "util/checkpoints.py": (0, f"paths {LEAVES}"),
    "util/relocate.py": (0, f"paths util.checkpoints {LEAVES}"),
    "*/__init__.py": (0, ""),
    "selfstudy/types.py": (0, "torch"),
    "selfstudy/registry.py": (0, "util.errors"),
    "selfstudy/values.py": (0, "gin selfstudy.registry util.errors"),
    "selfstudy/configure.py": (0, "gin paths selfstudy.registry selfstudy.values util.errors"),
    "selfstudy/transforms.py": (1, "torch util.color util.errors"),
    "selfstudy/augment.py": (
        1,
        "gin torch selfstudy.distributed selfstudy.transforms selfstudy.types util.color "
        "util.errors",
    ),
    "selfstudy/render/meshes.py": (1, "trimesh selfstudy.render.mesh util.errors"),
    "selfstudy/render/textures.py": (
        1,
        f"PIL selfstudy.render.mesh selfstudy.render.patterns util.fetch {LEAVES}",
    ),
    "selfstudy/render/world.py": (1, f"gin paths selfstudy.render.* {LEAVES}"),
    "selfstudy/render/produce.py": (
        1,
        "selfstudy.render.* util.hdf5 util.parts util.workers util.fetch util.errors",
    ),
    "selfstudy/render/*.py": (1, "selfstudy.render.*"),
    "selfstudy/datasets/*.py": (
        1,
        "gin torch h5py PIL sklearn paths selfstudy.datasets.* selfstudy.registry "
        "selfstudy.render.produce selfstudy.render.world selfstudy.types util.hdf5 util.fetch "
        f"util.environment util.progress {LEAVES}",
    ),
    "selfstudy/distributed.py": (1, "torch util.errors"),
    "selfstudy/loader.py": (
        1,
        "gin torch selfstudy.datasets.base selfstudy.augment selfstudy.distributed "
        "selfstudy.types util.errors",
    ),
    "selfstudy/models/*.py": (
        1,
        "gin torch torchvision selfstudy.distributed selfstudy.models.* selfstudy.registry "
        "selfstudy.snapshot selfstudy.types util.errors",
    ),
    "selfstudy/tasks/*.py": (
        1,
        "gin torch selfstudy.distributed selfstudy.tasks.* selfstudy.registry selfstudy.types "
        "util.errors",
    ),
    "selfstudy/monitor.py": (
        1,
        "gin torch sklearn selfstudy.distributed selfstudy.losses.* selfstudy.tasks.base "
        "selfstudy.types util.errors",
    ),
    "selfstudy/methods/*.py": (
        1,
        "gin torch selfstudy.distributed selfstudy.losses.* selfstudy.methods.* "
        "selfstudy.models.* selfstudy.tasks.* "
        "selfstudy.transforms selfstudy.registry selfstudy.types util.errors",
    ),
    "selfstudy/losses/*.py": (1, "torch selfstudy.losses.* util.errors"),
    "selfstudy/lars.py": (1, "torch"),
    "selfstudy/optim.py": (
        1,
        "gin torch selfstudy.lars selfstudy.registry util.schedules util.errors",
    ),
    "selfstudy/snapshot.py": (1, f"torch paths util.checkpoints {LEAVES}"),
    "selfstudy/session.py": (
        2,
        "gin torch selfstudy.augment selfstudy.distributed selfstudy.loader selfstudy.monitor "
        "selfstudy.optim selfstudy.registry selfstudy.snapshot selfstudy.types util.meters "
        "util.errors",
    ),
    "selfstudy/simulation.py": (2, "gin torch selfstudy.registry util.errors"),
    "selfstudy/devices.py": (1, "torch"),
    "selfstudy/evaluate/*.py": (
        2,
        "torch h5py sklearn selfstudy.augment selfstudy.configure selfstudy.datasets.base "
        "selfstudy.datasets.prepare selfstudy.devices selfstudy.evaluate.* selfstudy.registry "
        "selfstudy.snapshot selfstudy.types util.hdf5 util.fetch util.errors",
    ),
    "selfstudy/parallel.py": (
        3,
        "torch paths selfstudy.configure selfstudy.devices selfstudy.distributed "
        "selfstudy.registry util.files util.errors",
    ),
    "selfstudy/trial.py": (
        3,
        "gin torch paths selfstudy.configure selfstudy.devices selfstudy.monitor "
        "selfstudy.parallel selfstudy.registry selfstudy.session selfstudy.snapshot "
        f"util.checkpoints util.environment util.hparams util.mirror {LEAVES}",
    ),
    "selfstudy/rehearsal.py": (
        3,
        "torch paths selfstudy.configure selfstudy.datasets.base selfstudy.optim "
        "selfstudy.parallel selfstudy.registry selfstudy.trial util.errors",
    ),
    "selfstudy/cost.py": (
        3,
        "torch selfstudy.configure selfstudy.datasets.base selfstudy.devices "
        "selfstudy.registry selfstudy.trial",
    ),
    "selfstudy/pictures.py": (
        3,
        "torch selfstudy.configure selfstudy.devices selfstudy.registry selfstudy.snapshot "
        "selfstudy.tasks.base selfstudy.trial selfstudy.types util.color util.figures* "
        f"{LEAVES}",
    ),
    "selfstudy/rayenv.py": (0, ""),
    "selfstudy/interrupt.py": (4, ""),
    "selfstudy/shares.py": (4, "util.errors"),
    "selfstudy/rayconfig.py": (4, "paths selfstudy.rayenv util.errors"),
    "selfstudy/plan.py": (
        4,
        "filelock paths selfstudy.configure selfstudy.rayconfig selfstudy.registry "
        "selfstudy.values util.environment util.checkpoints util.manifest util.relocate "
        f"{LEAVES}",
    ),
    "selfstudy/disk.py": (4, "selfstudy.plan selfstudy.rayconfig util.checkpoints util.errors"),
    "selfstudy/upkeep.py": (
        4,
        "selfstudy.disk selfstudy.interrupt selfstudy.plan util.checkpoints util.errors "
        "util.mirror util.progress",
    ),
    "selfstudy/search.py": (
        4,
        "ray optuna selfstudy.plan selfstudy.rayenv selfstudy.values util.errors",
    ),
    "selfstudy/preflight.py": (4, "selfstudy.plan selfstudy.rehearsal selfstudy.search"),
    "selfstudy/summary.py": (
        4,
        f"paths selfstudy.configure selfstudy.plan util.manifest util.progress {LEAVES}",
    ),
    "selfstudy/driver.py": (
        4,
        "selfstudy.cluster selfstudy.devices selfstudy.disk selfstudy.interrupt "
        "selfstudy.plan selfstudy.preflight selfstudy.search selfstudy.shares selfstudy.solo "
        "selfstudy.study selfstudy.summary util.environment util.errors util.mirror "
        "util.progress",
    ),
    "selfstudy/stages.py": (
        4,
        "paths selfstudy.configure selfstudy.cost selfstudy.devices selfstudy.disk "
        "selfstudy.driver selfstudy.pictures selfstudy.plan selfstudy.preflight "
        "selfstudy.rayconfig selfstudy.registry selfstudy.shares util.checkpoints "
        "util.environment "
        f"util.progress util.relocate util.report {LEAVES}",
    ),
    "selfstudy/presets.py": (
        5,
        "torch selfstudy.configure selfstudy.devices selfstudy.interrupt selfstudy.plan "
        "selfstudy.preflight selfstudy.rayconfig selfstudy.registry selfstudy.session "
        "selfstudy.shares selfstudy.solo selfstudy.values util.environment util.errors "
        "util.progress",
    ),
    "selfstudy/solo.py": (
        4,
        "selfstudy.devices selfstudy.interrupt selfstudy.plan selfstudy.summary "
        "selfstudy.trial selfstudy.upkeep util.progress",
    ),
    "selfstudy/cluster.py": (
        4,
        "ray paths selfstudy.interrupt selfstudy.rayenv util.environment util.errors",
    ),
    "selfstudy/study.py": (
        4,
        "ray paths selfstudy.devices selfstudy.interrupt selfstudy.plan selfstudy.rayenv "
        "selfstudy.search selfstudy.shares selfstudy.summary selfstudy.trial selfstudy.upkeep "
        "util.checkpoints util.files util.progress",
    ),
    "main.py": (5, "selfstudy.* util.environment util.mirror util.errors"),
    "misc/move_snapshots.py": (5, "util.checkpoints util.relocate util.errors"),
    "misc/*.py": (5, "torch PIL paths selfstudy.* util.*"),
}

GIN_ANYWHERE = {"configurable", "REQUIRED", "config_scope"}
GIN_HOME = "selfstudy/configure.py"
LOAD_HOME = "selfstudy/snapshot.py"
UNPICKLER_HOME = "selfstudy/datasets/cifar.py"
# Questions about CUDA that no device-agnostic call answers: is there bfloat16, cap the memory.
CUDA_HOMES = {"selfstudy/session.py", "selfstudy/devices.py"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"}
FORBIDDEN_KEYWORDS = {("shell", True), ("allow_pickle", True), ("weights_only", False)}
MACHINE_PATH = re.compile(r"""(?<![\w.:/])/(home|root|Users|work|tmp|mnt|scratch)/""")


def sources() -> list[str]:
    found = [ROOT / "main.py", ROOT / "paths.py"]
    for folder in ("selfstudy", "util", "misc"):
        found += (ROOT / folder).rglob("*.py")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def row(name: str) -> tuple[int, list[str]]:
    for pattern, (layer, allowed) in TABLE.items():
        if fnmatchcase(name, pattern):
            return layer, allowed.split()
    raise AssertionError(f"{name} has no row: add one to TABLE in tests/test_architecture.py")


def is_ours(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module; `from selfstudy import loader` counts as 'selfstudy.loader'."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if is_ours(inner) else str(node.module)


def dotted(node: ast.AST) -> str:
    """'a.b.c' of such an expression, else ''."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def layer_of(module: str) -> int:
    """The layer of one of our modules (0 for packages and others' modules)."""
    path = module.replace(".", "/") + ".py"
    return row(path)[0] if (ROOT / path).exists() else 0


def import_faults(name: str, tree: ast.AST) -> list[str]:
    layer, allowed = row(name)
    faults = []
    for module in imports(tree):
        top = module.split(".")[0]
        if top in FREE and not is_ours(module):
            continue
        known = any(fnmatchcase(module, item) or top == item for item in allowed)
        if not known:
            faults.append(f"{name} may not import {module}")
        elif layer_of(module) > layer:
            faults.append(f"{name} (layer {layer}) imports {module} from above")
    return faults


def late_import_faults(name: str, tree: ast.Module) -> list[str]:
    """torchvision takes seconds to import, so only functions that need it may."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    late = [
        module
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in inside
        for module in imports(node)
        if module.split(".")[0] == "torchvision"
    ]
    return [f"{name} imports {module} at its top" for module in late]


def gin_faults(name: str, tree: ast.AST) -> list[str]:
    if name == GIN_HOME:
        return []
    uses = (dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    faults = [f"{name} uses {use}" for use in uses
              if use.startswith("gin.") and use.split(".")[1] not in GIN_ANYWHERE]  # fmt: skip
    names = (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))
    for node in names:
        plain = isinstance(node, ast.Import) and all(
            alias.name != "gin" or not alias.asname for alias in node.names
        )
        if any(module.split(".")[0] == "gin" for module in imports(node)) and not plain:
            faults.append(f"{name}: write 'import gin', so that its calls can be seen")
    return faults


def call_faults(name: str, call: ast.Call) -> list[str]:
    function = dotted(call.func)
    faults = []
    if function in FORBIDDEN_CALLS:
        faults.append(f"{name} calls {function}")
    if function == "torch.load" and name != LOAD_HOME:
        faults.append(f"{name} calls torch.load: use selfstudy.snapshot")
    if isinstance(call.func, ast.Attribute) and call.func.attr == "cuda":
        faults.append(f"{name} calls .cuda(: use .to(device)")
    for keyword in call.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if (keyword.arg, value) in FORBIDDEN_KEYWORDS:
            faults.append(f"{name} passes {keyword.arg}={value}")
    return faults


def unsafe_faults(name: str, tree: ast.AST) -> list[str]:
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            faults += call_faults(name, node)
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f"{name} has a bare except")
        elif isinstance(node, ast.Attribute) and dotted(node) == "torch.cuda":
            if name not in CUDA_HOMES:
                faults.append(f"{name} names torch.cuda: use torch.accelerator or the device")
    if {"pickle", "cloudpickle", "dill", "marshal", "shelve"} & set(imports(tree)):
        if name != UNPICKLER_HOME:
            faults.append(f"{name} imports pickle or the like")
    return faults


@pytest.mark.parametrize("name", sources())
def test_a_file_imports_what_its_row_allows(name):
    tree = parsed(name)
    assert import_faults(name, tree) + late_import_faults(name, tree) == []


@pytest.mark.parametrize("name", sources())
def test_a_file_uses_nothing_unsafe(name):
    tree = parsed(name)
    assert gin_faults(name, tree) + unsafe_faults(name, tree) == []


def test_only_the_study_and_its_search_import_ray():
    users = {
        name for name in sources() if "ray" in {m.split(".")[0] for m in imports(parsed(name))}
    }
    assert users == {f"selfstudy/{name}.py" for name in ("cluster", "search", "study")}
    assert all("ray" not in row(name)[1] for name in sources() if name not in users)


def test_an_unpickler_looks_up_nothing_that_it_does_not_know():
    tree = parsed(UNPICKLER_HOME)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
               and "pickle.Unpickler" in map(dotted, node.bases)]  # fmt: skip
    assert classes, "pickle is for a restricted Unpickler only"
    for cls in classes:
        assert "find_class" in {
            item.name for item in cls.body if isinstance(item, ast.FunctionDef)
        }
    made = [dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "pickle.Unpickler" not in made


def test_no_machine_paths():
    files = [ROOT / name for name in sources()]
    for folder in ("config", "bench", "docs"):
        files += [path for path in (ROOT / folder).rglob("*")
                  if path.suffix in {".py", ".gin", ".md", ".sh"}]  # fmt: skip
    files += [ROOT / "Makefile", ROOT / "README.md"]
    found = [f"{path.relative_to(ROOT)}:{number}" for path in files
             for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
             if MACHINE_PATH.search(line)]  # fmt: skip
    assert found == []


def test_the_table_itself_points_downward():
    for name in sources():
        layer, allowed = row(name)
        above = [item for item in allowed if "*" not in item and layer_of(item) > layer]
        assert above == [], name


FAULTS = {
    "import ray": "may not import ray",
    "from ray import tune": "may not import ray",
    "from selfstudy import study": "may not import selfstudy.study",
    "def f():\n    import selfstudy.trial": "may not import selfstudy.trial",
    "import torchvision": "at its top",
    "if True:\n    from torchvision import models": "at its top",
    "import gin\ngin.parse_config('')": "uses gin.parse_config",
    "import gin\ngin.config.clear_config()": "uses gin.config",
    "import gin as g": "write 'import gin'",
    "from gin import query_parameter": "write 'import gin'",
    "x.cuda()": ".cuda(",
    "import torch\ntorch.cuda.synchronize()": "torch.cuda",
    "import torch\ntorch.load('x')": "torch.load",
    "try:\n    pass\nexcept:\n    pass": "bare except",
    "import pickle": "pickle",
    "from pickle import loads": "pickle",
    "eval('1')": "calls eval",
    "exec('1')": "calls exec",
    "import os\nos.system('x')": "os.system",
    "import subprocess\nsubprocess.run('x', shell=True)": "shell=True",
    "import numpy\nnumpy.load('x', allow_pickle=True)": "allow_pickle=True",
    "f(weights_only=False)": "weights_only=False",
}


@pytest.mark.parametrize("source", FAULTS)
def test_the_rules_find_what_they_forbid(source):
    name, tree = "selfstudy/models/some.py", ast.parse(source)
    faults = import_faults(name, tree) + late_import_faults(name, tree)
    faults += gin_faults(name, tree) + unsafe_faults(name, tree)
    assert any(FAULTS[source] in fault for fault in faults), faults


def test_the_rules_allow_what_is_allowed():
    source = """
import gin
from selfstudy.models.resnet import ResnetModel
def build():
    import torchvision
@gin.configurable(denylist=["info"])
def f(a=gin.REQUIRED):
    with gin.config_scope("train"):
        model.eval()
"""
    name, tree = "selfstudy/models/some.py", ast.parse(source)
    assert import_faults(name, tree) + late_import_faults(name, tree) == []
    assert gin_faults(name, tree) + unsafe_faults(name, tree) == []


def test_a_file_without_a_row_is_a_fault():
    with pytest.raises(AssertionError, match="has no row"):
        row("selfstudy/surprise.py")
