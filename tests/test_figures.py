"""Figures: what is drawn and written are the numbers that went in, whoever has named them."""

import csv
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from test_results import journal, plan, trial

import paths
from selfstudy.analysis import efficiency, figures, results, sheets
from selfstudy.analysis.figures import canvas
from selfstudy.analysis.figures.schedule import rank_correlation
from selfstudy.analysis.figures.slots import Bar, Elapsed, assign_slots, bars
from selfstudy.analysis.figures.sweep import Scale, varying
from selfstudy.analysis.utility import interval
from util.errors import UserError

HOSTILE = [
    "$x_{",
    "<script>alert(1)</script>",
    "=cmd()",
    "a\nb\x1b[2J\x00",
    "x" * 300,
    "_y",
    "$1$",
]


DPI = canvas.DPI


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Small PNG files, which take less time."""
    monkeypatch.setattr(canvas, "DPI", 40)


def lines_of(ax) -> dict[str, list]:
    """Colour -> the points of the lines with it, those of several points only."""
    return {line.get_color(): line.get_xydata().tolist() for line in ax.get_lines()
            if len(line.get_xydata()) > 1}  # fmt: skip


def texts_of(figure) -> str:
    """Everything that is written in a figure."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def labelled(seeds: int = 3, panel: str = "xlg0010", **more) -> pandas.DataFrame:
    """Scratch and one method at 100, 1,000 and 10,000 labels; the method needs a tenth."""
    rows = []
    for pretrained, gain in ((None, 0.0), ("u/pre/rotate", 0.2)):
        for power in (2, 3, 4):
            for seed in range(seeds):
                spread = 0.01 * (seed - (seeds - 1) / 2)
                rows.append({
                    "exp": "u", "trial": f"e_{len(rows):04d}", "status": "done", "round": 3,
                    "valid_accuracy": 0.2 * power - 0.2 + gain + spread,
                    "BaseDataset.semisupervised": 10**power, "Wrapper.pretrained": pretrained,
                    "SynDataset.dataset_choice": panel, "session.seed": seed,
                } | more)  # fmt: skip
    return pandas.DataFrame(rows)


def searched(count: int = 12) -> pandas.DataFrame:
    """Trials whose accuracy depends on the learning rate alone."""
    random = np.random.default_rng(0)
    rate = 10 ** random.uniform(-4, -1, count)
    return pandas.DataFrame({
        "exp": "s", "trial": [f"e_{at:04d}" for at in range(count)], "status": "done",
        "round": 9, "rounds": 9.0, "valid_accuracy": 1 - (np.log10(rate) + 2) ** 2 / 10,
        "best_valid_accuracy": 1.0, "optimizer.lr": rate,
        "optimizer.optim_fn": [["SGD", "Adam"][at % 2] for at in range(count)],
        "session.seed": range(count),
    })  # fmt: skip


def told(count: int, rounds: int = 3, exp: str = "s") -> pandas.DataFrame:
    return pandas.DataFrame([
        {"exp": exp, "trial": f"e_{at:04d}", "round": number,
         "valid_accuracy": at / 10 + number}
        for at in range(count) for number in range(1, rounds + 1)
    ])  # fmt: skip


# ---- label efficiency -----------------------------------------------------------------------


def test_accuracy_draws_means_and_writes_intervals(tmp_path):
    figure = figures.accuracy(efficiency.curves(labelled()), save=tmp_path / "a")
    (ax,) = figure.axes
    drawn = lines_of(ax)
    np.testing.assert_allclose(drawn["#000000"], [[100, 0.2], [1000, 0.4], [10000, 0.6]])
    np.testing.assert_allclose(drawn[canvas.COLORS[0]], [[100, 0.4], [1000, 0.6], [10000, 0.8]])
    assert len(ax.collections) == 2  # a shade each
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["100", "1k", "10k"]
    shown = texts_of(figure)
    assert "mean of n = 3 repeats" in shown and "scratch" in shown and "rotate" in shown
    rows = rows_of(tmp_path / "a.csv")
    assert [row["method"] for row in rows] == ["scratch"] * 3 + ["rotate"] * 3
    low, high = interval([0.19, 0.20, 0.21])
    assert [float(rows[0][end]) for end in ("low", "high")] == pytest.approx([low, high])
    assert low < 0.2 < high
    assert rows[5]["labels"] == "10000" and rows[5]["repeats"] == "3"


def test_one_repeat_has_no_interval_and_lost_trials_are_counted(tmp_path):
    frame = labelled(seeds=1)
    frame.loc[1, "status"] = "failed"
    figure = figures.accuracy(efficiency.curves(frame), save=tmp_path / "a")
    assert not figure.axes[0].collections
    assert "one repeat, no interval" in texts_of(figure)
    assert "1 trial left out" in texts_of(figure)
    assert {row["low"] for row in rows_of(tmp_path / "a.csv")} == {""}


def test_utility_has_zero_bounds_and_a_region_beyond(tmp_path):
    figure = figures.utility(efficiency.curves(labelled(seeds=1)), save=tmp_path / "u")
    rows = [row for row in rows_of(tmp_path / "u.csv") if row["method"] == "rotate"]
    assert [float(row["utility"]) for row in rows] == pytest.approx([9, 9, 0])
    assert [row["bound"] for row in rows] == ["", "", ">="]
    (ax,) = figure.axes
    lines = {tuple(map(tuple, np.round(line.get_xydata(), 6))): line for line in ax.get_lines()}
    (rotate,) = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
    y = rotate.get_ydata()  # no line to a bound
    assert y == pytest.approx([9, 9, np.nan], nan_ok=True)
    bound = lines[((10000, 0),)]
    assert bound.get_marker() == "^" and bound.get_markerfacecolor() == "none"
    grey = ax.collections[-1].get_paths()[0].vertices
    top = ax.get_ylim()[1]
    at_most = {round(x): y for x, y in grey if y < top - 1e-9}
    assert at_most[10000] == pytest.approx(0)  # 10,000 / 10,000 - 1
    assert any(line.get_ydata()[0] == line.get_ydata()[-1] == 0 for line in ax.get_lines())
    assert "at least" in texts_of(figure)


def test_utility_tells_what_lies_below_the_baseline():
    frame = labelled(seeds=2)
    worse = frame["Wrapper.pretrained"].notna()
    frame.loc[worse, "valid_accuracy"] -= 0.35
    ax = figures.utility(efficiency.curves(frame)).axes[0]
    down = [line for line in ax.get_lines() if line.get_marker() == "v"]
    assert down and down[0].get_xydata()[0].tolist() == [100, 0]


def test_utility_of_curves_without_a_baseline(tmp_path):
    frame = labelled()
    with pytest.raises(
        UserError, match="no method is called 'scrach' - did you mean 'scratch'"
    ):
        figures.utility(efficiency.curves(frame), "scrach")
    frame = pandas.concat([frame, labelled(panel="other")[9:]])
    figure = figures.utility(efficiency.curves(frame), save=tmp_path / "u")
    assert "other: no scratch to compare with" in texts_of(figure)
    assert not figure.axes[0].axison and figure.axes[1].axison


# ---- training -------------------------------------------------------------------------------


def test_training_draws_a_line_a_trial_and_counts_how_they_ended(tmp_path):
    frame = searched(3).assign(status=["done", "failed", "stopped"])
    figure = figures.training(told(3), trials=frame, save=tmp_path / "t")
    drawn = lines_of(figure.axes[0])
    assert drawn[canvas.COLORS[1]] == [[1, 1.1], [2, 2.1], [3, 3.1]]
    assert len(drawn) == 3
    assert "1 failed, 1 stopped" in texts_of(figure)
    assert [line.get_marker() for line in figure.axes[0].get_lines()].count("x") == 1
    assert len(rows_of(tmp_path / "t.csv")) == 9


def test_training_by_a_column_draws_means_over_its_trials(tmp_path):
    frame = searched(4)
    figure = figures.training(
        told(4), by="optimizer.optim_fn", trials=frame, save=tmp_path / "t"
    )
    drawn = lines_of(figure.axes[0])
    np.testing.assert_allclose(drawn[canvas.COLORS[0]], [[1, 1.2], [2, 2.2], [3, 3.2]])  # Adam
    assert "Adam (n = 2)" in texts_of(figure) and "mean of n = 2 trials" in texts_of(figure)
    assert rows_of(tmp_path / "t.csv")[0]["trials"] == "2"
    with pytest.raises(UserError, match="no column 'optimizer.optim'"):
        figures.training(told(4), by="optimizer.optim", trials=frame)
    with pytest.raises(UserError, match="did you mean 'valid_accuracy'"):
        figures.training(told(4), "valid_acuracy")


def test_many_trials_are_told_by_colour():
    figure = figures.training(told(40))
    assert len(lines_of(figure.axes[0])) > 30
    assert "last value" in texts_of(figure) and "e_0001" not in texts_of(figure)


# ---- sweeps ---------------------------------------------------------------------------------


def test_what_varies_are_overrides_without_seeds():
    assert varying(searched()) == {"optimizer.lr": "lr", "optimizer.optim_fn": "optim_fn"}
    assert "include" in varying(searched(2).assign(include=["a", "b"]))


def test_a_scale_is_logarithmic_where_numbers_spread_and_keeps_categories_apart():
    wide = Scale([1e-4, 1e-2, 1e-3])
    np.testing.assert_allclose(wide.places, [0, 1, 0.5])
    near = Scale([1.0, 3.0, None])
    np.testing.assert_allclose(near.places, [0, 1, -0.12])
    np.testing.assert_allclose(Scale(["a", None]).places, [0.5, -0.12])
    np.testing.assert_allclose(Scale([7, 7]).places, [0.5, 0.5])
    assert list(Scale(list(range(7))).ticks.values()) == ["0", "2", "4", "6"]
    assert list(Scale([10.0**-at for at in range(6)]).ticks.values())[0] == "1e-05"
    assert len(Scale([]).places) == 0
    assert near.ticks[-0.12] == "unset"
    mixed = Scale(["b", 2, (1, 2), "b"])
    assert mixed.places[0] == mixed.places[3] and len(set(mixed.places)) == 3
    assert set(Scale(["x/y/a", "x/y/b"]).ticks.values()) == {"a", "b"}


def test_parallel_goes_through_each_trial_best_on_top(tmp_path):
    frame = searched()
    frame.loc[3, ["valid_accuracy", "status"]] = [np.nan, "failed"]
    figure = figures.parallel(frame, "valid_accuracy", save=tmp_path / "p")
    through = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 3]
    assert len(through) == 12
    best = max(through, key=lambda line: line.get_zorder())
    assert best.get_ydata()[-1] == 1
    order = np.log(frame["optimizer.lr"])
    at = frame["valid_accuracy"].idxmax()
    assert best.get_ydata()[0] == pytest.approx(
        (order[at] - order.min()) / (order.max() - order.min())
    )
    assert sum(line.get_linestyle() == ":" for line in through) == 1
    assert "12 trials, of these 1 failed, 1 without" in texts_of(figure).replace("\n", " ")
    assert len(rows_of(tmp_path / "p.csv")) == 12
    lowest = figures.parallel(frame, "valid_accuracy", "min").axes[0].get_lines()
    assert max(lowest[:12], key=lambda line: line.get_zorder()).get_ydata()[-1] == 0


def test_slices_have_a_panel_a_parameter(tmp_path):
    frame = searched()
    frame.loc[0, "status"] = "stopped"
    figure = figures.slices(frame, "valid_accuracy", save=tmp_path / "s")
    assert [ax.get_xlabel() for ax in figure.axes] == ["lr (log)", "optim_fn"]
    counts = [[len(line.get_xdata()) for line in ax.get_lines()] for ax in figure.axes]
    assert counts == [[11, 1], [11, 1]]
    assert figure.axes[0].get_lines()[1].get_ydata()[0] == frame["valid_accuracy"][0]


def test_importance_finds_the_parameter_that_matters(tmp_path):
    figure = figures.importance(searched(40), "valid_accuracy", save=tmp_path / "i")
    rows = rows_of(tmp_path / "i.csv")
    assert [row["parameter"] for row in rows] == ["optimizer.lr", "optimizer.optim_fn"]
    assert float(rows[0]["importance"]) > 0.5 > abs(float(rows[1]["importance"]))
    assert 0.5 < float(rows[0]["held_out_r2"]) < 1
    assert [round(bar.get_width(), 9) for bar in figure.axes[0].patches] == [
        round(float(row["importance"]), 9) for row in rows[::-1]
    ]


def test_importance_of_noise_says_that_it_means_nothing():
    frame = searched(16)
    frame["valid_accuracy"] = np.random.default_rng(1).random(16)
    assert "bars mean nothing" in texts_of(figures.importance(frame, "valid_accuracy"))
    with pytest.raises(
        UserError, match="importance needs 8 trials with valid_accuracy, 7 of 7"
    ):
        figures.importance(searched(7), "valid_accuracy")
    with pytest.raises(UserError, match="no parameter varies"):
        figures.importance(searched(9)[["trial", "valid_accuracy"]], "valid_accuracy")


def test_a_heat_map_has_the_mean_of_the_rest_in_each_cell(tmp_path):
    rows = [{"trial": "e", "status": "done", "valid_accuracy": value, "a.lr": lr, "a.fn": fn}
            for lr, fn, value in ((0.1, "SGD", 0.5), (0.1, "SGD", 0.7), (1.0, "SGD", 0.2),
                                  (0.1, None, 0.9), (1.0, "Adam", math.nan))]  # fmt: skip
    frame = pandas.DataFrame(rows)
    figure = figures.heat_map(frame, "a.lr", "a.fn", "valid_accuracy", save=tmp_path / "h")
    found = {(row["a.lr"], row["a.fn"]): (float(row["valid_accuracy"]), row["trials"])
             for row in rows_of(tmp_path / "h.csv")}  # fmt: skip
    assert found == {("0.1", "unset"): (0.9, "1"), ("0.1", "'SGD'"): (0.6, "2"),
                     ("1.0", "'SGD'"): (0.2, "1")}  # fmt: skip
    shown = texts_of(figure)
    assert {"0.6000", "0.2000", "0.9000", "unset"} <= set(shown.split("\n"))
    assert "mean over 4 trials" in shown and "1 without" in shown
    with pytest.raises(UserError, match="no trial overrides 'a.l'"):
        figures.heat_map(frame, "a.l", "a.fn", "valid_accuracy")


# ---- early stopping -------------------------------------------------------------------------


def test_rungs_tell_what_was_saved_and_whether_it_was_right(tmp_path):
    status = ["stopped"] * 3 + ["stopped"] * 2 + ["done"] * 4 + ["failed"]
    last = [1, 1, 1, 3, 3, 9, 9, 9, 9, 2]
    frame = pandas.DataFrame({
        "exp": "s", "trial": [f"e_{at:04d}" for at in range(10)], "status": status,
        "round": last, "rounds": 9.0,
    })  # fmt: skip
    rows = [{"exp": "s", "trial": f"e_{at:04d}", "round": number,
             # those that finish keep their order from round 3 on; in round 1 it is turned round
             "mean_accuracy": at * (1 if number > 1 else -1) + number / 10}
            for at, count in enumerate(last) for number in range(1, count + 1)]  # fmt: skip
    figure = figures.rungs(pandas.DataFrame(rows), frame, "mean_accuracy", save=tmp_path / "r")
    above, below = figure.axes
    assert above.get_title() == "5 of 10 trials stopped early"
    assert below.get_title() == "45 of 81 rounds were run, 44% saved"  # the failed one apart
    told = texts_of(figure)
    assert {"ρ -1.00", "ρ 1.00"} <= set(told.split("\n"))
    assert "of the 4 that finished" in " ".join(told.split())
    (alive,) = [line for line in below.get_lines() if len(line.get_xdata()) == 9]
    assert alive.get_ydata().tolist() == [10, 7, 6, 4, 4, 4, 4, 4, 4]
    written = rows_of(tmp_path / "r.csv")
    assert [row["round"] for row in written if row["rung"] == "True"] == ["1", "3"]
    assert float(written[2]["rank_correlation"]) == pytest.approx(1)
    faded = [line for line in above.get_lines() if line.get_alpha() == 0.5 and
             len(line.get_xdata()) == 3]  # fmt: skip
    assert len(faded) == 2
    given = figures.rungs(pandas.DataFrame(rows), frame, "mean_accuracy", at=[5])
    assert texts_of(given).count("ρ ") == 1


def test_rank_correlation_needs_three_curves_that_differ():
    curves = [pandas.Series([a, b], index=[1, 2]) for a, b in ((1, 3), (2, 1), (3, 2))]
    assert rank_correlation(curves, 1) == pytest.approx(-0.5)
    assert math.isnan(rank_correlation(curves[:2], 1))
    assert math.isnan(rank_correlation(curves, 3))
    assert math.isnan(rank_correlation([curves[0]] * 3, 1))


# ---- the timeline ---------------------------------------------------------------------------


def experiment(folder: Path, events: list[dict], lines: dict[str, list] | None = None) -> str:
    """An experiment with trials e_0000 ... and these events."""
    names = sorted({one["name"] for one in events if "name" in one})
    plan(folder, [{"name": name, "overrides": {}} for name in names])
    journal(folder, *events)
    for name, rounds in (lines or {}).items():
        trial(folder, name, {}, rounds)
    return str(folder)


def event(time: float, name: str, status: str) -> dict:
    return {"event": "trial", "time": time, "name": name, "status": status, "why": None}


def begin(time: float) -> dict:
    return {"event": "begin", "time": time, "host": "elsewhere", "pid": 1}


@pytest.fixture
def worked(tmp_path) -> str:
    """Two slots for 100 s, one of them idle for 30 s, then an hour's pause and 20 s more."""
    lines = {"e_0000": [{"round": at, "time": 1000 + 20 * at, "mean_accuracy": at / 10}
                        for at in (1, 2)] + [{"round": 3, "time": 1055, "mean_accuracy": 0.1}],
             "e_0001": [{"round": 1, "time": 1070, "mean_accuracy": 0.5}]}  # fmt: skip
    events = [
        begin(1000), event(1000, "e_0000", "started"), event(1000, "e_0001", "started"),
        event(1040, "e_0001", "retried"), event(1060, "e_0000", "done"),
        event(1060, "e_0002", "started"), event(1070, "e_0001", "failed"),
        event(1100, "e_0002", "stopped"), {"event": "end", "time": 1100},
        begin(5000), event(5000, "e_0003", "started"), event(5000, "e_0001", "started"),
        event(5020, "e_0003", "done"), event(5020, "e_0001", "diverged"),
        {"event": "end", "time": 5020},
    ]  # fmt: skip
    return experiment(tmp_path / "work", events, lines)


def test_bars_are_what_the_journal_tells(worked):
    found, spans = bars(results.read(worked))
    assert spans == [(1000, 1100), (5000, 5020)]
    assert [(one.trial, one.start, one.end, one.status) for one in found] == [
        ("e_0000", 1000, 1060, "done"), ("e_0001", 1000, 1070, "failed"),
        ("e_0002", 1060, 1100, "stopped"), ("e_0003", 5000, 5020, "done"),
        ("e_0001", 5000, 5020, "diverged"),
    ]  # fmt: skip
    assert found[1].retries == (1040,)
    assert assign_slots(found) == 2
    assert [one.slot for one in found] == [0, 1, 0, 0, 1]


def test_the_timeline_draws_them_and_tells_the_idle_share(worked, tmp_path):
    figure = figures.timeline([results.read(worked)], save=tmp_path / "t")
    above, below = figure.axes[:2]
    # 60 + 70 + 40 + 20 + 20 s of 2 * 120 s are used
    assert above.get_title() == "2 slots for 02:00, 12% of their time idle"
    boxes = [bar.get_paths()[0].get_extents() for bar in above.collections]
    assert [round(box.x0 * 60) for box in boxes] == [0, 0, 60, 100, 100]
    assert [round(box.x1 * 60) for box in boxes] == [60, 70, 100, 120, 120]
    markers = [line.get_marker() for line in above.get_lines()]
    assert markers.count("X") == 2 and markers.count("|") == 1
    (best,) = below.get_lines()
    assert best.get_ydata().tolist() == [0.1, 0.2, 0.2, 0.5]
    np.testing.assert_allclose(best.get_xdata(), np.array([20, 40, 55, 70]) / 60)
    assert "time without a driver is left out" in texts_of(figure)
    assert [row["retries"] for row in rows_of(tmp_path / "t.csv")] == ["0", "1", "0", "0", "0"]


def test_a_driver_that_died_ends_its_trials_where_it_was_last_heard(tmp_path):
    lines = {"e_0000": [{"round": 1, "time": 1030, "mean_accuracy": 0.1}]}
    events = [begin(1000), event(1000, "e_0000", "started"), begin(9000),
              event(9000, "e_0000", "started")]  # fmt: skip
    found, _ = bars(results.read(experiment(tmp_path / "dead", events, lines)))
    assert (found[0].end, found[0].status) == (1030, "interrupted")
    assert found[1].end == 9000


def test_slots_are_reused_and_pauses_do_not_count():
    found = [Bar("e", str(at), start, end) for at, (start, end) in
             enumerate([(0, 10), (5, 8), (8, 12), (10, 11)])]  # fmt: skip
    assert assign_slots(found) == 2 and [one.slot for one in found] == [0, 1, 1, 0]
    elapsed = Elapsed([(100, 110), (50, 60), (105, 120)])
    assert [elapsed(at) for at in (0, 55, 60, 80, 100, 115, 1e9)] == [0, 5, 10, 10, 10, 25, 30]


def test_impossible_times_are_left_out(tmp_path):
    events = [begin(1000), event(1000, "e_0000", "started"), event(-1e300, "e_0001", "started"),
              event(1e300, "e_0001", "done"), event(1010, "e_0000", "done")]  # fmt: skip
    lines = {"e_0000": [{"round": 1, "time": 1e300, "mean_accuracy": 0.1}]}
    figure = figures.timeline([results.read(experiment(tmp_path / "odd", events, lines))])
    assert "1 slot for 00:10" in texts_of(figure)


# ---- predictions and pictures ---------------------------------------------------------------


def test_confusion_counts(tmp_path):
    figure = figures.confusion(
        [0, 0, 1, 2], [0, 1, 1, 0], ["cat", "dog", "cow"], tmp_path / "c"
    )
    rows = rows_of(tmp_path / "c.csv")
    assert [row["count"] for row in rows] == ["1", "1", "0", "0", "1", "0", "1", "0", "0"]
    assert [float(row["share_of_truth"]) for row in rows[:3]] == [0.5, 0.5, 0]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[0], [0.5, 0.5, 0])
    assert "50.0% of 4 are right" in texts_of(figure) and "cow" in texts_of(figure)
    assert "no predictions" in texts_of(figures.confusion([], []))
    with pytest.raises(UserError, match="classes and"):
        figures.confusion([1, 2], [1])


def test_a_contact_sheet_shows_every_picture(tmp_path):
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    figure = figures.contact_sheet(images, list("abcde"), 2, tmp_path / "s")
    assert len(figure.axes) == 5
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), images[3])
    assert figure.axes[4].get_title() == "e"
    assert float(rows_of(tmp_path / "s.csv")[1]["mean"]) == images[1].mean()
    assert "no pictures" in texts_of(figures.contact_sheet(images[:0]))
    with pytest.raises(UserError, match="expected uint8 pictures"):
        figures.contact_sheet(images.astype(float))
    with pytest.raises(UserError, match="1 titles for 5"):
        figures.contact_sheet(images, ["a"])


# ---- whatever comes -------------------------------------------------------------------------


def every_figure(frame: pandas.DataFrame, rounds: pandas.DataFrame) -> list:
    made = [
        figures.training(rounds, trials=frame), figures.parallel(frame, "valid_accuracy"),
        figures.slices(frame, "valid_accuracy"),
        figures.heat_map(frame, "optimizer.lr", "optimizer.optim_fn", "valid_accuracy"),
        figures.rungs(rounds, frame, "valid_accuracy"),
        figures.accuracy(efficiency.curves(frame, "valid_accuracy")),
        figures.utility(efficiency.curves(frame, "valid_accuracy")),
    ]  # fmt: skip
    for figure in made:
        assert figure.get_facecolor()[3] == 0
    return made


def with_labels(frame: pandas.DataFrame) -> pandas.DataFrame:
    return frame.assign(**{"BaseDataset.semisupervised": 100, "Wrapper.pretrained": None})


@pytest.mark.parametrize(("count", "status"), [(0, "done"), (1, "done"), (3, "failed")])
def test_no_trial_one_trial_all_failed_nothing_finite(count, status, tmp_path):
    frame, rounds = with_labels(searched(3)[:count]), told(3)[: 3 * count]
    frame["status"] = status
    every_figure(frame.assign(valid_accuracy=np.nan), rounds.assign(valid_accuracy=np.nan))
    for figure in every_figure(frame, rounds):
        assert b"</svg>" in canvas.svg(figure, "x")


def test_hostile_names_are_only_text(tmp_path):
    count = len(HOSTILE)
    parts = [labelled(seeds=1, panel=name) for name in HOSTILE[:2]]
    for part, name in zip(parts, HOSTILE[2:4], strict=True):
        part.loc[part["Wrapper.pretrained"].notna(), "Wrapper.pretrained"] = name
    frame = pandas.concat(parts, ignore_index=True)
    sweep = searched(count).assign(trial=HOSTILE, status=HOSTILE, **{"<b>.$x": HOSTILE})
    rounds = pandas.DataFrame({"exp": "s", "trial": HOSTILE * 2, "$m": range(2 * count),
                               "round": np.repeat([1, 2], count)})  # fmt: skip
    sweep["$m"] = range(count)
    made = {
        "accuracy": figures.accuracy(efficiency.curves(frame), save=tmp_path / "accuracy"),
        "utility": figures.utility(efficiency.curves(frame), save=tmp_path / "utility"),
        "training": figures.training(rounds, "$m", trials=sweep, save=tmp_path / "training"),
        "by": figures.training(rounds, "$m", by="trial", save=tmp_path / "by"),
        "parallel": figures.parallel(sweep, "$m", save=tmp_path / "parallel"),
        "slices": figures.slices(sweep, "$m", save=tmp_path / "slices"),
        "rungs": figures.rungs(rounds, sweep, "$m", save=tmp_path / "rungs"),
        "heat": figures.heat_map(sweep, "<b>.$x", "<b>.$x", "$m", save=tmp_path / "heat"),
        "confusion": figures.confusion(HOSTILE, HOSTILE[::-1], save=tmp_path / "confusion"),
        "sheet": figures.contact_sheet(
            np.zeros((count, 2, 2, 3), np.uint8), HOSTILE, save=tmp_path / "sheet"),
    }  # fmt: skip
    for name, figure in made.items():
        tree = ElementTree.parse(tmp_path / f"{name}.svg")
        assert not [node for node in tree.iter() if "script" in str(node.tag)], name
        text = "".join(tree.getroot().itertext())
        assert "\x1b" not in text and "\x00" not in text and "x" * 40 not in text
        for cell in (
            cell for row in rows_of(tmp_path / f"{name}.csv") for cell in row.values()
        ):
            assert not cell.startswith("=") and "\x1b" not in cell
        assert max(figure.get_size_inches()) < 20
    tree = ElementTree.parse(tmp_path / "accuracy.svg")
    assert "$x_{" in list(tree.getroot().itertext())  # letters, no formula


def test_columns_that_become_the_same_stay_apart():
    frame = pandas.DataFrame([[1, "a", 2]], columns=["x\x00", "x ", "=y"])
    assert sheets.csv(frame) == "x ,x  (2),'=y\n1,a,2\n"


def test_text_is_one_line_cut_and_no_formula():
    assert canvas.text("a\n\tb\x1bc") == "a b c"
    assert canvas.text("$x$") == r"\$x\$"
    cut = canvas.text("begin" + "-" * 300 + "end")
    assert len(cut) == 32 and cut.startswith("begin") and cut.endswith("end")
    assert canvas.text("\ud800") == "?" or canvas.text("\ud800").isprintable()
    assert sheets.escape_formula("=1+1") == "'=1+1" and sheets.escape_formula(-1) == -1


# ---- files ----------------------------------------------------------------------------------


def test_files_are_written_whole_and_the_same_again(tmp_path):
    for name in ("a", "b"):
        figures.slices(searched(), "valid_accuracy", save=tmp_path / name)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert "<dc:date>" not in svg and "<text" in svg
    assert "#000000" in svg and "background" not in svg
    assert svg.count("fill: #ffffff") == 1  # black letters want a background of their own
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["dpi"][0] == pytest.approx(40, abs=1)
    assert DPI == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{kind}" for name in "ab" for kind in ("csv", "png", "svg")
    ]
    other = figures.slices(searched(9), "valid_accuracy", save=tmp_path / "c")
    ids = [set(re.findall(r'id="([mp][0-9a-f]{8,})"', path.read_text()))
           for path in (tmp_path / "a.svg", tmp_path / "c.svg")]  # fmt: skip
    assert ids[0] and not ids[0] & ids[1]
    assert b"#ffffff" not in canvas.svg(other, "in a page")  # which has its own
    assert other._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("place", ["missing/x", "file/x", "x\0y"])
def test_what_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        figures.slices(searched(), "valid_accuracy", save=tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_figure_is_kept_by_pyplot():
    def kept():
        pyplot = sys.modules.get("matplotlib.pyplot")
        return pyplot and pyplot.get_fignums()

    before = kept()  # other tests may have left some
    figures.slices(searched(), "valid_accuracy")
    assert kept() == before


# ---- from the shell -------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, results_command):
    """Runs `misc/results.py` on experiments in `tmp_path`."""
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)
    return results_command


def test_the_shell_draws_a_figure_and_tells_its_files(worked, command, tmp_path):
    for name in ("timeline", "rungs", "parallel", "slices"):
        code, out, err = command("plot", name, "work", "-o", tmp_path / name)
        assert (code, err) == (0, "")
        assert out.split() == [
            str(tmp_path / f"{name}.{kind}") for kind in ("svg", "png", "csv")
        ]
        assert all(Path(path).stat().st_size for path in out.split())
    assert command("plot", "training", "work", "-o", tmp_path / "t", "--metric",
                   "mean_accuracy")[0] == 0  # fmt: skip


@pytest.mark.parametrize(("words", "wanted"), [
    (["timelin", "work"], "no figure is called 'timelin' - did you mean 'timeline'"),
    (["timeline", "wor"], "no experiment 'wor'"),
    (["slices", "work", "--metric", "mean_acuracy"], "did you mean 'mean_accuracy'"),
    (["utility", "work"], "work: label efficiency needs trials"),
    (["heat_map", "work"], "a heat map needs two parameters that vary, there is 0"),
    (["importance", "work"], "importance needs 8 trials"),
])  # fmt: skip
def test_the_shell_says_in_one_line_what_cannot_be_drawn(
    worked, command, tmp_path, words, wanted
):
    code, out, err = command("plot", *words, "-o", tmp_path / "x")
    assert code == 2 and out == "" and err.count("\n") == 1 and wanted in err
    assert not list(tmp_path.glob("x.*"))
