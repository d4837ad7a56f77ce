"""What the tests share: a clean configuration, prepared digits, and the command line."""

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gin
import numpy as np
import pytest
import torch

import paths
from util.environment import cpus

ROOT = Path(__file__).resolve().parents[1]

# A developer's own folders are not what is tested.
paths.EXTRA_DIRS = ()
os.environ.pop("SELFSTUDY_EXTRA", None)

# Runs in a command's process and writes down what it had imported when it ended.
SITE = """
import atexit, os, sys
@atexit.register
def _tell():
    with open(os.environ["SELFSTUDY_TEST_MODULES"], "w") as file:
        file.write(" ".join({name.partition(".")[0] for name in sys.modules}))
"""


# Files whose tests wait most of the time: each of them may run beside the others.
WAITING = {
    "test_distributed.py", "test_docs.py", "test_evaluation.py", "test_extra.py",
    "test_faults.py", "test_golden.py", "test_install.py", "test_main.py",
    "test_notebooks.py", "test_readme.py", "test_render_command.py",
    "test_render_produce.py", "test_stages.py", "test_study.py",
}  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """One worker more than cores, since slow tests wait most of the time."""
    return min(cpus() + 1, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Side by side, the tests of a file stay together, save those that wait.

    They share fixtures and imports. xdist's own groups do nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.rpartition("/")[2] in WAITING else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items) -> None:
    """Side by side, slow tests come first: the longest wait would be the last one otherwise."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def fresh():
    """Each test begins with an empty configuration, the same seeds and one thread.

    Several threads would wait for each other on busy cores, thirty times as long as they work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gin.clear_config()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    gin.clear_config()
    torch.set_num_threads(threads)


@pytest.fixture
def narrow(fresh) -> None:
    """Networks of an eighth of the width, with 16 features."""
    gin.bind_parameter("ResNet.width", 0.125)
    gin.bind_parameter("ResNet.out_feats", 16)


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory) -> Path:
    """A data folder with the digits at 16 pixels, prepared once."""
    from selfstudy.datasets.digits import DigitsDataset

    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "DATA_DIR", folder)
        gin.clear_config()
        gin.bind_parameter("BaseDataset.input_res", 16)
        DigitsDataset("train")
    return folder


@pytest.fixture
def folders(tmp_path, shared_data, monkeypatch) -> Path:
    """Experiments go to `tmp_path / 'exp'`, data come from `shared_data`."""
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
    monkeypatch.setattr(paths, "DATA_DIR", shared_data)
    return tmp_path


@pytest.fixture
def offline(monkeypatch) -> None:
    """No download gets anywhere, on any machine."""
    from util import fetch

    def refuse(url):
        raise OSError("no network")

    monkeypatch.setattr(fetch, "_connect", refuse)


@dataclass
class Ran:
    """How a command ended: exit code, texts, what it had imported, and what it left running."""

    code: int
    out: str
    err: str
    modules: set[str]
    left: list[int]


@pytest.fixture
def cli(tmp_path, shared_data):
    """A function that runs one of the project's scripts as a user would, in `tmp_path`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    modules = tmp_path / "modules.txt"
    env = os.environ | {
        "SELFSTUDY_EXP": str(tmp_path / "exp"),
        "SELFSTUDY_DATA": str(shared_data),
        "SELFSTUDY_TEST_MODULES": str(modules),
        "PYTHONPATH": str(tmp_path / "site"),
        "https_proxy": "http://127.0.0.1:9",  # nothing listens there: no downloads
        "http_proxy": "http://127.0.0.1:9",
    }

    def run(*args: str, script: str = "main.py", timeout: float = 120) -> Ran:
        command = [sys.executable, str(ROOT / script), *args]
        done = subprocess.run(command, cwd=tmp_path, env=env, timeout=timeout,
                              capture_output=True, text=True)  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr,
                   set(modules.read_text().split()), _offspring(tmp_path))  # fmt: skip

    return run


def _offspring(folder: Path) -> list[int]:
    """Processes that inherited this test's environment and are still there (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SELFSTUDY_EXP={folder}/exp".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


@pytest.fixture
def exp_dir(tmp_path, monkeypatch) -> Path:
    """An empty folder of experiments."""
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
    (tmp_path / "exp").mkdir()
    return tmp_path / "exp"


@pytest.fixture(scope="module")
def server():
    """An S3 server in this process: its client, the bucket 'studies', and URIs of places."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]: pip install '.[dev]'")
    boto3 = pytest.importorskip("boto3", reason="needs boto3: pip install '.[dev]'")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1"
        )
        client.create_bucket(Bucket="studies")
        end = f"?endpoint_override={host}:{port}&scheme=http"
        yield SimpleNamespace(client=client, uri=lambda place: f"s3://{place}{end}")
        server.stop()


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command's `main` with these words; returns its exit code, stdout and stderr."""

    def run(main, *words):
        script = main.__module__.replace(".", "/") + ".py"
        monkeypatch.setattr("sys.argv", [script, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def results_command(call):
    """Runs `misc/results.py` with these words; returns its exit code, stdout and stderr."""
    from misc import results

    return partial(call, results.main)
