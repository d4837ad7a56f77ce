"""A Ray of our own, or a running cluster: joined with a token, and looked over first."""

import contextlib
import logging
import os
import secrets
import socket
import stat
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# ruff: isort: off
from selfstudy.experiment import rayenv  # noqa: F401  (before Ray)
import ray
import ray.exceptions
import psutil  # Ray brings it along, on a path that it sets
# ruff: isort: on

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import paths
from selfstudy.experiment.interrupts import Interrupted
from util import environment
from util.environment import cpus
from util.errors import UserError, cause

RETRIES = 3  # of a task whose node dies
GONE = 30.0  # seconds that Ray's processes have to end after it was shut down
TOKEN = Path("~/.ray/auth_token").expanduser()
FORWARDED = ("SELFSTUDY_MIRROR", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_started: list[psutil.Process] = []  # the servers of the Ray that `start` has started


def check_address(address: str) -> None:
    """Refuse at once an address where nothing listens; Ray itself tries for two minutes.

    Raises:
        UserError: no cluster answers at `address`.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # such as 'auto', which Ray answers by itself
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster at '{address}' ({error.strerror or error}); start one with "
            "'ray start --head', or leave -a out"
        ) from None


def keep_token() -> str | None:
    """See to the token that Ray's processes know each other by; returns what was mended.

    A new one is made where there is none; one that others could read is closed to them.
    """
    if os.environ["RAY_AUTH_MODE"] != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        with os.fdopen(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another driver was as quick
            os.link(mine, path)
        mine.unlink()
        return None
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(0o600)
        return f"{path} could be read by others: its mode is 0600 now"
    return None


def start(address: str | None, quiet: bool, folder: Path | None) -> tuple[float, float]:
    """Start Ray here, or connect to a cluster; returns its CPUs and GPUs.

    Args:
        address: of a running cluster, or None.
        quiet: nothing that workers print.
        folder: the experiment's, which all nodes must see as they do the data; None where the
            nodes need neither.

    Raises:
        UserError: no cluster answers at `address`, it refuses our token, or it has nodes that
            do not share the folders.
    """
    # Workers put the driver's folder first on their path: a file of the user's called util.py
    # there would replace ours.
    os.chdir(paths.ROOT)
    # `_Watch` reports a failure in one line; its traceback lies in the trial's folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.CRITICAL}
    if address:
        options |= {"address": address, "runtime_env": {"env_vars": _forwarded()}}
    else:
        options |= {"address": "local", "num_cpus": cpus(), "include_dashboard": False}
    if mended := keep_token():
        print(mended, file=sys.stderr)
    before = set(psutil.Process().children())
    try:
        with _environment(paths.exported()):  # which the workers of a Ray of our own inherit
            ray.init(**options)
    except SystemExit:  # of the handler that Ray has for SIGTERM while it starts
        raise Interrupted(143) from None
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        where = f"no Ray cluster at '{address}'" if address else "Ray does not start here"
        raise UserError(f"{where}: {first}") from None
    finally:
        _started[:] = set(psutil.Process().children()) - before
    if address:
        _check_authentication(address)
        _check_shared([folder, paths.DATA_DIR] if folder else [])
        _check_extra()
    have = ray.cluster_resources()
    return have.get("CPU", 0.0), have.get("GPU", 0.0)


def _forwarded() -> dict[str, str]:
    """The environment variables that the workers of a running cluster get.

    Folders that are not named here are the cluster's own, apart from the extra folders: other
    ones than here would be other code.
    """
    names = ("SELFSTUDY_DATA", "SELFSTUDY_EXP")
    theirs = {key for key in names if key not in os.environ}
    ours = {key: value for key, value in paths.exported().items() if key not in theirs}
    return ours | {key: os.environ[key] for key in FORWARDED if key in os.environ}


@contextlib.contextmanager
def _environment(given: dict[str, str]) -> Iterator[None]:
    """Environment variables that are set inside a `with` block."""
    before = {key: os.environ.get(key) for key in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _mode() -> str | None:
    """How the processes of a cluster know each other."""
    return os.environ.get("RAY_AUTH_MODE")


def _check_authentication(address: str) -> None:
    """Refuse a cluster without tokens: whoever reaches its ports can run code there.

    Raises:
        UserError: it has none, and RAY_AUTH_MODE does not say that this is meant.
    """
    theirs = ray.get(ray.remote(num_cpus=0)(_mode).remote(), timeout=120)
    if os.environ["RAY_AUTH_MODE"] == "token" and theirs != "token":
        raise UserError(
            f"the cluster at '{address}' runs without token authentication: start it with "
            "RAY_AUTH_MODE=token, or set RAY_AUTH_MODE=disabled to use it as it is"
        )


def _look(path: str, text: str) -> bool:
    """Whether this node sees a file with this text."""
    try:
        return Path(path).read_text() == text
    except OSError:
        return False


def _check_shared(folders: list[Path]) -> None:
    """Refuse a cluster whose nodes do not all see the folders.

    Raises:
        UserError: which node lacks which folder, or cannot run our code.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if nodes:
        print(f"{len(nodes) + 1} machines: keep Ray's ports on them behind a firewall, see "
              "SECURITY.md", file=sys.stderr)  # fmt: skip
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    for folder in folders if nodes else ():
        mark, text = folder / f".shared-{uuid.uuid4().hex}", uuid.uuid4().hex
        mark.write_text(text)
        try:
            for node in nodes:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked = look.options(scheduling_strategy=there).remote(str(mark), text)
                if not ray.get(asked, timeout=60):
                    raise UserError(
                        f"node {node['NodeManagerAddress']} does not see {folder}: put it on a "
                        "shared file system and set SELFSTUDY_EXP and SELFSTUDY_DATA to that"
                    )
        except ray.exceptions.RayError as error:
            raise UserError(
                f"node {node['NodeManagerAddress']} cannot run selfstudy ({cause(error)}): "
                "install the project there in the same folder"
            ) from None
        finally:
            mark.unlink(missing_ok=True)


def _extra() -> dict[str, str]:
    """Extra folder -> hash of the code in it, as this node has them."""
    return {str(folder): environment.of_extra(folder).digest for folder in paths.EXTRA_DIRS}


def _check_extra() -> None:
    """Refuse a cluster whose nodes do not all have the same code in the extra folders.

    Raises:
        UserError: which node has another one.
    """
    ours = _extra()
    look = ray.remote(num_cpus=0)(_extra)
    for node in ray.nodes() if ours else ():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            theirs = ray.get(look.options(scheduling_strategy=there).remote(), timeout=60)
            if other := [folder for folder in ours if theirs.get(folder) != ours[folder]]:
                raise UserError(
                    f"node {node['NodeManagerAddress']} has other code in {other[0]} "
                    "(SELFSTUDY_EXTRA): put the folder on a shared file system, or copy it"
                )


def spread(
    function: Callable[[Any, Any], Any], given: Any, tasks: Iterable[Any]
) -> Generator[tuple[Any, Any], None, None]:
    """(task, function(given, task)) for each task, in the order in which the nodes are done.

    Each takes a CPU; those that are lost with their node are done again. At most two for each
    CPU are under way or wait to be taken.

    Args:
        function: of a module that the nodes have, too.
        given: the same for all tasks; sent to each node once.
        tasks: plain values.

    Raises:
        UserError: what the function raises, or that a task cannot be run.
    """
    run = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
    shared, rest, waiting = ray.put(given), iter(tasks), {}
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        for task in islice(rest, most - len(waiting)):
            waiting[run.remote(shared, task)] = task
        if not waiting:
            return
        (done, *_), _ = ray.wait(list(waiting))
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            raise UserError(_one_line(error)) from error
        yield waiting.pop(done), result


def _one_line(error: ray.exceptions.RayError) -> str:
    """Why a task failed, in one line."""
    first = getattr(error, "cause", None) or error
    return first.text if isinstance(first, UserError) else f"on a node: {cause(first)}"


def stop() -> None:
    """Leave Ray; where `start` had started it, its processes are gone afterwards.

    Ray gives its servers a second and its workers none. On a busy machine workers are still
    there then, with the GPU's memory that the next start needs.
    """
    family = _family({server.pid for server in _started})
    _started.clear()
    ray.shutdown()
    sys.stderr.flush()
    deadline = time.monotonic() + GONE
    while (left := [one for one in family if _runs(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _family(pids: set[int]) -> list[psutil.Process]:
    """The processes with these ids and their descendants.

    `psutil.Process.children` leaves out a child whose start, in seconds of a clock that was
    corrected meanwhile, is earlier than its parent's.
    """
    everyone = list(psutil.process_iter(["ppid"]))
    while more := {one.pid for one in everyone if one.info["ppid"] in pids} - pids:
        pids |= more
    return [one for one in everyone if one.pid in pids]


def _runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one that nobody asks how it ended stays as a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
