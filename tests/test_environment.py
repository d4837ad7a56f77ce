"""What an experiment keeps of its code: commits, changes, and patches that make it again."""

import json
import os
import shutil
import subprocess

import pytest

import paths
from selfstudy import configure
from selfstudy.experiment import plan as plans
from selfstudy.experiment.rayconfig import RayArgs
from util import environment
from util.files import sha256

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")
OURS = {"main.py": "1\n", "selfstudy/methods/a.py": "a\nb\n", "util/b.py": "b\n",
        "docs/c.md": "c\n", "config/gin/d.gin": "d = 1\n"}  # fmt: skip


def git(folder, *words, stdin=None):
    names = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True,
                          input=stdin).stdout  # fmt: skip


def write(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def committed(folder, texts):
    write(folder, texts)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def ask(monkeypatch):
    """The records of a project's folder and extra folders, asked anew."""

    def forget():
        environment.code.cache_clear()
        environment.git.cache_clear()

    def look(root, *extra):
        monkeypatch.setattr(paths, "ROOT", root)
        monkeypatch.setattr(paths, "EXTRA_DIRS", extra)
        forget()
        return environment.git(), environment.code()

    yield look
    forget()


@pytest.fixture
def root(tmp_path):
    return committed(tmp_path / "project", OURS | {".gitignore": "*.pyc\n"})


def content(folder):
    kept = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


@needs_git
def test_a_clean_checkout_is_its_commit(root, ask):
    write(root, {"selfstudy/x.pyc": "", "docs/new.md": "", "exp/x/plan.json": ""})
    told, (ours,) = ask(root)
    head = git(root, "rev-parse", "HEAD").decode().strip()
    assert told == {"commit": head, "changed": False}
    assert (ours.commit, ours.edited, ours.new, ours.patch()) == (head, (), (), b"")


@needs_git
@pytest.mark.parametrize(("texts", "listed"), [
    ({"selfstudy/methods/yesterday.py": "new\n"}, True),
    ({"config/gin/mine.gin": "x = 1\n"}, True),
    ({"util/b.py": "other\n"}, True),
    ({"docs/c.md": "other\n"}, False),
])  # fmt: skip
def test_a_change_or_a_new_file_makes_a_tree_changed(texts, listed, root, ask):
    write(root, texts)
    told, (ours,) = ask(root)
    assert told["changed"]
    assert ours.hashes == {name: sha256(root / name) for name in texts if listed}


@needs_git
def test_the_patch_makes_the_same_tree_again(root, ask, tmp_path):
    write(root, {
        "main.py": "2\n", "selfstudy/methods/new.py": "one\n\ntwo", "config/gin/e.gin": "",
        "util/c.py": "a\rb\r\n\x0c\n", "misc/u.py": "# \u00e4\n", "selfstudy/staged.py": "s\n",
        "util/latin.py": b"# \xe4\n",
    })  # fmt: skip
    (root / "util" / "b.py").unlink()
    git(root, "add", "selfstudy/staged.py")
    git(root, "config", "diff.noprefix", "true")
    git(root, "config", "color.ui", "always")
    _, (ours,) = ask(root)
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", root, again)
    git(again, "apply", "-", stdin=ours.patch())
    assert content(again) == content(root)
    assert ours.hashes["util/b.py"] == "" and len(ours.hashes) == 8


@needs_git
def test_a_large_change_is_left_out_of_the_patch_and_hashed(root, ask):
    big = "x" * 99 + "\n"
    write(root, {"util/big.py": big * 12_000, "util/small.py": "small\n", "util/z.bin": b"\0"})
    (root / "util" / "link.py").symlink_to("/etc/hostname")
    _, (ours,) = ask(root)
    patch = ours.patch()
    assert len(patch) <= environment.MOST_PATCH
    assert b"small.py" in patch and b"big" not in patch and b"z.bin" not in patch
    assert b"link" not in patch
    assert ours.hashes["util/big.py"] == sha256(root / "util" / "big.py")
    assert ours.hashes["util/link.py"] == ""
    write(root, {"main.py": big * 12_000})
    _, (ours,) = ask(root)
    assert b"main.py" not in ours.patch() and "main.py" in ours.hashes


@needs_git
def test_extra_folders_in_a_repository_of_their_own_ignored_or_without_one(root, ask, tmp_path):
    own = committed(tmp_path / "own", {"sub/a.py": "a\n", "sub/gin/b.gin": "b = 1\n"})
    told, (_, one) = ask(root, own / "sub")
    head = git(own, "rev-parse", "HEAD").decode().strip()
    assert not told["changed"] and (one.commit, one.edited, one.new) == (head, (), ())
    write(own, {"sub/a.py": "other\n", "sub/ray/c.py": "c\n", "sub/weights.pt": "w"})
    told, (_, one) = ask(root, own / "sub")
    assert told["changed"] and (one.edited, one.new) == (("a.py",), ("ray/c.py",))
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", own, again)
    git(again, "apply", "-", stdin=one.patch())
    (own / "sub" / "weights.pt").unlink()
    assert content(again) == content(own)

    write(root, {".git/info/exclude": "mine\n", "mine/a.py": "a\n"})
    bare = tmp_path / "bare"
    write(bare, {"a.py": "a\n", ".hidden/b.py": "", "__pycache__/c.py": "", "d.txt": ""})
    told, (_, ignored, without) = ask(root, root / "mine", bare)
    assert told["changed"]
    for one in (ignored, without):
        assert (one.commit, one.edited, one.new) == ("", (), ("a.py",))
    assert ignored.digest == without.digest
    write(bare, {"a.py": "b\n"})
    assert ask(root, bare)[1][1].digest != without.digest


def test_without_git_extra_folders_are_hashed(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    write(tmp_path, {"mine/a.py": "a\n", "project/main.py": ""})
    told, (ours, mine) = ask(tmp_path / "project", tmp_path / "mine")
    assert told == {} and ours.hashes == {} and ours.patch() == b""
    assert mine.hashes == {"a.py": sha256(tmp_path / "mine" / "a.py")} and mine.digest
    assert b"+a\n" in mine.patch()


@needs_git
def test_where_nothing_is_committed_or_a_folder_is_gone_nothing_fails(ask, tmp_path):
    git(tmp_path, "init", "-q", "project")
    told, (ours, gone) = ask(tmp_path / "project", tmp_path / "gone")
    assert told == {} and (ours.commit, gone.commit, gone.new) == ("", "", ())


@needs_git
def test_git_answers_for_the_folder_whatever_its_variables_say(
    root, ask, monkeypatch, tmp_path
):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert ask(root)[0]["changed"] is False


@needs_git
def test_an_experiment_keeps_changes_and_forgets_them(root, ask, exp_dir, tmp_path):
    write(root, {"util/b.py": "other\n"})
    write(tmp_path, {"one/a.py": "a\n", "two/notes.txt": ""})
    ask(root, tmp_path / "one", tmp_path / "two")
    plan = plans.make("x", configure.Spec(), "single_run", RayArgs(), None)
    plan.folder.mkdir()
    plan.write()
    kept = json.loads((plan.folder / paths.ENVIRONMENT).read_text())["code"]
    assert [one["patch"] for one in kept] == ["changes.patch", "changes-1.patch", None]
    assert [one["folder"] for one in kept[1:]] == [f"{tmp_path}/one", f"{tmp_path}/two"]
    assert kept[0]["changed"] == {"util/b.py": sha256(root / "util" / "b.py")}
    assert kept[0]["commit"] and "sha256" in kept[1]
    assert b"+other\n" in (plan.folder / "changes.patch").read_bytes()
    plan.forget()
    assert os.listdir(plan.folder) == []
