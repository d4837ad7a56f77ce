import hashlib
import json
import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import paths
from selfstudy.storage.mirror import VARIABLE, Mirror
from util.errors import UserError

TRIAL = "grid/e_lr=0.1_0000"


@pytest.fixture(autouse=True)
def exp_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "exp"


@pytest.fixture(params=["file", "s3"])
def mirror(request, tmp_path, monkeypatch):
    """A mirror of each kind, named by the environment as a user would."""
    uri = f"file://{tmp_path}/mirror"
    if request.param == "s3":
        uri = request.getfixturevalue("server").uri(f"studies/{tmp_path.name}")
    monkeypatch.setenv(VARIABLE, uri)
    return Mirror.from_environment()


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A mirror in a folder, for what is the same wherever it is."""
    monkeypatch.setenv(VARIABLE, f"file://{tmp_path}/mirror")
    return Mirror.from_environment()


def write(name: str, content: bytes | str) -> Path:
    path = paths.EXP_DIR / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def checkpoint(place: str, weights: bytes) -> None:
    write(f"{place}/snapshot", weights)
    write(f"{place}/config.gin", "session.seed = 0\n")
    card = {"round": 2, "size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    write(f"{place}/card.json", json.dumps(card))


def experiment() -> dict[str, bytes]:
    """An experiment of a trial with two checkpoints, one of them moved to its root."""
    write("grid/plan.json", '{"schema": 1}')
    write("grid/journal.jsonl", '{"event": "begin"}\n')
    write("grid/.lock", "")
    write(f"{TRIAL}/params.json", "{}")
    write(f"{TRIAL}/result.json", '{"round": 1}\n')
    write(f"{TRIAL}/.ray/state", "not for the mirror")
    checkpoint(f"{TRIAL}/checkpoint_000001", os.urandom(1000))
    checkpoint(f"{TRIAL}/checkpoint_000002", os.urandom(3 << 20))
    checkpoint("grid", os.urandom(100))
    return visible()


def visible(hidden: bool = False) -> dict[str, bytes]:
    """Name -> content of every file below EXP_DIR, hidden ones on request."""
    found = {path.relative_to(paths.EXP_DIR).as_posix(): path.read_bytes()
             for path in paths.EXP_DIR.rglob("*") if path.is_file()}  # fmt: skip
    return {name: item for name, item in found.items() if hidden or "/." not in name}


def older(name: str, seconds: float = 3600) -> None:
    path = paths.EXP_DIR / name
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)


# ---- there and back -------------------------------------------------------------------------


def test_without_the_variable_there_is_none():
    assert Mirror.from_environment() is None


@pytest.mark.parametrize("mirror", ["file", "s3", "s3 by AWS_ENDPOINT_URL"], indirect=True)
def test_an_experiment_comes_back_byte_for_byte(mirror, exp_dir):
    write("grid/notes.txt.gz", "not packed, whatever its name says")
    before = experiment()
    assert not mirror.has("grid")
    assert mirror.upload(exp_dir / "grid") == len(before) == 14
    shutil.rmtree(exp_dir)
    fresh = Mirror.from_environment()  # of another machine
    assert fresh.has("grid") and not fresh.has("gri")
    assert fresh.download("grid") == len(before)
    assert visible(hidden=True) == before  # no .lock, no .ray, nothing temporary
    assert fresh.download("grid") == 0
    assert fresh.download("gri") == 0 and not (exp_dir / "gri").exists()


def test_only_what_changed_is_sent(mirror, exp_dir):
    experiment()
    mirror.upload(exp_dir / "grid")
    assert mirror.upload(exp_dir / "grid") == 0
    with (exp_dir / TRIAL / "result.json").open("a") as file:
        file.write('{"round": 2}\n')
    checkpoint(f"{TRIAL}/checkpoint_000003", b"third")
    assert mirror.upload(exp_dir / TRIAL) == 4
    os.utime(exp_dir / TRIAL / "checkpoint_000003" / "card.json")
    assert mirror.upload(exp_dir / TRIAL) == 3, "a card of another time is another checkpoint"
    before = visible()
    shutil.rmtree(exp_dir)
    mirror.download("grid")
    assert visible() == before


def test_another_process_knows_what_is_there(mirror, exp_dir):
    experiment()
    mirror.upload(exp_dir / "grid")
    for name in visible():
        older(name)
    assert Mirror.from_environment().upload(exp_dir / "grid") == 0
    write(f"{TRIAL}/params.json", "{ }")
    older(f"{TRIAL}/params.json")
    assert Mirror.from_environment().upload(exp_dir / "grid") == 1
    checkpoint(f"{TRIAL}/checkpoint_000001", os.urandom(1000))  # of the same size
    older(f"{TRIAL}/checkpoint_000001/card.json")
    assert Mirror.from_environment().upload(exp_dir / TRIAL) == 3


def test_a_pruned_checkpoint_goes_there_too(mirror, exp_dir):
    experiment()
    mirror.upload(exp_dir / "grid")
    assert mirror.prune(exp_dir / "grid") == 0
    shutil.move(exp_dir / TRIAL / "checkpoint_000002", exp_dir)
    assert mirror.prune(exp_dir / "grid") == 0, "the newest is kept: it may have been lost here"
    shutil.move(exp_dir / "checkpoint_000002", exp_dir / TRIAL)
    shutil.rmtree(exp_dir / TRIAL / "checkpoint_000001")
    assert mirror.prune(exp_dir / TRIAL) == 1
    before = visible()
    shutil.rmtree(exp_dir)
    assert mirror.prune(exp_dir / "grid") == 0
    mirror.download("grid")
    assert visible() == before


def test_the_error_of_a_trial_that_was_tried_again_goes_there_too(mirror, exp_dir):
    experiment()
    error = write(f"{TRIAL}/error.txt", "it failed")
    mirror.upload(exp_dir / "grid")
    assert mirror.prune(exp_dir / "grid") == 0
    error.unlink()
    assert mirror.prune(exp_dir / TRIAL) == 1
    shutil.move(exp_dir / TRIAL, exp_dir / "aside")
    assert mirror.prune(exp_dir / "grid") == 0
    mirror.download("grid")
    assert not error.exists()


def test_a_relocated_snapshot_is_mirrored(mirror, exp_dir):
    experiment()
    checkpoint("grid/lr-0.1", b"moved")
    before = visible()
    mirror.upload(exp_dir / "grid")
    shutil.rmtree(exp_dir)
    mirror.download("grid")
    assert visible() == before


# ---- newer here, newer there ----------------------------------------------------------------


def resumed_elsewhere(mirror: Mirror) -> dict[str, bytes]:
    """Upload the experiment after rounds on another machine, and give back what was here."""
    here = experiment()
    mirror.upload(paths.EXP_DIR / "grid")
    for name in here:
        older(name)
    aside = shutil.copytree(paths.EXP_DIR, paths.EXP_DIR.with_name("aside"))
    write("grid/journal.jsonl", '{"event": "begin"}\n{"event": "begin"}\n')
    write(f"{TRIAL}/result.json", '{"round": 1}\n{"round": 2}\n')
    write(f"{TRIAL}/params.json", "[]")
    checkpoint(f"{TRIAL}/checkpoint_000002", os.urandom(3 << 20))
    checkpoint(f"{TRIAL}/checkpoint_000003", b"third")
    there = visible()
    assert Mirror.from_environment().upload(paths.EXP_DIR / "grid") == 9
    shutil.rmtree(paths.EXP_DIR)
    shutil.copytree(aside, paths.EXP_DIR)
    return there


def test_what_is_newer_there_comes(mirror):
    there = resumed_elsewhere(mirror)
    assert visible() != there
    assert mirror.download("grid") == 9
    assert visible() == there


def test_what_is_newer_here_stays(mirror, exp_dir):
    resumed_elsewhere(mirror)
    later = time.time() + 60  # of a second's precision, in S3
    kept = {name: visible()[name] for name in
            (f"{TRIAL}/params.json", f"{TRIAL}/result.json",
             f"{TRIAL}/checkpoint_000002/snapshot")}  # fmt: skip
    for name in (f"{TRIAL}/params.json", f"{TRIAL}/result.json",
                 f"{TRIAL}/checkpoint_000002/card.json"):  # fmt: skip
        os.utime(exp_dir / name, (later, later))
    assert mirror.download("grid") == 4
    assert kept.items() <= visible().items()


def test_the_machine_that_ran_last_downloads_nothing(disk, exp_dir):
    experiment()
    disk.upload(exp_dir / "grid")
    write("grid/journal.jsonl", '{"event": "begin"}\n{"event": "end"}\n')
    older("grid/journal.jsonl")  # whatever the clocks say
    (exp_dir / TRIAL / "result.json").unlink()
    assert disk.download("grid") == 0
    (exp_dir / "grid/plan.json").unlink()
    assert disk.download("grid") == 2


def test_lines_added_since_the_upload_stay_whatever_the_clocks_say(disk, exp_dir):
    experiment()
    disk.upload(exp_dir / "grid")
    (exp_dir / "grid/journal.jsonl").unlink()
    longer = '{"round": 1}\n{"round": 2}\n'
    write(f"{TRIAL}/result.json", longer)
    older(f"{TRIAL}/result.json")
    disk.download("grid")
    assert (exp_dir / TRIAL / "result.json").read_text() == longer


# ---- interruptions and damage ---------------------------------------------------------------


class Stop(Exception):
    pass


def failing_after(monkeypatch, owner, name: str, calls: int) -> None:
    """Let the call after so many of them fail, and all that follow."""
    real, left = getattr(owner, name), [calls]

    def call(*args, **kwargs):
        if not left[0]:
            raise Stop
        left[0] -= 1
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("calls", range(1, 13, 3))
def test_an_interrupted_upload_leaves_no_half_checkpoint(mirror, exp_dir, monkeypatch, calls):
    before = experiment()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        failing_after(patch, Mirror, "_put", calls)
        mirror.upload(exp_dir / "grid")
    shutil.copytree(exp_dir, exp_dir.with_name("aside"))
    shutil.rmtree(exp_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that came has to be skipped
        mirror.download("grid")
    assert visible(hidden=True).items() <= before.items()
    cards = [path.parent for path in exp_dir.rglob("card.json")]
    assert sorted(cards) == sorted(path.parent for path in exp_dir.rglob("snapshot"))
    shutil.copytree(exp_dir.with_name("aside"), exp_dir, dirs_exist_ok=True)
    mirror.upload(exp_dir / "grid")
    shutil.rmtree(exp_dir)
    mirror.download("grid")
    assert visible() == before


@pytest.mark.parametrize("calls", range(1, 13, 3))
def test_an_interrupted_download_is_completed(mirror, exp_dir, monkeypatch, calls):
    before = experiment()
    mirror.upload(exp_dir / "grid")
    shutil.rmtree(exp_dir)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        failing_after(patch, os, "replace", calls)
        mirror.download("grid")
    assert not (exp_dir / "grid/plan.json").exists(), "it would count as the whole experiment"
    assert visible(hidden=True).items() <= before.items()
    mirror.download("grid")
    assert visible(hidden=True) == before


def test_a_damaged_checkpoint_stays_there(mirror, exp_dir):
    experiment()
    good = visible()
    mirror.upload(exp_dir / "grid")
    place = f"{TRIAL}/checkpoint_000002"
    with mirror.filesystem.open_output_stream(f"{mirror.root}/{place}/snapshot") as stream:
        stream.write(b"x" * (3 << 20))
    with pytest.warns(UserWarning, match=f"{place} is damaged in the mirror"):
        os.remove(exp_dir / "grid/journal.jsonl")
        os.remove(exp_dir / place / "config.gin")
        mirror.download("grid")
    assert visible()[f"{place}/snapshot"] == good[f"{place}/snapshot"], "ours is untouched"
    shutil.rmtree(exp_dir)
    with pytest.warns(UserWarning):
        mirror.download("grid")
    assert not (exp_dir / place).exists()
    assert visible() == {name: item for name, item in good.items() if place not in name}


@pytest.mark.parametrize("gone", [["card.json"], ["card.json", "snapshot"], ["snapshot"]])
def test_half_a_checkpoint_stays_there(mirror, exp_dir, gone):
    experiment()
    mirror.upload(exp_dir / "grid")
    place = f"{TRIAL}/checkpoint_000001"
    for name in gone:
        mirror.filesystem.delete_file(f"{mirror.root}/{place}/{name}")
    shutil.rmtree(exp_dir)
    assert mirror.download("grid") == 10
    assert not (exp_dir / place).exists()


def test_two_processes_may_send_the_same(disk, exp_dir):
    before = experiment()
    mirrors = [Mirror.from_environment() for _ in range(6)]
    with ThreadPoolExecutor(len(mirrors)) as pool:
        list(pool.map(lambda each: each.upload(exp_dir / "grid"), mirrors))
    shutil.rmtree(exp_dir)
    disk.download("grid")
    assert visible() == before


def test_files_that_vanish_during_an_upload_are_no_error(disk, exp_dir, monkeypatch):
    experiment()
    trial, real = exp_dir / TRIAL, Mirror._put

    def put(self, file):
        shutil.rmtree(trial, ignore_errors=True)
        real(self, file)

    monkeypatch.setattr(Mirror, "_put", put)
    disk.upload(exp_dir / "grid")
    assert not list(exp_dir.with_name("mirror").glob("grid/*/*/card.json"))
    assert disk.upload(exp_dir / "never") == 0


def test_a_checkpoint_that_is_replaced_meanwhile_is_sent_the_next_time(
    disk, exp_dir, monkeypatch
):
    place = f"{TRIAL}/checkpoint_000001"
    checkpoint(place, b"first")
    real = Mirror._put

    def put(self, file):
        real(self, file)
        checkpoint(place, b"second")

    monkeypatch.setattr(Mirror, "_put", put)
    disk.upload(exp_dir / "grid")
    assert not list(exp_dir.with_name("mirror").rglob("card.json"))
    monkeypatch.undo()
    monkeypatch.setattr(paths, "EXP_DIR", exp_dir)
    assert disk.upload(exp_dir / "grid") == 3
    assert (exp_dir.with_name("mirror") / place / "snapshot").read_bytes() == b"second"


def test_a_mirror_that_fails_is_an_os_error(mirror, exp_dir):
    experiment()
    mirror.root = f"nowhere-{os.getpid()}/there"
    if mirror.filesystem.type_name == "local":
        mirror.root = str(write("taken", "a file, not a folder"))
    for call in (mirror.upload, mirror.prune):
        with pytest.raises(OSError) as caught:
            call(exp_dir / "grid")
            raise OSError("nothing is there, so that nothing can be pruned")
        assert str(caught.value)


# ---- strangers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "e_1/../../evil", "/etc/evil"])
def test_names_that_lead_out_are_refused(server, tmp_path, monkeypatch, name):
    root = tmp_path.name
    monkeypatch.setenv(VARIABLE, server.uri(f"studies/{root}"))
    for key in ("plan.json", name):
        server.client.put_object(Bucket="studies", Key=f"{root}/grid/{key}", Body=b"{}")
    with pytest.raises(UserError, match="nothing was downloaded"):
        Mirror.from_environment().download("grid")
    assert not paths.EXP_DIR.exists() and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("name", ["../evil", "e_1/../../evil", "/etc/evil", "a\0b", ".."])
def test_a_hostile_listing_is_refused(disk, tmp_path, name):
    stream = SimpleNamespace(is_file=True, size=2, mtime_ns=0)
    listed = [SimpleNamespace(path=f"{disk.root}/grid/{each}", **vars(stream))
              for each in ("plan.json", name)]  # fmt: skip
    disk.filesystem = SimpleNamespace(get_file_info=lambda selector: listed)
    with pytest.raises(UserError, match="nothing was downloaded"):
        disk.download("grid")
    assert not paths.EXP_DIR.exists()


def test_links_are_not_followed_either_way(disk, exp_dir, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "params.json").write_text("{}")
    before = experiment()
    (exp_dir / "grid/e_link").symlink_to(outside)
    (exp_dir / "grid/secret").symlink_to(outside / "params.json")
    assert disk.upload(exp_dir / "grid") == len(before)
    checkpoint("grid/e_link/checkpoint_000001", b"x")
    there = exp_dir.with_name("mirror") / "grid/e_link"
    shutil.move(outside / "checkpoint_000001", there / "checkpoint_000001")
    with pytest.raises(UserError, match="leads out"):
        disk.download("grid")
    assert not (outside / "checkpoint_000001").exists()


@pytest.mark.parametrize("name", ["../x", "/x", ""])
def test_experiments_outside_are_refused(disk, name):
    for call in (disk.has, disk.download):
        with pytest.raises(UserError, match="plain path"):
            call(name)


# ---- the variable ---------------------------------------------------------------------------


@pytest.mark.parametrize("uri, why", [
    ("mirror", "scheme"),
    ("foo://x", "Unrecognized filesystem"),
    ("s3://", "bucket"),
    ("s3://b/p?bogus=1&endpoint_override=127.0.0.1:9", "bogus"),
    ("s3://KEY:SE/CRET@b/p", "Cannot parse"),
    ("s3://KEY:SECRET@b/p?endpoint_override=127.0.0.1:9&scheme=http", "connect"),
    ("file:///dev/null/mirror", "irectory"),
])  # fmt: skip
def test_a_useless_mirror_is_one_line_within_seconds(monkeypatch, uri, why):
    monkeypatch.setenv(VARIABLE, uri)
    start = time.monotonic()
    with pytest.raises(UserError, match=why) as caught:
        Mirror.from_environment()
    assert time.monotonic() - start < 12
    assert "\n" not in caught.value.text and caught.value.text.startswith(f"{VARIABLE}=")
    assert "SECRET" not in caught.value.text and "CRET@" not in caught.value.text


def test_a_bucket_that_is_not_there_is_named(server, monkeypatch):
    monkeypatch.setenv(VARIABLE, server.uri("absent-bucket/p"))
    with pytest.raises(UserError, match="there is no bucket 'absent-bucket'"):
        Mirror.from_environment()


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr("selfstudy.storage.mirror.SECONDS", 0.2)
    monkeypatch.setattr(Mirror, "_open", lambda uri: time.sleep(5))
    monkeypatch.setenv(VARIABLE, "s3://b/p")
    start = time.monotonic()
    with pytest.raises(UserError, match="no answer within 0.2 seconds"):
        Mirror.from_environment()
    assert time.monotonic() - start < 2


def test_a_mirror_inside_the_experiments_is_refused(exp_dir, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"file://{exp_dir}/mirror")
    with pytest.raises(UserError, match="which it would mirror"):
        Mirror.from_environment()
