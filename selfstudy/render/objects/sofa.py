"""Upholstered seats with back and arms; they look to +x."""

import numpy as np

from selfstudy.render.objects.parts import Draw, chance, legs
from selfstudy.render.primitives import Shape


def sofa(draw: Draw) -> Shape:
    """An upholstered seat with back and arms, perhaps with a corner; looks to +x."""
    shape = Shape()
    half, deep = draw.uniform(0.5, 1.15), draw.uniform(0.75, 0.95)
    seat, tall = draw.uniform(0.36, 0.45), draw.uniform(0.7, 0.95)
    foot, arm = draw.uniform(0.04, 0.16), draw.uniform(0.1, 0.24)
    back, soft = draw.uniform(0.16, 0.26), draw.uniform(0.02, 0.06)
    x0, x1 = -deep / 2, deep / 2
    legs(shape, draw, deep * 0.4, half * 0.9, foot + 0.03, 0.06)
    end = half - 0.01  # inside the arms: no two faces in one plane
    shape.box((x0, foot, -end), (x1 - 0.03, seat - 0.12, end), soft * 0.5)
    lean = draw.uniform(0, 0.12)
    ring = [
        (x0 + 0.01, seat - 0.15),
        (x0 + back, seat - 0.15),
        (x0 + back - lean, tall),
        (x0 - lean, tall),
    ]
    shape.prism(np.array(ring), -half + arm * 0.5, half - arm * 0.5, "z")
    _arms(shape, draw, (x0, x1, foot, half), arm, seat + draw.uniform(0.1, 0.28))
    inner, count = half - arm, int(draw.integers(1, 4))
    for index in range(count):
        z0 = -inner + index * 2 * inner / count
        z1 = z0 + 2 * inner / count
        shape.box((x0 + back * 0.6, seat - 0.14, z0 + 0.008), (x1, seat, z1 - 0.008), soft)
        if chance(draw, 0.75):
            shape.box(
                (x0 + back * 0.7, seat - 0.02, z0 + 0.015),
                (x0 + back + 0.12, tall - draw.uniform(0.02, 0.12), z1 - 0.015),
                soft,
            )
    if chance(draw, 0.3):  # a corner
        side, long = draw.choice([-1, 1]), draw.uniform(0.4, 0.75)
        z0, z1 = sorted((side * inner, side * (inner - draw.uniform(0.5, 0.65))))
        shape.box((x1 - 0.05, foot, z0), (x1 + long, seat - 0.11, z1), soft * 0.5)
        shape.box(
            (x1 - 0.02, seat - 0.13, z0 + 0.01), (x1 + long, seat + 0.01, z1 - 0.01), soft
        )
    return shape


def _arms(shape: Shape, draw: Draw, at: tuple, arm: float, high: float) -> None:
    x0, x1, foot, half = at
    kind = draw.integers(3)
    for side in (-1, 1):
        z0, z1 = sorted((side * half, side * (half - arm)))
        if kind == 0:
            shape.box(
                (x0 - 0.01, foot - 0.01, z0), (x1 + 0.01, high, z1), draw.uniform(0, 0.05)
            )
        elif kind == 1:  # a roll
            shape.box((x0 - 0.01, foot - 0.01, z0 + 0.02), (x1, high - arm * 0.4, z1 - 0.02))
            roll = [(arm * 0.55, x0 - 0.02), (arm * 0.55, x1 + 0.02)]
            shape.lathe(roll, (0, high - arm * 0.3, (z0 + z1) / 2), 10, "x")
        else:  # lower in front
            ring = [
                (x0 - 0.01, foot - 0.01),
                (x1, foot - 0.01),
                (x1, high - 0.1),
                (x0 - 0.01, high),
            ]
            shape.prism(np.array(ring), z0, z1, "z")
