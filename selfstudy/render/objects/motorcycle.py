"""Cruisers, racers, enduro machines and scooters; the front is at -z."""

import math

import numpy as np

from selfstudy.render.objects.parts import Draw, chance
from selfstudy.render.primitives import Shape, arc


def motorcycle(draw: Draw) -> Shape:
    """A cruiser, a racer, an enduro machine or a scooter."""
    shape = Shape()
    kind = int(draw.integers(4))
    base = [
        draw.uniform(0.72, 0.82),
        draw.uniform(0.66, 0.72),
        draw.uniform(0.68, 0.74),
        draw.uniform(0.58, 0.66),
    ][kind]
    front = [0.3, 0.29, 0.34, 0.21][kind] * draw.uniform(0.92, 1.06)
    rear = front * draw.uniform(0.85, 1.0)
    fat = [0.06, 0.06, 0.045, 0.055][kind] * draw.uniform(0.85, 1.2)
    f, b = np.array([0, front, -base]), np.array([0, rear, base])
    _cycle_wheel(shape, draw, f, front, fat * 0.85)
    _cycle_wheel(shape, draw, b, rear, fat)
    head = np.array(
        [0, front + draw.uniform(0.42, 0.52), -base + [0.32, 0.24, 0.25, 0.2][kind]]
    )
    fork = Shape()
    fork.tube([f + [0.07, 0, 0], head + [0.06, 0, 0]], 0.022, 6)
    shape.add_mirrored(fork)
    _bars(shape, draw, head, kind)
    engine, seat = np.array([0, 0.36, 0.0]), np.array([0, [0.58, 0.72, 0.78, 0.62][kind], 0.3])
    tank = np.array([0, [0.74, 0.78, 0.82, 0.6][kind], -0.12])
    if kind == 3:
        _scooter(shape, draw, head, b, seat)
    else:
        shape.box(engine - [0.11, 0.16, 0.2], engine + [0.11, 0.12, 0.2], 0.04)
        for tilt in ((-0.12, 0.12), (0.02,))[int(chance(draw, 0.6))]:
            shape.beam(engine, engine + [0, 0.3, tilt], 0.13, 0.12)
        shape.ball(
            tank,
            (draw.uniform(0.1, 0.15), draw.uniform(0.09, 0.13), draw.uniform(0.22, 0.3)),
            10,
            7,
        )
        shape.tube([head, tank - [0, 0.06, 0], seat - [0, 0.06, 0.1]], 0.035, 6)
        shape.tube(
            [head, engine + [0, -0.08, -0.24], engine + [0, -0.15, 0.2], seat - [0, 0.1, 0]],
            0.03,
            6,
        )
        swing = Shape()
        swing.tube([engine + [0.09, -0.06, 0.15], b + [0.09, 0, 0]], 0.025, 6)
        swing.tube([b + [0.11, 0, 0], seat + [0.1, -0.06, 0.05]], 0.022, 6)
        shape.add_mirrored(swing)
        shape.box(seat - [0.1, 0.06, 0.22], seat + [0.1, 0.03, draw.uniform(0.2, 0.4)], 0.04)
        if kind == 0 and chance(draw, 0.6):
            shape.beam(seat + [0, 0.02, 0.4], seat + [0, 0.24, 0.5], 0.16, 0.04)
        if kind == 1:
            _fairing(shape, head, front)
        _pipes(shape, draw, engine, b, kind)
    _guards(shape, draw, f, front, b, rear, fat, kind)
    return shape


def _cycle_wheel(shape: Shape, draw: Draw, centre, radius: float, fat: float) -> None:
    shape.ring(centre, radius - fat, fat, "x", 20)
    shape.disc(centre, 0.06, 0.12, "x", 8)
    if chance(draw, 0.35):
        shape.disc(centre, radius - fat * 1.2, 0.03, "x", 16)
        return
    count = int(draw.choice([3, 5, 8]))
    for angle in np.arange(count) / count * 2 * math.pi + draw.random():
        way = np.array([0, math.sin(angle), math.cos(angle)]) * (radius - fat)
        shape.beam(centre, np.asarray(centre) + way, 0.03 if count < 8 else 0.015)


def _bars(shape: Shape, draw: Draw, head, kind: int) -> None:
    up, back = [(0.22, 0.16), (0.06, 0.1), (0.16, 0.08), (0.22, 0.06)][kind]
    up *= draw.uniform(0.7, 1.3)
    bars = Shape()
    bars.tube([head + [0.02, 0, 0], head + [0.16, up, 0.02], head + [0.34, up, back]], 0.022, 6)
    shape.add_mirrored(bars)
    shape.ball(head + [0, -0.04, -0.1], (0.09, 0.09, 0.08), 10, 6)  # the lamp
    if chance(draw, 0.5):
        mirror = Shape()
        mirror.beam(head + [0.26, up, back * 0.7], head + [0.28, up + 0.14, back * 0.6], 0.014)
        mirror.disc(head + [0.28, up + 0.16, back * 0.6], 0.05, 0.02, "z", 8)
        shape.add_mirrored(mirror)


def _scooter(shape: Shape, draw: Draw, head, b, seat) -> None:
    shape.beam(head - [0, 0.04, -0.03], head + [0, -0.44, 0.1], 0.34, 0.05)  # the shield
    shape.box((-0.14, 0.2, head[2] + 0.08), (0.14, 0.26, seat[2] - 0.08))
    shape.ball(b + [0, 0.2, -0.12], (0.17, draw.uniform(0.2, 0.26), 0.4), 10, 7)
    shape.box(seat - [0.12, 0.05, 0.22], seat + [0.12, 0.05, 0.3], 0.04)


def _fairing(shape: Shape, head, front: float) -> None:
    rings = []
    for z, wide, low, high in (
        (-0.2, 0.04, -0.12, 0.05),
        (-0.05, 0.15, -0.3, 0.16),
        (0.12, 0.18, -0.5, 0.1),
        (0.38, 0.15, -0.55, -0.12),
    ):
        rings.append(
            [
                (-wide, low, z),
                (wide, low, z),
                (wide, (low + high) / 2, z),
                (wide * 0.5, high, z),
                (-wide * 0.5, high, z),
                (-wide, (low + high) / 2, z),
            ]
        )
    shape.loft(np.array(rings) + head)


def _pipes(shape: Shape, draw: Draw, engine, b, kind: int) -> None:
    high = 0.35 if kind == 2 else draw.uniform(-0.14, 0.05)
    sides = [1] if chance(draw, 0.5) else [-1, 1]
    for side in sides:
        path = [
            engine + [0.08 * side, 0, -0.2],
            engine + [0.15 * side, -0.14, -0.12],
            engine + [0.17 * side, -0.1, 0.2],
            b + [0.17 * side, high * 0.6, draw.uniform(0, 0.2)],
        ]
        shape.tube(path, np.array([0.028, 0.03, 0.04, 0.055]), 7)


def _guards(shape: Shape, draw: Draw, f, front, b, rear, fat, kind: int) -> None:
    """Mudguards: bent strips over the wheels."""
    for centre, radius, start, end in ((f, front, 40, 150), (b, rear, 20, 130)):
        gap = 0.03 if kind != 2 else 0.12
        turn = arc(start, end, 7) * (radius + gap)
        half = fat * 1.25
        rings = []
        for z, y in turn:
            out = np.array([0, y, z]) / (radius + gap) * 0.02
            place = np.asarray(centre) + [0, y, z]
            rings.append(
                [
                    place + [-half, 0, 0],
                    place + [half, 0, 0],
                    place + [half, 0, 0] + out,
                    place + [-half, 0, 0] + out,
                ]
            )
        shape.loft(np.array(rings))
