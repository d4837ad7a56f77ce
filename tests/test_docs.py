"""What the documentation says is there: parameters, flags, files, links, the example's code."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import main
from selfstudy import configure, registry
from selfstudy import study as stages
from selfstudy.experiment import rayconfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
DATASET = ROOT / "docs" / "how-to" / "add-a-dataset.md"
METHOD = ROOT / "docs" / "how-to" / "add-a-method.md"
ENCODER = ROOT / "docs" / "how-to" / "add-an-encoder.md"
FAULTS = (ROOT / "docs" / "explanation" / "fault-model.md").read_text(encoding="utf-8")


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def console() -> list[tuple[str, list[str]]]:
    """(script, arguments) of every python command in a console block."""
    lines = [line for path in PAGES for block in blocks(path.read_text("utf-8"), "console")
             for line in block.splitlines() if line.startswith("python ")]  # fmt: skip
    return [(words[1], words[2:]) for words in map(shlex.split, lines)]


@pytest.fixture(scope="module")
def reference():
    return runpy.run_path(str(ROOT / "docs" / "make_reference.py"), run_name="reference")


def test_the_reference_is_up_to_date(reference):
    committed = text("reference/gin-parameters.md")
    assert committed == reference["page"](), "run: python docs/make_reference.py"


def test_every_parameter_has_a_meaning():
    lines = [line for line in text("reference/gin-parameters.md").splitlines() if "| `" in line]
    bare = [line.split("|")[1].strip() for line in lines if not line.split("|")[-2].strip()]
    assert bare == [], "write what it means under Args: in the docstring"


def test_meanings_join_lines_and_share_several_names(reference):
    def documented():
        """First.

        Args:
            one: a, that
                goes on: here.
            two, three: b.

        Raises:
            four: not an argument.
        """

    found = reference["meanings"](documented)
    assert found == {"one": "a, that goes on: here.", "two": "b.", "three": "b."}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links
               if "://" not in link and not (path.parent / link).exists()]  # fmt: skip
    assert missing == []


def test_the_map_of_the_house_has_every_package_and_module_of_the_root():
    rows = re.findall(r"^\| (`[^|]+`) \|", text("explanation/design.md"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(?:selfstudy/)?([\w/.]+)`", row)}
    root = ROOT / "selfstudy"
    packages = {f"{path.parent.name}/" for path in root.glob("*/__init__.py")}
    modules = {path.name for path in root.glob("*.py")} - {"__init__.py"}
    assert packages | modules <= named
    gone = {name for name in named if name.endswith((".py", "/"))
            and not any((base / name).exists() for base in (ROOT, root))}  # fmt: skip
    assert gone == set()


def test_the_index_lists_every_page():
    listed = {ROOT / "docs" / link for link in re.findall(r"\]\(([^)#]+)", text("README.md"))}
    assert listed == set(DOCS) - {ROOT / "docs" / "README.md"}


def test_commands_parse_and_what_they_bind_exists():
    registry.discover()
    seen = 0
    for script, words in console():
        assert (ROOT / script).exists()
        if script == "main.py":
            args = main.parser().parse_args(words)
            if args.ray_config and rayconfig.is_study(args.ray_config):
                stages.make("x", args.ray_config, tuple(args.settings), tuple(args.gin_param))
            configure.load(configure.Spec(tuple(args.gin_config), tuple(args.gin_param)))
            seen += 1
        elif script == "misc/data.py" and "-p" in words:
            configure.load(configure.Spec((), (words[words.index("-p") + 1],)))
    assert seen > 10


def test_bindings_in_the_text_exist():
    """Also those in prose and in files, such as `session.test_every = 1`."""
    registry.discover()
    prose = "\n".join(path.read_text("utf-8") for path in [*PAGES, ROOT / "README.md"]
                      if path not in (DATASET, METHOD, ENCODER))  # fmt: skip
    inline = re.findall(r"`((?:\w+/)?\w+\.\w+ = [^`]+)`", prose)
    bound = "".join(blocks(prose, "gin")).splitlines()
    lines = [line.partition("#")[0].strip() for line in bound if "include" not in line]
    assert inline and lines
    for binding in inline + lines:
        configure.load(configure.Spec((), (binding,)))


def documented_flags(chapter: str) -> set[str]:
    """The flags in the tables of a chapter of cli.md."""
    body = re.search(rf"^## {re.escape(chapter)}\n(.*?)(?=^## |\Z)", text("reference/cli.md"),
                     re.DOTALL | re.MULTILINE)[1]  # fmt: skip
    cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `-")]
    return {flag for cell in cells for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", cell)}


def test_the_flags_of_main_are_documented():
    known = {name for action in main.parser()._actions for name in action.option_strings}
    assert documented_flags("main.py") == known


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "misc").glob("*.py")))
def test_the_flags_of_the_tools_are_documented(cli, script):
    options = cli("--help", script=f"misc/{script}").out.partition("options:\n")[2]
    named = re.findall(r"^  (-.*?)(?:  |$)", options, re.MULTILINE)
    known = {flag for line in named for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line)}
    assert documented_flags(f"misc/{script}") == known


def test_the_targets_of_make_are_documented():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    assert set(re.findall(r"^\| `make ([a-z-]+)` \|", text("reference/cli.md"), re.M)) == known


def test_the_entries_of_a_ray_config_are_documented():
    rows = re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", text("reference/ray-config.md"), re.M)
    told = {name: re.sub(r'"', "'", default) for name, default in rows}
    assert told == {name: str(default) for name, default in rayconfig.DEFAULTS.items()}


def test_the_example_of_a_ray_config_is_the_shipped_one():
    shipped = (ROOT / "config" / "ray" / "grid_search.py").read_text(encoding="utf-8")
    (example,) = blocks(text("reference/ray-config.md"), "python")
    assert shipped.endswith(example)


def test_the_tests_of_the_fault_model_exist():
    found = re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", FAULTS)
    assert len(found) > 20
    for file, names in found:
        known = re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text("utf-8"), re.M)
        assert set(re.findall(r"\w+", names)) <= set(known), file
    rows = [line for line in FAULTS.splitlines() if line.startswith("| ")][2:]
    assert all("`test_" in row for row in rows)


CHECK = """
import sys
import paths
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiles
paths.GIN_DIR, paths.DATA_DIR = Path(sys.argv[1]) / "gin", Path(sys.argv[1])
from selfstudy import configure
from selfstudy.experiment import rehearsal
rehearsal.check(configure.Spec(("tiles/r9/classify",)), {})
data = tiles.TilesDataset("train")
print(data.info.rows, data.classes)
"""


@pytest.mark.slow
def test_the_example_data_set_works(tmp_path):
    page = DATASET.read_text(encoding="utf-8")
    (module,), (gin_file,) = blocks(page, "python"), blocks(page, "gin")
    (tmp_path / "tiles.py").write_text(module)
    (tmp_path / "gin" / "tiles" / "r9").mkdir(parents=True)
    (tmp_path / "gin" / "tiles" / "r9" / "classify.gin").write_text(gin_file)
    shutil.copytree(ROOT / "config" / "gin" / "base", tmp_path / "gin" / "base")
    (tmp_path / "tiles").mkdir()
    images = np.random.RandomState(0).randint(0, 256, (100, 3, 20, 20)).astype(np.uint8)
    np.savez(tmp_path / "tiles" / "tiles.npz", images=images, labels=np.arange(100) % 2)
    command = [sys.executable, "-c", CHECK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("{'train': 81, 'valid': 9, 'test': 10} ['plain', 'patterned']\n")


PLUGIN = """
from pathlib import Path
import paths
import selfstudy.methods
folder = Path(__file__).parent
selfstudy.methods.__path__.append(str(folder / "methods"))
paths.GIN_DIR = folder / "gin"
"""


@pytest.mark.slow
def test_the_example_method_passes_the_tests_of_all_methods(tmp_path):
    page = METHOD.read_text(encoding="utf-8")
    (module,), (gin_file,) = blocks(page, "python"), blocks(page, "gin")
    assert len(module.splitlines()) <= 60
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "tico.py").write_text(module)
    shutil.copytree(ROOT / "config" / "gin", tmp_path / "gin")
    (tmp_path / "gin" / "digits" / "r9" / "tico.gin").write_text(gin_file)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider",
               "tests/test_methods.py", "-k", "tico"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 9
