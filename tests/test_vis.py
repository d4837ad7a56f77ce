"""The published names of `util.vis`: each number is what its definition says."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_results import trial

import paths
from selfstudy.analysis.published.grids import number_texts
from util import vis
from util.errors import UserError

SETS = ("xlg0010", "xlg1111")
AMOUNTS = (100, 1000)


def line(number: int, train: float, valid: float, **more) -> dict:
    return {"round": number, "train_accuracy": train, "valid_accuracy": valid} | more


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two data sets, two numbers of labels, two repeats; the last trial has no result."""
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)
    number = 0
    for ds, choice in enumerate(SETS):
        for at, amount in enumerate(AMOUNTS):
            for seed in range(2):
                params = {
                    "SynDataset.dataset_choice": choice, "BaseDataset.semisupervised": amount,
                    "Wrapper.pretrained": f"amdim/{choice}", "session.seed": seed,
                    "scheduler.milestones": [5, 600], "scheduler.target_lrs": [0, 0.01, 1e-6],
                }  # fmt: skip
                valid = 0.2 + 0.1 * ds + 0.4 * at + 0.02 * seed
                lines = [line(1, 0.1, 0.1), line(2, 0.9, valid, test_accuracy=0.5)]
                trial(tmp_path / "old", f"e_{number:02d}", params, lines)
                number += 1
    trial(tmp_path / "old", "e_99", {"SynDataset.dataset_choice": SETS[0]}, [])
    return tmp_path / "old"


@pytest.fixture
def result(folder):
    with pytest.warns(UserWarning, match="old: 1 of 9 trials have no results"):
        return vis.ExperimentResult("old")


def test_names_of_data_sets():
    told = {1010: "T-V-", 10: "--V-", "xlg1111": "TCVL", "lg_3222": "TCVL", 0: "----",
            "data_64_0001": "---L", np.int64(100): "-C--", 110.0: "-CV-", "digits": "digits",
            "TCVL-multi": "TCVL-multi", "xlg10": "xlg10", -1: "-1"}  # fmt: skip
    assert {ds: vis.convert_ds_name(ds) for ds in told} == told


def test_merged_results_join_repeats_and_leave_their_inputs():
    first = {"a": {10: {100: np.ones((2, 2))}}, "b": {10: {100: np.zeros((1, 2))}}}
    second = {"a": {10: {100: np.full((1, 2), 3.0), 250: np.ones((1, 2))}}}
    merged = vis.merge_results([first, second])
    np.testing.assert_array_equal(merged["a"][10][100], [[1, 1], [1, 1], [3, 3]])
    assert list(merged) == ["a", "b"] and list(merged["a"][10]) == [100, 250]
    merged["b"][10][100][:] = 9
    assert first["b"][10][100].max() == 0 and len(first["a"][10][100]) == 2
    assert vis.merge_results([]) == {}
    with pytest.raises(ValueError, match="'a' holds an array in one result and a dict"):
        vis.merge_results([first, {"a": np.ones((1, 2))}])


def test_an_experiment_as_arrays(result):
    assert result.acc.shape == (8, 2)
    np.testing.assert_allclose(result.acc[0], [90, 20])
    np.testing.assert_allclose(result.acc[-1], [90, 72])
    assert result.exp_lens.tolist() == [2] * 8
    assert result.results_raw["e_00"][0]["train_accuracy"] == 0.1
    assert result.params_raw["e_07"]["BaseDataset.semisupervised"] == 1000
    assert result.left_out == {"e_99": "planned"}
    keys = ["dataset_choice", "semisupervised", "seed", "milestones", "target_lrs"]
    assert result.param_keys == keys  # what was pretrained is ignored
    np.testing.assert_allclose(result.params[0], [10, 100, 0, 600, 0.01])
    np.testing.assert_allclose(result.params[-1], [1111, 1000, 1, 600, 0.01])


def test_the_test_accuracy_on_request(result):
    result.update_results(get_test=True)
    np.testing.assert_allclose(result.acc, [[90, 50]] * 8)


def test_parameters_by_own_rules(result):
    result.process_params([], {"pretrained": lambda value: value.split("/")[0],
                               "milestones": lambda value: value[0]})  # fmt: skip
    assert "pretrained" in result.param_keys and result.params.dtype == object
    row = dict(zip(result.param_keys, result.params[0], strict=True))
    assert row["pretrained"] == "amdim" and row["milestones"] == 5


def test_parameters_with_one_leaf_name_keep_their_full_names(folder):
    trial(folder.parent / "two", "e_0", {"a.lr": 1, "b.lr": 2}, [line(1, 0.5, 0.5)])
    assert vis.ExperimentResult("two").param_keys == ["a.lr", "b.lr"]


def test_lines_of_old_count_their_iterations(folder):
    lines = [{"training_iteration": at, "train_accuracy": at / 10, "valid_accuracy": at / 20}
             for at in (1, 2, 3)]  # fmt: skip
    trial(folder.parent / "ancient", "e_0", {"lr": 1}, lines)
    old = vis.ExperimentResult(folder.parent / "ancient")
    assert old.exp_lens.tolist() == [3]
    np.testing.assert_allclose(old.acc, [[30, 15]])


def test_nested_dicts_have_the_repeats_as_leaves(result):
    nested = result.organize_as_dict()
    assert list(nested) == [10, 1111] and list(nested[10]) == [100, 1000]
    np.testing.assert_allclose(nested[10][1000], [[90, 60], [90, 62]])
    np.testing.assert_allclose(nested[1111][100], [[90, 30], [90, 32]])
    some = result.organize_as_dict(np.arange(16).reshape(8, 2), ["semisupervised"], [0, 3])
    np.testing.assert_array_equal(some[100], [[0, 1]])
    np.testing.assert_array_equal(some[1000], [[6, 7]])
    masked = result.organize_as_dict(filt_idxs=result.params[:, 0] == 10)
    assert list(masked) == [10]
    with pytest.raises(UserError, match="no trial overrides 'dataset' - did you mean"):
        result.organize_as_dict(key_list=["dataset"])


def test_arrays_have_an_axis_a_parameter(result):
    mean, std, values = result.organize_as_arr(key_list=["dataset_choice", "semisupervised"])
    assert values == [[10, 1111], [100, 1000]] and mean.shape == std.shape == (2, 2, 2)
    np.testing.assert_allclose(mean[..., 1], [[21, 61], [31, 71]])
    np.testing.assert_allclose(std[..., 1], 1)  # of 20 and 22: no sample
    np.testing.assert_allclose(std[..., 0], 0, atol=1e-12)
    mean, _, values = result.organize_as_arr(key_list=["seed"])
    np.testing.assert_allclose(mean[:, 1], [45, 47])
    assert result.organize_as_arr()[0].shape == (2, 2, 2, 1, 1, 2)


def test_cells_without_a_trial_are_nan(folder):
    for name, lr, size in (("e_0", 1, 1), ("e_1", 2, 2)):
        params = {"a.lr": lr, "a.size": size}
        trial(folder.parent / "gap", name, params, [line(1, 0.5, lr / 4)])
    mean, std, _ = vis.ExperimentResult("gap").organize_as_arr()
    np.testing.assert_allclose(mean[..., 1], [[25, np.nan], [np.nan, 50]])
    np.testing.assert_allclose(std[..., 1], [[0, np.nan], [np.nan, 0]])


# ---- utility --------------------------------------------------------------------------------


def percent(values: dict[int, list[float]]) -> dict[int, np.ndarray]:
    """labels -> [repeats, 2] with a train accuracy that must not matter."""
    return {n: np.array([[99.0, one] for one in repeats]) for n, repeats in values.items()}


BASE = percent({100: [20.0], 1000: [40.0], 10000: [60.0]})


def test_utility_in_log_labels_by_hand():
    ours = percent({100: [30.0, 34.0], 1000: [50.0, 50.0], 10000: [70.0, 70.0]})
    labels, value, std = vis.calc_utility(BASE, ours)
    assert labels.tolist() == [100, 1000, 10000]
    # 32 % lies 0.6 of the way from 100 to 1,000 labels, in their logarithm
    np.testing.assert_allclose(value, [10**0.6 - 1, 10**0.5 - 1, 0])
    np.testing.assert_allclose(std, [(10**0.7 - 10**0.5) / 2, 0, 0], atol=1e-12)
    few, value, _ = vis.calc_utility(BASE, ours, [1000, 4])
    assert few.tolist() == [1000] and value[0] == pytest.approx(10**0.5 - 1)
    np.testing.assert_allclose(vis.calc_utility(BASE, BASE)[1], 0, atol=1e-9)


def test_utility_of_the_original_has_its_faults():
    ours = percent({100: [30.0, 70.0]})
    labels, value, std = vis.calc_utility(BASE, ours, formula="original")
    # linear: 30 % at 550; 70 % is never reached and counts as -1 / 100 - 1. The mean is 50 %.
    assert labels.tolist() == [100]
    assert value[0] == pytest.approx((4.5 + -1.01) / 2)
    assert std[0] == pytest.approx((4.5 + 1.01) / 2)
    above = percent({100: [50.0], 1000: [70.0]})
    labels, value, _ = vis.calc_utility(BASE, above, formula="original")
    np.testing.assert_allclose(labels, [100, 550])  # where 60 % lies between 50 and 70
    np.testing.assert_allclose(value, [5500 / 100 - 1, 10000 / 550])  # the last without - 1
    with pytest.raises(UserError, match="formula 'x': expected 'monotone' or 'original'"):
        vis.calc_utility(BASE, ours, formula="x")


# ---- figures --------------------------------------------------------------------------------


@pytest.fixture
def nested() -> dict:
    ours = percent({100: [30.0, 34.0], 1000: [50.0, 50.0]})
    return {"scratch": {10: BASE, 1111: BASE}, "rotate": {10: ours, 1111: BASE}}


def series(ax) -> dict[str, tuple]:
    """label -> x, y and half the length of each error bar, as drawn."""
    found = {}
    for container in ax.containers:
        line, _, (bars,) = container.lines
        ends = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
        found.setdefault(container.get_label(), (*map(list, line.get_data()), ends))
    return found


def test_accuracy_plot_has_means_and_deviations(nested):
    figure = vis.accuracy_plot(nested, ["scratch", "rotate"], include_train=True, min_y=0)
    assert [ax.get_title() for ax in figure.axes] == ["--V-", "TCVL"]
    drawn = series(figure.axes[0])
    assert drawn["rotate"][:2] == ([100, 1000], [32, 50])
    np.testing.assert_allclose(drawn["rotate"][2], [2, 0])
    assert drawn["scratch"][1] == [20, 40, 60]
    assert drawn["_train"][1] == [99, 99, 99]
    assert figure.axes[0].get_xscale() == "log" and figure.axes[0].get_ylim()[0] == 0
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["scratch", "rotate"]


def test_accuracy_plot_draws_where_it_is_told(nested):
    own = Figure()
    axes = own.subplots(1, 2)
    given = {"c_ref": {"rotate": "red"}, "m_ref": ["v"], "include_legend": False}
    assert vis.accuracy_plot(nested, ["rotate"], [1111, 10], [100], ax_ref=axes, **given) is own
    assert axes[1].get_title() == "--V-"
    assert series(axes[1])["rotate"][:2] == ([100], [32])
    assert axes[1].get_lines()[0].get_color() == "red"
    assert axes[1].get_lines()[0].get_marker() == "v" and not axes[0].get_legend()
    for words, wanted in (
        ((["rotat"],), "no results of 'rotat' - did you mean 'rotate'"),
        ((["rotate"], [11]), "no results on '11'"),
    ):
        with pytest.raises(UserError, match=wanted):
            vis.accuracy_plot(nested, *words)
    with pytest.raises(UserError, match="2 data sets for 1 axes"):
        vis.accuracy_plot(nested, ["rotate"], ax_ref=axes[0])
    with pytest.raises(UserError, match="no argument 'figsiz' - did you mean 'figsize'"):
        vis.accuracy_plot(nested, ["rotate"], figsiz=3)


def test_utility_plot_returns_the_numbers_that_it_draws(nested):
    axes = Figure().subplots(1, 2)
    told = vis.utility_plot(nested, ["rotate"], ax_ref=axes)
    labels, value = told[10]["rotate"]
    assert labels.tolist() == [100, 1000]
    np.testing.assert_allclose(value, [10**0.6 - 1, 10**0.5 - 1])
    np.testing.assert_allclose(told[1111]["rotate"][1], 0, atol=1e-9)
    np.testing.assert_allclose(series(axes[0])["rotate"][1], value)
    grey = axes[0].collections[-1].get_paths()[0].vertices
    assert min(y for x, y in grey if x > 999) == pytest.approx(
        min(10000 / 1000 - 1, axes[0].get_ylim()[1])
    )
    old = vis.utility_plot(nested, ["rotate"], [10], ax_ref=axes[:1], formula="original")
    np.testing.assert_allclose(old[10]["rotate"][1], [(4.5 + 6.3) / 2, 4.5])
    itself = vis.utility_plot(nested, ["rotate"], [10], ax_ref=axes[:1], baseline=["rotate"])
    np.testing.assert_allclose(itself[10]["rotate"][1], 0, atol=1e-9)
    with pytest.raises(UserError, match="2 baselines for 1"):
        vis.utility_plot(nested, ["rotate"], baseline=["scratch", "rotate"])
    with pytest.raises(UserError, match="no results of 'supervised'"):
        vis.utility_plot(nested, ["rotate"], baseline="supervised")


def test_utility_plot_without_axes_is_in_pyplot(nested):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    assert list(vis.utility_plot(nested, ["rotate"], [10])) == [10]
    assert series(pyplot.gcf().axes[0])["rotate"][0] == [100, 1000]
    pyplot.close("all")


def test_training_curves_have_a_panel_a_filter_and_split():
    raw = {f"e_{at}": [line(n, at / 10 + n / 100, 0.5) for n in (1, 2)] for at in range(4)}
    params = np.array([[1, 10], [2, 10], [1, 20], [2, 20]], float)
    figure = vis.compare_training_curves(
        raw, params, 0, [{1: 10}, [2, 3], params[:, 1] == 20], filt_labels=["a", "b", "c"]
    )
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["a train", "a valid", "b train", "b valid", "c train", "c valid"]
    curves = [[one.get_ydata().tolist() for one in ax.get_lines()] for ax in figure.axes]
    np.testing.assert_allclose(curves[0], [[0.01, 0.02], [0.11, 0.12]])
    np.testing.assert_allclose(curves[2], [[0.21, 0.22], [0.31, 0.32]])
    assert curves[2] == curves[4] and curves[1] == [[0.5, 0.5]] * 2
    colours = [one.get_color() for one in figure.axes[2].get_lines()]
    assert colours == [one.get_color() for one in figure.axes[0].get_lines()]
    assert len(set(colours)) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1", "2"]


def test_a_scatter_for_each_pair_of_parameters():
    params = np.array([[0.1, 1, 5], [0.2, 2, 6], [0.3, 3, 7]])
    acc = np.array([[90, 10], [90, 20], [90, 30]])
    figure = vis.plot_hyperparam_comparison(params, acc, [True, False, False], ["lr", "a", "b"],
                                            [0, 2])  # fmt: skip
    pairs = [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes[:3]]
    assert pairs == [("lr", "a"), ("lr", "b"), ("a", "b")]
    assert figure.axes[1].collections[0].get_offsets().tolist() == [[0.1, 5], [0.3, 7]]
    assert figure.axes[0].collections[0].get_array().tolist() == [10, 30]
    assert figure.axes[0].get_xscale() == "log" and figure.axes[2].get_xscale() == "linear"
    with pytest.raises(UserError, match="a comparison needs two"):
        vis.plot_hyperparam_comparison(params[:, :1], acc, [False], ["lr"])


def test_number_grids_say_numbers():
    arr = np.array([[1, 2.5], [255, np.nan]])
    assert number_texts(arr) == [["1", "2.50"], ["255", "-"]]
    assert number_texts(arr, "float", 1) == [["1.0", "2.5"], ["255.0", "-"]]
    assert number_texts(arr, "hex") == [["1", "2"], ["ff", "-"]]
    assert number_texts(arr[:1], "float", 1, err=[[0.25, 0.5]]) == [["1.0 ± 0.2", "2.5 ± 0.5"]]
    picture = vis.draw_number_grid(arr)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert picture.max() == 255 and picture.min() < 60  # black on white
    assert vis.draw_number_grid(np.ones((4, 2))).shape[0] == 2 * picture.shape[0]
    with pytest.raises(UserError, match="expected default, hex, float"):
        vis.draw_number_grid(arr, "octal")
    with pytest.raises(UserError, match="expected a table"):
        vis.draw_number_grid(np.ones(3))


def cells(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.fixture
def table():
    """Means that tell their place: lr, size, fn and train or valid as digits."""
    place = np.indices((2, 3, 2, 2))
    mean = place[0] * 1000 + place[1] * 100 + place[2] * 10 + place[3] + 0.0
    return [[0.1, 0.2], [8, 16, 32], ["SGD", "Adam"]], mean, mean / 1000, ["lr", "size", "fn"]


def test_a_panel_for_each_value_of_the_third(table):
    figure = vis.display_hyperparam_results(*table)
    first, second = figure.axes
    assert [first.get_title(), second.get_title()] == ["fn = SGD", "fn = Adam"]
    assert cells(first)[:4] == ["1.0 ± 0.0", "1001.0 ± 1.0", "101.0 ± 0.1", "1101.0 ± 1.1"]
    assert cells(second)[-1] == "1211.0 ± 1.2"
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["8", "16", "32"]
    train = vis.display_hyperparam_results(*table, 0, 1, 2, plot_valid=0, precision=0)
    assert train.axes[1].get_title() == "lr = 0.2"
    assert cells(train.axes[1])[:4] == ["1000 ± 1", "1100 ± 1", "1200 ± 1", "1010 ± 1"]
    with pytest.raises(UserError, match="expected three of the 3 parameters"):
        vis.display_hyperparam_results(*table, plt_idx=3)
    assert not cells(vis.display_hyperparam_results(*table, disp_text=False).axes[0])


def test_a_row_for_each_setting_of_the_others(table):
    figure = vis.compare_hyper_exps(*table, "lr", {"fn": {"SGD": "plain"}}, {"size": 2})
    (ax,) = figure.axes
    assert cells(ax) == ["201.0 ± 0.2", "1201.0 ± 1.2", "211.0 ± 0.2", "1211.0 ± 1.2"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["fn plain", "fn Adam"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.1", "0.2"]
    own = Figure().subplots()
    assert vis.compare_hyper_exps(*table, 1, None, {"lr": 0, 2: 0}, ax=own) is own.figure
    assert cells(own) == ["1.0 ± 0.0", "101.0 ± 0.1", "201.0 ± 0.2"]
    train = vis.compare_hyper_exps(*table, "is_valid", None, {"lr": 1, "size": 1, "fn": 1})
    assert cells(train.axes[0]) == ["1110.0 ± 1.1", "1111.0 ± 1.1"]
    every = vis.compare_hyper_exps(*table, "lr").axes[0]
    assert len(every.get_yticklabels()) == 6


def test_hostile_names_are_only_text(nested, table):
    from selfstudy.analysis.figures.canvas import svg

    bad = ["$x_{", "<script>", "a\n\x1b[2J", "y" * 300]
    results = {name: nested["rotate"] for name in bad} | {"scratch": nested["scratch"]}
    figures = [vis.accuracy_plot(results, bad)]
    values, mean, std, _ = table
    figures.append(vis.compare_hyper_exps([bad[:2], bad[:3], bad[2:]], mean, std, bad[:3], 0))
    figures.append(vis.display_hyperparam_results(
        [bad[:2], bad[:3], bad[2:]], mean, std, bad[:3]))  # fmt: skip
    figures.append(vis.plot_hyperparam_comparison(np.ones((2, 4)), np.ones(2), [0] * 4, bad))
    for figure in figures:
        text = svg(figure, "x").decode()
        assert "<script" not in text and "\x1b" not in text and "y" * 40 not in text


def test_everything_is_there():
    assert {"ExperimentResult", "accuracy", "timeline", "utility_plot"} <= set(vis.__all__)
    assert all(callable(getattr(vis, name)) for name in vis.__all__)
