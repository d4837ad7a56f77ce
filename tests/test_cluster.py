"""Several nodes: two raylets of this machine, with CPUs and GPUs that Ray only counts."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import paths
from bench.storm import SPENT, problems, processes, until
from selfstudy.experiment.plan import Plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
STUDY = ["-r", "simulated", "-g", "simulation/search", "--set",
         "resources_per_trial={'cpu': 1, 'gpu': 0.5}",
         "-p", "simulation.rounds = 6"]  # fmt: skip


class Nodes:
    """A cluster on the loopback, with a token of its own."""

    def __init__(self, folder: Path):
        self.folder, self.experiments = folder, folder / "exp"
        self.experiments.mkdir()
        (folder / "data").mkdir()
        (folder / "token").write_text("a" * 64)
        (folder / "token").chmod(0o600)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.environment = os.environ | {
            "SELFSTUDY_EXP": str(self.experiments), "SELFSTUDY_DATA": str(folder / "data"),
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(paths.ROOT),
        }  # fmt: skip
        port = self.address.partition(":")[2]
        self.start("head", "--head", "--port", port, "--include-dashboard=false")

    def start(self, name: str, *flags: str, before: str = "") -> subprocess.CompletedProcess:
        """A node of one CPU and one GPU; `before` is a shell's words that run first."""
        ray = str(Path(sys.executable).with_name("ray"))
        given = flags or ("--address", self.address)
        command = [ray, "start", "--num-cpus=1", "--num-gpus=1", "--node-ip-address=127.0.0.1",
                   "--temp-dir", str(self.folder / "ray"), *given]  # fmt: skip
        if "--address" in command:
            del command[command.index("--temp-dir") :][:2]
        if before:
            command = ["unshare", "-m", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
        return subprocess.run(command, env=self.environment | {"NODE": name}, text=True,
                              capture_output=True, timeout=SPENT, check=True)  # fmt: skip

    def of(self, name: str, text: str) -> list[int]:
        """Ids of a node's processes whose command line holds the text."""
        found = []
        for pid, line in processes(self.experiments):
            with contextlib.suppress(OSError):
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if f"NODE={name}".encode() in environ and text in line:
                    found.append(pid)
        return found

    def end(self, name: str) -> None:
        """As if the machine had lost its power."""
        for pid in self.of(name, "raylet/raylet") + self.of(name, ""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def main(self, *flags: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, str(paths.ROOT / "main.py"), "-a", self.address, *flags]
        return subprocess.Popen(command, env=self.environment | environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.fixture(scope="module")
def nodes():
    folder = Path("/tmp") / f"nodes-{os.getpid()}"  # Ray's sockets need a short path
    folder.mkdir()
    cluster = Nodes(folder)
    (folder / "other").write_text("b" * 64)
    (folder / "other").chmod(0o600)
    # Ray tries for twenty seconds, in which other tests can run.
    cluster.stranger = cluster.main("-e", "t", *STUDY, RAY_AUTH_TOKEN_PATH=f"{folder}/other")
    yield cluster
    for pid, _ in processes(cluster.experiments):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not list(processes(cluster.experiments)), 10)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_dies_takes_no_result_along(nodes):
    """Nor does it matter that a gin file of the trials lies outside the checkout."""
    mine = nodes.folder / "mine"
    (mine / "gin").mkdir(parents=True)
    (mine / "gin" / "mine.gin").write_text("include 'simulation/search'\n")
    nodes.start("second")
    process = nodes.main("-e", "lost", *STUDY, "simulation.seconds = 0.5", "-g", "mine",
                         SELFSTUDY_EXTRA=str(mine))  # fmt: skip
    results = nodes.experiments / "lost"

    def at_work():
        both = len(list(results.glob("*/result.json"))) >= 2
        return both and nodes.of("second", "ray::ResourceTrainable")

    until(lambda: at_work() or process.poll() is not None, SPENT)
    nodes.end("second")
    out, err = process.communicate(timeout=SPENT)
    assert process.returncode == 0, err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "EXP_DIR", nodes.experiments)
        patch.setattr(paths, "EXTRA_DIRS", (mine,))
        plan = Plan.stored("lost")
        assert problems(plan) == [] and set(plan.statuses().values()) == {"done"}
        retried = [event["name"] for event in plan.manifest().events
                   if event.get("status") == "retried"]  # fmt: skip
        assert retried, "the node died after its trials"
    assert "2 trials per GPU, 2 GPUs" in out


def test_who_has_another_token_is_refused(nodes):
    out, err = nodes.stranger.communicate(timeout=SPENT)
    assert nodes.stranger.returncode == 2 and "Traceback" not in err
    told = err.strip().splitlines()[-1]
    assert told.startswith(f"error: no Ray cluster at '{nodes.address}'")
    assert not list(nodes.experiments.glob("t/e_*"))


def test_a_node_that_does_not_see_the_experiments_is_refused_before_the_start(nodes):
    if os.getuid() or not shutil.which("unshare"):
        pytest.skip("needs a mount of its own")
    try:
        nodes.start("blind", before=f"mount -t tmpfs tmpfs {nodes.experiments}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs a mount of its own: {error.stderr[-200:]}")
    try:
        process = nodes.main("-e", "s", *STUDY)
        out, err = process.communicate(timeout=SPENT)
    finally:
        nodes.end("blind")
    assert process.returncode == 2, err
    told = err.strip().splitlines()[-1]
    assert told.startswith("error: node ") and f"does not see {nodes.experiments}" in told
    assert "SELFSTUDY_EXP" in told
    assert not list(nodes.experiments.glob("s/e_*"))
