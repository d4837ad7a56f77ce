"""Cars of eight kinds; the bonnet is at -z."""

import numpy as np

from selfstudy.render.objects.parts import Draw, chance
from selfstudy.render.primitives import Shape

# Height of the bonnet, windscreen, roof and rear as (z, shoulder, top), z from front to back.
BODIES = {
    "saloon": [
        (-1, 0.5, 0.5),
        (-0.93, 0.6, 0.6),
        (-0.4, 0.68, 0.68),
        (-0.12, 0.7, 1),
        (0.35, 0.7, 1),
        (0.68, 0.68, 0.7),
        (0.95, 0.66, 0.66),
        (1, 0.52, 0.52),
    ],
    "hatch": [
        (-1, 0.5, 0.5),
        (-0.93, 0.62, 0.62),
        (-0.45, 0.7, 0.7),
        (-0.12, 0.72, 1),
        (0.6, 0.72, 0.98),
        (0.93, 0.7, 0.72),
        (1, 0.5, 0.5),
    ],
    "estate": [
        (-1, 0.5, 0.5),
        (-0.94, 0.6, 0.6),
        (-0.45, 0.68, 0.68),
        (-0.18, 0.7, 1),
        (0.85, 0.7, 0.97),
        (0.98, 0.68, 0.7),
        (1, 0.5, 0.5),
    ],
    "van": [
        (-1, 0.45, 0.45),
        (-0.95, 0.55, 0.58),
        (-0.8, 0.6, 0.66),
        (-0.55, 0.62, 1),
        (0.97, 0.62, 1),
        (1, 0.6, 0.95),
    ],
    "bus": [(-1, 0.5, 0.9), (-0.97, 0.55, 1), (0.98, 0.55, 1), (1, 0.5, 0.92)],
    "pickup": [
        (-1, 0.52, 0.52),
        (-0.95, 0.64, 0.64),
        (-0.5, 0.7, 0.7),
        (-0.3, 0.72, 1),
        (0.05, 0.72, 1),
        (0.12, 0.7, 0.7),
        (0.16, 0.5, 0.5),
        (0.95, 0.5, 0.5),
        (1, 0.48, 0.48),
    ],
    "sports": [
        (-1, 0.38, 0.38),
        (-0.9, 0.52, 0.52),
        (-0.25, 0.66, 0.66),
        (0.1, 0.7, 1),
        (0.3, 0.7, 0.98),
        (0.85, 0.66, 0.7),
        (1, 0.55, 0.55),
    ],
    "jeep": [
        (-1, 0.6, 0.6),
        (-0.97, 0.7, 0.7),
        (-0.4, 0.72, 0.72),
        (-0.3, 0.73, 1),
        (0.93, 0.73, 1),
        (1, 0.7, 0.9),
    ],
}
LONG = {"bus": (2.6, 3.4), "van": (1.9, 2.4), "sports": (2.3, 2.7), "pickup": (2.3, 2.7)}


def car(draw: Draw) -> Shape:
    """A saloon, hatchback, estate, van, bus, pick-up, sports car or jeep."""
    shape = Shape()
    kind = list(BODIES)[draw.integers(len(BODIES))]
    half = 0.5 * draw.uniform(*LONG.get(kind, (2.1, 2.5)))
    wide = draw.uniform(0.42, 0.5)
    high = {"bus": 1.2, "van": 1.1, "jeep": 1.0, "sports": 0.62}.get(kind, 0.78) * draw.uniform(
        0.92, 1.1
    )
    radius = draw.uniform(0.17, 0.22) * (1.15 if kind in ("jeep", "pickup") else 1)
    floor, lean = radius * draw.uniform(0.6, 1.1), draw.uniform(0.7, 0.9)
    if kind in ("van", "bus", "jeep"):
        lean = draw.uniform(0.88, 0.98)
    stations = np.array(BODIES[kind]) * [half, high, high]
    stations[:, 0] += (
        draw.uniform(-0.04, 0.04, len(stations)) * half * (np.abs(stations[:, 0]) < half * 0.9)
    )
    rings = []
    for z, shoulder, top in stations:
        narrow = wide * (1 - 0.1 * (abs(z) / half) ** 6)
        roof = narrow * (lean if top > shoulder + 0.03 else 0.96)
        rings.append(
            [
                (-narrow * 0.96, floor, z),
                (narrow * 0.96, floor, z),
                (narrow, shoulder * 0.8, z),
                (narrow * 0.98, shoulder + 0.02, z),
                (roof, top + 0.02, z),
                (-roof, top + 0.02, z),
                (-narrow * 0.98, shoulder + 0.02, z),
                (-narrow, shoulder * 0.8, z),
            ]
        )
    shape.loft(np.array(rings))
    if kind == "pickup":
        for side in (-1, 1):
            x = side * wide * 0.95
            shape.box(
                (x - 0.03, high * 0.45, half * 0.14), (x + 0.03, high * 0.71, half * 0.98)
            )
        shape.box(
            (-wide * 0.95, high * 0.45, half * 0.94), (wide * 0.95, high * 0.7, half * 0.99)
        )
    _wheels(shape, draw, half, wide, radius, kind)
    _trim(shape, draw, half, wide, high, floor, kind)
    return shape


def _wheels(
    shape: Shape, draw: Draw, half: float, wide: float, radius: float, kind: str
) -> None:
    front, back = draw.uniform(0.58, 0.68), draw.uniform(0.55, 0.68)
    thick, hub = draw.uniform(0.12, 0.17), draw.uniform(0.4, 0.7)
    rows = [-front, back] + (
        [back - 2.3 * radius / half] if kind == "bus" and chance(draw, 0.4) else []
    )
    for z in rows:
        for side in (-1, 1):
            x = side * (wide - thick * 0.3)
            tyre = [(0.8, -thick / 2), (1, -thick * 0.35), (1, thick * 0.35), (0.8, thick / 2)]
            shape.lathe(np.array(tyre) * [radius, 1], (x, radius, z * half), 14, "x")
            shape.disc((x + side * thick * 0.5, radius, z * half), radius * hub, 0.03, "x", 10)


def _trim(shape: Shape, draw: Draw, half, wide, high, floor, kind: str) -> None:
    """Bumpers, mirrors, a rack or a spoiler."""
    if chance(draw, 0.7):
        for side in (-1, 1):
            z = side * (half - 0.01)
            shape.box(
                (-wide * 0.9, floor + 0.03, z - 0.05),
                (wide * 0.9, floor + 0.13, z + 0.05),
                0.02,
            )
    if chance(draw, 0.6):
        mirror = Shape()
        mirror.box(
            (wide - 0.02, high * 0.72, -half * 0.33), (wide + 0.09, high * 0.8, -half * 0.28)
        )
        shape.add_mirrored(mirror)
    if kind in ("estate", "jeep", "van") and chance(draw, 0.4):
        for side in (-1, 1):
            shape.beam(
                (side * wide * 0.6, high + 0.06, -half * 0.1),
                (side * wide * 0.6, high + 0.06, half * 0.7),
                0.03,
            )
        for z in (0.0, 0.3, 0.6):
            shape.beam(
                (-wide * 0.65, high + 0.05, z * half),
                (wide * 0.65, high + 0.05, z * half),
                0.03,
            )
    if kind == "sports" and chance(draw, 0.6):
        shape.box(
            (-wide * 0.85, high * 0.84, half * 0.84), (wide * 0.85, high * 0.88, half * 0.99)
        )
        for side in (-1, 1):
            x = side * wide * 0.6
            shape.box((x - 0.02, high * 0.6, half * 0.87), (x + 0.02, high * 0.85, half * 0.95))
    if kind == "jeep" and chance(draw, 0.5):
        shape.disc((0, high * 0.62, half + 0.06), 0.2, 0.13, "z", 14)
