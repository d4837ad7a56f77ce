"""Utility against closed forms, a naive search and scikit-learn's isotonic regression."""

import numpy as np
import pytest
from later import Later

from selfstudy.analysis import utility
from selfstudy.analysis.utility import AT_LEAST, AT_MOST, EXACT

IsotonicRegression = Later("sklearn.isotonic", "IsotonicRegression")

LABELS = (100, 250, 1000, 4000, 20000)


def log_curve(shift=1.0, labels=LABELS):
    """An accuracy that is linear in log labels, of a method that needs 1/shift of them."""
    return {n: [0.1 * np.log(n * shift)] for n in labels}


def test_a_method_that_needs_a_third_of_the_labels_has_utility_two():
    found = utility.utility(log_curve(), log_curve(3.0), draws=0)
    inside = np.array(LABELS) * 3 <= LABELS[-1]
    np.testing.assert_allclose(found.value[inside], 2.0, rtol=1e-9)
    np.testing.assert_allclose(found.equal[inside], 3 * np.array(LABELS)[inside], rtol=1e-9)
    assert found.bound == (EXACT,) * 4 + (AT_LEAST,)
    assert found.value[-1] == 0  # 20,000 / 20,000 - 1, and more than that


def test_a_method_that_needs_four_times_the_labels_is_below_zero_and_bounded_at_the_start():
    found = utility.utility(log_curve(), log_curve(0.25), draws=0)
    assert found.bound[0] == AT_MOST and found.value[0] == 0
    assert found.bound[1] == AT_MOST and found.value[1] == pytest.approx(100 / 250 - 1)
    np.testing.assert_allclose(found.value[2:], -0.75, rtol=1e-9)


def test_linear_interpolation_is_exact_for_lines():
    base = {n: [n / 1000] for n in (100, 400, 1000)}
    found = utility.utility(base, {200: [0.7], 100: [0.3]}, log=False, draws=0)
    np.testing.assert_allclose(found.labels, [100, 200])
    np.testing.assert_allclose(found.equal, [300, 700])
    np.testing.assert_allclose(found.value, [2, 2.5])


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_baseline_against_itself_is_zero_everywhere(seed, log):
    random = np.random.default_rng(seed)
    noisy = {n: list(random.random(3).round(1)) for n in LABELS}  # rounded: ties, too
    found = utility.utility(noisy, noisy, log, paired=True, draws=50)
    np.testing.assert_allclose(found.value, 0, atol=1e-9)
    assert found.bound == (EXACT,) * len(LABELS)
    np.testing.assert_allclose(found.low, 0, atol=1e-9)
    np.testing.assert_allclose(found.high, 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_monotone_is_isotonic_regression(seed):
    random = np.random.default_rng(seed)
    values, weights = random.random(30), random.integers(1, 5, 30)
    expected = IsotonicRegression().fit_transform(np.arange(30), values, sample_weight=weights)
    np.testing.assert_allclose(utility.fit_monotone(values, weights), expected, atol=1e-12)


@pytest.mark.parametrize("log", [True, False])
def test_equal_labels_against_a_fine_grid(log):
    labels, accuracy = (10, 100, 1000, 5000), (0.2, 0.5, 0.5, 0.9)
    fine = np.geomspace(10, 5000, 2_000_001) if log else np.linspace(10, 5000, 2_000_001)
    scale = np.log if log else np.asarray
    curve = np.interp(scale(fine), scale(labels), accuracy)
    for wanted in (0.2, 0.31, 0.49, 0.51, 0.777, 0.9):
        expected = fine[np.searchsorted(curve, wanted - 1e-12)]
        found, bound = utility.equal_labels(labels, accuracy, wanted, near=1, log=log)
        assert bound == EXACT and found == pytest.approx(expected, rel=1e-4)


def test_on_a_flat_part_the_nearest_number_is_taken():
    flat = ((10, 100, 1000), (0.5, 0.5, 0.6))
    for near, expected in ((1, 10), (50, 50), (400, 100)):
        assert utility.equal_labels(*flat, 0.5, near) == (expected, EXACT)


def test_intervals_hold_the_value_and_open_where_the_baseline_ends():
    random = np.random.default_rng(0)
    base = {n: 0.1 * np.log(n) + 0.01 * random.standard_normal(8) for n in LABELS}
    ours = {n: 0.1 * np.log(2 * n) + 0.01 * random.standard_normal(8) for n in LABELS}
    found = utility.utility(base, ours)
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    assert (found.high[:-1] - found.low[:-1] < 1).all() and (found.low[:-1] > 0.3).all()
    assert found.bound[-1] == AT_LEAST and np.isinf(found.high[-1])
    again = utility.utility(base, ours)
    np.testing.assert_array_equal(found.low, again.low)


def test_a_single_repeat_has_no_interval():
    assert np.isnan(utility.utility(log_curve(), log_curve(2)).low).all()


def test_paired_repeats_take_out_what_they_share():
    random = np.random.default_rng(1)
    shared = {n: 0.02 * random.standard_normal(6) for n in LABELS}
    base = {n: 0.1 * np.log(n) + shared[n] for n in LABELS}
    ours = {n: 0.1 * np.log(2 * n) + shared[n] for n in LABELS}
    apart, together = (utility.utility(base, ours, paired=p) for p in (False, True))
    widths = [(found.high - found.low)[1:4].mean() for found in (apart, together)]
    assert widths[1] < widths[0]


@pytest.mark.parametrize(
    ("base", "ours", "words"),
    [
        ({}, {1: [1]}, "baseline"),
        ({1: [0.1]}, {1: []}, "method"),
        ({0: [0.1]}, {1: [1]}, "baseline"),
        ({1: [0.1]}, {1: [float("nan")]}, "method"),
    ],
)
def test_curves_that_are_none(base, ours, words):
    with pytest.raises(ValueError, match=words):
        utility.utility(base, ours)


def test_paired_with_unequal_repeats_is_refused():
    with pytest.raises(ValueError, match="paired"):
        utility.utility({1: [0.1, 0.2]}, {1: [0.1]}, paired=True)


# ---- the published program's formula and its known faults ------------------------------------


def test_original_inside_the_curve_is_linear_in_labels():
    base = {100: [0.1], 200: [0.2], 400: [0.4]}
    labels, value, spread = utility.original(base, {100: [0.3], 50: [0.15, 0.25]})
    np.testing.assert_allclose(labels, [50, 100])
    np.testing.assert_allclose(value, [(150 / 50 + 250 / 50) / 2 - 1, 2])
    np.testing.assert_allclose(spread, [1, 0])


def test_original_faults():
    base = {100: [0.1], 200: [0.2], 3000: [0.4]}
    _, itself, _ = utility.original(base, base)
    np.testing.assert_allclose(itself, [0, 0, -1 / 3000 - 1])  # its own best is "unreachable"
    _, below, _ = utility.original(base, {100: [0.05]})
    assert below == [-1]  # it equals nothing, so no labels at all
    _, seeds, _ = utility.original(base, {100: [0.2, 0.41]})
    assert seeds == pytest.approx([(1 + (-1 / 100 - 1)) / 2])  # the better seed pulls it down
    labels, ceiling, _ = utility.original(base, {100: [0.3], 200: [0.5], 400: [0.6]})
    np.testing.assert_allclose(labels, [100, 150])  # at .4, between .3 and .5
    np.testing.assert_allclose(ceiling[-1], 3000 / 150)  # no "- 1", and the rest left out


def test_the_interval_of_a_mean_holds_it_and_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = utility.interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.1)
    inner = utility.interval(values, coverage=0.5)
    assert low < inner[0] < inner[1] < high
    assert utility.interval(values) == (low, high)  # the same draws again


def test_the_interval_of_two_equal_values_is_a_point_and_one_value_has_none():
    assert utility.interval([0.5, 0.5]) == (0.5, 0.5)
    assert utility.interval([0.2, 0.4]) == (pytest.approx(0.2), pytest.approx(0.4))
    for values in ([], [0.5], [0.5, np.nan], [0.5, np.inf]):
        assert np.isnan(utility.interval(values)).all()
