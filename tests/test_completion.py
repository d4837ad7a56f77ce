import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main
from misc import completion
from selfstudy.experiment import rayconfig

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash") or pytest.skip("needs bash", allow_module_level=True)
GIN = {path.relative_to(ROOT / "config/gin").with_suffix("").as_posix()
       for path in (ROOT / "config/gin").rglob("*.gin")}  # fmt: skip
LEAVES = {name for name in GIN if not name.startswith("base/")}
# Splits a line as readline does, asks for completions of its last word and prints them.
ASK = """
source "$1"
[ -n "${ZSH_VERSION:-}" ] && emulate sh && setopt kshglob noshglob braceexpand nokshautoload
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
_selfstudy python
for reply in "${COMPREPLY[@]}"; do printf '%s\\n' "$reply"; done
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script for each shell, printed by the command once."""
    folder = tmp_path_factory.mktemp("completion")
    command = [sys.executable, str(ROOT / "misc/completion.py"), "bash"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert not printed.stderr
    (folder / "bash").write_text(printed.stdout)
    body = printed.stdout.removeprefix(completion.HEAD["bash"])
    (folder / "zsh").write_text(completion.HEAD["zsh"] + body)
    return folder


@pytest.fixture(params=["bash", "zsh"])
def complete(request, scripts, tmp_path):
    """Completions of the last of some words, in the project's folder and no Python at hand."""
    shell = shutil.which(request.param)
    if not shell:
        pytest.skip(f"needs {request.param}")
    experiments = tmp_path / "exp"
    for name in ("grid/e_lr=0.1_0000", "grid/e_lr=0.2_0001", "greedy", ".hidden"):
        (experiments / name).mkdir(parents=True)
    (experiments / "green.txt").touch()
    ask = tmp_path / "ask"
    ask.write_text(ASK)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("find", "sed", "tr", "mv", "rm"):  # the last two are for compinit
        (tools / tool).symlink_to(shutil.which(tool))
    env = {"PATH": str(tools), "SELFSTUDY_EXP": str(experiments), "HOME": str(tmp_path)}

    def ask_shell(*words: str, cwd: Path = ROOT, **more: str) -> list[str]:
        quiet = ["-f"] if request.param == "zsh" else ["--norc"]
        command = [shell, *quiet, str(ask), str(scripts / request.param), "python", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd,
                              env=env | more)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        found = done.stdout.splitlines()
        assert len(set(found)) == len(found)
        return found

    ask_shell.experiments = experiments
    return ask_shell


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def test_flags(complete):
    everything = flags_of(main.parser())
    assert {"--resume", "--set", "-g"} <= everything
    assert set(complete("main.py", "-")) == everything
    assert set(complete("main.py", "-l", "--re")) == {"--resume"}
    assert set(complete("main.py", "")) == everything
    assert set(complete("misc/data.py", "verify", "digits", "--o")) == {"--output"}
    assert {"--json", "-k", "--metric"} <= set(complete("misc/results.py", "best", "grid", "-"))
    assert "-k" not in complete("misc/results.py", "ls", "-")


def test_gin_files_without_the_parts_they_include(complete):
    assert set(complete("main.py", "-g", "")) == LEAVES
    assert set(complete("main.py", "-g", "digits/r9/classify", "fash")) == {
        name for name in LEAVES if name.startswith("fash")
    }
    assert set(complete("misc/data.py", "show", "cifar", "--gin_config", "ci")) == {
        name for name in LEAVES if name.startswith("ci")
    }


def test_ray_configs_one_only(complete):
    known = {path.stem for path in (ROOT / "config/ray").glob("*.py")}
    assert set(complete("main.py", "-r", "")) >= known
    assert complete("main.py", "-r", "grid_s") == ["grid_search"]
    assert "--resume" in complete("main.py", "-r", "grid_search", "")


def test_files_of_extra_folders(complete, tmp_path):
    for name in ("one/gin/mine/run.gin", "one/gin/base/part.gin", "one/ray/sweep.py",
                 "two/gin/$(touch pwned).gin", "two/gin/mine/more.gin", "two/mine.py",
                 "gin/none.gin"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = {"SELFSTUDY_EXTRA": f"{tmp_path}/one::{tmp_path}/missing:{tmp_path}/two"}
    assert set(complete("main.py", "-g", "", **given)) == LEAVES | {"mine/run", "mine/more"}
    assert complete("main.py", "-r", "swe", **given) == ["sweep"]
    relative = complete(f"{ROOT}/main.py", "-g", "mi", cwd=tmp_path, SELFSTUDY_EXTRA="one")
    assert relative == ["mine/run"]


def test_experiments_and_trials(complete):
    assert set(complete("main.py", "--resume", "-e", "")) == {"grid", "greedy"}
    assert complete("misc/move_snapshots.py", "-e", "gri") == ["grid"]
    assert set(complete("misc/results.py", "ls", "grid", "g")) == {"grid", "greedy"}
    assert set(complete("misc/results.py", "show", "grid/")) == {
        "grid/e_lr=0.1_0000",
        "grid/e_lr=0.2_0001",
    }
    assert set(complete("misc/results.py", "diff", "greedy", "gri")) == {"grid"}


def test_parameters_quoted_scoped_or_plain(complete):
    assert "dataloader.batch_size=" in complete("main.py", "-p", "")
    assert complete("main.py", "-p", "dataloader.batch_s") == ["dataloader.batch_size="]
    assert complete("main.py", "-p", "'dataloader.batch_s") == ["dataloader.batch_size="]
    assert complete("main.py", "-p", '"valid/dataloader.batch_s') == [
        "valid/dataloader.batch_size="
    ]
    assert complete("main.py", "-p", "session.seed = 1", "dataloader.batch_s") == [
        "dataloader.batch_size="
    ]
    found = set(complete("main.py", "-p", ""))
    assert len(found) > 30 and all(re.fullmatch(r"\w+(\.\w+)+=", name) for name in found)


def test_entries_of_the_ray_config(complete):
    found = complete("main.py", "--set", "")
    assert {name.rstrip("=.") for name in found} == rayconfig.DEFAULTS.keys() - {"config"}
    assert complete("main.py", "--set", "num_samples=4", "resources") == [
        "resources_per_trial."
    ]


def test_choices_and_data_sets(complete):
    assert set(complete("misc/data.py", "")) == {"prepare", "show", "verify"}
    assert "DigitsDataset" in complete("misc/data.py", "verify", "D")
    assert set(complete("misc/results.py", "best", "grid", "--mode", "m")) == {"max", "min"}
    assert complete("misc/results.py", "be") == ["best"]
    assert complete("misc/completion.py", "z") == ["zsh"]


def test_files_are_left_to_the_shell(complete):
    assert complete("misc/data.py", "show", "digits", "-o", "") == []
    assert complete("misc/results.py", "export", "grid", "--csv", "") == []


def test_words_that_the_shell_splits_at_equal_signs(complete):
    """Bash hands out 'a=b' as three words and replaces the last; zsh has one word."""
    assert complete("main.py", "--gin_config=digits/r9/c") == [
        "--gin_config=digits/r9/classify"
    ]
    assert complete("misc/results.py", "show", "grid/e_lr=0.2") == ["grid/e_lr=0.2_0001"]
    assert complete("main.py", "--gin_config", "=", "digits/r9/c") == ["digits/r9/classify"]
    assert complete("misc/results.py", "show", "grid/e_lr", "=", "0.2") == ["0.2_0001"]
    assert set(complete("misc/results.py", "show", "grid/e_lr", "=")) == {
        "0.1_0000",
        "0.2_0001",
    }
    assert complete("main.py", "-p", "session.seed", "=") == []
    assert complete("main.py", "-p", "session.seed", "=", "3") == []
    assert complete("main.py", "-p", "session.seed", "=", "3", "dataloader.batch_s") == [
        "dataloader.batch_size="
    ]


@pytest.mark.parametrize("where, word", [
    ("docs", "../main.py"),
    ("docs", "./../main.py"),
    ("/", f"{ROOT}/main.py"),
    (".", "./main.py"),
    ("docs", "../misc/data.py"),
])  # fmt: skip
def test_the_project_is_that_of_the_script(complete, where, word):
    words = [word, "show", "cifar"] if "data" in word else [word]
    found = complete(*words, "-g", "digits/r9/c", cwd=ROOT / where)
    assert found == ["digits/r9/classify"]


@pytest.mark.parametrize("word", [
    "-m", "other.py", "mymain.py", "misc/other.py", "main.py.bak", "tests/main.py",
])  # fmt: skip
def test_other_commands_are_left_alone(complete, word):
    assert complete(word, "-g", "") == []
    assert complete(word) == []


def test_another_projects_main_is_left_alone(complete, tmp_path):
    (tmp_path / "main.py").touch()
    assert complete("main.py", "-", cwd=tmp_path) == []


def test_hostile_names_are_neither_run_nor_offered(complete, tmp_path):
    for name in ("$(touch pwned)", "`touch pwned`", "a;touch pwned", "a b", "a\nb", "a\x1b]0;x",
                 "'; touch pwned; '", "*", "END"):  # fmt: skip
        (complete.experiments / name).mkdir()
    (complete.experiments / "grid" / "$(touch pwned)").mkdir()
    assert set(complete("main.py", "-e", "", cwd=ROOT)) <= {"grid", "greedy", "a", "b", "END"}
    assert len(complete("misc/results.py", "show", "grid/")) == 2
    complete("main.py", "-e", "$(touch pwned)")
    complete("misc/results.py", "show", "../$(touch pwned)/")
    assert not [path for folder in (ROOT, tmp_path) for path in folder.glob("**/pwned")]


def test_every_command_is_known():
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "misc").glob("*.py")}
    assert {"main.py", *scripts} == set(completion.SCRIPTS)


def test_the_command_refuses_other_shells(call):
    code, _, err = call(completion.main, "fish")
    assert code == 2 and "fish" in err


def test_parse_args_is_itself_again():
    real = argparse.ArgumentParser.parse_args
    completion.parser_of("misc/move_snapshots.py")
    assert argparse.ArgumentParser.parse_args is real
