"""Search spaces, schedulers and search algorithms, without Ray running."""

import math

import pytest
from doubles import Running

import paths
from selfstudy import configure
from selfstudy.experiment import plan as plans
from selfstudy.experiment.rayconfig import RayArgs
from selfstudy.tune import optuna_study, replay, search
from util import files
from util.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
tune = pytest.importorskip("ray.tune")
METRICS = ("mean_accuracy", "total_s")
SPACE = {"simulation.x": tune.loguniform(1e-4, 1), "simulation.y": tune.uniform(0, 1)}


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans a search of simulated trials."""
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)

    def plan(total=4, **more):
        entries = {"num_samples": total, "search_alg": "optuna", "config": SPACE} | more
        spec = configure.Spec(("simulation/search",), ())
        made = plans.make("s", spec, "optuna", RayArgs(**entries), None)
        made.folder.mkdir(exist_ok=True)
        made.write()
        return made

    return plan


def searching(plan, inner=None, todo=(), limit=9, space=SPACE):
    inner = inner or search.searcher(RayArgs(search_alg={"name": "optuna", "seed": 0}))
    return search.Search(plan, inner, space, list(todo), limit, lambda row: None, lambda: False)


def score(plan, row, value, done=True, **more):
    (plan.folder / row.name).mkdir(exist_ok=True)
    line = {"round": 1, "training_iteration": 1, "mean_accuracy": value, "time": 0.0,
            "done": done, "total_s": 1.0} | more  # fmt: skip
    files.append_line(plan.folder / row.name / paths.RESULT, line)
    return line


def states(asked):
    return [trial.state.name for trial in asked.inner._ot_study.get_trials()]


# ---- spaces ---------------------------------------------------------------------------------


def test_corners_hold_every_bound_and_every_choice():
    space = SPACE | {
        "a.b": tune.choice([1, [2, 3], None]),
        "c.d": tune.randint(3, 7),
        "e.f": tune.sample_from(lambda config: config["c.d"] * 2),
        "g.h": 5,
    }
    found = search.corners(space)
    assert len(found) == 3 and all(one["g.h"] == 5 for one in found)
    assert {one["simulation.x"] for one in found} == {1e-4, 1}
    assert [one["a.b"] for one in found] == [1, [2, 3], None]
    assert {one["c.d"] for one in found} == {3, 6}
    assert all(one["e.f"] == 2 * one["c.d"] for one in found)


def test_a_grid_cannot_be_suggested():
    with pytest.raises(
        UserError, match="'a.b' is a tune.grid_search, which a search algorithm"
    ):
        search.corners({"a.b": tune.grid_search([1, 2])})


def test_what_population_based_training_may_set_is_known():
    made = tune.schedulers.PopulationBasedTraining(
        hyperparam_mutations={"a.b": [1, 2], "c.d": tune.uniform(0, 1), "e.f": lambda: 7}
    )
    few = search.mutated(made)
    assert few == [{"a.b": 1}, {"a.b": 2}, {"c.d": 0}, {"c.d": 1}, {"e.f": 7}]
    assert search.mutated(tune.schedulers.ASHAScheduler()) == search.mutated(None) == []


# ---- names and arguments --------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "kind"), [
    ("asha", "AsyncHyperBandScheduler"),
    ({"name": "asha", "grace_period": 2}, "AsyncHyperBandScheduler"),
    ("median_stopping", "MedianStoppingRule"),
    ("hyperband", "HyperBandScheduler"),
    (tune.schedulers.ASHAScheduler(), "AsyncHyperBandScheduler"),
    (None, "NoneType"),
])  # fmt: skip
def test_schedulers_by_name_with_arguments_or_made(wanted, kind):
    assert type(search.scheduler(RayArgs(scheduler=wanted))).__name__ == kind


@pytest.mark.parametrize(("wanted", "text"), [
    ("ahsa", "no scheduler is called 'ahsa' - did you mean 'asha'"),
    ({"name": "asha", "grace": 1}, "async_hyperband takes no 'grace' - did you mean 'grace_p"),
    ({"name": "asha", "grace_period": 0}, "grace_period must be positive"),
    (3, "takes an object of Ray, a name or a dict"),
])  # fmt: skip
def test_a_wrong_scheduler_is_one_line(wanted, text):
    with pytest.raises(UserError, match=text):
        search.scheduler(RayArgs(scheduler=wanted))


def test_an_absent_package_is_named():
    with pytest.raises(UserError, match="search_alg 'zoopt'.*(install|ZOOpt)"):
        search.searcher(RayArgs(search_alg="zoopt"))


def args(**more):
    return RayArgs(**more)


@pytest.mark.parametrize(("given", "text"), [
    (args(scheduler="asha", metric="valid_acuracy"), "no metric 'valid_acuracy'"),
    (args(search_alg="optuna", scheduler=tune.schedulers.PopulationBasedTraining(
        hyperparam_mutations={"a.b": [1]})), "draws its own values: leave search_alg out"),
    (args(scheduler="asha", metric=["mean_accuracy"], mode=["max"]), "several metrics need"),
    (args(scheduler={"name": "asha", "time_attr": "epochs"}), "time_attr = 'epochs'"),
])  # fmt: skip
def test_parts_that_cannot_work_together(given, text):
    with pytest.raises(UserError, match=text):
        search.check(given, METRICS)


def test_a_schedulers_own_metric_is_the_plans():
    made = tune.schedulers.ASHAScheduler(metric="total_s", mode="min")
    checked = search.check(args(scheduler=made), METRICS)
    assert (checked.metric, checked.mode) == ("total_s", "min")


def test_rungs_are_told_from_a_result():
    made = search.scheduler(
        RayArgs(scheduler={"name": "asha", "max_t": 30, "reduction_factor": 3})
    )
    rung = search.rung(made)
    told = [rung({"training_iteration": number}) for number in (0, 1, 2, 3, 8, 9, 26, 29)]
    assert told == ["", "1", "1", "3", "3", "9", "9", "27"]
    assert search.rung(None) is None


# ---- suggestions and the manifest -----------------------------------------------------------


def test_a_suggestion_is_written_down_before_it_is_given(planned):
    plan = planned(total=2)
    asked = searching(plan)
    assert asked.suggest("a") == {"number": 0} and asked.suggest("b") == {"number": 1}
    assert asked.suggest("c") == search.Searcher.FINISHED
    stored = plans.Plan.stored("s")
    assert stored.rows == plan.rows and stored.total == 2
    assert all(1e-4 <= row.overrides["simulation.x"] <= 1 for row in stored.rows)
    assert [e["suggestion"] for e in plan.manifest().events if e["event"] == "row"] == [0, 1]


def test_values_that_depend_on_others_follow_the_suggestion(planned):
    plan = planned(total=1)
    doubled = tune.sample_from(lambda config: config["simulation.y"] * 2)
    searching(plan, space=SPACE | {"a.b": doubled, "c.d": 7}).suggest("a")
    (row,) = plan.rows
    assert row.overrides["a.b"] == 2 * row.overrides["simulation.y"]
    assert row.overrides["c.d"] == 7


def test_no_more_at_a_time_than_allowed(planned):
    asked = searching(planned(), limit=1)
    assert asked.suggest("a") and asked.suggest("b") is None
    asked.on_trial_complete("a", {"mean_accuracy": 0.5})
    assert asked.suggest("b") == {"number": 1}


def test_results_reach_optuna_and_what_failed_is_a_failure(planned):
    plan = planned(total=5)
    asked = searching(plan)
    for name in "abcde":
        asked.suggest(name)
    asked.on_trial_result("a", {"mean_accuracy": 0.3, "training_iteration": 1})
    asked.on_trial_result("b", {"mean_accuracy": math.nan, "training_iteration": 1})
    asked.on_trial_complete("a", {"mean_accuracy": 0.5})
    asked.on_trial_complete("b", {"mean_accuracy": math.nan, "diverged": True})
    asked.on_trial_complete("c", {"mean_accuracy": 0.9, "failed": "boom"})
    asked.on_trial_complete("d", None, error=True)
    asked.on_trial_complete("e", {"mean_accuracy": 0.1, "interrupted": True})
    assert states(asked) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert asked.inner._ot_study.best_value == 0.5


def test_after_a_kill_optuna_hears_what_it_missed_and_goes_on(planned):
    plan = planned(total=4)
    asked = searching(plan)
    for name in "abc":
        asked.suggest(name)
    score(plan, plan.rows[0], 0.7)  # ended, and the driver was killed before it was told
    score(plan, plan.rows[1], 0.2, done=False)  # was running
    asked.inner._ot_study.ask()  # suggested, and killed before the row was written
    values = [row.overrides for row in plan.rows]

    plan = plans.Plan.stored("s")
    todo = [plan.rows.index(row) for row in plan.unfinished()]
    again = searching(plan, todo=todo)
    assert states(again) == ["COMPLETE", "RUNNING", "RUNNING", "FAIL"]
    assert [again.suggest(name)["number"] for name in "xy"] == [1, 2]
    again.on_trial_complete("x", {"mean_accuracy": 0.4})
    assert again.inner._ot_study.get_trials()[1].value == 0.4
    assert again.suggest("z") == {"number": 3}  # the fourth, not a fifth
    assert again.suggest("w") == search.Searcher.FINISHED
    assert [row.overrides for row in plan.rows[:3]] == values


def test_a_line_of_optunas_that_was_cut_is_dropped(planned):
    plan = planned()
    searching(plan).suggest("a")
    file = plan.folder / optuna_study.OPTUNA
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code": 5, "wor')
    asked = searching(plans.Plan.stored("s"))
    assert len(asked.inner._ot_study.get_trials()) == 1
    asked.suggest("b")
    assert len(searching(plans.Plan.stored("s")).inner._ot_study.get_trials()) == 2


def test_optunas_file_moves_with_the_experiment(planned, tmp_path):
    plan = planned()
    searching(plan).suggest("a")
    plan.folder.rename(tmp_path / "elsewhere")
    asked = searching(plans.Plan.stored("elsewhere"))
    assert len(asked.inner._ot_study.get_trials()) == 1


def test_several_goals(planned):
    plan = planned(metric=["mean_accuracy", "total_s"], mode=["max", "min"])
    asked = searching(plan)
    asked.suggest("a")
    asked.on_trial_complete("a", {"mean_accuracy": 0.5, "total_s": 3.0})
    (trial,) = asked.inner._ot_study.get_trials()
    assert trial.values == [0.5, 3.0]
    assert [d.name for d in asked.inner._ot_study.directions] == ["MAXIMIZE", "MINIMIZE"]


# ---- schedulers after a restart -------------------------------------------------------------


def test_asha_compares_with_what_ended_before_the_restart(planned):
    plan = planned(total=6)
    asked = searching(plan)
    for name in "abcdef":
        asked.suggest(name)
    for row, value in zip(plan.rows[:4], (0.1, 0.2, 0.8, 0.9), strict=True):
        score(plan, row, value)
    score(plan, plan.rows[4], 0.7, done=False)
    made = search.scheduler(RayArgs(scheduler={"name": "asha", "reduction_factor": 2}))
    made.set_search_properties("mean_accuracy", "max")
    replay.replay(plan, made, lambda trial: trial.config["number"])
    went_on, fresh = Running(4), Running(5)
    for trial in (went_on, fresh):
        made.on_trial_add(None, trial)
    ((_, recorded),) = made._brackets[0]._rungs[-1:]
    assert sorted(recorded.values()) == [0.1, 0.2, 0.7, 0.8, 0.9] and "ray-4" in recorded
    result = {"training_iteration": 1, "mean_accuracy": 0.5}
    assert made.on_trial_result(None, fresh, result) == "STOP"  # below the median of five


def test_others_begin_anew(planned):
    plan = planned()
    made = search.scheduler(RayArgs(scheduler="hyperband"))
    before = made.on_trial_add
    replay.replay(plan, made, lambda trial: 0)
    assert made.on_trial_add == before


def test_no_link_stands_for_a_study(planned, tmp_path):
    plan = planned()
    (tmp_path / "mine").write_text("precious")
    (plan.folder / optuna_study.OPTUNA).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link"):
        searching(plan)
    assert (tmp_path / "mine").read_text() == "precious"
