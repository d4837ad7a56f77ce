"""A world that costs nothing, for what renders and reads sets; worker processes import it."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from selfstudy.render import workers
from util.errors import UserError


class Fake:
    """As much of `selfstudy.render.world.World` as others use; its pictures are noise.

    Args:
        objects: in a scene.
        seed: of everything.
        seconds: that a picture takes.
        fault: picture -> what happens there: 'user', 'bug', 'killed', or the path of a file
            without which the process is killed.
    """

    classes = ("sphere", "cube", "cone")
    bank = None

    def __init__(self, objects=1, seed=0, seconds=0.0, fault=None):
        self.objects, self.seed, self.seconds = objects, seed, seconds
        self.fault = fault or {}

    def recipe(self):
        return {"fake": 1, "objects": self.objects, "seed": self.seed}

    def arrays(self, res):
        several = (self.objects,) if self.objects > 1 else ()
        return {
            "data": ((3, res, res), np.dtype("uint8")),
            "object_class" if several else "targets": (several, np.dtype("int64")),
            "rot_mat": ((*several, 3, 3), np.dtype("float32")),
            "color": ((*several, 3), np.dtype("uint8")),
            "instance": ((res, res), np.dtype("uint8")),
            "segment": ((res, res), np.dtype("uint8")),
            "depth": ((res, res), np.dtype("float16")),
            "normals": ((3, res, res), np.dtype("int8")),
        }

    def picture(self, number, res):
        time.sleep(self.seconds)
        self._fail(self.fault.get(number))
        draw = np.random.default_rng([self.seed, number])
        labels = draw.integers(0, 3, self.objects)
        square = np.zeros((res, res), np.uint8)
        square[res // 4 : res // 2, res // 4 : res // 2] = 1
        several = self.objects > 1
        found = {
            "data": draw.integers(0, 256, (3, res, res)),
            "object_class": labels,
            "targets": labels[0],
            "rot_mat": np.stack([np.eye(3)] * self.objects) if several else np.eye(3),
            "color": draw.integers(0, 256, (self.objects, 3) if several else 3),
            "instance": square,
            "segment": square * (labels[0] + 1),
            "depth": square * 1.25,
            "normals": np.stack([square * 0, square * 0, square * 127]),
        }
        # The picture's number can be read from its first pixels.
        found["data"][:, 0, 0], found["data"][:, 0, 1] = divmod(number, 256)
        return {name: np.asarray(found[name], kind) for name, (_, kind)
                in self.arrays(res).items()}  # fmt: skip

    @staticmethod
    def _fail(fault):
        if fault == "user":
            raise UserError("a mesh is broken")
        if fault == "bug":
            raise ZeroDivisionError("a bug")
        if isinstance(fault, Path) and not fault.exists():  # only the first time
            fault.touch()
            fault = "killed"
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)


def surroundings(given, task):
    """What a worker process has: the arguments, its id, modules and threads."""
    threads = [os.environ.get(name) for name in workers.THREADS]
    return given, task, os.getpid(), sorted(sys.modules), threads


def sleep(given, task):
    """A task of so many seconds."""
    time.sleep(task)
