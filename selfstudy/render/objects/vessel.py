"""Boats and ships; the bow is at -z."""

import numpy as np

from selfstudy.render.objects.parts import Draw, chance
from selfstudy.render.primitives import Points, Shape


def vessel(draw: Draw) -> Shape:
    """A sailing boat, tall ship, liner, freighter, tug, yacht or rowing boat."""
    return VESSELS[draw.integers(len(VESSELS))](draw)


def _hull(shape: Shape, draw: Draw, wide: float, deep: float, stern: float, sheer: float = 0.3):
    """A hull from z = -.5 (bow) to .5, its deck at y = 0; returns the deck's half width."""
    along = np.array([-0.5, -0.46, -0.36, -0.2, 0.0, 0.25, 0.42, 0.5])
    full = np.array([0.02, 0.25, 0.62, 0.92, 1, 1, 0.9 * stern + 0.1, stern])
    rise = sheer * deep * (np.abs(along) / 0.5) ** 3 * np.where(along < 0, 1, 0.4)
    rake = draw.uniform(0.02, 0.09)
    rings = []
    for z, share, up in zip(along, full, rise, strict=True):
        x = wide * share
        back = rake * (1 if z < -0.35 else 0)
        keel = np.array(
            [
                [-x, up, z],
                [x, up, z],
                [x * 0.92, -deep * 0.5, z + back * 0.5],
                [x * 0.5, -deep, z + back],
                [-x * 0.5, -deep, z + back],
                [-x * 0.92, -deep * 0.5, z + back * 0.5],
            ]
        )
        rings.append(keel)
    shape.loft(np.array(rings))


def _sail(shape: Shape, corners: Points, belly: float) -> None:
    """A cloth [3 or 4 corners], bent to +x."""
    outline = np.asarray(corners, float)
    centre = outline.mean(0) + [belly, 0, 0]
    points = np.concatenate([outline, [centre]])
    n = len(outline)
    faces = [(i, (i + 1) % n, n) for i in range(n)]
    shape.add(points, np.array(faces))


def _sailing_boat(draw: Draw) -> Shape:
    shape = Shape()
    _hull(
        shape, draw, draw.uniform(0.1, 0.15), draw.uniform(0.07, 0.12), draw.uniform(0.4, 0.9)
    )
    mast, place = draw.uniform(0.75, 1.15), draw.uniform(-0.14, 0.0)
    shape.tube([(0, -0.02, place), (0, mast, place)], 0.011, 5)
    boom, foot = draw.uniform(0.32, 0.45), 0.08
    belly = draw.uniform(0.02, 0.07)
    shape.tube([(0, foot, place), (0, foot, place + boom)], 0.009, 5)
    gaff = chance(draw, 0.25)
    main = [
        (0, foot + 0.01, place + 0.012),
        (0, foot + 0.015, place + boom),
        (0, mast * 0.97, place + 0.012),
    ]
    if gaff:
        main = [
            *main[:2],
            (0, mast * 0.95, place + boom * 0.75),
            (0, mast * 0.65, place + 0.012),
        ]
    _sail(shape, main, belly)
    if chance(draw, 0.8):
        _sail(
            shape,
            [
                (0, 0.04, -0.47),
                (0, 0.07, place - 0.02),
                (0, mast * draw.uniform(0.65, 0.92), place - 0.015),
            ],
            belly,
        )
    if chance(draw, 0.5):
        shape.box((-0.05, -0.02, place + 0.06), (0.05, 0.05, place + 0.3), 0.015)
    return shape


def _tall_ship(draw: Draw) -> Shape:
    shape = Shape()
    wide = draw.uniform(0.09, 0.13)
    _hull(shape, draw, wide, draw.uniform(0.1, 0.14), 0.8, 0.5)
    shape.box((-wide * 0.8, -0.03, 0.3), (wide * 0.8, draw.uniform(0.05, 0.1), 0.49))
    shape.tube([(0, 0.05, -0.45), (0, 0.16, -0.66)], 0.01, 5)
    masts = int(draw.integers(2, 4))
    for place in np.linspace(-0.3, 0.28, masts):
        high = draw.uniform(0.5, 0.68)
        shape.tube([(0, -0.02, place), (0, high, place)], 0.012, 5)
        levels = int(draw.integers(2, 4))
        for level in range(levels):
            low = 0.12 + level * (high - 0.14) / levels
            tall = (high - 0.14) / levels * 0.85
            reach = (0.19 - 0.035 * level) * draw.uniform(0.85, 1.1)
            shape.beam((-reach, low + tall, place), (reach, low + tall, place), 0.012)
            turn = 0.45 * reach
            _sail(
                shape,
                [
                    (-reach, low, place - turn),
                    (reach, low, place + turn),
                    (reach * 0.85, low + tall, place + turn),
                    (-reach * 0.85, low + tall, place - turn),
                ],
                0.03,
            )
    return shape


def _liner(draw: Draw) -> Shape:
    shape = Shape()
    wide = draw.uniform(0.06, 0.085)
    _hull(shape, draw, wide, draw.uniform(0.06, 0.09), 0.7)
    decks, low, z0, z1 = int(draw.integers(2, 5)), -0.01, -0.34, 0.42
    for _ in range(decks):
        tall = draw.uniform(0.025, 0.04)
        shape.box((-wide * 0.88, low, z0), (wide * 0.88, low + tall, z1), 0.006)
        low, z0, z1 = (
            low + tall - 0.002,
            z0 + draw.uniform(0.01, 0.05),
            z1 - draw.uniform(0.01, 0.06),
        )
        wide *= 0.94
    funnels = int(draw.integers(1, 5))
    for place in np.linspace(z0 + 0.1, z1 - 0.1, funnels) if funnels > 1 else [0.1]:
        size, tall = draw.uniform(0.018, 0.03), draw.uniform(0.06, 0.12)
        shape.tube([(0, low - 0.01, place), (0, low + tall, place + 0.02)], size, 8)
    shape.tube([(0, low, z0 + 0.04), (0, low + 0.12, z0 + 0.04)], 0.006, 4)
    return shape


def _freighter(draw: Draw) -> Shape:
    shape = Shape()
    wide = draw.uniform(0.065, 0.095)
    _hull(shape, draw, wide, draw.uniform(0.06, 0.09), 0.85)
    aft = chance(draw, 0.75)
    z = 0.36 if aft else -0.28
    tall = draw.uniform(0.12, 0.19)
    shape.box((-wide * 0.85, -0.01, z - 0.05), (wide * 0.85, tall, z + 0.05), 0.008)
    shape.box((-wide * 1.05, tall * 0.8, z - 0.055), (wide * 1.05, tall * 0.8 + 0.02, z - 0.02))
    shape.tube([(0, 0, z + 0.075), (0, tall * 1.1, z + 0.08)], 0.018, 8)
    start, end = (-0.34, 0.28) if aft else (-0.2, 0.44)
    if chance(draw, 0.6):  # containers
        count = int(draw.integers(4, 8))
        step = (end - start) / count
        for index in range(count):
            for lane in (-1, 0, 1):
                stack = draw.uniform(0.03, 0.12)
                x = lane * wide * 0.55
                shape.box(
                    (x - wide * 0.26, -0.01, start + index * step + 0.006),
                    (x + wide * 0.26, stack, start + (index + 1) * step - 0.006),
                )
    else:  # hatches and cranes
        for place in np.linspace(start + 0.05, end - 0.1, int(draw.integers(2, 5))):
            shape.box((-wide * 0.6, -0.01, place - 0.04), (wide * 0.6, 0.02, place + 0.04))
            shape.tube([(0, 0, place + 0.055), (0, 0.15, place + 0.055)], 0.009, 5)
            shape.tube([(0, 0.04, place + 0.055), (0.03, 0.14, place - 0.05)], 0.006, 5)
    return shape


def _tug(draw: Draw) -> Shape:
    shape = Shape()
    wide = draw.uniform(0.14, 0.19)
    _hull(shape, draw, wide, draw.uniform(0.12, 0.17), 0.75, 0.6)
    z, tall = draw.uniform(-0.18, 0.0), draw.uniform(0.12, 0.18)
    shape.box((-wide * 0.65, -0.02, z - 0.12), (wide * 0.65, tall, z + 0.2), 0.02)
    shape.box((-wide * 0.5, tall - 0.01, z - 0.1), (wide * 0.5, tall + 0.11, z + 0.06), 0.015)
    shape.box((-wide * 0.58, tall + 0.1, z - 0.13), (wide * 0.58, tall + 0.125, z + 0.09))
    shape.tube([(0, tall, z + 0.13), (0, tall + 0.2, z + 0.15)], draw.uniform(0.03, 0.05), 8)
    shape.tube([(0, tall, z - 0.02), (0, tall + 0.35, z - 0.02)], 0.009, 5)
    if chance(draw, 0.5):  # a fishing boat's gallows
        for side in (-1, 1):
            shape.beam((side * wide * 0.6, 0, 0.35), (side * wide * 0.4, 0.28, 0.38), 0.02)
        shape.beam((-wide * 0.45, 0.28, 0.38), (wide * 0.45, 0.28, 0.38), 0.02)
    return shape


def _yacht(draw: Draw) -> Shape:
    shape = Shape()
    wide = draw.uniform(0.1, 0.14)
    _hull(shape, draw, wide, draw.uniform(0.08, 0.11), 0.95, 0.5)
    low, z0, z1 = -0.02, draw.uniform(-0.25, -0.12), draw.uniform(0.2, 0.36)
    for _ in range(int(draw.integers(1, 4))):
        tall, rake = draw.uniform(0.06, 0.09), draw.uniform(0.06, 0.13)
        x = wide * 0.8
        rings = [
            [(-x, low, z0), (x, low, z0), (x, low, z1), (-x, low, z1)],
            [
                (-x * 0.85, low + tall, z0 + rake),
                (x * 0.85, low + tall, z0 + rake),
                (x * 0.85, low + tall, z1 - 0.02),
                (-x * 0.85, low + tall, z1 - 0.02),
            ],
        ]
        shape.loft(np.array(rings))
        low, z0, z1, wide = low + tall - 0.005, z0 + rake + 0.03, z1 - 0.06, wide * 0.85
    if chance(draw, 0.6):
        shape.beam((0, low, z1 - 0.1), (0, low + 0.1, z1 - 0.06), 0.06, 0.012)
    return shape


def _rowing_boat(draw: Draw) -> Shape:
    shape = Shape()
    wide, deep = draw.uniform(0.13, 0.2), draw.uniform(0.1, 0.16)
    _hull(shape, draw, wide, deep, draw.uniform(0.3, 0.8), 0.5)
    along = np.linspace(-0.42, 0.46, 9)
    for side in (-1, 1):  # the rim stands over the deck
        bow = side * wide * np.sqrt(np.clip(1 - (np.abs(along + 0.02) / 0.5) ** 2.5, 0.01, 1))
        shape.tube(np.column_stack([bow, np.full(9, 0.025), along]), 0.02, 5)
    for place in np.linspace(-0.2, 0.25, int(draw.integers(2, 4))):
        shape.box((-wide * 0.9, 0.02, place - 0.035), (wide * 0.9, 0.045, place + 0.035))
    if chance(draw, 0.7):
        oars = Shape()
        foot = draw.uniform(-0.1, 0.15)
        oars.tube([(wide * 0.3, 0.1, foot + 0.1), (wide * 2.2, -0.06, foot - 0.08)], 0.011, 5)
        oars.beam(
            (wide * 2, -0.045, foot - 0.065), (wide * 2.5, -0.085, foot - 0.11), 0.045, 0.01
        )
        shape.add_mirrored(oars)
    return shape


VESSELS = (
    _sailing_boat,
    _sailing_boat,
    _tall_ship,
    _liner,
    _freighter,
    _tug,
    _yacht,
    _rowing_boat,
)
