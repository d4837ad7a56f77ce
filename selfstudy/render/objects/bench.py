"""A long seat for several, on supports; it looks to +x, its long side to the study's camera."""

import numpy as np

from selfstudy.render.objects.parts import Draw, chance, slats
from selfstudy.render.primitives import Shape, arc


def bench(draw: Draw) -> Shape:
    """A long seat on supports, perhaps with a back and arms; looks to +x."""
    shape = Shape()
    long, deep, high = (
        draw.uniform(1.2, 2.2),
        draw.uniform(0.32, 0.55),
        draw.uniform(0.38, 0.52),
    )
    thick, half = draw.uniform(0.03, 0.09), long / 2
    solid = chance(draw, 0.35)
    low, top = np.array([-deep / 2, high - thick, -half]), np.array([deep / 2, high, half])
    if solid:
        shape.box(low, top, draw.choice([0, 0.02]))
    else:
        slats(shape, int(draw.integers(2, 6)), low, top, 0, draw.uniform(0.6, 0.85))
    inset, wide = half * draw.uniform(0.55, 0.95), draw.uniform(0.04, 0.12)
    _bench_supports(shape, draw, (deep / 2, high - thick / 2, inset), wide)
    if chance(draw, 0.6):
        lean, tall = draw.uniform(0, 0.18), draw.uniform(0.3, 0.5)
        _bench_back(shape, draw, (deep / 2, high, half, inset), lean, tall)
        if chance(draw, 0.55):
            arm = high + draw.uniform(0.16, 0.26)
            for side in (-1, 1):
                z = side * (half - 0.04)
                shape.beam((-deep / 2, arm, z), (deep / 2, arm, z), 0.05, 0.035)
                shape.beam(
                    (deep / 2 - 0.04, high - thick / 2, z), (deep / 2 - 0.04, arm, z), 0.04
                )
    return shape


def _bench_supports(shape: Shape, draw: Draw, at: tuple, wide: float) -> None:
    x, high, z = at
    kind = draw.integers(5)
    count = 3 if z > 0.8 and chance(draw, 0.5) else 2
    for place in np.linspace(-z, z, count):
        if kind == 0:  # a plate
            shape.box((-x * 0.85, 0, place - wide / 2), (x * 0.85, high, place + wide / 2))
        elif kind == 1:  # two legs and a foot
            for side in (-1, 1):
                shape.beam((side * x * 0.8, high, place), (side * x * 0.9, 0, place), 0.05)
            shape.beam((-x * 0.8, high * 0.4, place), (x * 0.8, high * 0.4, place), 0.035)
        elif kind == 2:  # crossed
            for side in (-1, 1):
                shape.beam((side * x, high, place), (-side * x, 0, place), 0.045)
        elif kind == 3:  # an iron bow
            bow = arc(200, 340, 8) * [x * 0.95, high * 1.1] + [0, high * 1.15]
            shape.tube(np.column_stack([bow, np.full(8, place)]), 0.022)
            for side in (-1, 1):
                shape.tube([(side * x * 0.9, high, place), (side * x * 0.9, 0, place)], 0.02)
        else:  # a block of stone
            shape.box((-x * 0.7, 0, place - wide), (x * 0.7, high, place + wide), 0.02)


def _bench_back(shape: Shape, draw: Draw, at: tuple, lean: float, tall: float) -> None:
    x, high, half, inset = at
    foot, top = np.array([-x + 0.02, high - 0.05]), np.array([-x - lean, high + tall])
    for place in (-inset, inset):
        shape.beam((*foot, place), (*top, place), 0.05)
    upright = chance(draw, 0.35)
    count = int(draw.integers(6, 14) if upright else draw.integers(1, 5))
    if upright:
        for share in (0.25, 0.95):
            x0, y0 = foot + share * (top - foot)
            shape.beam((x0 + 0.03, y0, -half), (x0 + 0.03, y0, half), 0.05, 0.03)
        for place in np.linspace(-half * 0.92, half * 0.92, count):
            start, end = foot + 0.25 * (top - foot), foot + 0.95 * (top - foot)
            shape.beam(
                (start[0] + 0.03, start[1], place), (end[0] + 0.03, end[1], place), 0.03, 0.02
            )
        return
    for share in np.linspace(0.95, 0.35, count):
        x0, y0 = foot + share * (top - foot)
        board = 0.75 * 0.6 * tall / count
        shape.beam((x0 + 0.035, y0, -half), (x0 + 0.035, y0, half), 0.025, board)
