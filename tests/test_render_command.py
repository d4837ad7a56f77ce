"""misc/render.py as a user types it: real worlds, own meshes, and training on what came out."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import pytest
from later import Later

import paths
from selfstudy.render import produce
from selfstudy.render.world import World
from util import hdf5

trimesh = Later("trimesh")

SMALL = ("--images", "48", "--res", "16")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder that the command shares with the test."""
    monkeypatch.setenv("SELFSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def command(data, tmp_path):
    """A function that runs a script on that data folder."""

    def run(script: str, *args: str) -> subprocess.CompletedProcess:
        line = [sys.executable, str(paths.ROOT / script), *args]
        env = os.environ | {"SELFSTUDY_EXP": str(tmp_path / "exp")}
        return subprocess.run(
            line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.mark.slow
def test_a_set_is_the_same_however_it_is_made(command, data):
    expected = data / "expected.h5"
    produce.produce(expected, World("0110"), 48, 16, 1)
    done = command("misc/render.py", "xlg0110", *SMALL, "--workers", "2")
    assert done.returncode == 0, done.stderr
    path = data / "syn" / "0110" / "data_16.h5"
    sha = hdf5.attributes(expected)["sha256"]
    assert hdf5.content_hash(path) == sha and f"sha256 {sha}" in done.stdout


@pytest.mark.slow
def test_a_killed_command_is_continued_with_the_same_bytes(command, data, tmp_path):
    expected = data / "expected.h5"
    produce.produce(expected, World("0000"), 600, 8, 2)
    line = [sys.executable, str(paths.ROOT / "misc/render.py"), "0000", "--images", "600",
            "--res", "8", "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, cwd=tmp_path)
    ledger = data / "syn" / "0000" / ".data_8.h5.ledger"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if ledger.exists() and len(ledger.read_text().splitlines()) > 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    path = ledger.with_name("data_8.h5")
    assert not path.exists(), "too fast to be interrupted: render more"
    done = command("misc/render.py", "0000", "--images", "600", "--res", "8")
    assert done.returncode == 0 and "continuing, " in done.stderr
    assert hdf5.attributes(path)["sha256"] == hdf5.attributes(expected)["sha256"]


@pytest.mark.slow
def test_a_folder_of_meshes_renders_and_trains(command, data, tmp_path):
    made = {
        "cone": trimesh.creation.cone(0.3, 1, sections=9),
        "box": trimesh.creation.box((1, 2, 0.5)),
    }
    for name, mesh in made.items():
        folder = tmp_path / "shapes" / name
        folder.mkdir(parents=True)
        for index in range(12):
            mesh.export(folder / f"{index:02}{('.obj', '.glb', '.stl')[index % 3]}")
    settings = (f"render.meshes = '{tmp_path / 'shapes'}'", "render.factors = '0010'")
    done = command("misc/render.py", "mine", *SMALL, "--workers", "1", "-p", *settings)
    assert done.returncode == 0, done.stderr
    with h5py.File(data / "syn" / "mine" / "data_16.h5") as file:
        assert json.loads(file.attrs["classes"]) == ["box", "cone"]
        assert set(file["segment"][:].ravel()) == {0, 1, 2}
        assert sorted(set(file["model"][:].tolist())) == list(range(12))
    trained = command("main.py", "-l", "-e", "mine", "-g", "syn/r9n/classify", "-p",
                      "SynDataset.dataset_choice = 'mine'", "BaseDataset.input_res = 16",
                      "session.train_iters = 2", "scheduler.milestones = [1, 2]",
                      "dataloader.batch_size = 8")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    lines = (next((tmp_path / "exp" / "mine").glob("e_*")) / "result.json").read_text()
    assert json.loads(lines.splitlines()[-1])["test_accuracy"] >= 0
