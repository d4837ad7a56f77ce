"""Utility: how many more labels would training from scratch have needed?

    U(n) = m / n - 1,   where a_scratch(m) = a(n)

(Newell and Deng, CVPR 2020, arXiv 2003.14323). A utility of 2 at 1,000 labels says that scratch
gets as far with 3,000. What scratch never reaches within its labels has a bound instead of a
value: at least its largest count / n - 1, or at most its smallest / n - 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

Curve = Mapping[int, Sequence[float]]  # labels -> an accuracy a repeat

EXACT, AT_LEAST, AT_MOST = "", ">=", "<="


@dataclasses.dataclass(frozen=True)
class Utility:
    """Utility of a method over a baseline, a value for each number of labels.

    Attributes:
        labels: [n] numbers of labels of the method, rising.
        equal: [n] labels from which the baseline has the same accuracy.
        value: [n] equal / labels - 1.
        bound: [n] texts: '' for a value, '>=' where the baseline never gets so far ('value' is
            what its largest number of labels gives), '<=' where it begins better.
        low, high: [n] percentile bootstrap interval over repeats; infinity where it reaches
            above the range of the baseline, -1 where below it; NaN for a single repeat of both.
    """

    labels: np.ndarray
    equal: np.ndarray
    value: np.ndarray
    bound: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray


def fit_monotone(values: Sequence[float], weights: Sequence[float]) -> np.ndarray:
    """The nearest curve that never falls, by pooling adjacent violators.

    Args:
        values: [n].
        weights: [n] positive, such as numbers of repeats.

    Returns:
        [n], what minimises sum w (fit - value)^2 among fits that never fall (Ayer et al. 1955).
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight and number of values
    for value, weight in zip(values, weights, strict=True):
        pools.append((float(value), float(weight), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (left, wl, nl), (right, wr, nr) = pools[-2:]
            pools[-2:] = [((left * wl + right * wr) / (wl + wr), wl + wr, nl + nr)]
    return np.concatenate([np.full(count, mean) for mean, _, count in pools])


def equal_labels(
    labels: Sequence[float],
    accuracy: Sequence[float] | np.ndarray,
    wanted: float,
    near: float,
    log: bool = True,
) -> tuple[float, str]:
    """How many labels give `wanted` on a curve that never falls.

    Where the curve is flat at `wanted`, of all those numbers the one nearest to `near`.

    Args:
        labels: [n] rising.
        accuracy: [n] not falling.
        wanted: an accuracy.
        near: a number of labels.
        log: interpolate in the logarithm of labels; else in labels.

    Returns:
        The number, and '' or the bound that it is, see `Utility.bound`.
    """
    x, y = np.log(labels) if log else np.asarray(labels, float), np.asarray(accuracy, float)
    tolerance = 1e-12 * max(1.0, abs(wanted))  # means that were summed in another order
    if wanted > y[-1] + tolerance:
        return float(labels[-1]), AT_LEAST
    if wanted < y[0] - tolerance:
        return float(labels[0]), AT_MOST
    flat = np.flatnonzero(np.abs(y - wanted) <= tolerance)
    if len(flat):
        return float(np.clip(near, labels[flat[0]], labels[flat[-1]])), EXACT
    right = int(np.searchsorted(y, wanted))
    share = (wanted - y[right - 1]) / (y[right] - y[right - 1])
    between = x[right - 1] + share * (x[right] - x[right - 1])
    return float(np.exp(between) if log else between), EXACT


def utility(
    baseline: Curve,
    method: Curve,
    log: bool = True,
    draws: int = 1000,
    coverage: float = 0.95,
    paired: bool = False,
    seed: int = 0,
) -> Utility:
    """Utility of `method` over `baseline`.

    Both curves are means over repeats, made monotone. The baseline against itself is 0.

    Args:
        baseline: labels -> accuracies of its repeats, trained from scratch.
        method: the same of the method; other numbers of labels are fine.
        log: interpolate in the logarithm of labels.
        draws: of the bootstrap; 0 leaves intervals out.
        coverage: of the intervals.
        paired: the repeats of one number of labels belong together (the same seed, the same
            labels), in the same order on both sides: they are drawn together.
        seed: of the draws.

    Raises:
        ValueError: no or empty curves, counts below 1, values that are not finite, or `paired`
            with unequal numbers of repeats.
    """
    base, ours = _check_curve(baseline, "baseline"), _check_curve(method, "method")
    if paired and (any(len(v) != len(base[n]) for n, v in ours.items() if n in base)):
        raise ValueError("paired: baseline and method have different numbers of repeats")
    labels = np.array(list(ours), float)
    equal, bound = _solve(base, ours, log)
    low = high = np.full(len(labels), np.nan)
    repeats = max(len(values) for curve in (base, ours) for values in curve.values())
    if draws and repeats > 1:
        random = np.random.default_rng(seed)
        samples = [_resample(base, ours, paired, random) for _ in range(draws)]
        solved = [_solve(sample, other, log) for sample, other in samples]
        low, high = _interval(solved, labels, coverage)
    return Utility(labels, equal, equal / labels - 1, bound, low, high)


def interval(values: Sequence[float], coverage: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over repeats, of the same 1000 draws each time.

    Args:
        values: [n] one a repeat.
        coverage: of the interval.

    Returns:
        Its lower and upper end; NaN for fewer than two values, or one that is not finite.
    """
    sample = np.asarray(values, float).ravel()
    if len(sample) < 2 or not np.isfinite(sample).all():
        return np.nan, np.nan
    picks = np.random.default_rng(0).integers(len(sample), size=(1000, len(sample)))
    tail = (1 - coverage) / 2
    with np.errstate(over="ignore", invalid="ignore"):  # of a stranger's numbers
        low, high = np.quantile(sample[picks].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _check_curve(curve: Curve, what: str) -> dict[int, np.ndarray]:
    checked = {n: np.asarray(curve[n], float).ravel() for n in sorted(curve)}
    if not checked or any(not len(v) or n < 1 or not np.isfinite(v).all()
                        for n, v in checked.items()):  # fmt: skip
        raise ValueError(f"{what}: expected numbers of labels, each with finite accuracies")
    return checked


def _solve(base: dict, ours: dict, log: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Equal labels and bounds for each number of labels in `ours`."""
    curves = [
        fit_monotone([values.mean() for values in curve.values()],
                 [len(values) for values in curve.values()])
        for curve in (base, ours)
    ]  # fmt: skip
    solved = [equal_labels(list(base), curves[0], wanted, n, log)
              for n, wanted in zip(ours, curves[1], strict=True)]  # fmt: skip
    return np.array([number for number, _ in solved]), tuple(bound for _, bound in solved)


def _resample(base: dict, ours: dict, paired: bool, random: np.random.Generator) -> tuple:
    """A bootstrap sample: repeats drawn with replacement at each number of labels."""
    picks = {n: random.integers(len(v), size=len(v)) for n, v in base.items()}
    again = {n: picks[n] if paired and n in picks else random.integers(len(v), size=len(v))
             for n, v in ours.items()}  # fmt: skip
    return ({n: v[picks[n]] for n, v in base.items()},
            {n: v[again[n]] for n, v in ours.items()})  # fmt: skip


def _interval(solved: list, labels: np.ndarray, coverage: float) -> tuple:
    """Percentile interval; a bounded sample counts as infinity above, or as -1 below."""
    values = np.stack([equal / labels - 1 for equal, _ in solved])
    bounds = np.stack([bound for _, bound in solved])
    tail = (1 - coverage) / 2
    low = np.quantile(np.where(bounds == AT_MOST, -1.0, values), tail, axis=0, method="lower")
    high = np.where(bounds == AT_LEAST, np.inf, values)
    return low, np.quantile(high, 1 - tail, axis=0, method="higher")


def original(baseline: Curve, method: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Utility as the published program computed it, with its faults, for comparison only.

    Each repeat of the method is looked up on the baseline's mean: its first crossing, linear
    in labels. A repeat above the baseline's best counts as -1/n - 1, one below its first as
    -1; so does one that only equals its best. Where the method's mean is above the baseline's
    best, one last point is made at the interpolated number of labels that reaches it, without
    the "- 1", and the rest is left out. See docs/explanation/protocol-vs-paper.md.

    Returns:
        labels, mean and standard deviation over repeats, [k] each.
    """
    base, ours = _check_curve(baseline, "baseline"), _check_curve(method, "method")
    x, y = np.array(list(base), float), np.array([v.mean() for v in base.values()])
    labels, means, spreads = [], [], []
    before: tuple[float, float] | None = None
    for n, repeats in ours.items():
        mean = repeats.mean()
        if mean > y.max():
            at = float(n)
            if before:
                at = float(np.interp(y.max(), [before[1], mean], [before[0], n]))
            return (np.array([*labels, at]), np.array([*means, x.max() / at]),
                    np.array([*spreads, 0.0]))  # fmt: skip
        crossings = np.array([_first_crossing(x, y, value) for value in repeats]) / n - 1
        labels.append(float(n))
        means.append(crossings.mean())
        spreads.append(crossings.std())
        before = float(n), float(mean)
    return np.array(labels), np.array(means), np.array(spreads)


def _first_crossing(x: np.ndarray, y: np.ndarray, wanted: float) -> float:
    above = np.flatnonzero(y > wanted)
    if not len(above):
        return -1.0
    right = int(above[0])
    if not right:
        return 0.0
    share = (wanted - y[right - 1]) / (y[right] - y[right - 1])
    return float(x[right - 1] + share * (x[right] - x[right - 1]))
