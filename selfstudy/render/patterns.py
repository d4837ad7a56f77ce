"""Twenty families of procedural, seamlessly tileable textures.

Colours, scale and direction are random. Texture `number` is the same on every machine.
"""

import colorsys
from collections.abc import Callable, Sequence

import numpy as np

from selfstudy.render.mesh import BUCKETS

SIZE = 128  # texels per side
COUNT = 720
VERSION = 1  # to be increased when texels change
SEED = 7101
ROW, COLUMN = (np.indices((SIZE, SIZE)) + 0.5) / SIZE
FREQUENCY = np.fft.fftfreq(SIZE, 1 / SIZE)
Draw = np.random.Generator


# ---- building blocks ------------------------------------------------------------------------


def noise(
    draw: Draw, power: float, stretch: Sequence[float] | np.ndarray = (1, 1)
) -> np.ndarray:
    """[SIZE, SIZE] noise of spectrum f^-power, as ranks 0..1; `stretch` is its anisotropy."""
    far = np.hypot(FREQUENCY[:, None] * stretch[0], FREQUENCY * stretch[1])
    far[0, 0] = np.inf
    waves = np.fft.fft2(draw.standard_normal((SIZE, SIZE))) * far ** (-power)
    values = np.fft.ifft2(waves).real
    ranks = np.empty(SIZE * SIZE)
    ranks[np.argsort(values, None)] = np.linspace(0, 1, SIZE * SIZE)
    return ranks.reshape(SIZE, SIZE)


def wave(draw: Draw, low: int, high: int, warp: np.ndarray | float = 0) -> np.ndarray:
    """The phase, 0..1, of stripes with `low` to `high` periods, in a random direction."""
    count = draw.integers(low, high + 1)
    angle = draw.uniform(0, np.pi)
    across, down = np.rint(count * np.array([np.cos(angle), np.sin(angle)]))
    if not (across or down):
        across = 1
    return (across * COLUMN + down * ROW + warp + draw.random()) % 1


def pulse(phase: np.ndarray, share: float, soft: float = 0.05) -> np.ndarray:
    """1 for a `share` of the phase, 0 for the rest, with soft edges."""
    away = np.abs(phase - 0.5)
    return np.clip((share / 2 - away) / soft + 0.5, 0, 1)


def lattice(draw: Draw, count: int, shift: float, jitter: float) -> np.ndarray:
    """Jittered grid points, every second row shifted; `count` is even."""
    row, column = np.indices((count, count)).reshape(2, -1)
    places = np.stack([column + shift * (row % 2) + 0.5, row + 0.5], 1) / count
    return places + jitter / count * draw.uniform(-0.5, 0.5, places.shape)


def nearest(places: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Index of the nearest point, and distances to the two nearest, on the torus."""
    offsets = [np.abs(axis.reshape(-1, 1) - places[:, index]) % 1
               for index, axis in enumerate((COLUMN, ROW))]  # fmt: skip
    across, down = (np.minimum(offset, 1 - offset) for offset in offsets)
    far = across**2 + down**2
    first = far.argmin(1)
    sorted_ = np.sqrt(np.partition(far, min(2, far.shape[1]) - 1, 1)[:, :2])
    sorted_.sort(1)
    return first.reshape(SIZE, SIZE), [row.reshape(SIZE, SIZE) for row in sorted_.T]


def colors(draw: Draw, count: int) -> np.ndarray:
    """[count, 3] colours of distinct brightness, around one hue or of any hues."""
    around, spread = draw.random(), draw.choice([0.05, 0.15, 0.5])
    values = draw.permutation(np.linspace(0.25, 0.95, count) + draw.uniform(-0.06, 0.05, count))
    rgb = [
        colorsys.hsv_to_rgb(
            (around + draw.uniform(-spread, spread)) % 1, draw.uniform(0.05, 0.9), value
        )
        for value in values.clip(0.15, 1)
    ]
    return np.array(rgb)


def shade(draw: Draw, values: np.ndarray, stops: int = 2) -> np.ndarray:
    """Values 0..1 as colours of a gradient, [SIZE, SIZE, 3]."""
    chosen, at = colors(draw, stops), np.linspace(0, 1, stops)
    return np.stack([np.interp(values, at, chosen[:, axis]) for axis in range(3)], -1)


# ---- families --------------------------------------------------------------------------------


def _cloud(draw: Draw) -> np.ndarray:
    return shade(draw, noise(draw, draw.uniform(0.9, 2)), int(draw.integers(2, 5)))


def _marble(draw: Draw) -> np.ndarray:
    warp = noise(draw, 1.8) * draw.uniform(0.6, 2)
    veins = np.abs(2 * wave(draw, 1, 5, warp) - 1) ** draw.uniform(0.4, 1.2)
    return shade(draw, veins, int(draw.integers(2, 4)))


def _wood(draw: Draw) -> np.ndarray:
    stretch = draw.permutation([1, draw.uniform(6, 12)])
    rings = (noise(draw, 1.9, stretch) * draw.uniform(4, 10)) % 1
    grain = noise(draw, 0.5, draw.permutation(stretch)) * 0.2
    return shade(draw, np.clip(rings * 0.8 + grain, 0, 1))


def _stripes(draw: Draw) -> np.ndarray:
    return shade(draw, pulse(wave(draw, 2, 10), draw.uniform(0.25, 0.75)))


def _checks(draw: Draw) -> np.ndarray:
    across, down = draw.integers(2, 8), draw.integers(2, 8)
    tall = down if draw.random() < 0.4 else across
    return shade(draw, np.abs(pulse(COLUMN * across % 1, 0.5) - pulse(ROW * tall % 1, 0.5)))


def _dots(draw: Draw) -> np.ndarray:
    count = 2 * int(draw.integers(1, 5))
    _, (far, _) = nearest(lattice(draw, count, draw.choice([0, 0.5]), draw.choice([0, 0.6])))
    radius = draw.uniform(0.2, 0.42) / count
    return shade(draw, np.clip((radius - far) * SIZE / 2 + 0.5, 0, 1))


def _cells(draw: Draw) -> np.ndarray:
    count = draw.integers(8, 60)
    first, (first_distance, second_distance) = nearest(draw.random((count, 2)))
    tones = draw.random(count)[first]
    edge = np.clip((second_distance - first_distance) * np.sqrt(count) * 5, 0, 1)
    return shade(draw, tones, 3) * (0.45 + 0.55 * edge)[..., None]


def _cracks(draw: Draw) -> np.ndarray:
    count = draw.integers(6, 40)
    _, (first_distance, second_distance) = nearest(draw.random((count, 2)))
    edge = np.clip(
        (second_distance - first_distance) * np.sqrt(count) * draw.uniform(2.5, 7), 0, 1
    )
    return shade(draw, np.clip(edge * 0.85 + 0.15 * noise(draw, 1), 0, 1))


def _brick(draw: Draw) -> np.ndarray:
    rows, columns = 2 * draw.integers(2, 6), draw.integers(2, 5)
    row = np.floor(ROW * rows)
    along = COLUMN * columns + 0.5 * (row % 2)
    joint = draw.uniform(0.08, 0.2)
    inside = pulse(ROW * rows % 1, 1 - joint) * pulse(along % 1, 1 - joint * columns / rows)
    tones = draw.uniform(0.6, 1, (rows, columns))[row.astype(int), along.astype(int) % columns]
    picture = shade(draw, inside * tones)
    return picture if draw.random() < 0.6 else picture.transpose(1, 0, 2)


def _weave(draw: Draw) -> np.ndarray:
    count = 2 * draw.integers(2, 7)
    across, down = COLUMN * count, ROW * count
    over = (np.floor(across) + np.floor(down)) % 2
    round_ = [np.sin(np.pi * (axis % 1)) for axis in (across, down)]
    warp_color, weft_color = colors(draw, 2)
    height = np.where(over == 1, round_[0], round_[1]) ** draw.uniform(0.4, 1)
    thread = np.where(over[..., None] == 1, warp_color, weft_color)
    return thread * (0.35 + 0.65 * height)[..., None]


def _zigzag(draw: Draw) -> np.ndarray:
    teeth, count = draw.integers(2, 7), draw.integers(3, 9)
    bend = np.abs(2 * (COLUMN * teeth % 1) - 1) * draw.uniform(0.5, 1.4)
    phase = (ROW * count + bend) % 1
    picture = shade(draw, pulse(phase, draw.uniform(0.35, 0.65)))
    return picture if draw.random() < 0.5 else picture.transpose(1, 0, 2)


def _camouflage(draw: Draw) -> np.ndarray:
    levels = int(draw.integers(3, 5))
    patch = np.minimum((noise(draw, draw.uniform(1.3, 2)) * levels).astype(int), levels - 1)
    return colors(draw, levels)[patch]


def _rings(draw: Draw) -> np.ndarray:
    _, (far, *_) = nearest(draw.random((draw.integers(1, 6), 2)))
    return shade(draw, pulse(far * draw.integers(6, 22) % 1, draw.uniform(0.3, 0.7), 0.15))


def _scales(draw: Draw) -> np.ndarray:
    count = 2 * int(draw.integers(2, 5))
    value = np.zeros((SIZE, SIZE))
    for row in range(-1, count + 1):  # each row overlaps the one above
        along = (COLUMN * count + 0.5 * (row % 2)) % 1 - 0.5
        down = ROW * count - row
        far = np.hypot(along, down - 0.2) / 0.95
        value = np.where((far < 1) & (down >= 0.2 - 0.95), far, value)
    return shade(draw, value ** draw.uniform(0.7, 2.5))


def _grain(draw: Draw) -> np.ndarray:
    speck = noise(draw, draw.uniform(0, 0.7)) ** draw.uniform(1, 5)
    return shade(draw, speck, int(draw.integers(2, 4)))


def _honeycomb(draw: Draw) -> np.ndarray:
    count = 2 * int(draw.integers(2, 5))
    _, (first_distance, second_distance) = nearest(
        lattice(draw, count, 0.5, draw.choice([0, 0.25]))
    )
    edge = np.clip((second_distance - first_distance) * count * draw.uniform(2, 6), 0, 1)
    return shade(draw, edge)


def _plaid(draw: Draw) -> np.ndarray:
    count = draw.integers(1, 4)
    ground, *bands = colors(draw, 4)
    picture = np.broadcast_to(ground, (SIZE, SIZE, 3))
    for color in bands:
        share, at = draw.uniform(0.1, 0.4), draw.random(2)
        for axis, start in ((COLUMN, at[0]), (ROW, at[draw.integers(2)])):
            band = pulse((axis * count + start) % 1, share)[..., None] * 0.55
            picture = picture * (1 - band) + color * band
    return picture


def _fur(draw: Draw) -> np.ndarray:
    stretch = draw.permutation([1, draw.uniform(4, 9)])
    return shade(draw, noise(draw, draw.uniform(0.6, 1.2), stretch), int(draw.integers(2, 4)))


def _ripples(draw: Draw) -> np.ndarray:
    waves = (np.sin(2 * np.pi * wave(draw, 2, 7)) for _ in range(draw.integers(2, 5)))
    height = sum(waves, np.zeros((SIZE, SIZE)))
    height = (height - height.min()) / np.ptp(height)
    return shade(draw, height, int(draw.integers(2, 5)))


def _triangles(draw: Draw) -> np.ndarray:
    count = draw.integers(2, 7)
    across, down = COLUMN * count, ROW * count
    up = across % 1 + down % 1 > 1 if draw.random() < 0.5 else across % 1 > down % 1
    half = np.floor(across) * 3 + np.floor(down) * 5 + 2 * up
    tones = draw.random(64)
    chosen = draw.integers(2, 4)
    return shade(draw, (up if chosen == 2 else tones[half.astype(int)]).astype(float), 3)


FAMILIES: tuple[Callable[[Draw], np.ndarray], ...] = (
    _cloud, _marble, _wood, _stripes, _checks, _dots, _cells, _cracks, _brick, _weave, _zigzag,
    _camouflage, _rings, _scales, _grain, _honeycomb, _plaid, _fur, _ripples, _triangles,
)  # fmt: skip


def make(number: int) -> np.ndarray:
    """Texture `number`, [SIZE, SIZE, 3] uint8; all families occur in every bucket."""
    draw = np.random.default_rng([SEED, number])
    picture = FAMILIES[number // BUCKETS % len(FAMILIES)](draw)
    fine = 1 + draw.uniform(0, 0.12) * (2 * noise(draw, draw.uniform(0.3, 1)) - 1)
    return np.rint((picture * fine[..., None]).clip(0, 1) * 255).astype(np.uint8)
