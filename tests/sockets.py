"""At which ports processes listen (Linux)."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def listening(pids: Iterable[int]) -> set[int]:
    """The TCP ports at which these processes listen."""
    ports = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A":
                ports[f"socket:[{rest[5]}]"] = int(local.rpartition(":")[2], 16)
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for handle in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(ports.get(os.readlink(f"/proc/{pid}/fd/{handle}")))
    return found - {None}
