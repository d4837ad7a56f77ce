"""A process pool on this machine, whose processes end with their parent.

Not `multiprocessing`, whose processes import the main script again, and with it torch, and
receive the terminal's Ctrl-C.
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
WATCH = 0.5  # seconds between checks whether the parent is alive


def spread(
    function: Callable[[Any, Any], Any], context: Any, tasks: Iterable[Any], workers: int
) -> Generator[tuple[Any, Any], None, None]:
    """Yield (task, function(context, task)) for each task, in order of completion.

    Each process has at most two tasks at a time. Closing the iterator kills the processes.

    Args:
        function: of a module that the processes can import.
        context: the same for all tasks, sent once.
        tasks: plain values.
        workers: number of processes; 1 computes in this process.

    Raises:
        UserError: raised by the function, or a process was killed.
        RuntimeError: any other error of the function, with its traceback.
    """
    if workers == 1:
        for task in tasks:
            yield task, function(context, task)
        return
    rest = iter(tasks)
    running = []
    try:
        for _ in range(workers):
            running.append(_Worker(function, context))
        for worker in running * 2:  # one task in work, one queued
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
    """A process, the connection to it, and its pending tasks."""

    def __init__(self, function: Callable[[Any, Any], Any], context: Any):
        self.tasks: list[Any] = []
        self.line, theirs = Pipe()
        # The same search path, to resolve modules as in this process.
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
        self._send((function, context))

    def _send(self, value: Any) -> None:
        try:
            self.line.send(value)
        except OSError:
            raise self._death() from None

    def take(self, rest: Iterator[Any]) -> None:
        """Send the next task to the process, if there is one."""
        for task in rest:
            self._send(task)
            self.tasks.append(task)
            return

    def result(self) -> tuple[Any, Any]:
        """Its oldest pending task and the result."""
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
        """Kill the process, which has no state to save."""
        self.process.kill()
        self.process.wait()
        self.line.close()


def serve(handle: int) -> None:
    """Main loop of a worker process: execute tasks until the parent is gone."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    with Connection(handle) as line:
        try:
            function, context = line.recv()
            while True:
                line.send(_answer(function, context, line.recv()))
        except (EOFError, OSError):
            return


def _watch(parent: int) -> None:
    """Exit when the parent was killed, also during a long task."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


def _answer(function: Callable[[Any, Any], Any], context: Any, task: Any) -> tuple[bool, Any]:
    try:
        return True, function(context, task)
    except UserError as error:
        return False, error
    except Exception:
        return False, traceback.format_exc()
