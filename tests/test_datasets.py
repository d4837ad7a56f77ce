import gzip
import hashlib
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import gin
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

import paths
from selfstudy.data import dataset as base
from selfstudy.data import prepare
from selfstudy.data.dataset import SPLITS, BaseDataset, pose_classes
from selfstudy.datasets import cifar, fashion
from selfstudy.datasets.cifar import CIFARDataset
from selfstudy.datasets.digits import DigitsDataset
from selfstudy.datasets.fashion import FashionMNISTDataset
from selfstudy.datasets.folder import FolderDataset
from selfstudy.datasets.syn import SynDataset
from util import fetch, hdf5
from util.errors import UserError


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "nowhere")
    return tmp_path


def bind(**values):
    with gin.unlock_config():
        for name, value in values.items():
            gin.bind_parameter(f"BaseDataset.{name}", value)


def write(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def make_syn(folder, n=600, name="data_8.h5", data=None, **extra):
    draw = np.random.RandomState(0)
    data = draw.randint(0, 256, (n, 3, 8, 8)).astype(np.uint8) if data is None else data
    targets = draw.randint(0, 10, n)
    return write(folder / "syn" / "lg_3222" / name, data=data, targets=targets, **extra)


# ---- util/hdf5 -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"chunks": (7, 3, 2, 2)}, {"compression": "gzip"}])
def test_map_and_read_equal_h5py(tmp_path, options):
    values = np.random.RandomState(0).randint(0, 256, (50, 3, 4, 4)).astype(np.uint8)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=values, **options)
    assert (hdf5.locate(path, "data").offset is None) == bool(options)
    assert np.array_equal(hdf5.open_map(path, "data").numpy(), values)
    rows = np.array([3, 4, 5, 49, 0, 0, 1, 20, 19])
    for threads in (1, 3):
        block = hdf5.read(path, "data", rows, threads=threads)
        assert np.array_equal(block.numpy(), values[rows])
    assert hdf5.read(path, "data", rows[:0]).shape == (0, 3, 4, 4)
    with pytest.raises(IndexError):
        hdf5.read(path, "data", np.array([50]))
    for wrong in (torch.empty(2, 3, 4, 4), torch.empty(3, 3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError):
            hdf5.read_into(wrong, path, "data", np.arange(2))


def test_writing_to_a_map_leaves_the_file_alone(tmp_path):
    path = write(tmp_path / "x.h5", data=np.zeros((4, 3), np.float16))
    hdf5.open_map(path, "data").add_(1)
    assert hdf5.open_map(path, "data").sum() == 0


def test_foreign_byte_order_is_read(tmp_path):
    path = write(tmp_path / "x.h5", data=np.arange(6, dtype=">i4"))
    assert hdf5.open_map(path, "data").tolist() == list(range(6))


def links(path, kind):
    write(path.with_name("other.h5"), data=np.arange(4))
    path.with_name("secret").write_bytes(b"12345678")
    with h5py.File(path, "w", libver="latest") as file:
        if kind == "external link":
            file["data"] = h5py.ExternalLink("other.h5", "/data")
        elif kind == "soft link":
            file["x"] = np.arange(4)
            file["data"] = h5py.SoftLink("/x")
        elif kind == "external storage":
            secret = [(str(path.with_name("secret")), 0, 8)]
            file.create_dataset("data", (8,), np.uint8, external=secret)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), np.int64)
            layout[:] = h5py.VirtualSource("other.h5", "data", (4,))
            file.create_virtual_dataset("data", layout)
        elif kind == "declared only":
            file.create_dataset("data", (10**12,), np.uint8)
        elif kind == "declared chunks":
            file.create_dataset("data", (10**12,), np.uint8, chunks=(10,), compression="gzip")
        elif kind == "texts":
            file["data"] = ["a", "b"]
        elif kind == "group":
            file.create_group("data")
        elif kind == "scalar":
            file["data"] = 3
        elif kind == "filter":
            file.create_dataset("data", data=np.arange(9), chunks=(3,), scaleoffset=4)


KINDS = """external link|soft link|external storage|virtual|declared only|declared chunks|texts
group|scalar|filter|absent""".replace("\n", "|").split("|")


@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_file_reads_nothing_else(tmp_path, kind):
    links(tmp_path / "x.h5", kind)
    for read in (hdf5.open_map, lambda *args: hdf5.read(*args, np.arange(1))):
        with pytest.raises(UserError, match="'data'"):
            read(tmp_path / "x.h5", "data")


def test_broken_files_say_what_is_wrong(tmp_path):
    good = write(tmp_path / "good.h5", data=np.zeros((1000, 3), np.float64)).read_bytes()
    cases = {
        "missing": None,
        "empty": b"",
        "HTML page": b"\n<!DOCTYPE html><html>virus scan</html>",
        "truncated": good[:-100],
        "not an HDF5 file": b"PK\3\4 something else",
    }
    for number, (words, content) in enumerate(cases.items()):
        path = tmp_path / f"{number}.h5"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            hdf5.open_map(path, "data")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not a readable file"):
        hdf5.open_map(tmp_path, "data")


def test_random_damage_never_crashes(tmp_path):
    good = write(tmp_path / "x.h5", data=np.zeros((20, 3), np.uint8)).read_bytes()
    code = (
        "import sys, numpy as np, resource; sys.path[0] = sys.argv[1]\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))\n"
        "from pathlib import Path; from util import hdf5; from util.errors import UserError\n"
        "good, draw = Path(sys.argv[2]).read_bytes(), np.random.RandomState(0)\n"
        "path = Path(sys.argv[2] + 'x')\n"
        "for _ in range(300):\n"
        "    bad = bytearray(good)\n"
        "    for at in draw.randint(0, len(good), 3): bad[at] = draw.randint(256)\n"
        "    path.write_bytes(bad)\n"
        "    try: hdf5.open_map(path, 'data').sum()\n"
        "    except UserError: pass\n"
    )
    command = [sys.executable, "-c", code, str(paths.ROOT), str(tmp_path / "x.h5")]
    assert len(good) > 1000
    assert subprocess.run(command, timeout=600).returncode == 0


def test_content_hash_sees_every_change(tmp_path):
    DigitsDataset("train")
    path = tmp_path / "digits" / "data_32.h5"
    stored = hdf5.attributes(path)["sha256"]
    assert hdf5.content_hash(path) == stored
    place = hdf5.locate(path, "data").offset
    with path.open("rb+") as file:
        file.seek(place + 123456)
        byte = file.read(1)[0]
        file.seek(place + 123456)
        file.write(bytes([byte ^ 1]))
    assert hdf5.content_hash(path) != stored
    with path.open("rb+") as file:
        file.seek(place + 123456)
        file.write(bytes([byte]))
    assert hdf5.content_hash(path) == stored
    with h5py.File(path, "r+") as file:
        file.attrs["mean"] = [1.0, 2.0, 3.0]
    assert hdf5.content_hash(path) != stored


def write_slowly(path, log, go):
    """Runs in a forked process; waits after the first row until the file `go` is there."""

    def fill(file):
        data = file.create_dataset("data", (20, 3, 64, 64), np.uint8)
        for row in range(20):
            with log.open("a") as lines:
                lines.write(f"{os.getpid()}\n")
            data[row] = row
            file.flush()
            wait_for(go.exists)

    hdf5.create(path, fill)


def rows_by(log):
    return Counter(log.read_text().split()) if log.exists() else Counter()


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_one_is_killed_and_another_takes_over(tmp_path):
    path, log, go = tmp_path / "sub" / "x.h5", tmp_path / "log", tmp_path / "go"
    fork = get_context("fork").Process
    workers = [fork(target=write_slowly, args=(path, log, go)) for _ in range(3)]
    workers[0].start()
    wait_for(lambda: rows_by(log))
    assert not path.exists() and list(path.parent.glob(".*.part"))
    for worker in workers[1:]:
        worker.start()
    workers[0].kill()
    workers[0].join()
    assert not path.exists()
    go.touch()
    for worker in workers[1:]:
        worker.join(60)
    # One of the two did all the work, the other waited for it and used the same file.
    counts = rows_by(log)
    assert sorted(counts[str(worker.pid)] for worker in workers) == [0, 1, 20]
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0]
    assert hdf5.content_hash(path) == hdf5.attributes(path)["sha256"]
    assert hdf5.open_map(path, "data")[:, 0, 0, 0].tolist() == list(range(20))
    assert not list(path.parent.glob(".*.part"))


def test_failed_preparation_leaves_nothing(tmp_path):
    path = tmp_path / "x.h5"

    def fail(file):
        file["data"] = np.arange(3)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        hdf5.create(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == [".x.h5.lock"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not prepare"):
        hdf5.create(tmp_path / "file" / "x.h5", fail)


def mapped(path):
    """Field -> KiB of this process's mapping of `path`."""
    text = Path("/proc/self/smaps").read_text().split(str(path))[1]
    return {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB", text, re.M)[:20]}


def test_a_map_shares_the_files_pages(tmp_path):
    path = write(tmp_path / "x.h5", data=np.ones(32 << 20, np.uint8))
    data = hdf5.open_map(path, "data")
    opened = mapped(path)
    assert opened["Size"] >= 32 << 10 and opened["Rss"] < 1 << 10
    assert data.sum() == 32 << 20
    touched = mapped(path)
    assert touched["Rss"] >= 32 << 10 and touched["Anonymous"] == 0


# ---- splits, cuts and blocks ---------------------------------------------------------------


def test_digits_are_the_originals():
    from sklearn.datasets import load_digits

    data = {split: DigitsDataset(split) for split in SPLITS}
    assert data["train"].info.rows == {"train": 1197, "valid": 300, "test": 300}
    rows = np.concatenate([data[split].rows for split in SPLITS])
    assert np.array_equal(np.sort(rows), np.arange(1797))
    columns = data["train"].store.map()
    images, labels = load_digits(return_X_y=True)
    assert columns["images"].shape == (1797, 3, 32, 32)
    assert columns["images"].dtype == torch.uint8
    counts = np.bincount(labels)
    for split in SPLITS:
        share = np.bincount(columns["class"].numpy()[data[split].rows]) / len(data[split].rows)
        assert abs(share - counts / 1797).max() < 0.01
    # Each stored image is one of the originals, scaled, and with its own label.
    scaled = torch.from_numpy(np.rint(images * (255 / 16))).float().view(-1, 1, 8, 8)
    scaled = F.interpolate(scaled, (32, 32), mode="bilinear").round().byte()
    known = {
        image.numpy().tobytes(): label for image, label in zip(scaled, labels, strict=True)
    }
    for image, label in zip(columns["images"], columns["class"], strict=True):
        assert known[image[:1].numpy().tobytes()] == label
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    train = columns["images"][:1197].double()
    info = data["train"].info
    np.testing.assert_allclose(info.mean, train.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(info.std, train.std((0, 2, 3), correction=0), rtol=1e-9)
    assert (info.space, info.stored, info.targets) == ("rgb", "uint8", {"class": 10})
    assert data["train"].classes == list("0123456789")


def test_gin_bindings_of_the_base_reach_the_subclasses(tmp_path):
    gin.parse_config("BaseDataset.input_res = 16\nBaseDataset.semisupervised = 100")
    data = DigitsDataset("train")
    assert data.info.input_res == 16 and data.info.rows["train"] == 100
    assert (tmp_path / "digits" / "data_16.h5").exists()


@pytest.mark.parametrize("kept", [1, 10, 37, 100, 1197])
def test_balanced_cut(kept):
    bind(semisupervised=kept)
    data = DigitsDataset("train")
    rows = np.unique(data.rows)
    counts = np.bincount(data.store.map()["class"].numpy()[rows], minlength=10)
    assert len(rows) == kept == data.info.rows["train"] and rows.max() < 1197
    if kept < 1000:
        assert counts.max() - counts.min() <= 1
    assert len(data.rows) % kept == 0 and 1197 - kept < len(data.rows) <= 1197
    assert (np.unique(data.rows, return_counts=True)[1] == len(data.rows) // kept).all()
    assert DigitsDataset("valid").rows.tolist() == list(range(1197, 1497))


def test_cuts_are_nested_and_seeded():
    def cut(kept, seed):
        gin.clear_config()
        bind(semisupervised=kept, label_seed=seed)
        return set(DigitsDataset("train").rows.tolist())

    assert cut(50, 0) < cut(100, 0) < cut(250, 0)
    assert cut(100, 0) == cut(100, 0) != cut(100, 1)


def test_first_cut_and_wrong_cuts():
    bind(semisupervised=30, label_cut="first")
    assert DigitsDataset("train").rows[:60].tolist() == list(range(30)) * 2
    for kept in (0, -1, 1198):
        bind(semisupervised=kept)
        with pytest.raises(UserError, match="expected 1 to 1197"):
            DigitsDataset("train")


def test_published_repeats():
    for kept, full, times in (
        (100, 400_000, 100),
        (250, 45_000, 40),
        (4000, 45_000, 5),
        (20_000, 45_000, 1),
        (100, 1197, 11),
        (30_000, 45_000, 1),
    ):
        assert base.repeats(kept, full) == times


def test_balanced_order_passes_over_exhausted_classes():
    labels = np.array([0] * 3 + [1] * 50 + [2] * 20)
    order = prepare.balanced_order(labels, 0)
    assert sorted(order) == list(range(73))
    assert np.bincount(labels[order[:9]]).tolist() == [3, 3, 3]
    assert np.bincount(labels[order[:43]]).tolist() == [3, 20, 20]


@pytest.mark.parametrize("double, limit", [(False, 100), (True, 200)])
def test_blocks_cover_each_row_once(double, limit):
    bind(max_images=limit, chunk_size=7, double_sample=double)
    data = DigitsDataset("train")
    generator = torch.Generator().manual_seed(0)
    passes = [data.blocks(generator) for _ in range(2)]
    for blocks in passes:
        assert len(blocks) == data.divisions == 12
        assert max(map(len, blocks)) <= 100 and min(map(len, blocks)) >= 99
        assert np.array_equal(np.sort(np.concatenate(blocks)), np.arange(1197))
        runs = sum(int((np.diff(block) != 1).sum()) + 1 for block in blocks)
        assert runs <= -(-1197 // 7) + len(blocks)
    assert not np.array_equal(passes[0][0], passes[1][0])
    assert np.array_equal(np.concatenate(data.blocks(None)), data.rows)


def test_arguments_are_checked():
    for name in ("input_res", "max_images", "chunk_size"):
        gin.clear_config()
        bind(**{name: 0})
        with pytest.raises(UserError, match=name):
            DigitsDataset("train")
    gin.clear_config()
    bind(predict_pose=True)
    with pytest.raises(UserError, match="rot_mat"):
        DigitsDataset("train")
    with pytest.raises(ValueError):
        BaseDataset("validation")


# ---- SynDataset ----------------------------------------------------------------------------


def test_syn_splits_are_as_published(tmp_path):
    make_syn(tmp_path)
    bind(input_res=8, num_valid=30)
    rows = {split: SynDataset(split).rows for split in SPLITS}
    assert rows["train"].tolist() == list(range(500))
    assert rows["valid"].tolist() == list(range(500, 530))
    assert rows["test"].tolist() == list(range(550, 580))
    bind(num_valid=5000)
    rows = {split: SynDataset(split).rows for split in SPLITS}
    assert np.concatenate(list(rows.values())).tolist() == list(range(600))
    info = SynDataset("train").info
    assert info.mean == (38.44, 3.03, 4.77) and info.space == "lab" and info.stored == "uint8"
    assert SynDataset("train", use_lab=False).info.std == (43.95, 42.66, 44.05)


@pytest.mark.parametrize("chunks", [None, (100, 3, 8, 8)])
def test_original_layout_is_read_as_it_is(tmp_path, chunks):
    values = np.random.RandomState(1).randn(600, 3, 8, 8).astype(np.float16)
    path = make_syn(tmp_path, name="data_8_lab.h5", data=np.zeros(0), scale=np.zeros((600, 4)))
    with h5py.File(path, "r+") as file:
        del file["data"]
        file.create_dataset("data", data=values, chunks=chunks)
    bind(input_res=8)
    data = SynDataset("train")
    assert data.info.stored == "normalised" and data.info.targets == {"class": 10}
    assert data.store.mappable == (chunks is None)
    assert np.array_equal(data.store.map()["images"].numpy(), values)
    rows = np.array([5, 6, 7, 99, 3])
    assert np.array_equal(data.store.read(rows)["images"].numpy(), values[rows])
    with pytest.raises(UserError, match="is missing"):
        SynDataset("train", use_lab=False)
    path.rename(path.with_name("data_8.h5"))
    assert SynDataset("train", use_lab=False).info.space == "rgb"
    with pytest.raises(UserError, match="already normalised in RGB"):
        SynDataset("train")


def test_pose_classes_equal_the_formula_on_scipy_rotations(tmp_path):
    rotations = Rotation.random(600, random_state=0).as_matrix()

    def naive(matrix):
        x, y, z = matrix[:, 1]
        tilt, side = np.arctan2(np.hypot(x, y), z), np.arctan2(x, y)
        if tilt < np.pi / 8:
            return 0
        if abs(side) >= 3 * np.pi / 4:
            return 1
        if side < -np.pi / 4:
            return 2
        return 3 if side < np.pi / 4 else 4

    expected = [naive(matrix) for matrix in rotations]
    assert set(expected) == set(range(5))
    assert pose_classes(torch.from_numpy(rotations)).tolist() == expected
    make_syn(tmp_path, rot_mat=rotations)
    bind(input_res=8, predict_pose=True)
    data = SynDataset("valid")
    assert data.info.targets == {"class": 10, "pose": 5}
    assert data.store.map()["pose"].tolist() == expected
    assert data.store.read(data.rows)["pose"].tolist() == expected[500:550]


def test_syn_names_and_shapes_are_checked(tmp_path):
    for name in ("../x", "/etc", ""):
        with pytest.raises(UserError, match="dataset_choice"):
            SynDataset("train", dataset_choice=name)
    make_syn(tmp_path)
    with pytest.raises(UserError, match=r"known in .*: lg_3222\)"):
        SynDataset("train", dataset_choice="xlg_9")
    make_syn(tmp_path, name="data_16.h5")
    bind(input_res=16)
    with pytest.raises(UserError, match="input_res"):
        SynDataset("train")
    with h5py.File(make_syn(tmp_path), "r+") as file:
        del file["targets"]
        file["targets"] = np.arange(7)
    bind(input_res=8)
    with pytest.raises(UserError, match="600 images but 7 rows of 'targets'"):
        SynDataset("train")


# ---- CIFAR ---------------------------------------------------------------------------------


def make_cifar(folder, each=40, hundred=False, protocol=2):
    draw = np.random.RandomState(0)
    where = folder / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    where.mkdir(parents=True)
    names = ["train", "test"] if hundred else [*cifar.TRAIN_10, "test_batch"]
    key = "fine_labels" if hundred else "labels"
    every = []
    for name in names:
        images = draw.randint(0, 256, (each, 3072)).astype(np.uint8)
        labels = draw.randint(0, 100 if hundred else 10, each).tolist()
        every.append((images, labels))
        content = pickle.dumps({"data": images, key: labels}, protocol)
        (where / name).write_bytes(content)
    return where, every


@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar_of_any_size(tmp_path, protocol):
    where, batches = make_cifar(tmp_path, protocol=protocol)
    names = {"label_names": [f"c{i}" for i in range(10)]}
    (where / "batches.meta").write_bytes(pickle.dumps(names))
    data = {split: CIFARDataset(split) for split in SPLITS}
    assert data["train"].info.rows == {"train": 180, "valid": 20, "test": 40}
    columns = data["test"].store.map()
    every = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32)
    assert np.array_equal(columns["images"].numpy(), every)
    assert columns["class"].tolist() == sum((labels for _, labels in batches), [])
    assert data["train"].classes[3] == "c3" and data["train"].info.targets == {"class": 10}
    assert data["train"].info.space == "lab" and data["train"].info.mean == (50.84, 0.4, 5.73)
    assert CIFARDataset("train", to_lab=False).info.mean == (125.32, 122.97, 113.89)
    assert [p.name for p in (tmp_path / "cifar").glob("*.h5")] == ["data_32_10.h5"]


def test_cifar_100_and_published_sizes(tmp_path):
    make_cifar(tmp_path, hundred=True)
    data = CIFARDataset("train", use_100=True)
    assert data.info.targets == {"class": 100} and len(data.classes) == 100
    assert data.spans(60_000, {"train": 50_000, "test": 10_000}) == {
        "train": (0, 45_000),
        "valid": (45_000, 50_000),
        "test": (50_000, 60_000),
    }
    assert data.spans(60_000, None) == data.spans(60_000, {"train": 50_000, "test": 10_000})


def test_hostile_and_damaged_pickles_are_refused(tmp_path):
    where, _ = make_cifar(tmp_path)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    for content in (pickle.dumps({"data": Evil()}), b"", b"\x80\x02", pickle.dumps([1])):
        (where / "data_batch_3").write_bytes(content)
        with pytest.raises(UserError, match="data_batch_3"):
            CIFARDataset("train")
    assert not (tmp_path / "owned").exists()
    (where / "data_batch_3").unlink()
    with pytest.raises(UserError, match="lacks the file data_batch_3"):
        CIFARDataset("train")


def test_cifar_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"CIFAR-10 is not in .*: put cifar-10-batches-py"):
        CIFARDataset("train")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        ".data_32_10.h5.lock"
    ]


def test_a_silent_network_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *a, **k: time.sleep(5))
    with pytest.raises(UserError, match=r"\(no answer within 0.1 seconds\)"):
        CIFARDataset("train")


def test_a_wrong_download_is_refused(tmp_path):
    page = tmp_path / "page"
    page.write_bytes(b"<html>sign in</html>")
    with pytest.raises(UserError, match="no x: an HTML page came"):
        fetch.fetch(page.as_uri(), tmp_path / "got", "0" * 32, "no x: {}")
    md5 = hashlib.md5(page.read_bytes()).hexdigest()
    fetch.fetch(page.as_uri(), tmp_path / "got", md5, "no x: {}")
    assert (tmp_path / "got").read_bytes() == page.read_bytes()
    assert not list(tmp_path.glob(".*.part"))


# ---- Fashion-MNIST -------------------------------------------------------------------------


def make_fashion(folder, train=120, test=20, zipped=True):
    draw = np.random.RandomState(0)
    folder.mkdir(parents=True)
    every = {}
    for part, n in (("train", train), ("t10k", test)):
        images = draw.randint(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = draw.randint(0, 10, n).astype(np.uint8)
        every[part] = images, labels
        for name, values, axes in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
            header = struct.pack(f">I{axes}I", 0x800 + axes, *values.shape)
            data = header + values.tobytes()
            path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return every


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_in_torchvisions_layout(tmp_path, zipped):
    every = make_fashion(tmp_path / "FashionMNIST" / "raw", zipped=zipped)
    data = FashionMNISTDataset("test")
    assert data.info.rows == {"train": 108, "valid": 12, "test": 20}
    images = data.store.map()["images"].numpy()
    expected = np.concatenate([every["train"][0], every["t10k"][0]])
    for channel in range(3):
        assert np.array_equal(images[:, channel, 2:-2, 2:-2], expected)
    assert images.sum() == 3 * expected.sum()  # padded with zeros
    labels = np.concatenate([every["train"][1], every["t10k"][1]])
    assert np.array_equal(data.store.map()["class"].numpy(), labels)
    assert data.classes[0] == "T-shirt/top" and data.classes[9] == "Ankle boot"
    assert data.spans(70_000, {"train": 60_000, "test": 10_000})["valid"] == (55_000, 60_000)
    train = images[:110].astype(float)
    np.testing.assert_allclose(data.info.mean, train.mean((0, 2, 3)), rtol=1e-9)
    bind(input_res=16)
    assert FashionMNISTDataset("train").store.shape == (140, 3, 16, 16)


def test_fashion_absent_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "URL", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist"):
        FashionMNISTDataset("train")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"<html>")
    with pytest.raises(UserError, match="no IDX file"):
        FashionMNISTDataset("train")


# ---- FolderDataset -------------------------------------------------------------------------


def picture(path, color, size=(40, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def make_folder(root, each=20):
    for name, color in COLORS.items():
        for number in range(each):
            picture(root / name / f"{number}.png", color, (20 + number, 30))
    return root


def test_folder_of_classes(tmp_path):
    make_folder(tmp_path / "my pictures")
    bind(input_res=16)
    data = {split: FolderDataset(split, "my pictures", test=0.2) for split in SPLITS}
    assert data["train"].info.rows == {"train": 42, "valid": 6, "test": 12}
    assert data["train"].classes == sorted(COLORS)
    columns = data["train"].store.map()
    for image, label in zip(columns["images"], columns["class"], strict=True):
        color = torch.tensor(COLORS[data["train"].classes[label]], dtype=torch.uint8)
        assert torch.equal(image, color[:, None, None].expand(3, 16, 16))
    counts = np.bincount(columns["class"].numpy()[data["test"].rows])
    assert counts.tolist() == [4, 4, 4]
    assert len(set(columns["class"][:10].tolist())) > 1  # not sorted by class
    assert len(list((tmp_path / "folder").iterdir())) == 1
    picture(tmp_path / "my pictures" / "red" / "new.png", (255, 0, 0))
    assert sum(FolderDataset("train", "my pictures").info.rows.values()) == 61
    assert len(list((tmp_path / "folder").iterdir())) == 2


def test_flat_folder_has_no_labels(tmp_path):
    for number in range(10):
        picture(tmp_path / "flat" / f"{number}.jpg", (number * 20, 0, 0), mode="L")
    data = FolderDataset("train", str(tmp_path / "flat"), valid=0.2, test=0.0)
    assert data.info.targets == {} and data.info.rows == {"train": 8, "valid": 2, "test": 0}
    assert list(data.store.map()) == ["images"]
    bind(semisupervised=3)
    with pytest.raises(UserError, match="no labels"):
        FolderDataset("train", str(tmp_path / "flat"), valid=0.2, test=0.0)


def test_given_folders(tmp_path):
    make_folder(tmp_path / "train", 5)
    make_folder(tmp_path / "test", 2)
    data = FolderDataset("test", "train", valid=0.0, test="test")
    assert data.info.rows == {"train": 15, "valid": 0, "test": 6}
    assert sorted(data.store.map()["class"][data.rows].tolist()) == [0, 0, 1, 1, 2, 2]
    picture(tmp_path / "test" / "pink" / "x.png", (255, 0, 255))
    with pytest.raises(UserError, match="classes that training lacks: pink"):
        FolderDataset("test", "train", valid=0.0, test="test")


def test_short_side_and_centre(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    (tmp_path / "wide").mkdir()
    Image.fromarray(wide).save(tmp_path / "wide" / "x.png")
    bind(input_res=16)
    data = FolderDataset("train", "wide", valid=0.0, test=0.0)
    assert data.store.map()["images"].unique().tolist() == [200]


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        FolderDataset("train", "absent")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        FolderDataset("train", "none")
    make_folder(tmp_path / "mixed", 2)
    picture(tmp_path / "mixed" / "x.png", (0, 0, 0))
    with pytest.raises(UserError, match="mixes"):
        FolderDataset("train", "mixed")
    make_folder(tmp_path / "broken", 2)
    (tmp_path / "broken" / "red" / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="bad.png"):
        FolderDataset("train", "broken")
    with pytest.raises(UserError, match="expected a fraction"):
        FolderDataset("train", "broken", valid=1.5)
    assert not [path for path in tmp_path.rglob("*.h5")]
    with pytest.raises(Exception, match="folder"):
        FolderDataset("train")


def test_attributes_hold_what_the_layout_promises(tmp_path):
    DigitsDataset("train")
    with h5py.File(tmp_path / "digits" / "data_32.h5") as file:
        assert {"classes", "mean", "schema", "sha256", "space", "splits", "std"} == set(
            file.attrs
        )
        assert json.loads(file.attrs["splits"]) == {"train": 1197, "valid": 300, "test": 300}
        assert file["data"].chunks is None and file["data"].compression is None
    assert Path(tmp_path / "digits" / ".data_32.h5.lock").exists()
