"""CPU seconds of commands before any training, compared with the import of torch."""

import resource
import shlex
import subprocess
import sys

COMMANDS = (
    "-c 'import torch'",
    "main.py --help",
    "main.py -g digits/r9/clasify",
    "main.py -p 'session.tsk = 1'",
    "main.py --print-config",
    "main.py -e start -r grid_search -g digits/r9/classify --dry-run",
)


def cpu_seconds(command: str) -> float:
    """User and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *shlex.split(command)], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    for command in COMMANDS:
        print(f"{min(cpu_seconds(command) for _ in range(3)):5.2f} s  {command}", flush=True)
