"""Parts shared by several classes."""

import numpy as np

from selfstudy.render.primitives import Shape

Draw = np.random.Generator


def chance(draw: Draw, share: float) -> bool:
    """True with probability `share`."""
    return bool(draw.random() < share)


def legs(shape: Shape, draw: Draw, x: float, z: float, height: float, thick: float) -> None:
    """Four legs under the corners at +-x, +-z: straight, tapered, splayed, turned or round."""
    kind = draw.integers(5)
    splay = draw.uniform(0.05, 0.25) * height if kind == 2 else 0.0
    for sx in (-1, 1):
        for sz in (-1, 1):
            top = np.array([sx * x, height, sz * z])
            foot = np.array([sx * (x + splay), 0, sz * (z + splay)])
            if kind == 0:
                shape.beam(top, foot, thick)
            elif kind == 1:
                shape.tube([top, foot], np.array([thick, thick * 0.45]) * 0.65, 4)
            elif kind == 3:
                turned = [
                    (0.7, 0),
                    (0.4, 0.1),
                    (0.75, 0.35),
                    (0.45, 0.6),
                    (0.8, 0.85),
                    (0.7, 1),
                ]
                shape.lathe(np.array(turned) * [thick * 0.75, height], foot, 8)
            else:
                shape.tube([top, foot], thick * 0.5, 8)


def slats(
    shape: Shape, count: int, low: np.ndarray, high: np.ndarray, axis: int, fill: float
) -> None:
    """Boards that share the box between two corners along an axis, `fill` of it solid."""
    step = (high[axis] - low[axis]) / count
    for index in range(count):
        start, end = low.copy(), high.copy()
        start[axis] = low[axis] + (index + (1 - fill) / 2) * step
        end[axis] = start[axis] + fill * step
        shape.box(start, end)
