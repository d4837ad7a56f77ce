"""A top on legs, a column, plates or trestles."""

import math

import numpy as np

from selfstudy.render.objects.parts import Draw, chance, legs, slats
from selfstudy.render.primitives import Shape, circle


def table(draw: Draw) -> Shape:
    """A top on legs, a column, plates or trestles."""
    shape = Shape()
    high = draw.choice(
        [draw.uniform(0.35, 0.45), draw.uniform(0.65, 0.8), draw.uniform(0.9, 1.1)],
        p=[0.25, 0.6, 0.15],
    )
    x, z = draw.uniform(0.3, 0.5), draw.uniform(0.4, 0.9)
    thick = draw.uniform(0.02, 0.07)
    kind = draw.integers(4)
    if kind == 0:  # round, or with a few sides
        sides = int(draw.choice([6, 8, 20, 20, 20]))
        z = x if chance(draw, 0.6) else x * draw.uniform(1.2, 1.7)
        outline = circle(sides) * [x, z]
        shape.prism(outline, high - thick, high)
        x, z = x * 0.72, z * 0.72
    elif kind == 1:
        shape.box((-x, high - thick, -z), (x, high, z), thick * 0.45)
    elif kind == 2:  # boards
        slats(
            shape,
            int(draw.integers(3, 7)),
            np.array([-x, high - thick, -z]),
            np.array([x, high, z]),
            0,
            0.9,
        )
    else:
        shape.box((-x, high - thick, -z), (x, high, z))
    _under(shape, draw, (x * 0.9, z * 0.9), high - thick / 2)
    return shape


def _under(shape: Shape, draw: Draw, at: tuple[float, float], high: float) -> None:
    x, z = at
    kind = draw.integers(7)
    if kind <= 2:
        legs(shape, draw, x * 0.95, z * 0.95, high, draw.uniform(0.04, 0.09))
        if chance(draw, 0.5):  # an apron
            drop = draw.uniform(0.05, 0.14)
            shape.box((-x * 0.93, high - drop, -z * 0.93), (x * 0.93, high - 0.002, z * 0.93))
        if chance(draw, 0.3):  # a shelf
            level = high * draw.uniform(0.2, 0.45)
            shape.box((-x * 0.95, level, -z * 0.95), (x * 0.95, level + 0.025, z * 0.95))
    elif kind == 3:  # one column
        size = min(x, z) * draw.uniform(0.5, 0.95)
        foot = [
            (size, 0),
            (size, 0.03),
            (0.06, 0.08),
            (draw.uniform(0.03, 0.08), high * 0.5),
            (0.05, high * 0.9),
            (0.14, high),
        ]
        shape.lathe(foot, (0, 0, 0), 14)
    elif kind == 4:  # a column on feet
        shape.lathe([(0.05, 0.05), (0.045, high)], (0, 0, 0), 10)
        for angle in np.arange(4) * math.pi / 2 + math.pi / 4:
            foot = (x * 0.8 * math.cos(angle), 0.02, min(z, x) * 0.8 * math.sin(angle))
            shape.beam((0, 0.14, 0), foot, 0.05)
    elif kind == 5:  # plates
        for side in (-1, 1):
            place = side * z * 0.8
            shape.box((-x * 0.85, 0, place - 0.025), (x * 0.85, high, place + 0.025))
        if chance(draw, 0.5):
            shape.box((-0.02, high * 0.3, -z * 0.8), (0.02, high * 0.5, z * 0.8))
    else:  # trestles
        for side in (-1, 1):
            for way in (-1, 1):
                shape.beam(
                    (way * 0.04, high, side * z * 0.7),
                    (way * x * 0.85, 0, side * z * 0.75),
                    0.05,
                )
            shape.beam(
                (-x * 0.5, high * 0.4, side * z * 0.72),
                (x * 0.5, high * 0.4, side * z * 0.72),
                0.04,
            )
        shape.beam((0, high * 0.45, -z * 0.72), (0, high * 0.45, z * 0.72), 0.05)
