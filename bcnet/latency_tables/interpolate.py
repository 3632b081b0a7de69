"""Interpolate latencies between measured channel counts.

In: (input channels, output channels, ms) of the rows of one family. Out: ms at other channel counts.
"""

import numpy as np


def interpolate(points: list[tuple[int, int, float]], x: int, y: int) -> float | None:
    """Bilinear interpolation between the four nearest measured corners; None if one of them is missing."""
    known = {(a, b): value for a, b, value in points}
    if all(a == b for a, b in known) and x == y:  # depthwise and pooling: one channel count
        own = sorted(a for a, _ in known)
        if not own or not own[0] <= x <= own[-1]:
            return None
        return float(np.interp(x, own, [known[a, a] for a in own]))
    lows = sorted({a for a, _ in known if a <= x}, reverse=True)
    highs = sorted(a for a in {a for a, _ in known} if a >= x)
    for x0 in lows:
        for x1 in highs:
            ys = sorted({b for a, b in known if a == x0} & {b for a, b in known if a == x1})
            below = [b for b in ys if b <= y]
            above = [b for b in ys if b >= y]
            if below and above:
                y0, y1 = below[-1], above[0]
                u = (x - x0) / (x1 - x0) if x1 > x0 else 0.0
                v = (y - y0) / (y1 - y0) if y1 > y0 else 0.0
                near = known[x0, y0] * (1 - v) + known[x0, y1] * v
                far = known[x1, y0] * (1 - v) + known[x1, y1] * v
                return near * (1 - u) + far * u
    return None


class Surface:
    """Interpolation between points that form no grid: a bilinear surface, corrected by the nearest points.

    The surface `a + b x + c y + d x y` is the cost of a convolution without the steps of its implementation,
    fitted to all points by least squares of the relative errors. The ratios of the four nearest points to the
    surface are averaged, weighted by inverse distance, and multiply it.
    """

    def __init__(self, points: list[tuple[int, int, float]]) -> None:
        self._x, self._y, ms = np.array(points, dtype=np.float64).T
        ms = np.maximum(ms, 1e-6)
        self._lowest = 0.1 * float(ms.min())
        matrix = _features(self._x, self._y) / ms[:, None]
        self._coefficients = np.linalg.lstsq(matrix, np.ones(len(ms)), rcond=None)[0]
        # The ratio of each point to the surface.
        self._ratio = ms / self._at(self._x, self._y)

    def __call__(self, x: int, y: int) -> float:
        """Milliseconds at these channel counts, inside or outside the range of the points."""
        here = float(self._at(np.array(float(x)), np.array(float(y))))
        distance = np.log(self._x / x) ** 2 + np.log(self._y / y) ** 2
        nearest = np.argsort(distance, kind="stable")[:4]
        return here * float(np.average(self._ratio[nearest], weights=1 / (distance[nearest] + 1e-6)))

    def _at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        surface: np.ndarray = np.maximum(_features(x, y) @ self._coefficients, self._lowest)
        return surface


def _features(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x, y, x * y], axis=-1)
