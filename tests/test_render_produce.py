"""Rendered files: what is in which row, continued after every kind of end, the same bytes."""

import errno
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from worlds import Fake, surroundings

import paths
from bench.storm import processes, quiet, until
from selfstudy.render import chunks, parts, produce, workers
from util import fetch, files, hdf5
from util.errors import UserError

IMAGES, RES = 240, 8


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    """Worker processes find `worlds`, whatever importing our scripts has made of the path."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "tests"))


def sha(path):
    stored = hdf5.attributes(path)["sha256"]
    assert hdf5.content_hash(path) == stored
    return stored


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file that was made in one go by one process."""
    path = tmp_path_factory.mktemp("whole") / "data_8.h5"
    assert produce.produce(path, Fake(), IMAGES, RES, 1) == IMAGES
    return path


def ledger(path):
    return path.with_name(f".{path.name}.ledger")


def pieces(path):
    """How many pieces the ledger has."""
    return max(0, len(files.read_lines(ledger(path))) - 1)


# ---- rows and pieces -----------------------------------------------------------------------


@pytest.mark.parametrize("images", [12, 13, 23, 24, 240, 1205, 6001])
def test_rows_are_ordered_by_bucket_and_number(images):
    found = chunks.numbers(images).tolist()
    assert found == sorted(range(images), key=lambda number: (number % 12, number))
    sizes = chunks.splits(images)
    ends = np.cumsum(list(sizes.values())).tolist()
    assert list(sizes) == ["train", "valid", "test"] and ends[-1] == images
    buckets = [{number % 12 for number in part} for part in np.split(found, ends[:-1])]
    assert buckets == [set(range(10)), {10}, {11}]


@pytest.mark.parametrize("images", [12, 13, 1205, 6001])
def test_pieces_cover_each_row_once_and_stay_in_a_bucket(images):
    found = chunks.chunks(images)
    assert [row for start, end in found for row in range(start, end)] == list(range(images))
    numbers = chunks.numbers(images)
    for start, end in found:
        assert 0 < end - start <= chunks.CHUNK
        assert len(set((numbers[start:end] % 12).tolist())) == 1


def test_the_file_holds_what_the_world_shows(whole):
    with h5py.File(whole) as file:
        for row, number in enumerate(chunks.numbers(IMAGES).tolist()):
            for name, values in Fake().picture(number, RES).items():
                stored = file[name][row]
                assert stored.dtype == values.dtype and np.array_equal(stored, values)
        train = file["data"][:200].astype(float)
        assert all(array.chunks is None for array in file.values())
    facts = hdf5.attributes(whole)
    np.testing.assert_allclose(facts["mean"], train.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(facts["std"], train.std((0, 2, 3)), rtol=1e-12)
    assert facts["splits"] == {"train": 200, "valid": 20, "test": 20}
    assert facts["classes"] == list(Fake.classes) and facts["space"] == "rgb"
    expected = {"world": Fake().recipe(), "images": IMAGES, "res": RES}
    assert facts["recipe"] == expected
    assert sorted(entry.name for entry in whole.parent.iterdir()) == [
        ".data_8.h5.lock", "data_8.h5"]  # fmt: skip


@pytest.mark.parametrize("images", [12, 13, 245])
def test_every_array_can_be_mapped(tmp_path, images):
    path = tmp_path / "x.h5"
    produce.produce(path, Fake(), images, RES, 1)
    places = [hdf5.locate(path, name) for name in Fake().arrays(RES)]
    assert all(place.offset is not None and len(place.shape) for place in places)


def test_flat_channels_have_a_deviation_to_divide_by():
    data = np.full((5, 3, 2, 2), 7, np.uint8)
    assert produce.moments(data) == ([7.0] * 3, [1.0] * 3)


# ---- the same bytes ------------------------------------------------------------------------


def test_many_processes_make_the_same_bytes(whole, tmp_path, capfd):
    path = tmp_path / "x.h5"
    assert produce.produce(path, Fake(), IMAGES, RES, 3) == IMAGES
    assert sha(path) == sha(whole) and path.read_bytes() == whole.read_bytes()
    assert produce.produce(path, Fake(), IMAGES, RES, 3) == 0, "it is there"
    assert capfd.readouterr().err == f"rendering {path} ({IMAGES})\n"


SLOW = """
import sys; sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from worlds import Fake, surroundings
from selfstudy.render import produce
produce.produce(Path(sys.argv[3]), Fake(seconds=0.2), 240, 8, 2)
"""


def start_slowly(path):
    command = [
        sys.executable,
        "-c",
        SLOW,
        str(paths.ROOT),
        str(paths.ROOT / "tests"),
        str(path),
    ]
    environment = os.environ | {"SELFSTUDY_EXP": str(path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    end = time.monotonic() + 300
    while pieces(path) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_killed_and_continued_is_as_in_one_go(whole, tmp_path, capfd):
    path = tmp_path / "x.h5"
    process = start_slowly(path)
    assert len(list(processes(path))) == 3
    process.kill()
    process.communicate()
    assert quiet(path, 10) == []
    assert not path.exists() and 2 <= pieces(path) < 12
    with ledger(path).open("a") as file:
        file.write('{"rows": [0, ')  # a line that was cut
    left = IMAGES - 20 * pieces(path)
    assert produce.produce(path, Fake(), IMAGES, RES, 1) == left
    assert sha(path) == sha(whole) and path.read_bytes() == whole.read_bytes()
    assert f"continuing, {IMAGES - left} of {IMAGES} pictures" in capfd.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_at_once(tmp_path):
    path = tmp_path / "x.h5"
    process = start_slowly(path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGINT and err.count("Traceback") == 1
    assert list(processes(path)) == [] and pieces(path) >= 2


def interrupted_after(count, monkeypatch, path):
    """Renders until so many pieces are there."""
    write = parts.Part.write

    def stop(self, rows, values):
        if len(self.done) == count:
            raise KeyboardInterrupt
        write(self, rows, values)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Part, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            produce.produce(path, Fake(), IMAGES, RES, 1)


def test_a_part_is_no_file_that_anyone_reads(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    interrupted_after(3, monkeypatch, path)
    with pytest.raises(UserError, match="is missing"):
        hdf5.open_map(path, "data")
    with pytest.raises(UserError):
        hdf5.open_map(tmp_path / ".x.h5.part", "data")


@pytest.mark.parametrize("change", [
    {"world": Fake(seed=1)}, {"images": 252}, {"res": 16}, {"world": Fake(objects=2)},
])  # fmt: skip
def test_what_was_begun_with_other_settings_is_thrown_away(
    tmp_path, monkeypatch, capfd, change
):
    path, fresh = tmp_path / "x.h5", tmp_path / "fresh.h5"
    interrupted_after(3, monkeypatch, path)
    arguments = {"world": Fake(), "images": IMAGES, "res": RES, "processes": 1} | change
    capfd.readouterr()
    assert produce.produce(path, **arguments) == arguments["images"]
    assert "other settings is thrown away" in capfd.readouterr().err
    produce.produce(fresh, **arguments)
    assert sha(path) == sha(fresh)


@pytest.mark.parametrize("damage", ["no part", "short part", "no ledger", "empty ledger"])
def test_what_does_not_belong_together_is_not_continued(whole, tmp_path, monkeypatch, damage):
    path = tmp_path / "x.h5"
    interrupted_after(3, monkeypatch, path)
    part = tmp_path / ".x.h5.part"
    if damage == "no part":
        part.unlink()
    elif damage == "short part":
        os.truncate(part, 1000)
    elif damage == "no ledger":
        ledger(path).unlink()
    else:
        ledger(path).write_text("")
    interrupted_after(1, monkeypatch, path)
    assert produce.produce(path, Fake(), IMAGES, RES, 1) == IMAGES - 20
    assert sha(path) == sha(whole)


@pytest.mark.parametrize("place", ["_copy", "publish"])
def test_the_end_can_be_repeated(whole, tmp_path, monkeypatch, place):
    path = tmp_path / "x.h5"

    def half(source, target, ranges, size):
        with target.open("r+b") as file:
            file.write(source.read_bytes()[:100])
        raise KeyboardInterrupt

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts if place == "_copy" else hdf5, place,
                      half if place == "_copy" else stop)  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            produce.produce(path, Fake(), IMAGES, RES, 1)
    assert not path.exists() and pieces(path) == 12
    assert produce.produce(path, Fake(), IMAGES, RES, 1) == 0
    assert sha(path) == sha(whole)


# ---- what goes wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("sizes, words", [
    ((11, 8, 1), "11 images: expected 12 or more"),
    ((12, 7, 1), "7 pixels: expected 8 to 1024"),
    ((12, 1025, 1), "1025 pixels"),
    ((12, 8, 0), "0 processes: expected 1"),
])  # fmt: skip
def test_sizes_are_checked(tmp_path, sizes, words):
    with pytest.raises(UserError, match=words):
        produce.produce(tmp_path / "x.h5", Fake(), *sizes)


def test_a_disk_that_is_too_small_is_found_before_the_start(tmp_path, monkeypatch):
    usage = parts.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="needs .* GB more and there are 0.00"):
        produce.produce(tmp_path / "x.h5", Fake(), IMAGES, RES, 1)
    assert not list(tmp_path.glob("*.h5")) and not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize("where", ["pwrite", "fsync"])
def test_a_disk_that_fills_costs_nothing_that_was_written(whole, tmp_path, monkeypatch, where):
    path, real, calls = tmp_path / "x.h5", getattr(os, where), []

    def full(*args):
        calls.append(args)
        if len(calls) > 3 * (8 if where == "pwrite" else 1):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parts.os, where, full)
        with pytest.raises(UserError, match=f"disk of {path} is full: make room"):
            produce.produce(path, Fake(), IMAGES, RES, 2)
    assert pieces(path) == 3
    assert produce.produce(path, Fake(), IMAGES, RES, 1) == IMAGES - 60
    assert sha(path) == sha(whole)


def test_short_writes_go_on(whole, tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(
        parts.os, "pwrite", lambda handle, data, at: real(handle, data[:999], at)
    )
    produce.produce(tmp_path / "x.h5", Fake(), IMAGES, RES, 1)
    assert sha(tmp_path / "x.h5") == sha(whole)


def test_a_piece_of_another_shape_is_refused(tmp_path):
    class Odd(Fake):
        def picture(self, number, res):
            return super().picture(number, res + 1)

    with pytest.raises(ValueError, match="'data'"):
        produce.produce(tmp_path / "x.h5", Odd(), IMAGES, RES, 1)


@pytest.mark.parametrize("fault, error, words", [
    ("killed", UserError, "a worker process was killed by signal 9"),
    ("user", UserError, "^a mesh is broken$"),
    ("bug", RuntimeError, "ZeroDivisionError: a bug"),
])  # fmt: skip
def test_a_fault_in_a_process_ends_them_all(tmp_path, fault, error, words):
    path = tmp_path / "x.h5"
    with pytest.raises(error, match=words):
        produce.produce(path, Fake(fault={239: fault}), IMAGES, RES, 2)
    assert not path.exists() and pieces(path) >= 8
    assert produce.produce(path, Fake(), IMAGES, RES, 1) <= 80


# ---- processes -----------------------------------------------------------------------------


def test_processes_are_light_and_have_one_thread():
    found = dict(workers.spread(surroundings, "given", range(8), 2))
    assert sorted(found) == list(range(8))
    assert {tuple(values[:2]) for values in found.values()} == {("given", n) for n in range(8)}
    pids = {values[2] for values in found.values()}
    assert len(pids) <= 2 and os.getpid() not in pids
    for *_, modules, threads in found.values():
        assert not {"torch", "h5py", "ray", "pytest"} & set(modules)
        assert threads == ["1", "1", "1"]


SLEEPERS = """
import sys; sys.path[:0] = sys.argv[1:3]
from selfstudy.render import workers
import worlds
print(dict(workers.spread(worlds.sleep, None, [0, 0, 300, 300], 2)))
"""


@pytest.mark.slow
def test_no_process_outlives_its_parent_in_the_middle_of_a_task(tmp_path):
    tests = str(paths.ROOT / "tests")
    command = [sys.executable, "-c", SLEEPERS, str(paths.ROOT), tests]
    parent = subprocess.Popen(command, env=os.environ | {"SELFSTUDY_EXP": str(tmp_path)})
    assert until(lambda: len(list(processes(tmp_path))) == 3, 30)
    time.sleep(1)  # they are asleep by now
    parent.kill()
    parent.wait()
    assert quiet(tmp_path, 10) == []


def test_few_results_wait():
    handed, taken = [], 0

    def tasks():
        for task in range(30):
            handed.append(task)
            yield task

    for _ in workers.spread(surroundings, None, tasks(), 2):
        taken += 1
        time.sleep(0.005)
        assert len(handed) - taken <= 4
    assert taken == 30


# ---- progress ------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(fetch.time, "monotonic", lambda: now[0])
    return now


def test_plain_progress_now_and_then(clock, capsys):
    show = fetch.progress("rendering", 1200, "pictures", done=200)
    for done in range(250, 1201, 50):
        clock[0] += 5
        show(done)
    assert capsys.readouterr().err.splitlines() == [
        "rendering (1200)",
        "rendering: 500/1200, 10 pictures/s, 01:10 left",
        "rendering: 800/1200, 10 pictures/s, 00:40 left",
        "rendering: 1100/1200, 10 pictures/s, 00:10 left",
        "rendering: 1200/1200, 10 pictures/s, in 01:40",
    ]


def test_what_is_quick_has_one_line(clock, capsys):
    show = fetch.progress("preparing x", 100)
    clock[0] += 1
    show(50)
    show(100)
    assert capsys.readouterr().err == "preparing x (100)\n"
    show = fetch.progress("downloading x", 0)
    clock[0] += 40
    show(1000)
    assert capsys.readouterr().err == "downloading x\ndownloading x: 1000\n"


def test_a_terminal_has_one_living_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(fetch.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        fetch.shutil, "get_terminal_size", lambda **more: os.terminal_size((50, 20))
    )
    show = fetch.progress("rendering " + "folder/" * 9 + "x.h5", 100, "pictures")
    clock[0] += 2
    show(50)
    show(100)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.endswith("100/100, 50 pictures/s, in 00:02\x1b[K\n")
    first = shown.split("\r")[1]
    assert "x.h5 50/100, 25 pictures/s, 00:02 left" in first
    assert len(first.removesuffix("\x1b[K")) <= 50


# ---- Ray -----------------------------------------------------------------------------------

NODES = """
import sys; sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from worlds import Fake
from selfstudy.tune import cluster
from selfstudy.render import produce
from util.errors import UserError
folder = Path(sys.argv[3])
try:
    cluster.start(None, True, None)
    once = Fake(fault={100: folder / "killed"})
    produce.produce(folder / "x.h5", once, 240, 8, 1, cluster.spread)
    for fault in ("user", "bug"):
        world = Fake(fault={239: fault})
        try:
            produce.produce(folder / "y.h5", world, 240, 8, 1, cluster.spread)
        except UserError as error:
            print(error.text)
finally:
    cluster.stop()
"""


@pytest.mark.slow
def test_nodes_of_a_cluster_make_the_same_bytes(whole, tmp_path):
    tests = str(paths.ROOT / "tests")
    command = [sys.executable, "-c", NODES, str(paths.ROOT), tests, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": tests}  # Ray's workers look for `worlds`
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "a mesh is broken",
        "on a node: ZeroDivisionError: a bug",
    ]
    assert sha(tmp_path / "x.h5") == sha(whole) and (tmp_path / "killed").exists()
