from functools import partial

import h5py
import numpy as np
import pytest
from PIL import Image

import paths
from misc import data as tool
from selfstudy import registry
from util import hdf5
from util.errors import UserError


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    return tmp_path


@pytest.fixture
def command(call):
    """Runs `misc/data.py` with these words; returns its exit code, stdout and stderr."""
    return partial(call, tool.main)


def test_names_are_found_by_their_beginning():
    registry.discover()
    for name in ("digits", "DIGITS", "DigitsDataset", "digit"):
        assert tool.match_dataset(name) == "DigitsDataset"
    assert tool.match_dataset("fashion") == "FashionMNISTDataset"
    assert tool.match_dataset("cifar") == "CIFARDataset"
    with pytest.raises(UserError, match="did you mean 'DigitsDataset'"):
        tool.match_dataset("digitz")


def test_prepare_verify_and_damage(command, data_dir):
    code, out, err = command("prepare", "digits", "-p", "BaseDataset.input_res = 16")
    assert code == 0 and "data_16.h5" in out
    words = ("verify", "digits", "-p", "BaseDataset.input_res = 16")
    code, out, err = command(*words)
    assert code == 0 and "[1797, 3, 16, 16] uint8, 0 to 255" in out
    lines = {line.split()[0]: line for line in out.splitlines()}
    counts = [int(word) for word in lines["train"].split(":")[1].split()]
    assert sum(counts) == 1197 and len(counts) == 10
    assert lines["sha256"].endswith(" ok")
    path = data_dir / "digits" / "data_16.h5"
    with path.open("rb+") as file:
        file.seek(hdf5.locate(path, "data").offset + 1000)
        file.write(b"\xab\xcd\xef")
    code, out, err = command(*words)
    assert code == 2
    assert err.count("\n") == 1 and f"error: {path} is damaged" in err


@pytest.mark.parametrize("space", ["rgb", "lab"])
def test_contact_sheet(command, data_dir, space):
    path = data_dir / "syn" / "lg_3222" / ("data_8_lab.h5" if space == "lab" else "data_8.h5")
    path.parent.mkdir(parents=True)
    draw = np.random.RandomState(0)
    with h5py.File(path, "w") as file:
        file["data"] = draw.randn(120, 3, 8, 8).astype(np.float16)
        file["targets"] = np.arange(120) % 3
    options = ["-p", "BaseDataset.input_res = 8", f"SynDataset.use_lab = {space == 'lab'}"]
    code, out, err = command("show", "syn", *options, "-o", data_dir / "sheet.png")
    assert code == 0, err
    sheet = np.asarray(Image.open(data_dir / "sheet.png"))
    assert sheet.shape[0] == tool.LINE + 3 * (tool.TILE + tool.EDGE)
    tiles = sheet[tool.LINE :, tool.LABEL :]
    assert tiles.std() > 10
    code, out, err = command("verify", "syn", *options)
    assert code == 0 and "none in the file (original layout)" in out
    assert "of each class: 34 33 33" in out


def test_raw_tiles_are_the_stored_images(command, data_dir):
    code, *_ = command("show", "digits", "-o", data_dir / "sheet.png")
    assert code == 0
    sheet = np.asarray(Image.open(data_dir / "sheet.png"))
    file = data_dir / "digits" / "data_32.h5"
    images, labels = (hdf5.open_map(file, name).numpy() for name in ("data", "targets"))
    for digit in (0, 7):
        row = np.flatnonzero(labels == digit)[1]
        top = tool.LINE + digit * (tool.TILE + tool.EDGE)
        left = tool.LABEL + tool.TILE + tool.EDGE
        tile = sheet[top : top + 64 : 2, left : left + 64 : 2]
        assert np.array_equal(tile, images[row].transpose(1, 2, 0))


def test_mistakes_are_one_line(command):
    for words in (
        ("show", "digitz"),
        ("prepare", "digits", "-p", "BaseDataset.input_ress = 3"),
        ("prepare", "digits", "-g", "no/such/file"),
        ("prepare", "syn"),
    ):
        code, out, err = command(*words)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
