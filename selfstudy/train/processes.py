"""The processes of one trial (data parallel): started, ordered and ended by the first.

The trial's own process is rank 0 and alone writes to the disk. The others are children that
build the same job from the same configuration and take orders, one JSON line each, on standard
input. They end when it is closed, so that none outlives its parent.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

import paths
from selfstudy import configure, devices, distributed, registry
from selfstudy.job import Job, Report, job
from util import files
from util.errors import UserError, cause, printable

GRACE = 5.0  # seconds until a process that does not end is killed

# Signals to the whole group are for process 0, which saves and then ends the others; these
# must not hear them while they start, either.
_BOOT = f"""
import signal, sys
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
sys.path.insert(0, {str(paths.ROOT)!r})
from selfstudy.train import processes
processes.serve()
"""


class Killed(OSError):
    """A process of a trial was killed by a signal, so that a retry may succeed."""


class Failed(RuntimeError):
    """A process of a trial raised an error of its own."""


class Workers:
    """The processes of a trial; this one is rank 0, and with `count` 1 the only one.

    Args:
        count: how many processes.
        device: where they compute; None takes the accelerator that this process may use. On
            one with several devices each has its own.

    Attributes:
        device: the device of this process.

    Raises:
        UserError: there are fewer devices than processes.
    """

    def __init__(self, count: int = 1, device: torch.device | str | None = None):
        self.count = count
        self.device = devices.best() if device is None else torch.device(device)
        self._children: list[subprocess.Popen] = []
        self._broken = False
        self._threads = torch.get_num_threads()
        if count < 1:
            raise UserError(f"trial.processes = {count}: expected 1 or more")
        if count > 1:
            self._check_devices()
            self._folder = Path(tempfile.mkdtemp(prefix="selfstudy-"))
            try:
                self._start()
            except BaseException:
                self.close()
                raise

    def _check_devices(self) -> None:
        if self.device.type == "cpu":
            return
        have = torch.accelerator.device_count()
        if have < self.count:
            raise UserError(
                f"trial.processes = {self.count} needs as many GPUs and this trial has {have}: "
                f"add --set resources_per_trial.gpu={self.count}, or take fewer processes"
            )
        self.device = torch.device(self.device.type, 0)

    def _start(self) -> None:
        threads = max(1, self._threads // self.count)
        torch.set_num_threads(threads)
        for rank in range(1, self.count):
            self._children.append(_child(self._folder / f"{rank}.txt"))
            self._tell(rank, rank=rank, size=self.count, folder=str(self._folder),
                       kind=self.device.type, threads=threads)  # fmt: skip
        for child in self._children:
            if not _pipe(child.stdout).readline():  # a child prints a line when it is ready
                raise self._why() or Failed("a process of the trial did not start")
        _join(0, self.count, self._folder, self.device)
        if self.device.type != "cpu":
            for child in self._children:
                threading.Thread(target=self._watch, args=(child,), daemon=True).start()

    def _watch(self, child: subprocess.Popen) -> None:
        """Abort collectives when a child dies: on a GPU nothing else notices."""
        child.wait()
        if not self._broken and self._children:
            self._broken = True
            _abort()

    def _tell(self, rank: int, /, **order: Any) -> None:
        with contextlib.suppress(
            BrokenPipeError
        ):  # it is dead, and the next collective will fail
            pipe = _pipe(self._children[rank - 1].stdin)
            pipe.write(json.dumps(order) + "\n")
            pipe.flush()

    def _tell_all(self, **order: Any) -> None:
        for rank in range(1, len(self._children) + 1):
            self._tell(rank, **order)

    def build(self, spec: configure.Spec, overrides: dict[str, Any]) -> None:
        """Order the children to build the job of this configuration, as this process does."""
        self._tell_all(do="build", gin=spec.gin, params=spec.params,
                       overrides=files.plain(overrides))  # fmt: skip

    def load(self, job: Job, state: dict) -> None:
        """`job.load_state_dict`, in all processes."""
        self._tell_all(do="load")
        self._together(lambda: job.load_state_dict(self._shared(state)))

    def adopt(self, job: Job, state: dict) -> None:
        """`job.adopt`, in all processes."""
        self._tell_all(do="adopt")
        self._together(lambda: job.adopt(self._shared(state)))

    def _shared(self, state: dict) -> dict:
        return distributed.broadcast_object(state) if self._children else state

    def round(self, job: Job, report: Report) -> dict[str, float]:
        """`job.round`, in all processes.

        Raises:
            Killed: another process was.
            Failed: another process failed; the message has its traceback.
            Exception: whatever this one raises, after the others were ended.
        """
        self._tell_all(do="round")
        return self._together(lambda: job.round(report))

    def _together(self, act: Callable[[], Any]) -> Any:
        try:
            found = act()
            if self._broken:  # what was computed after the abort is worth nothing
                raise distributed.Lost("a process is gone")
            return found
        except BaseException as error:
            if not self._children:
                raise
            lost = isinstance(error, distributed.Lost)
            why = self._why() if lost else None
            self._broken = True
            self.close()
            raise (why or error) from (error if why else None)

    def _why(self) -> Exception | None:
        """The error of the child that failed first, if one ended by itself."""
        found: list[Exception] = []
        for rank, child in enumerate(self._children, 1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(GRACE)
                found.append(_reason(f"process {rank + 1} of {self.count}", code,
                                     self._folder / f"{rank}.txt"))  # fmt: skip
        # A child that only lost its peer does not know the cause.
        told = [error for error in found if f": {distributed.Lost.__name__}:" not in str(error)]
        return next(iter(sorted(told, key=lambda error: isinstance(error, Failed))), None)

    def close(self) -> None:
        """End the children; idempotent."""
        children, self._children = self._children, []
        if not children:
            return
        whole = not self._broken and all(child.poll() is None for child in children)
        for child in children:
            if not whole:
                child.kill()
            with contextlib.suppress(OSError):
                _pipe(child.stdin).write('{"do": "end"}\n')
                _pipe(child.stdin).flush()
        if dist.is_initialized():
            dist.destroy_process_group() if whole or self.device.type == "cpu" else _abort()
        for child in children:
            with contextlib.suppress(OSError):
                _pipe(child.stdin).close()
            _pipe(child.stdout).close()
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        torch.set_num_threads(self._threads)
        shutil.rmtree(self._folder, ignore_errors=True)


def _pipe(stream: IO[str] | None) -> IO[str]:
    """A stream of a child that was started with pipes."""
    assert stream is not None
    return stream


def _child(log: Path) -> subprocess.Popen:
    """Start a process that runs `serve`, with standard error in the file `log`."""
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT], env=os.environ | paths.exported(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
        )  # fmt: skip


def _reason(who: str, code: int, log: Path) -> Exception:
    """Why a process has ended, from its exit code and the last line of what it said."""
    if code < 0:
        name = signal.Signals(-code).name
        return Killed(f"{who} was killed ({name}); out of memory?")
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return Failed(printable(f"{who}: {lines[-1]}"))
    return Failed(f"{who} ended with code {code}")


def _join(rank: int, size: int, folder: Path, device: torch.device) -> None:
    """Become one of the process group, whose members meet in a folder of their own."""
    backend = "gloo"
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
        own = dist.get_default_backend_for_device(device)
        backend = f"cpu:gloo,{device.type}:{own}"
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = before or _loopback()  # nobody else is to listen in
    try:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    finally:
        if before is None:
            del os.environ["GLOO_SOCKET_IFNAME"]


def _loopback() -> str:
    """The name of the network that does not leave this machine, 'lo' or 'lo0'."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _abort() -> None:
    """Abort pending collectives of this process on a GPU."""
    with contextlib.suppress(Exception):
        dist.distributed_c10d._abort_process_group()


def serve() -> None:
    """Main loop of a child: build the configured job and carry out the parent's orders."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not be taken for an answer
    orders: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    about = orders.get()
    torch.set_num_threads(about["threads"])
    registry.discover()
    print("here", file=told, flush=True)
    number = "" if about["kind"] == "cpu" else f":{about['rank']}"
    device = torch.device(about["kind"] + number)
    try:
        _join(about["rank"], about["size"], Path(about["folder"]), device)
        _obey(orders, device)
        dist.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        print(cause(error), file=sys.stderr, flush=True)
        os._exit(1)  # at once: threads of a broken group may wait for ever


def _obey(orders: queue.SimpleQueue, device: torch.device) -> None:
    built: Any = None  # a Job, after the first order
    while (order := orders.get())["do"] != "end":
        match order["do"]:
            case "build":
                spec = configure.Spec(tuple(order["gin"]), tuple(order["params"]))
                configure.load(spec, order["overrides"])
                built = job()(device)
            case "load":
                built.load_state_dict(distributed.broadcast_object(None))
            case "adopt":
                built.adopt(distributed.broadcast_object(None))
            case "round":
                built.round()


def _listen(orders: queue.SimpleQueue) -> None:
    """Queue the parent's orders; when the parent is gone, remove the folder and exit."""
    folder = None
    for line in sys.stdin:
        order = json.loads(line)
        folder = order.get("folder", folder)
        orders.put(order)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def check(parts: dict[str, dict[str, Any]]) -> None:
    """Check settings of data parallelism before the start.

    Args:
        parts: what `configure.would_build` has found.

    Raises:
        UserError: no such number of processes, or a minibatch that they do not divide.
    """
    count = parts.get("trial", {}).get("processes", 1)
    size = parts.get("train/dataloader", {}).get("batch_size", count)
    if count < 1:
        raise UserError(f"trial.processes = {count}: expected 1 or more")
    if size % count:
        raise UserError(
            f"dataloader.batch_size = {size}: {count} processes cannot share it evenly"
        )
