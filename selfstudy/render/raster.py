"""Rasterisation: a z-buffer over all triangles of several views at once.

Vectorised scan-line expansion: triangles to rows, rows to pixels; the nearest is selected by
one maximum over packed integers, so that the result is deterministic.
"""

import numpy as np

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def rasterise(
    x: np.ndarray, y: np.ndarray, near: np.ndarray, layer: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest triangle at every pixel centre.

    Args:
        x: [T, 3] float64, columns of the corners; the first pixel's centre is at .5.
        y: [T, 3] their rows, likewise.
        near: [T, 3] float64, nearness at the corners (linear in the picture, positive where
            visible): 1 / depth of a perspective view.
        layer: [T] int64, the view of each triangle.
        shape: (layers, height, width).

    Returns:
        [layers, height, width] int64: triangle index, -1 for none (the last of equally near
        ones); and its nearness, float32, 0 for none.
    """
    layers, height, width = shape
    packed = np.zeros(layers * height * width, np.uint64)
    slope = planes(x, y, near)
    triangle, row, left, right = _rows(x, y, height, width)
    counts = right - left
    fragment = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(fragment)) - np.repeat(np.cumsum(counts) - counts - left, counts)
    which = triangle[fragment]
    a, b, c = slope[:, which]
    value = a * (column + 0.5) + (b * (row + 0.5)[fragment] + c)
    place = (layer[triangle] * height + row)[fragment] * width + column
    seen = value > 0
    bits = value[seen].astype(np.float32).view(np.uint32).astype(np.uint64)
    key = (bits << HALF) | (which[seen] + 1).astype(np.uint64)
    np.maximum.at(packed, place[seen], key)
    triangles = (packed & LOW).astype(np.int64) - 1
    return triangles.reshape(shape), (packed >> HALF).astype(np.uint32).view(
        np.float32
    ).reshape(shape)


def planes(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[3, T]: a, b, c so that a x + b y + c interpolates `values` [T, 3]; 0 for slivers."""
    x1, x2 = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
    y1, y2 = y[:, 1] - y[:, 0], y[:, 2] - y[:, 0]
    v1, v2 = values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]
    area = x1 * y2 - x2 * y1
    inverse = np.divide(1, area, out=np.zeros_like(area), where=np.abs(area) > 1e-12)
    a = (v1 * y2 - v2 * y1) * inverse
    b = (x1 * v2 - x2 * v1) * inverse
    c = np.where(inverse == 0, 0, values[:, 0] - a * x[:, 0] - b * y[:, 0])
    return np.stack([a, b, c])


def _rows(
    x: np.ndarray, y: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Triangle, row, first column and end of the pixel centres inside, row by row.

    Intervals are half open, so that of triangles with a common edge exactly one covers a
    pixel on it.
    """
    order = np.argsort(y, 1, kind="stable")
    x, y = np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)
    first = np.clip(np.ceil(y[:, 0] - 0.5), 0, height).astype(np.int64)
    end = np.clip(np.ceil(y[:, 2] - 0.5), 0, height).astype(np.int64)
    counts = end - first
    triangle = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(triangle)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    x, y, middle = x[triangle], y[triangle], row + 0.5
    lower = middle >= y[:, 1]  # one of the two short edges, below or above the middle corner
    begin = lower.astype(np.int64)
    at = np.arange(len(triangle))
    across = _cross(x[:, 0], y[:, 0], x[:, 2], y[:, 2], middle)
    short = _cross(x[at, begin], y[at, begin], x[at, begin + 1], y[at, begin + 1], middle)
    left = np.clip(np.ceil(np.minimum(across, short) - 0.5), 0, width).astype(np.int64)
    right = np.clip(np.ceil(np.maximum(across, short) - 0.5), 0, width).astype(np.int64)
    return triangle, row, left, right


def _cross(x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray, y: np.ndarray):
    """Column at which the edges from (x0, y0) to (x1, y1) cross the line `y`."""
    tall = y1 - y0
    share = np.divide(y - y0, tall, out=np.zeros_like(tall), where=tall > 0)
    return x0 + share * (x1 - x0)
