"""A function spread over processes of this machine, none of which outlives its parent.

They are plain interpreters, not `multiprocessing`'s: those would import the main script again,
and with it torch, and get the terminal's Ctrl-C.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import paths
from util.errors import UserError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MEMORY = ", as happens where memory is short: try fewer processes"
WATCH = 0.5  # seconds between two looks whether the parent lives


def spread(
    function: Callable[[Any, Any], Any], given: Any, tasks: Iterable[Any], workers: int
) -> Generator[tuple[Any, Any], None, None]:
    """(task, function(given, task)) for each task, in the order in which they are done.

    At most two results for each process are waiting at a time. Closing the iterator ends the
    processes at once.

    Args:
        function: of a module, which the processes import.
        given: the same for all tasks; sent once.
        tasks: plain values.
        workers: processes; 1 is this one.

    Raises:
        UserError: the function's, or a process was killed.
        RuntimeError: any other error of the function, with its traceback.
    """
    if workers == 1:
        for task in tasks:
            yield task, function(given, task)
        return
    rest = iter(tasks)
    running = []
    try:
        for _ in range(workers):
            running.append(_Worker(function, given))
        for worker in running * 2:  # one task to work on, and one to go on with
            worker.take(rest)
        while busy := {worker.line: worker for worker in running if worker.tasks}:
            for line in wait(list(busy)):
                result = busy[line].result()
                busy[line].take(rest)
                yield result
    finally:
        for worker in running:
            worker.end()


class _Worker:
    """A process, the line to it, and the tasks that it has not yet answered."""

    def __init__(self, function: Callable[[Any, Any], Any], given: Any):
        self.tasks: list[Any] = []
        self.line, theirs = Pipe()
        # The search path goes along: modules are found as they are here.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from selfstudy.render import workers; "
            f"workers.serve({theirs.fileno()})"
        )
        environment = dict.fromkeys(THREADS, "1") | paths.exported()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, process_group=0,
                pass_fds=[theirs.fileno()], env=os.environ | environment,
            )  # fmt: skip
        self._send((function, given))

    def _send(self, value: Any) -> None:
        try:
            self.line.send(value)
        except OSError:
            raise self._death() from None

    def take(self, rest: Iterator[Any]) -> None:
        """Hand it the next task, if there is one."""
        for task in rest:
            self._send(task)
            self.tasks.append(task)
            return

    def result(self) -> tuple[Any, Any]:
        """Its oldest task and what came of it."""
        try:
            fine, value = self.line.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if fine:
            return self.tasks.pop(0), value
        raise value if isinstance(value, UserError) else RuntimeError(value)

    def _death(self) -> UserError:
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return UserError(f"a worker process {how}{MEMORY if code == -signal.SIGKILL else ''}")

    def end(self) -> None:
        """It has nothing to save."""
        self.process.kill()
        self.process.wait()
        self.line.close()


def serve(handle: int) -> None:
    """What a worker process does: answer tasks until its parent has gone."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    with Connection(handle) as line:
        try:
            function, given = line.recv()
            while True:
                line.send(_answer(function, given, line.recv()))
        except (EOFError, OSError):
            return


def _watch(parent: int) -> None:
    """End this process when its parent was killed, also in the middle of a long task."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


def _answer(function: Callable[[Any, Any], Any], given: Any, task: Any) -> tuple[bool, Any]:
    try:
        return True, function(given, task)
    except UserError as error:
        return False, error
    except Exception:
        return False, traceback.format_exc()
