"""Airliners, propeller machines, biplanes, jet fighters and gliders; the nose is at -z."""

import math

import numpy as np

from selfstudy.render.objects.parts import Draw, chance
from selfstudy.render.primitives import Shape, circle

WING = np.array([[-0.5, 0], [-0.3, 0.5], [0.1, 0.4], [0.5, 0], [0.1, -0.3], [-0.3, -0.35]])


def airplane(draw: Draw) -> Shape:
    """An airliner, a propeller machine, a biplane, a jet fighter or a glider."""
    shape = Shape()
    kind = int(draw.choice(5, p=[0.35, 0.25, 0.1, 0.2, 0.1]))
    thin = [draw.uniform(0.055, 0.08), draw.uniform(0.065, 0.1), 0.075, 0.055, 0.04][kind]
    _fuselage(shape, draw, thin, kind)
    span = [
        draw.uniform(0.4, 0.55),
        draw.uniform(0.42, 0.6),
        draw.uniform(0.38, 0.48),
        draw.uniform(0.25, 0.38),
        draw.uniform(0.7, 0.9),
    ][kind]
    root = [
        draw.uniform(0.16, 0.22),
        draw.uniform(0.13, 0.2),
        0.16,
        draw.uniform(0.28, 0.4),
        0.09,
    ][kind]
    tip = root * [0.35, draw.uniform(0.5, 1), 0.95, draw.uniform(0.1, 0.4), 0.5][kind]
    sweep = [
        draw.uniform(0.15, 0.3),
        draw.uniform(-0.02, 0.05),
        0.0,
        draw.uniform(0.15, 0.3),
        0.0,
    ][kind]
    level = draw.choice([-0.6, 0.75]) * thin
    rise = draw.uniform(-0.02, 0.09) * span * (1 if level < 0 else 0.3)
    at = np.array([thin * 0.4, level, draw.uniform(-0.1, 0.05)])
    tips = at + [span, rise, sweep]
    _both(shape, at, tips, root, tip, 0.13)
    if kind == 2:  # a second wing and struts
        over = at + [0, draw.uniform(0.14, 0.19), -0.03]
        _both(shape, over - [thin * 0.4, 0, 0], over + [span, rise, 0], root, tip, 0.13)
        struts = Shape()
        for share in (0.45, 0.8):
            low = at + [span * share, rise * share, 0]
            struts.beam(low, low + [0, over[1] - at[1], -0.03], 0.012)
        shape.add_mirrored(struts)
    _tail(shape, draw, thin, kind)
    _engines(shape, draw, at, tips, thin, kind)
    return shape


def _fuselage(shape: Shape, draw: Draw, thin: float, kind: int) -> None:
    """A body from z = -.5 to .5, round to oval."""
    nose = draw.uniform(0.08, 0.2) if kind != 3 else draw.uniform(0.25, 0.35)
    tail = draw.uniform(0.25, 0.4)
    along = np.array(
        [-0.5, -0.5 + nose * 0.25, -0.5 + nose * 0.6, -0.5 + nose, 0.5 - tail, 0.42, 0.5]
    )
    size = np.array([0.12, 0.55, 0.85, 1, 1, 0.4, 0.15]) * thin
    lift = np.array([-0.25, -0.15, 0, 0, 0, 0.45, 0.7]) * thin
    tall = draw.uniform(0.95, 1.25)
    rings = [
        np.column_stack([circle(10) * [s, s * tall] + [0, y], np.full(10, z)])
        for z, s, y in zip(along, size, lift, strict=True)
    ]
    shape.loft(np.stack(rings))
    if kind in (1, 2, 3, 4) and chance(draw, 0.85):  # a canopy
        place = -0.5 + nose + draw.uniform(0, 0.12)
        shape.ball((0, thin * 0.85, place), (thin * 0.6, thin * 0.75, 0.1), 8, 6)


def _fin(
    shape: Shape, root: np.ndarray, tip: np.ndarray, long: float, short: float, thick: float
):
    """A blade from root to tip, `long` and `short` along z there."""
    across = (
        np.array([0.0, 1, 0])
        if abs((tip - root)[0]) > abs((tip - root)[1])
        else np.array([1.0, 0, 0])
    )
    rings = [
        place + WING[:, :1] * [0, 0, chord] + WING[:, 1:] * across * chord * thick
        for place, chord in ((root, long), (tip, short))
    ]
    shape.loft(np.stack(rings))


def _both(shape: Shape, root, tip, long: float, short: float, thick: float) -> None:
    half = Shape()
    _fin(half, np.asarray(root), np.asarray(tip), long, short, thick)
    shape.add_mirrored(half)


def _tail(shape: Shape, draw: Draw, thin: float, kind: int) -> None:
    high, chord = draw.uniform(0.12, 0.2), draw.uniform(0.09, 0.14)
    z, y = 0.43, thin * 0.6
    if kind == 3 and chance(draw, 0.5):  # two fins
        _both(
            shape,
            [thin * 0.9, y, z - 0.05],
            [thin * 1.5, y + high, z],
            chord * 1.3,
            chord * 0.6,
            0.1,
        )
    else:
        _fin(
            shape,
            np.array([0, y, z - 0.02]),
            np.array([0, y + high, z + 0.06]),
            chord * 1.3,
            chord * 0.6,
            0.1,
        )
    top = kind in (0, 4) and chance(draw, 0.35)
    level = y + high * 0.93 if top else y * 0.7
    reach = draw.uniform(0.13, 0.2)
    _both(
        shape,
        [0.0, level, z + 0.03 * top],
        [reach, level + 0.01, z + 0.06],
        chord,
        chord * 0.55,
        0.1,
    )


def _engines(shape: Shape, draw: Draw, at, tips, thin: float, kind: int) -> None:
    pods = Shape()
    if kind == 0:
        size = draw.uniform(0.022, 0.036)
        pod = [(0.7, -0.05), (1, -0.04), (1, 0.02), (0.5, 0.06)]
        if chance(draw, 0.75):
            for share in ([0.35], [0.3, 0.58])[draw.integers(2)]:
                place = at + share * (tips - at) + [0, -size * 1.3, -0.09]
                pods.lathe(np.array(pod) * [size, 1], place, 10, "z")
                pods.beam(
                    place + [0, size * 0.5, 0.02], place + [0, size * 1.5, 0.08], 0.012, 0.05
                )
        else:
            place = np.array([thin + size, thin * 0.4, 0.27])
            pods.lathe(np.array(pod) * [size, 1], place, 10, "z")
            pods.beam(place, place - [size * 1.5, 0, 0], 0.05, 0.012)
        shape.add_mirrored(pods)
    elif kind in (1, 2):
        wings = kind == 1 and chance(draw, 0.45)
        places = [
            at + s * (tips - at) + [0, 0.005, -0.1]
            for s in ([0.33], [0.25, 0.55])[draw.integers(2)]
        ]
        for place in places if wings else [np.array([0, -thin * 0.1, -0.5])]:
            part = pods if wings else shape
            if wings:
                part.lathe(
                    [(0.3 * 0.04, -0.05), (0.033, -0.03), (0.033, 0.06), (0.012, 0.12)],
                    place,
                    8,
                    "z",
                )
            turned = draw.random() * math.pi
            for angle in turned + np.arange(draw.integers(2, 5)) * math.pi / 2:
                way = np.array([math.cos(angle), math.sin(angle), 0]) * 0.09
                part.beam(place + [0, 0, -0.052], place + way + [0, 0, -0.055], 0.018, 0.006)
            part.ball(place + [0, 0, -0.05], (0.015, 0.015, 0.03), 6, 4)
        if wings:
            shape.add_mirrored(pods)
        if chance(draw, 0.6):  # wheels
            gear = Shape()
            gear.beam((thin * 0.6, -thin, -0.2), (0.09, -thin - 0.08, -0.22), 0.012)
            gear.disc((0.09, -thin - 0.09, -0.22), 0.032, 0.018, "x", 10)
            shape.add_mirrored(gear)
