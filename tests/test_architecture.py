"""The import table is the rule of who may know whom, read from the sources with `ast`."""

import ast
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FREE = set(sys.stdlib_module_names) | {"numpy"}

# Files -> (floor, what they may import beside the standard library, numpy and their own
# package); the first row that fits counts. Nothing imports from a floor above its own.
TABLE = {
    "paths.py": (0, ""),
    "selfstudy/types.py selfstudy/devices.py": (0, "torch"),
    "util/vis.py": (5, "selfstudy.analysis*"),
    "util/color.py": (1, "torch util.errors"),
    "util/hdf5.py": (1, "torch h5py filelock util.*"),
    "util/*.py": (1, "paths rich util.*"),
    "selfstudy/registry.py selfstudy/extra.py": (2, "gin paths selfstudy.extra util.errors"),
    "selfstudy/values.py selfstudy/configure.py": (
        2,
        "gin paths selfstudy.extra selfstudy.registry selfstudy.values util.errors",
    ),
    "selfstudy/distributed.py": (2, "torch util.errors"),
    "selfstudy/job.py": (2, "torch selfstudy.registry selfstudy.types"),
    "selfstudy/losses/*.py": (3, "torch util.errors"),
    "selfstudy/storage/*.py": (3, "torch pyarrow paths util.*"),
    "selfstudy/render/*.py": (3, "PIL trimesh paths selfstudy.registry util.*"),
    "selfstudy/data/*.py": (
        4,
        "torch h5py paths selfstudy.distributed selfstudy.job selfstudy.registry "
        "selfstudy.types util.*",
    ),
    "selfstudy/models/*.py": (
        4,
        "torch torchvision selfstudy.distributed selfstudy.registry selfstudy.storage.* "
        "selfstudy.types util.errors",
    ),
    "selfstudy/tasks/*.py": (
        4,
        "torch selfstudy.distributed selfstudy.registry selfstudy.types util.errors",
    ),
    "selfstudy/analysis/*.py": (
        4,
        "jinja2 markupsafe matplotlib pandas sklearn paths selfstudy.storage.* util.*",
    ),
    "selfstudy/datasets/*.py": (
        5,
        "torch PIL sklearn paths selfstudy.data.* selfstudy.registry selfstudy.render.* "
        "selfstudy.types util.*",
    ),
    "selfstudy/methods/*.py": (
        5,
        "torch selfstudy.data.transforms selfstudy.distributed selfstudy.losses.* "
        "selfstudy.models.* selfstudy.registry selfstudy.tasks.* selfstudy.types util.errors",
    ),
    "selfstudy/train/*.py": (
        6,
        "torch sklearn tensorboard paths selfstudy.configure selfstudy.data.* "
        "selfstudy.devices selfstudy.distributed selfstudy.job selfstudy.losses.* "
        "selfstudy.registry selfstudy.storage.* selfstudy.tasks.* selfstudy.types util.*",
    ),
    "selfstudy/trial.py": (
        7,
        "paths selfstudy.configure selfstudy.devices selfstudy.job selfstudy.registry "
        "selfstudy.storage.* selfstudy.train.* util.*",
    ),
    "selfstudy/evaluate/*.py": (
        8,
        "torch h5py sklearn selfstudy.analysis.* selfstudy.configure selfstudy.data.* "
        "selfstudy.devices selfstudy.job selfstudy.registry selfstudy.storage.* "
        "selfstudy.tasks.* selfstudy.train.* selfstudy.types util.*",
    ),
    "selfstudy/experiment/*.py": (
        8,
        "torch filelock paths selfstudy.configure selfstudy.data.* selfstudy.devices "
        "selfstudy.extra selfstudy.job selfstudy.registry selfstudy.storage.* "
        "selfstudy.train.* selfstudy.trial selfstudy.values util.*",
    ),
    "selfstudy/tune/*.py": (
        9,
        "ray optuna psutil paths selfstudy.devices selfstudy.experiment.* selfstudy.storage.* "
        "selfstudy.trial selfstudy.values util.*",
    ),
    "selfstudy/presets.py": (
        9,
        "torch selfstudy.configure selfstudy.devices selfstudy.experiment.* "
        "selfstudy.registry selfstudy.train.* selfstudy.values util.*",
    ),
    "selfstudy/run.py": (
        10,
        "selfstudy.devices selfstudy.experiment.* selfstudy.storage.* selfstudy.tune.* util.*",
    ),
    "selfstudy/study.py": (11, "paths selfstudy.* util.*"),
    "main.py": (12, "paths selfstudy.* util.*"),
    "misc/*.py": (12, "torch PIL paths selfstudy.* util.*"),
    "selfstudy/__init__.py": (0, ""),
}

LOAD_HOME = "selfstudy/storage/snapshot.py"
UNPICKLER_HOME = "selfstudy/datasets/cifar.py"
# Questions about CUDA that no device-agnostic call answers: is there bfloat16, cap the memory.
CUDA_HOMES = {"selfstudy/devices.py"}
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
    for patterns, (layer, allowed) in TABLE.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
            return layer, allowed.split()
    raise AssertionError(f"{name} has no row: add one to TABLE in tests/test_architecture.py")


def is_ours(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module; `from selfstudy import trial` counts as 'selfstudy.trial'."""
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


def package_of(module: str) -> str:
    """'selfstudy.data' of a module in there; a module beside the packages is one by itself."""
    parts = module.split(".")
    inside = (ROOT / "/".join(parts[:2])).is_dir()
    return ".".join(parts[:2]) if inside or parts[0] == "selfstudy" else parts[0]


def import_faults(name: str, tree: ast.AST) -> list[str]:
    layer, allowed = row(name)
    faults = []
    for module in imports(tree):
        top = module.split(".")[0]
        if top in FREE and not is_ours(module):
            continue
        known = any(fnmatchcase(module, item) or top == item for item in allowed)
        if not known and package_of(module) != package_of(name[:-3].replace("/", ".")):
            faults.append(f"{name} may not import {module}")
        elif layer_of(module) > layer:
            faults.append(f"{name} (floor {layer}) imports {module} from above")
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


def call_faults(name: str, call: ast.Call) -> list[str]:
    function = dotted(call.func)
    faults = []
    if function in FORBIDDEN_CALLS:
        faults.append(f"{name} calls {function}")
    if function == "torch.load" and name != LOAD_HOME:
        faults.append(f"{name} calls torch.load: use selfstudy.storage.snapshot")
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
    assert unsafe_faults(name, tree) == []


def test_packages_import_each_other_in_no_circle():
    graph: dict[str, set[str]] = {}
    for name in sources():
        own = package_of(name[:-3].replace("/", "."))
        if name == "util/vis.py":  # a name that users type, in front of the analysis
            own = "util.vis"
        ours = {package_of(module) for module in imports(parsed(name)) if is_ours(module)}
        graph.setdefault(own, set()).update(ours - {own})
    tuple(TopologicalSorter(graph).static_order())  # a CycleError names the circle


def test_only_one_package_imports_ray():
    users = {
        name for name in sources() if "ray" in {m.split(".")[0] for m in imports(parsed(name))}
    }
    assert {Path(name).parent.as_posix() for name in users} == {"selfstudy/tune"}
    assert [pattern for pattern, (_, may) in TABLE.items() if "ray" in may.split()] == [
        "selfstudy/tune/*.py"
    ]


def test_the_table_has_at_most_thirty_rows_that_all_fit_something():
    assert len(TABLE) <= 30
    patterns = [pattern for key in TABLE for pattern in key.split()]
    unused = [pattern for pattern in patterns
              if not any(fnmatchcase(name, pattern) for name in sources())]  # fmt: skip
    assert unused == []


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
    "import gin": "may not import gin",
    "from gin import query_parameter": "may not import gin",
    "from selfstudy.tune import runner": "may not import selfstudy.tune.runner",
    "def f():\n    import selfstudy.trial": "may not import selfstudy.trial",
    "import torchvision": "at its top",
    "if True:\n    from torchvision import models": "at its top",
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
    faults += unsafe_faults(name, tree)
    assert any(FAULTS[source] in fault for fault in faults), faults


def test_the_rules_allow_what_is_allowed():
    source = """
from selfstudy.models.resnet import ResnetModel
from selfstudy.registry import REQUIRED, config_scope, configurable
def build():
    import torchvision
@configurable(denylist=["info"])
def f(a=REQUIRED):
    with config_scope("train"):
        model.eval()
"""
    name, tree = "selfstudy/models/some.py", ast.parse(source)
    assert import_faults(name, tree) + late_import_faults(name, tree) == []
    assert unsafe_faults(name, tree) == []


def test_a_file_without_a_row_is_a_fault():
    with pytest.raises(AssertionError, match="has no row"):
        row("selfstudy/surprise.py")
