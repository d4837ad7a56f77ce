"""Lamps for tables, floors, desks and ceilings."""

import math

import numpy as np

from selfstudy.render.objects.parts import Draw, chance
from selfstudy.render.primitives import Shape, arc


def lamp(draw: Draw) -> Shape:
    """On a table, on the floor, on an arm, on three legs, or hanging."""
    return LAMPS[draw.integers(len(LAMPS))](draw)


def _shade(shape: Shape, draw: Draw, centre: tuple, radius: float, high: float) -> None:
    """A shade whose lower rim is at `centre`."""
    kind = draw.integers(5)
    top = draw.uniform(0.45, 0.95)
    sides = int(draw.choice([4, 6, 16, 16, 16]))
    if kind == 0:  # a dome
        dome = arc(0, 80, 6) * [radius, high]
        shape.lathe(dome, centre, sides)
    elif kind == 1:  # a ball
        x, y, z = centre
        shape.ball((x, y + high * 0.5, z), (radius * 0.85, high * 0.6, radius * 0.85), 12, 8)
    elif kind == 2:  # a bell
        bell = [(1, 0), (0.8, 0.15), (top * 0.75, 0.5), (top * 0.6, 0.8), (0.2, 1)]
        shape.lathe(np.array(bell) * [radius, high], centre, sides)
    else:  # a cone or a drum
        shape.lathe([(radius, 0), (radius * top, high)], centre, sides)


def _table_lamp(draw: Draw) -> Shape:
    shape, high = Shape(), draw.uniform(0.25, 0.45)
    wide = draw.uniform(0.06, 0.13)
    share = np.linspace(0, 1, 7)
    swell = np.abs(np.sin(math.pi * (share * draw.uniform(0.6, 2.2) + draw.random())))
    radii = wide * (0.25 + swell * draw.uniform(0.3, 1))
    radii[0] = max(radii[0], wide)
    shape.lathe(
        np.column_stack([radii, share * high]), (0, 0, 0), int(draw.choice([4, 6, 12, 12]))
    )
    shape.lathe([(0.012, high), (0.012, high + 0.1)], (0, 0, 0), 6)
    _shade(shape, draw, (0, high + 0.03, 0), draw.uniform(0.13, 0.22), draw.uniform(0.14, 0.26))
    return shape


def _floor_lamp(draw: Draw) -> Shape:
    shape, high = Shape(), draw.uniform(1.1, 1.5)
    shape.lathe([(0.15, 0), (0.15, 0.025), (0.03, 0.05)], (0, 0, 0), 14)
    shape.lathe([(0.02, 0.03), (0.02, high)], (0, 0, 0), 8)
    heads = 1 if chance(draw, 0.75) else int(draw.integers(2, 4))
    for index in range(heads):
        angle = 2 * math.pi * index / heads
        out = 0.0 if heads == 1 else 0.22
        place = (out * math.cos(angle), high - 0.05, out * math.sin(angle))
        if heads > 1:
            shape.tube([(0, high - 0.15, 0), place], 0.015)
        size = draw.uniform(0.16, 0.28) * (1 if heads == 1 else 0.6)
        _shade(shape, draw, place, size, size * draw.uniform(0.7, 1.3))
    return shape


def _arm_lamp(draw: Draw) -> Shape:
    """A desk lamp with two arms; or an arc over a floor."""
    shape = Shape()
    shape.lathe([(0.11, 0), (0.11, 0.02), (0.03, 0.04)], (0, 0, 0), 14)
    elbow = np.array([0, draw.uniform(0.22, 0.32), draw.uniform(0.06, 0.16)])
    head = elbow + [0, draw.uniform(0.02, 0.2), -draw.uniform(0.2, 0.3)]
    if chance(draw, 0.3):
        bow = arc(180, draw.uniform(20, 60), 9) * [0.22, 0.42]
        path = np.column_stack([np.zeros(9), bow[:, 1] + 0.03, -bow[:, 0] - 0.22])
        shape.tube(path, 0.014)
        head = path[-1]
    else:
        shape.tube([(0, 0.03, 0), elbow, head], 0.013)
        shape.ball(elbow, (0.025, 0.025, 0.025), 6, 4)
    size = draw.uniform(0.06, 0.1)
    tip = head + [0, -size * 1.4, -size * draw.uniform(0.3, 1)]
    shape.tube([head + (head - tip) * 0.4, head, tip], np.array([0.35, 0.5, 1]) * size, 12)
    return shape


def _tripod_lamp(draw: Draw) -> Shape:
    shape, high = Shape(), draw.uniform(0.7, 1.2)
    spread, turned = draw.uniform(0.2, 0.36), draw.random()
    for angle in (np.arange(3) / 3 + turned) * 2 * math.pi:
        foot = (spread * math.cos(angle), 0, spread * math.sin(angle))
        shape.tube([foot, (0.02 * math.cos(angle), high, 0.02 * math.sin(angle))], 0.018)
    shape.lathe([(0.05, high - 0.05), (0.03, high + 0.06)], (0, 0, 0), 8)
    size = draw.uniform(0.2, 0.32)
    _shade(shape, draw, (0, high, 0), size, size * draw.uniform(0.7, 1.2))
    return shape


def _hanging_lamp(draw: Draw) -> Shape:
    shape, cord = Shape(), draw.uniform(0.3, 0.7)
    size = draw.uniform(0.16, 0.26)
    high = size * draw.uniform(0.6, 1.3)
    _shade(shape, draw, (0, 0, 0), size, high)
    shape.lathe([(0.012, high * 0.7), (0.012, high + cord)], (0, 0, 0), 6)
    shape.lathe([(0.06, high + cord), (0.05, high + cord + 0.03)], (0, 0, 0), 10)
    if chance(draw, 0.35):
        shape.ball((0, 0, 0), (0.06, 0.07, 0.06), 8, 5)
    return shape


def _chandelier(draw: Draw) -> Shape:
    shape, count = Shape(), int(draw.integers(3, 7))
    reach = draw.uniform(0.22, 0.34)
    shape.lathe(
        [(0.02, 0), (0.05, 0.05), (0.02, 0.12), (0.012, 0.5), (0.05, 0.53)], (0, 0, 0), 8
    )
    for angle in np.arange(count) / count * 2 * math.pi:
        way = np.array([math.cos(angle), 0, math.sin(angle)])
        bow = [way * reach * s + [0, y, 0] for s, y in ((0, 0.06), (0.5, -0.03), (1, 0.05))]
        shape.tube(bow, 0.014, 5)
        end = way * reach
        _shade(shape, draw, (end[0], 0.05, end[2]), 0.08, draw.uniform(0.08, 0.13))
    return shape


LAMPS = (
    _table_lamp,
    _table_lamp,
    _floor_lamp,
    _arm_lamp,
    _tripod_lamp,
    _hanging_lamp,
    _chandelier,
)
