"""A seat for one with a back; it looks to -z."""

import math

import numpy as np

from selfstudy.render.objects.parts import Draw, chance, legs
from selfstudy.render.primitives import Shape, arc


def chair(draw: Draw) -> Shape:
    """A seat for one with a back; looks to -z."""
    shape = Shape()
    x, z = draw.uniform(0.2, 0.27), draw.uniform(0.2, 0.26)
    high, thick = draw.uniform(0.4, 0.5), draw.uniform(0.025, 0.09)
    _seat(shape, draw, x, z, high, thick)
    _stand(shape, draw, x * 0.88, z * 0.88, high - thick / 2)
    lean, tall = draw.uniform(0.02, 0.16), draw.uniform(0.35, 0.65)
    _back(shape, draw, (x, z, high), lean, tall)
    if chance(draw, 0.35):
        arm = high + draw.uniform(0.17, 0.25)
        for side in (-1, 1):
            place = side * (x + 0.01)
            shape.beam((place, arm, z + lean * 0.4), (place, arm, -z * 0.7), 0.05, 0.03)
            shape.beam((place, high - thick / 2, -z * 0.6), (place, arm, -z * 0.6), 0.035)
    return shape


def _seat(shape: Shape, draw: Draw, x: float, z: float, high: float, thick: float) -> None:
    kind = draw.integers(4)
    if kind == 0:
        shape.lathe([(1, high - thick), (1.04, high - thick / 2), (0.97, high)], (0, 0, 0), 14)
        shape.vertices[-1] *= [x, 1, z]
    elif kind == 1:
        shape.box((-x, high - thick, -z), (x, high, z), thick * 0.4)
    elif kind == 2:
        narrow = draw.uniform(0.75, 0.95)
        outline = [(-x, -z), (x, -z), (x * narrow, z), (-x * narrow, z)]
        shape.prism(np.array(outline), high - thick, high)
    else:
        shape.box((-x, high - thick, -z), (x, high, z))


def _stand(shape: Shape, draw: Draw, x: float, z: float, high: float) -> None:
    kind = draw.integers(7)
    if kind <= 2:
        legs(shape, draw, x, z, high, draw.uniform(0.035, 0.06))
        if chance(draw, 0.5):
            level = high * draw.uniform(0.25, 0.5)
            for side in (-1, 1):
                shape.beam((side * x, level, -z), (side * x, level, z), 0.025)
            shape.beam((-x, level, 0), (x, level, 0), 0.025)
    elif kind == 3:  # an office chair's star
        shape.lathe([(0.035, 0.1), (0.03, high)], (0, 0, 0), 8)
        for angle in np.arange(5) * 2 * math.pi / 5 + draw.random():
            end = (0.27 * math.cos(angle), 0.05, 0.27 * math.sin(angle))
            shape.beam((0, 0.12, 0), end, 0.045, 0.03)
            shape.ball((end[0], 0.03, end[2]), (0.03, 0.03, 0.03), 6, 4)
    elif kind == 4:  # a pedestal
        foot = [(0.26, 0), (0.25, 0.025), (0.05, 0.07), (0.035, high * 0.6), (0.06, high)]
        shape.lathe(foot, (0, 0, 0), 14)
    elif kind == 5:  # a cantilever of bent tube
        for side in (-1, 1):
            p = side * x
            path = [
                (p, high, z),
                (p, high, -z),
                (p, high * 0.9, -z - 0.03),
                (p, 0.06, -z - 0.01),
                (p, 0.02, -z + 0.04),
                (p, 0.02, z),
            ]
            shape.tube(path, 0.018)
        shape.tube([(-x, 0.02, z), (x, 0.02, z)], 0.018)
    else:  # a sled
        for side in (-1, 1):
            p = side * x
            path = [(p, high, -z * 0.8), (p, 0.02, -z), (p, 0.02, z), (p, high, z * 0.8)]
            shape.tube(path, 0.02)


def _back(shape: Shape, draw: Draw, at: tuple, lean: float, tall: float) -> None:
    x, z, high = at
    z = z - 0.03

    def place(across: float, share: float, out: float = 0.0) -> tuple[float, float, float]:
        return across, high - 0.03 + share * (tall + 0.03), z + share * lean + out

    kind = draw.integers(6)
    if kind in (0, 1, 2):
        for side in (-1, 1):
            shape.beam(place(side * x * 0.9, 0), place(side * x * 0.9, 1), 0.04)
    if kind == 0:  # rungs
        for share in np.linspace(0.95, 0.3, int(draw.integers(2, 6))):
            board = draw.uniform(0.04, 0.09)
            shape.beam(place(-x * 0.9, share), place(x * 0.9, share), 0.02, board)
    elif kind == 1:  # spindles
        shape.beam(place(-x, 0.95), place(x, 0.95), 0.03, 0.07)
        for across in np.linspace(-x * 0.7, x * 0.7, int(draw.integers(3, 8))):
            shape.beam(place(across, 0), place(across, 0.95), 0.02)
    elif kind == 2:  # a panel between posts
        shape.beam(place(0, draw.uniform(0.2, 0.45)), place(0, 0.97), x * 1.7, 0.025)
    elif kind == 3:  # a board
        shape.beam(
            place(0, 0), place(0, 1), x * draw.uniform(1.6, 2.0), draw.uniform(0.03, 0.09)
        )
    elif kind == 4:  # a hoop with spindles
        hoop = arc(180, 0, 11) * [x * 0.95, 1]
        path = [place(a, s) for a, s in hoop]
        shape.tube([place(-x * 0.95, 0)] + path[1:-1] + [place(x * 0.95, 0)], 0.02)
        for across in np.linspace(-x * 0.6, x * 0.6, int(draw.integers(1, 6))):
            up = math.sqrt(max(0.0, 1 - (across / (x * 0.95)) ** 2))
            shape.beam(place(across, 0), place(across, up), 0.018)
    else:  # a small rest on one or two bars
        bars = [0.0] if chance(draw, 0.5) else [-x * 0.5, x * 0.5]
        for across in bars:
            shape.beam(place(across, 0, 0.03), place(across, 0.8, 0.02), 0.04, 0.025)
        shape.beam(place(0, 0.55), place(0, 1), x * 1.8, 0.04)
