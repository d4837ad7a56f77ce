"""What is printed before and after a run, and the command that repeats the best trial."""

import shlex

import pytest

import main
import paths
from selfstudy import configure
from selfstudy.experiment import plan as plans
from selfstudy.experiment import preflight, resources, summary
from selfstudy.experiment.rayconfig import RayArgs
from util import files
from util.errors import UserError


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """A sweep of three trials, one of them without a result."""
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)
    spec = configure.Spec(("simulation/search",), ("simulation.rounds = 4",))
    config = {"simulation.x": 0.5, "simulation.fault": "none"}
    ray_args = RayArgs(config=config, scheduler="asha", num_samples=3)
    plan = plans.make("s", spec, "asha", ray_args, None)
    plan.folder.mkdir()
    plan.write()
    for row, value in zip(plan.rows[:2], (0.25, 0.75), strict=True):
        (plan.folder / row.name).mkdir()
        line = {"round": 4, "rounds": 4, "round_s": 2.0, "mean_accuracy": value, "done": True}
        files.append_line(plan.folder / row.name / paths.RESULT, line)
    return plan


def test_the_best_trial_comes_as_a_command_that_parses_to_its_configuration(ended):
    told = summary.best(ended)
    assert told.startswith(f"best: {ended.rows[1].name} with mean_accuracy 0.7500\n")
    args = main.parser().parse_args(shlex.split(told.splitlines()[1])[2:])
    assert args.gin_config == ["simulation/search"]
    assert args.gin_param == ["simulation.rounds = 4", "simulation.x = 0.5",
                              'simulation.fault = "none"', "simulation.seed = 1"]  # fmt: skip
    configure.load(configure.Spec(tuple(args.gin_config), tuple(args.gin_param)))
    assert configure.current_bindings()["simulation.fault"] == "none"


def test_a_file_that_a_search_has_named_is_one_of_g(ended):
    assert summary.command(ended, {"include": ["a", "b"], "x.y": 1}) == (
        "python main.py -g simulation/search a b -p 'simulation.rounds = 4' 'x.y = 1'"
    )


def test_the_table_has_the_best_first_and_says_what_failed(ended):
    text = summary.results(ended, {ended.rows[2].name: "boom\x1b[31m"}, 61.0)
    first, second, third = [line.split() for line in text.splitlines()[1:4]]
    assert (first[-1], second[-1], third[-1]) == ("done", "done", "planned")
    assert [row.name for row in ended.rows] == [second[0], first[0], third[0]]
    assert "01:01 in all" in text and f"{ended.rows[2].name} failed: boom [31m" in text


def test_a_long_table_is_cut_and_names_the_tool(ended, monkeypatch):
    monkeypatch.setattr(summary, "SHOWN", 1)
    assert "... 2 more: python misc/results.py ls s" in summary.results(ended, {}, 1.0)


def test_how_long_it_will_take_is_read_from_earlier_experiments(ended):
    assert summary.duration(ended, 60.0, 2).startswith("time: about 01:00 (2 s a round in")
    other = plans.Plan("t", configure.Spec(("digits/r9/classify",)), "asha", {}, [])
    assert "not known" in summary.duration(other, 60.0, 2)


def test_repeats_are_checked_once_and_finished_trials_not_at_all(ended, monkeypatch):
    seen = []
    check = preflight.rehearsal.check

    def counting(spec, overrides, *more):
        seen.append(overrides)
        return check(spec, overrides, *more)

    monkeypatch.setattr(preflight.rehearsal, "check", counting)
    ray_args = RayArgs(**ended.exp_args)
    found = preflight.check(ended, ray_args, prepare=True)
    assert len(seen) == 1 and found.total(ended) == 12  # three seeds of four rounds
    found = preflight.check(ended, ray_args, prepare=True, resumed=True)
    assert len(seen) == 2 and list(found.rounds.values()) == [4, 4, 4]


# ---- --set on resume ------------------------------------------------------------------------


def test_a_resumed_experiment_may_run_differently_but_not_be_another(ended):
    ended.change(["resources_per_trial.cpu=0.5", "max_failures=7"])
    assert ended.exp_args["resources_per_trial"] == {"cpu": 0.5}
    ended.write_plan()
    assert plans.Plan.stored("s").exp_args["max_failures"] == 7
    for setting in ("num_samples=9", "scheduler=None", "metric=train_loss", "stop.round=1"):
        with pytest.raises(UserError, match="is settled; choose another -e"):
            ended.change([setting])


def test_a_search_may_be_given_more_trials(ended):
    ended.exp_args["search_alg"] = "optuna"
    ended.add({"simulation.x": 0.1})
    ended.change(["num_samples=9"])
    ended.write_plan()
    again = plans.Plan.stored("s")
    assert again.total == 9 and again.rows == ended.rows and len(again.rows) == 4


# ---- packing --------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "have", "side", "words"), [
    ({"cpu": 1, "gpu": 0.25}, (16, 2), 8, "each cpu 1, gpu 0.25; 4 trials per GPU, 2 GPUs, 8"),
    ({"cpu": 1, "gpu": 0.4}, (16, 2), 4, "2 trials per GPU, 2 GPUs, 4 at once"),
    ({"cpu": 4, "gpu": 0.25}, (16, 2), 4, "4 at once"),
    ({"gpu": 2}, (16, 5), 2, "5 GPUs, 2 at once"),
    ({"cpu": 0.5}, (2, 0), 4, "each cpu 0.5; 4 at once"),
    ({"cpu": 0.1}, (1, 0), 10, "10 at once"),
])  # fmt: skip
def test_packing(share, have, side, words):
    assert resources.trials_at_once(share, *have) == side and words in resources.packing(
        share, *have
    )


def test_what_a_trial_really_takes_of_a_gpu_is_held_against_the_packing():
    assert resources.gpu_fit(5.1 * 1024, 23.6 * 1024, 0.25) == (
        "peak 5.1 GiB of 23.6 GiB: 4 fit on a GPU, 4 are packed")  # fmt: skip
    assert "NOT the 4 that gpu 0.25 packs: raise it" in resources.gpu_fit(9000, 24000, 0.25)


def test_trials_that_differ_in_numbers_are_rehearsed_at_their_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)
    built = []
    check = preflight.rehearsal.check

    def counting(spec, overrides, build=True, prepare=True):
        built.extend([overrides] if build else [])
        return check(spec, overrides, build, prepare)

    monkeypatch.setattr(preflight.rehearsal, "check", counting)
    rows = [
        {"simulation.x": x, "simulation.rounds": n} for n in (2, 3) for x in (0.1, 0.9, 0.5)
    ]
    spec = configure.Spec(("simulation/search",), ())
    ray_args = RayArgs()
    plan = plans.make("s", spec, "single_run", ray_args, lambda config, samples: rows)
    found = preflight.check(plan, ray_args, prepare=True)
    assert [(one["simulation.rounds"], one["simulation.x"]) for one in built] == [
        (2, 0.1), (2, 0.9), (3, 0.1), (3, 0.9)]  # fmt: skip
    assert list(found.rounds.values()) == [2, 2, 2, 3, 3, 3]
    rows[2]["simulation.x"] = -0.5  # an end that cannot work
    plan = plans.make("s", spec, "single_run", ray_args, lambda config, samples: rows)
    with pytest.raises(UserError, match="simulation: .* are to be positive"):
        preflight.check(plan, ray_args, prepare=True)
