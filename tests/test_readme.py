"""The README's commands are checked, and those under '<!-- run -->' run."""

import re
import shlex
from pathlib import Path

import pytest

import main
from selfstudy import run
from selfstudy import study as stages
from selfstudy.experiment import rayconfig, rehearsal

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- run -->\n)?```console\n(.*?)```", re.DOTALL)
TINY = ["-p", "session.train_iters = 2", "scheduler.milestones = [1, 2]"]


def commands(text: str, marked: bool = False) -> list[list[str]]:
    """The words of each command in the console blocks, or only in those that are to be run."""
    blocks = [block for run, block in BLOCK.findall(text) if run or not marked]
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


COMMANDS = commands(README)
TRAINING = [words[2:] for words in COMMANDS if words[:2] == ["python", "main.py"]]


def test_every_command_is_of_a_kind_that_is_checked_here():
    kinds = {" ".join(words[:2]) for words in COMMANDS}
    scripts = {f"python {path.relative_to(ROOT)}" for path in (ROOT / "misc").glob("*.py")}
    assert kinds <= {"python main.py", "make quickstart", "make test"} | scripts
    assert len(TRAINING) > 5 and commands(README, marked=True)


def test_the_commands_of_main_plan_trials_that_pass_every_check(folders):
    for words in TRAINING:
        args = main.parser().parse_args(words)
        if rayconfig.is_study(main.ray_config(args)):
            study = stages.make("u", args.ray_config, tuple(args.settings), ())
            stages.check(study, prepare=False, resumed=False)
            continue
        plan, given = main.planned(args)
        chosen = [*args.gin_param, *(name for row in plan.rows for name in row.overrides)]
        if any("Wrapper.pretrained" in text for text in chosen):
            for row in plan.rows:  # the snapshot would come from the lines before
                rehearsal.check(plan.spec, row.overrides, build=False)
        else:
            run.check(plan, given, prepare=False, resumed=False)
        if not (args.resume or args.dry_run):
            with plan.lock():
                plan.write()  # for a line that resumes it


@pytest.mark.slow
def test_the_marked_commands_run(cli):
    for words in commands(README, marked=True):
        tiny = TINY if words[1] == "main.py" else []
        done = cli(*words[2:], *tiny, script=words[1])
        assert done.code == 0, done.err
    assert "weights from first: " in done.err


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({w[1] for w in COMMANDS if w[1].startswith("misc/")}))
def test_the_tools_exist_and_know_their_flags(cli, script):
    for words in (words[2:] for words in COMMANDS if words[1] == script):
        action = words[:1] if script == "misc/results.py" else []  # whose actions have flags
        known = cli(*action, "--help", script=script)
        assert known.code == 0
        used = {word for word in words if re.fullmatch(r"--?[a-z_-]+", word)}
        assert used <= set(re.findall(r"--?[a-z_-]+", known.out))


def test_make_has_the_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in COMMANDS:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
