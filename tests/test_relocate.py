"""Relocation: all pairs are checked before the first move; no name leaves its experiment."""

import errno
import hashlib
import json
import os
import random
import shutil
import string
from functools import partial
from pathlib import Path

import pytest

import paths
from selfstudy.storage import checkpoints, relocate
from util.errors import UserError

BY_CHOICE = "{cfg[SynDataset.dataset_choice]}"


def checkpoint(trial: Path, number: int, config=None, overrides=None, **metrics) -> Path:
    """A whole checkpoint folder, written without our code."""
    folder = trial / f"checkpoint_{number:06d}"
    folder.mkdir(parents=True)
    payload = f"{trial}-{number}".encode()
    (folder / "snapshot").write_bytes(payload)
    (folder / "config.gin").write_text(f"n = {number}")
    card = {"round": number, "metrics": metrics, "config": config or {}, "seed": 0}
    card |= {"overrides": overrides or {}, "size": len(payload), "trial": trial.name}
    card["sha256"] = hashlib.sha256(payload).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def trial(exp_dir: Path, name: str, params=None, numbers=(1, 2, 10), **config) -> Path:
    folder = exp_dir / "grid" / f"e_{name}"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params or {}))
    for number in numbers:
        checkpoint(folder, number, config, params)
    return folder


def choices(exp_dir: Path, *values: str) -> list[Path]:
    return [trial(exp_dir, value, {"SynDataset.dataset_choice": value}) for value in values]


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def shown(moves) -> list[tuple[str, str]]:
    return [(checkpoints.short_name(a), checkpoints.short_name(b)) for a, b in moves]


# ---- names ----------------------------------------------------------------------------------

VALUES = [
    ([0, 0.01, 1e-06], "0-0.01-1e-06"),
    ((5, 25), "5-25"),
    ("a/b", "a-b"),
    (None, "None"),
    (True, "True"),
    (0.001, "0.001"),
    (-1, "_1"),
    ([-1, 2], "_1-2"),
    ("xlg0010", "xlg0010"),
    ("../../etc", "_etc"),
    ("..", "_"),
    (".", "_"),
    ("", "_"),
    ("/", "_"),
    ([], "_"),
    (".ssh", "_ssh"),
    ("-rf", "_rf"),
    ("a\0b", "a-b"),
    ("a\nb", "a-b"),
    ("\x1b]0;x\x07", "_0-x"),
    ("a\\b", "a-b"),
    ("$(id)", "_id"),
    ("~root", "_root"),
    ("..\uff0f..", "_"),
    ("\u202egnp", "_gnp"),
    ("\uff41\uff42", "ab"),
    ("*?<>|\"'", "_"),
    ({"a": 1}, "_a-1"),
]


@pytest.mark.parametrize("value, name", VALUES, ids=lambda item: repr(item)[:20])
def test_values_become_plain_names(value, name):
    assert relocate.safe_name(value) == name


def test_names_of_any_text_are_plain_short_and_distinct():
    dice = random.Random(1)
    alphabet = string.printable + "\0\x1b\x9b\u202e\u2028\uff0f\u212b\U0001f600./-" * 4
    for _ in range(3000):
        text = "".join(dice.choices(alphabet, k=dice.randrange(12)))
        name = relocate.safe_name(text)
        assert name and name[0] not in ".-" and len(name.encode()) <= 100
        assert set(name) <= set(string.ascii_letters + string.digits + "._=+-")
        assert relocate.format_name("{cfg[x]}", {"x": text}) == name
    first, second = relocate.safe_name("x" * 500 + "1"), relocate.safe_name("x" * 500 + "2")
    assert first != second and len(first) == 100


CFG = {"a.b": "v", "lr": 0.001234, "n": 7, "list": [0, 1], "train/d.b": 512, "f": str}
TEMPLATES = {
    "{cfg[a.b]}": "v",
    "{cfg[a.b]}/{cfg[n]}": "v/7",
    "lr{cfg[lr]:.2g}": "lr0.0012",
    "{cfg[lr]:.1e}_{cfg[n]}": "1.2e-03_7",
    "{cfg[n]:d}": "7",
    "{cfg[train/d.b]}": "512",
    "{cfg[list]!s}": "_0-1",
    "{cfg[list]}": "0-1",
    "fixed": "fixed",
}
HOSTILE = [
    "",
    "/",
    "/tmp/x",
    "..",
    "../x",
    "a/../b",
    "a//b",
    "a/",
    "./a",
    ".hidden",
    "-rf",
    "a b",
    "a\nb",
    "a\0b",
    "é",
    "{",
    "}",
    "{}",
    "{0}",
    "{cfg}",
    "{cfg[]}",
    "{cfg[missing]}",
    "{cfg[a.b].__class__}",
    "{cfg[f].__init__.__globals__[os].environ[HOME]}",
    "{cfg[list][0]}",
    "{cfg.a}",
    "{os}",
    "{cfg[a.b]!r}",
    "{cfg[a.b]!a}",
    "{cfg[n]:>99999999}",
    "{cfg[n]:>9999}",
    "{cfg[n]:{cfg[n]}}",
    "{cfg[n]:x}",
    "{cfg[n]:%H}",
    "{cfg[list]:.2g}",
    "{cfg[a.b]:d}",
    "{{cfg[n]}}",
    "{cfg[n]}/../../{cfg[n]}",
    "{cfg[ n]}",
    "x" * 201,
]


@pytest.mark.parametrize("pattern", TEMPLATES)
def test_templates_are_filled(pattern):
    assert relocate.format_name(pattern, CFG) == TEMPLATES[pattern]


@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda pattern: repr(pattern)[:30])
def test_hostile_templates_are_refused_and_nothing_moves(exp_dir, pattern):
    folder = trial(exp_dir, "x", numbers=(1,), **{k: v for k, v in CFG.items() if k != "f"})
    before = tree(exp_dir)
    with pytest.raises(UserError) as caught:
        relocate.format_name(pattern, CFG)
    assert len(str(caught.value)) < 700
    with pytest.raises(UserError):
        relocate.relocations("grid", pattern)
    assert tree(exp_dir) == before and folder.exists()


def test_an_unknown_parameter_is_answered_with_the_nearest(exp_dir):
    choices(exp_dir, "one")
    with pytest.raises(UserError, match="did you mean 'SynDataset.dataset_choice'"):
        relocate.relocations("grid", "{cfg[SynDataset.dataset_choise]}")


# ---- what goes where ------------------------------------------------------------------------


def test_the_last_checkpoint_of_each_trial_goes_to_its_name(exp_dir):
    choices(exp_dir, "xlg0010", "xlg1111")
    moves, skipped = relocate.relocations("grid", BY_CHOICE)
    assert shown(moves) == [
        ("grid/e_xlg0010/checkpoint_000010", "grid/xlg0010"),
        ("grid/e_xlg1111/checkpoint_000010", "grid/xlg1111"),
    ]
    before = tree(exp_dir / "grid/e_xlg0010/checkpoint_000010")
    relocate.move(moves)
    assert tree(exp_dir / "grid/xlg0010") == before and not skipped
    assert sorted(os.listdir(exp_dir / "grid/e_xlg0010")) == [
        "checkpoint_000001",
        "checkpoint_000002",
        "params.json",
    ]


def test_values_of_the_sweep_win_over_those_of_the_files(exp_dir):
    config = {"o.lr": 1, "d.size": 32, "only.file": "f"}
    folder = trial(exp_dir, "x", numbers=())
    checkpoint(folder, 1, config, {"o.lr": 2, "d.size": 64})
    (folder / "params.json").write_text('{"o.lr": 3}')
    moves, _ = relocate.relocations("grid", "{cfg[o.lr]}-{cfg[d.size]}/{cfg[only.file]}")
    assert shown(moves)[0][1] == "grid/3-64/f"
    relocate.move(moves)
    assert (exp_dir / "grid/3-64/f/card.json").exists()


def test_the_best_checkpoint_by_a_metric(exp_dir):
    folder = exp_dir / "grid/e_x"
    for number, accuracy, loss in (
        (1, 0.5, 0.9),
        (2, 0.9, 0.4),
        (3, 0.8, 0.3),
        (4, None, None),
    ):
        checkpoint(folder, number, {"a": 1}, valid_accuracy=accuracy, valid_loss=loss)
    checkpoint(folder, 5, {"a": 1})
    chosen = {}
    for best in (None, "valid_accuracy", "valid_loss"):
        moves, _ = relocate.relocations("grid", "x", best)
        chosen[best] = moves[0][0].name[-1]
    assert chosen == {None: "5", "valid_accuracy": "2", "valid_loss": "3"}
    with pytest.raises(UserError, match="did you mean 'valid_loss'"):
        relocate.relocations("grid", "x", "vald_loss")


def test_damaged_checkpoints_and_trials_without_one_are_listed(exp_dir):
    one, two, three = choices(exp_dir, "one", "two", "three")
    (one / "checkpoint_000010/snapshot").write_bytes(b"x")
    for number in (1, 2, 10):
        (two / f"checkpoint_{number:06d}/card.json").unlink()
    trial(exp_dir, "young", numbers=())
    moves, skipped = relocate.relocations("grid", BY_CHOICE)
    assert shown(moves) == [
        ("grid/e_one/checkpoint_000002", "grid/one"),
        ("grid/e_three/checkpoint_000010", "grid/three"),
    ]
    reasons = {checkpoints.short_name(folder): reason for folder, reason in skipped}
    assert "has 1 bytes of" in reasons["grid/e_one/checkpoint_000010"]
    assert "never finished" in reasons["grid/e_two/checkpoint_000002"]
    assert "no whole checkpoint" in reasons["grid/e_two"]
    assert "no whole checkpoint" in reasons["grid/e_young"]


def test_without_a_template_a_single_trial_fills_the_experiment_itself(exp_dir):
    folder = trial(exp_dir, "x")
    (exp_dir / "grid/plan.json").write_text("{}")
    before = tree(folder / "checkpoint_000010")
    moves, _ = relocate.relocations("grid")
    assert shown(moves) == [("grid/e_x/checkpoint_000010", "grid")]
    relocate.move(moves)
    assert not (folder / "checkpoint_000010").exists()
    inside = {k: v for k, v in tree(exp_dir / "grid").items() if "/" not in k}
    assert inside == before | {"plan.json": b"{}"}
    _, skipped = relocate.relocations("grid")
    assert skipped[-1][1] == "moved before to grid"


def test_without_a_template_several_trials_ask_for_one(exp_dir):
    choices(exp_dir, "one", "two")
    with pytest.raises(UserError, match=r"2 trials.*\{cfg\[SynDataset.dataset_choice\]\}"):
        relocate.relocations("grid")


@pytest.mark.parametrize("name", ["gird", "../exp", "/tmp", "", ".", "grid/../.."])
def test_unknown_and_outside_experiments_are_refused(exp_dir, name):
    choices(exp_dir, "one")
    with pytest.raises(UserError):
        relocate.relocations(name, BY_CHOICE)


def _refused(exp_dir, pattern, text, code=2, **options):
    before = tree(exp_dir)
    with pytest.raises(UserError, match=text) as caught:
        relocate.relocations("grid", pattern, **options)
    assert caught.value.code == code and tree(exp_dir) == before


def test_collisions_are_refused(exp_dir):
    choices(exp_dir, "a b", "a_b", "a/b".replace("/", ":"))
    _refused(exp_dir, BY_CHOICE, "would both go to grid/a-b")
    _refused(exp_dir, "same", "would both go to grid/same")


def test_a_destination_inside_another_is_refused(exp_dir):
    trial(exp_dir, "x", {"s.name": "a"})
    other = trial(exp_dir, "y", {"s.name": "a"}, numbers=())
    moves = [(other, exp_dir / "grid/a/b"), (other, exp_dir / "grid/a")]
    with pytest.raises(UserError, match="would lie in"):
        relocate._refuse_collisions(moves)


def test_what_exists_is_replaced_only_on_request_and_only_if_it_is_a_snapshot(exp_dir):
    choices(exp_dir, "one", "two")
    checkpoint(exp_dir / "old", 99)
    shutil.move(exp_dir / "old/checkpoint_000099", exp_dir / "grid/two")
    _refused(exp_dir, BY_CHOICE, "--overwrite", code=4)
    moves, _ = relocate.relocations("grid", BY_CHOICE, overwrite=True)
    relocate.move(moves)
    assert (exp_dir / "grid/two/config.gin").read_text() == "n = 10"
    assert not [name for name in os.listdir(exp_dir / "grid") if name.startswith(".")]
    (exp_dir / "grid/notes").mkdir()
    (exp_dir / "grid/notes/mine.txt").write_text("keep")
    trial(exp_dir, "three", {"SynDataset.dataset_choice": "notes"})
    _refused(exp_dir, BY_CHOICE, "more than a snapshot", code=4, overwrite=True)


@pytest.mark.parametrize(
    "name", ["e_one", "e_new", "plan.json", "card.json", "checkpoint_000001"]
)
def test_names_of_trials_and_of_our_files_are_no_destinations(exp_dir, name):
    choices(exp_dir, "one")
    (exp_dir / "grid/plan.json").write_text("{}")
    _refused(exp_dir, name, "cannot be destinations", overwrite=True)


def test_links_and_files_on_the_way_are_refused(exp_dir, tmp_path):
    choices(exp_dir, "one")
    (tmp_path / "outside").mkdir()
    (exp_dir / "grid/link").symlink_to(tmp_path / "outside")
    (exp_dir / "grid/dangling").symlink_to(tmp_path / "nowhere")
    (exp_dir / "grid/file").write_text("")
    checkpoint(exp_dir / "x", 1)
    shutil.move(exp_dir / "x/checkpoint_000001", exp_dir / "grid/snap")
    for pattern in ("link", "link/a", "dangling", "file", "file/a"):
        _refused(exp_dir, pattern, "is a link or a file", code=4, overwrite=True)
    _refused(exp_dir, "snap/a", "would lie in", overwrite=True)
    assert not any((tmp_path / "outside").iterdir())


def test_a_trial_of_any_name_is_no_destination(exp_dir):
    choices(exp_dir, "odd")
    checkpoint(exp_dir / "grid/odd", 1, {"SynDataset.dataset_choice": "two"})
    _refused(exp_dir, BY_CHOICE, "would lie in the trial", overwrite=True)
    _refused(exp_dir, BY_CHOICE + "/a", "would lie in the trial", overwrite=True)


def test_linked_trials_and_checkpoints_are_not_followed(exp_dir, tmp_path):
    folder = trial(exp_dir, "x", numbers=(1,))
    checkpoint(tmp_path / "outside", 5)
    (folder / "checkpoint_000005").symlink_to(tmp_path / "outside/checkpoint_000005")
    (exp_dir / "grid/e_y").symlink_to(tmp_path / "outside")
    moves, _ = relocate.relocations("grid", "a")
    assert shown(moves) == [("grid/e_x/checkpoint_000001", "grid/a")]


# ---- moving ---------------------------------------------------------------------------------


def _other_disk(monkeypatch, inside: str):
    """Renames into a folder called `inside` from elsewhere fail as between file systems."""
    rename = os.replace

    def replace(source, target):
        if Path(target).name == inside and Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_between_file_systems_it_is_copied_verified_and_deleted(exp_dir, monkeypatch):
    (folder,) = choices(exp_dir, "one")
    before = tree(folder / "checkpoint_000010")
    _other_disk(monkeypatch, "one")
    moves, _ = relocate.relocations("grid", BY_CHOICE)
    relocate.move(moves)
    assert tree(exp_dir / "grid/one") == before
    assert not (folder / "checkpoint_000010").exists()
    assert sorted(os.listdir(exp_dir / "grid")) == ["e_one", "one"]


def test_a_copy_that_differs_is_not_accepted(exp_dir, monkeypatch):
    (folder,) = choices(exp_dir, "one")
    _other_disk(monkeypatch, "one")
    copytree = shutil.copytree

    def bad_copy(source, target, **options):
        copytree(source, target, **options)
        (Path(target) / "snapshot").write_bytes(b"rot")

    monkeypatch.setattr(shutil, "copytree", bad_copy)
    moves, _ = relocate.relocations("grid", BY_CHOICE)
    with pytest.raises(UserError, match="damaged"):
        relocate.move(moves)
    assert (
        checkpoints.check(folder / "checkpoint_000010") and not (exp_dir / "grid/one").exists()
    )


class Interrupted(BaseException):
    pass


def _interrupt(patch, point: int) -> None:
    """Raise in place of the `point`-th call that changes the disk."""
    left = [point]

    def counted(call):
        def step(*args, **options):
            left[0] -= 1
            if left[0] == -1:
                raise Interrupted
            return call(*args, **options)

        return step

    for name in ("replace", "mkdir", "unlink", "rmdir", "fsync"):
        patch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize(
    "pattern, other_disk", [(BY_CHOICE, False), (BY_CHOICE, True), (None, 0)]
)
def test_an_interruption_anywhere_is_mended_by_running_it_again(
    tmp_path, monkeypatch, pattern, other_disk
):
    """Stop before each call that changes the disk; then ask again and move."""
    point, done = 0, False
    while not done:
        root = tmp_path / str(point)
        monkeypatch.setattr(paths, "EXP_DIR", root)
        folders = choices(root, "one") if pattern is None else choices(root, "one", "two")
        wanted = {f.name: tree(f / "checkpoint_000010") for f in folders}
        moves, _ = relocate.relocations("grid", pattern)
        with monkeypatch.context() as patch:
            if other_disk:
                _other_disk(patch, "two")
            _interrupt(patch, point)
            try:
                relocate.move(moves)
                done = True
            except Interrupted:
                pass
        moves, _ = relocate.relocations("grid", pattern)
        relocate.move(moves)
        for folder in folders:
            place = root / "grid" if pattern is None else root / "grid" / folder.name[2:]
            assert {k: v for k, v in tree(place).items() if k in wanted[folder.name]} == (
                wanted[folder.name]
            ), point
            assert checkpoints.check(place)
        again, _ = relocate.relocations("grid", pattern)
        assert again == []
        point += 1
    assert point > (5 if pattern is None else 3)


def test_a_later_round_of_the_same_trial_needs_overwrite(exp_dir):
    (folder,) = choices(exp_dir, "one")
    relocate.move(relocate.relocations("grid", BY_CHOICE)[0])
    assert relocate.relocations("grid", BY_CHOICE)[0] == []
    checkpoint(folder, 20, {}, {"SynDataset.dataset_choice": "one"})
    _refused(exp_dir, BY_CHOICE, "--overwrite", code=4)


# ---- the command ----------------------------------------------------------------------------


@pytest.fixture
def command(cli):
    """Runs `misc/move_snapshots.py` with these words in a process of its own."""
    return partial(cli, script="misc/move_snapshots.py")


def test_the_command_lists_and_moves(command, exp_dir, tmp_path):
    choices(exp_dir, "one", "two")
    trial(exp_dir, "young", numbers=())
    (tmp_path / "util.py").write_text("raise SystemExit('the wrong util')")
    before = tree(exp_dir)
    dry = command("-e", "grid", "-p", BY_CHOICE)
    assert dry.code == 0 and tree(exp_dir) == before, dry.err
    assert not {"torch", "ray", "gin", "numpy", "h5py"} & dry.modules
    assert dry.out.splitlines() == [
        "Skipping: grid/e_young: no whole checkpoint with a round",
        "Moving from: grid/e_one/checkpoint_000010 to: grid/one",
        "Moving from: grid/e_two/checkpoint_000010 to: grid/two",
        "Nothing was moved; add -m to move them.",
    ]
    wet = command("-e", "grid", "-p", BY_CHOICE, "-m")
    assert wet.out.splitlines() == dry.out.splitlines()[:-1]
    assert checkpoints.check(exp_dir / "grid/one") and checkpoints.check(exp_dir / "grid/two")


def test_the_command_reports_errors_in_one_line(command, exp_dir):
    choices(exp_dir, "one", "two")
    done = command("-e", "grid", "-p", "same", "-m")
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    (exp_dir / "grid/one").mkdir()
    assert command("-e", "grid", "-p", BY_CHOICE).code == 4
