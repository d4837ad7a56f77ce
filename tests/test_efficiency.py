"""Curves, tables and sentences from a made frame."""

import numpy as np
import pandas
import pytest

from selfstudy.analysis import efficiency
from selfstudy.analysis.efficiency import LABELS, METHOD, PANEL


def frame(rows, **more):
    """(data set, snapshot, labels, seed, accuracy, status) each."""
    columns = [PANEL, METHOD, LABELS, "session.seed", "test_accuracy", "status"]
    return pandas.DataFrame(rows, columns=columns).assign(**more)


def study(accuracy, seeds=(0, 1)):
    """Scratch and two methods on two data sets, with `accuracy(method, labels, seed)`."""
    return frame([
        (panel, name and f"u/pretrain/{name}/{panel}", amount, seed,
         accuracy(name, amount, seed), "done")
        for panel in ("0010", "1000") for name in (None, "rotate", "cmc")
        for amount in (100, 1000) for seed in seeds
    ])  # fmt: skip


def test_methods_are_what_differs_between_snapshots():
    found = efficiency.methods(study(lambda *_: 0.5))
    assert set(found) == {"scratch", "rotate", "cmc"}
    published = frame([("1100", "pretrained-amdim/1100", 100, 0, 0.5, "done"),
                       ("1100", "pretrained-cmc/1100", 100, 0, 0.5, "done"),
                       ("1100", "", 100, 0, 0.5, "done")])  # fmt: skip
    assert efficiency.methods(published) == ["pretrained-amdim", "pretrained-cmc", "scratch"]
    alone = frame([("1", "u/a/rotate/1", 100, 0, 0.5, "done")])
    assert efficiency.methods(alone) == ["rotate"]


def test_curves_hold_repeats_in_the_order_of_their_seeds():
    shuffled = study(lambda name, amount, seed: 0.1 * seed).sample(frac=1, random_state=0)
    found = efficiency.curves(shuffled)
    assert list(found.values) == ["0010", "1000"]
    assert list(found.values["0010"]) == ["scratch", "cmc", "rotate"]
    assert found.values["0010"]["cmc"] == {100: [0.0, 0.1], 1000: [0.0, 0.1]}
    assert (found.metric, found.repeats, found.left_out) == ("test_accuracy", (2, 2), 0)
    assert found.paired


def test_what_has_not_ended_is_counted_and_pairs_are_given_up():
    made = study(lambda *_: 0.5)
    made.loc[0, "status"] = "failed"
    made.loc[1, "test_accuracy"] = np.nan
    made.loc[2, "status"] = "planned"
    found = efficiency.curves(made)
    assert found.left_out == 2 and not found.paired


def test_trials_without_a_number_of_labels_are_no_part():
    made = pandas.concat([study(lambda *_: 0.5),
                          frame([("0010", None, np.nan, 0, 0.9, "done")])])  # fmt: skip
    found = efficiency.curves(made)
    assert found.left_out == 0 and found.values["0010"]["scratch"][100] == [0.5, 0.5]


@pytest.mark.parametrize("drop", [LABELS, METHOD, "test_accuracy"])
def test_frames_without_curves(drop):
    with pytest.raises(ValueError, match="label efficiency|no trial has"):
        efficiency.curves(study(lambda *_: 0.5).drop(columns=drop))


def doubled(name, amount, seed):
    """Rotation needs a tenth of the labels, CMC is as scratch."""
    shift = 10 if name == "rotate" else 1
    return 0.1 * np.log10(amount * shift) + 0.002 * seed


def test_the_table_has_the_utility_of_each_cell():
    made = efficiency.table(efficiency.curves(study(doubled)))
    cell = made.set_index(["data_set", "method", "labels"]).loc
    assert cell["0010", "rotate", 100].utility == pytest.approx(9)
    assert cell["0010", "rotate", 100].equal == pytest.approx(1000)
    assert cell["0010", "rotate", 1000].bound == ">="
    assert cell["1000", "cmc", 1000].utility == pytest.approx(0)
    assert cell["1000", "scratch", 100].accuracy == pytest.approx(0.201)
    assert cell["1000", "scratch", 100].spread == pytest.approx(0.002 / np.sqrt(2))
    assert len(made) == 2 * 3 * 2


def test_sentences_carry_the_numbers():
    one = study(doubled)
    told = efficiency.sentences(efficiency.curves(one[one[PANEL] == "1000"]))
    assert told[0].startswith(
        "rotate with 100 labels is as good as scratch with 1,000: a utility of 9.00 ["
    )
    ends = "(0.301 to 0.401, +0.100 and +0.100 to scratch)"
    assert told[1] == f"Best: rotate at 100 to 1,000 labels {ends}."
    assert told[2].startswith(
        "As labels grow, utility falls for 0 of 2 methods (bounds leave 1 open): cmc from 0.00"
    )
    assert len(efficiency.sentences(efficiency.curves(one))) == 6


@pytest.mark.parametrize("bounds, told", [
    (["", "", ""], "1 of 1 methods: a from 0.40 at 50 to -0.40 at 250."),
    (["", "", ">="], "1 of 1 methods: a from 0.40 at 50 to 0.00 at 100."),
    (["<=", "", ""], "1 of 1 methods: a from 0.00 at 100 to -0.40 at 250."),
    (["<=", "", ">="], "0 of 1 methods (bounds leave 1 open): a from ≤ 0.40 at 50 to ≥ -0.40"),
])  # fmt: skip
def test_a_bound_is_no_fall(bounds, told):
    """What is at least 0 may be more than before."""
    rows = [{"method": "a", "labels": labels, "utility": value, "bound": bound,
             "low": np.nan, "high": np.nan}
            for labels, value, bound in zip((50, 100, 250), (0.4, 0, -0.4), bounds,
                                            strict=True)]  # fmt: skip
    assert told in efficiency._trend(pandas.DataFrame(rows))


def test_without_scratch_there_is_no_utility():
    made = study(doubled)
    found = efficiency.curves(made[made[METHOD].notna()])
    assert efficiency.table(found).utility.isna().all() and efficiency.sentences(found) == []
