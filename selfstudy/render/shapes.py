"""The library of procedural shapes: ten classes with unlimited models each."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from selfstudy.render.mesh import BUCKETS, Mesh
from selfstudy.render.objects.airplane import airplane
from selfstudy.render.objects.bench import bench
from selfstudy.render.objects.cabinet import cabinet
from selfstudy.render.objects.car import car
from selfstudy.render.objects.chair import chair
from selfstudy.render.objects.lamp import lamp
from selfstudy.render.objects.motorcycle import motorcycle
from selfstudy.render.objects.sofa import sofa
from selfstudy.render.objects.table import table
from selfstudy.render.objects.vessel import vessel
from selfstudy.render.primitives import Shape

SEED = 3
MAKERS: tuple[Callable[[np.random.Generator], Shape], ...] = (
    airplane, bench, cabinet, car, chair, lamp, sofa, table, vessel, motorcycle,
)  # fmt: skip
CLASSES = tuple(maker.__name__ for maker in MAKERS)


@lru_cache(256)
def _make(label: int, model: int) -> Mesh:
    shape = MAKERS[label](np.random.default_rng([SEED, label, model]))
    mesh = shape.mesh()
    for values in (mesh.vertices, mesh.faces):
        values.flags.writeable = False
    return mesh


class Procedural:
    """Each model number m is a different shape, in bucket m % 12."""

    classes = CLASSES

    def pick(self, label: int, bucket: int, turn: int) -> int:
        """Model number `turn` of a bucket; unlimited."""
        return turn * BUCKETS + bucket

    def make(self, label: int, model: int) -> Mesh:
        """The mesh of a model; a process caches the last 256."""
        return _make(label, model)
