"""A box with doors, drawers or open shelves; it looks to +x."""

import numpy as np

from selfstudy.render.objects.parts import Draw, chance, legs
from selfstudy.render.primitives import Shape


def cabinet(draw: Draw) -> Shape:
    """A box with doors, drawers or open shelves; looks to +x."""
    shape = Shape()
    form = int(draw.integers(4))  # wardrobe, chest, sideboard, bookcase
    wide, high = [
        (draw.uniform(0.7, 1.2), draw.uniform(1.5, 2.1)),
        (draw.uniform(0.6, 1.0), draw.uniform(0.7, 1.2)),
        (draw.uniform(1.2, 1.8), draw.uniform(0.5, 0.8)),
        (draw.uniform(0.6, 1.3), draw.uniform(1.0, 2.0)),
    ][form]
    deep, foot = draw.uniform(0.35, 0.6), 0.0
    if chance(draw, 0.6):
        foot = draw.uniform(0.06, 0.22)
        legs(shape, draw, deep * 0.4, wide * 0.44, foot + 0.03, draw.uniform(0.04, 0.07))
    elif chance(draw, 0.5):
        foot = 0.06
        shape.box(
            (-deep / 2 + 0.05, 0, -wide / 2 + 0.04), (deep / 2 - 0.05, 0.08, wide / 2 - 0.04)
        )
    if chance(draw, 0.6):
        over = draw.uniform(0.015, 0.05)
        shape.box(
            (-deep / 2 - over / 2, foot + high, -wide / 2 - over),
            (deep / 2 + over, foot + high + 0.04, wide / 2 + over),
        )
    if form == 3 or chance(draw, 0.12):
        _shelves(shape, draw, deep, foot, high, wide)
    else:
        shape.box((-deep / 2, foot, -wide / 2), (deep / 2, foot + high + 0.01, wide / 2))
        _fronts(shape, draw, (deep / 2, foot, high, wide), form)
    return shape


def _shelves(shape: Shape, draw: Draw, deep: float, foot: float, high: float, wide: float):
    wall = 0.035
    low, top = foot, foot + high + 0.01
    for side in (-1, 1):
        z = side * (wide / 2 - wall / 2)
        shape.box((-deep / 2, low, z - wall / 2), (deep / 2, top, z + wall / 2))
    shape.box(
        (-deep / 2 + 0.005, low + 0.005, -wide / 2 + 0.01),
        (-deep / 2 + 0.02, top - 0.005, wide / 2 - 0.01),
    )
    count = int(draw.integers(3, 7))
    for level in np.linspace(low + 0.01, top - wall - 0.01, count):
        shape.box(
            (-deep / 2 + 0.01, level, -wide / 2 + 0.01),
            (deep / 2 - 0.015, level + wall, wide / 2 - 0.01),
        )
    if chance(draw, 0.4):  # books
        step = (top - low - wall) / (count - 1)
        for level in np.linspace(low + 0.01, top - wall - 0.01, count)[:-1]:
            z = -wide / 2 + 0.06
            while z < wide / 2 - 0.12:
                thick = draw.uniform(0.03, 0.09)
                if chance(draw, 0.75):
                    tall = step * draw.uniform(0.5, 0.8)
                    shape.box(
                        (-deep * 0.3, level + wall - 0.005, z),
                        (deep * draw.uniform(0.2, 0.4), level + wall + tall, z + thick * 0.9),
                    )
                z += thick


def _fronts(shape: Shape, draw: Draw, at: tuple, form: int) -> None:
    """Doors and drawers that stand off the front, with handles."""
    x, foot, high, wide = at
    columns = int(draw.integers(1, 4)) if form != 0 else int(draw.integers(2, 4))
    gap, out, knob = draw.uniform(0.015, 0.035), draw.uniform(0.015, 0.04), draw.integers(3)
    for column in range(columns):
        drawers = form == 1 or (form == 2 and chance(draw, 0.5))
        rows = int(draw.integers(2, 6)) if drawers else (2 if chance(draw, 0.25) else 1)
        z0 = -wide / 2 + column * wide / columns + gap
        z1 = z0 + wide / columns - 2 * gap
        for row in range(rows):
            y0 = foot + row * high / rows + gap
            y1 = y0 + high / rows - 2 * gap
            shape.box((x - 0.02, y0, z0), (x + out, y1, z1), 0.012)
            middle, edge = (z0 + z1) / 2, z1 - 0.06 if column % 2 == 0 else z0 + 0.06
            z, y = (middle, (y0 + y1) / 2) if rows > 1 else (edge, (y0 + y1) / 2)
            if knob == 0:
                shape.ball((x + out + 0.02, y, z), (0.03, 0.03, 0.03), 6, 4)
            elif knob == 1 and rows > 1:
                span = (z1 - z0) * 0.2
                shape.beam((x + out + 0.02, y, z - span), (x + out + 0.02, y, z + span), 0.03)
            elif knob == 1:
                span = (y1 - y0) * 0.12
                shape.beam((x + out + 0.02, y - span, z), (x + out + 0.02, y + span, z), 0.03)
