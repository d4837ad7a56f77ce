"""The manifest: names, repeats, resources, and what counts as finished."""

import dataclasses
import json

import filelock
import pytest

import main
import paths
from selfstudy import configure, registry
from selfstudy.experiment import plan as plans
from selfstudy.experiment import rayconfig, resources
from selfstudy.experiment.plan import Plan
from selfstudy.experiment.rayconfig import RayArgs
from util import files
from util.errors import UserError

registry.discover()
SPEC = configure.Spec(("digits/r9/classify",), ())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path)
    return tmp_path


def ray_args(config=None, **more):
    return RayArgs(config=config or {}, **more)


def grid(config, samples):
    return [{"scheduler.target_lrs": [0, lr, 0], "valid": {"dataloader.batch_size": 7}}
            for _ in range(samples) for lr in (0.1, 0.2)]  # fmt: skip


def test_rows_carry_flat_plain_values_and_names_that_fit_a_folder():
    plan = plans.make("x", SPEC, "grid_search", ray_args(), grid)
    assert [row.overrides for row in plan.rows] == [
        {"scheduler.target_lrs": [0, lr, 0], "valid/dataloader.batch_size": 7}
        for lr in (0.1, 0.2)
    ]
    assert [row.name for row in plan.rows] == [
        "e_target_lrs=0-0.1-0_0000", "e_target_lrs=0-0.2-0_0001"]  # fmt: skip
    assert plan.varying() == ["scheduler.target_lrs"]


def test_repeats_get_seeds_of_their_own():
    plan = plans.make("x", configure.Spec(SPEC.gin, ("session.seed = 5",)), "single_run",
                      ray_args(num_samples=3), None)  # fmt: skip
    assert [row.overrides for row in plan.rows] == [
        {},
        {"session.seed": 6},
        {"session.seed": 7},
    ]
    assert len({row.name for row in plan.rows}) == 3


def test_plan_survives_the_disk(folder):
    plan = plans.make("x/y", SPEC, "grid_search", ray_args(), grid)
    plan.folder.mkdir(parents=True)
    plan.write()
    assert Plan.stored("x/y") == plan and plan.exists()
    assert json.loads((folder / "x/y" / paths.ENVIRONMENT).read_text())["versions"]["torch"]
    with pytest.raises(UserError, match="no experiment 'x/z'.*did you mean|no experiment"):
        Plan.stored("x/z")
    (folder / "x/y" / paths.PLAN).write_text('{"schema": 1, "spec"')
    with pytest.raises(UserError, match="damaged"):
        Plan.stored("x/y")


def test_finished_is_read_from_the_results():
    plan = plans.make("x", SPEC, "grid_search", ray_args(), grid)
    plan.folder.mkdir(parents=True)
    plan.write()
    results = plan.folder / plan.rows[0].name
    results.mkdir()
    files.append_line(results / paths.RESULT, {"round": 1, "done": False})
    assert len(plan.unfinished()) == 2
    files.append_line(results / paths.RESULT, {"round": 2, "done": True})
    with open(results / paths.RESULT, "a") as file:
        file.write('{"round": 3, "do')  # torn by a crash
    assert plan.unfinished() == plan.rows[1:] and plan.last(plan.rows[0])["round"] == 2


def test_one_driver_at_a_time():
    plan = plans.make("x", SPEC, "single_run", ray_args(), None)
    plan.folder.mkdir(parents=True)
    plan.write()
    with filelock.FileLock(plan.folder / ".lock"), pytest.raises(UserError) as error:
        with plan.lock():
            pass
    assert error.value.code == 4
    with plan.lock():
        pass


@pytest.mark.parametrize(
    "wanted, cpus, gpus, fitted, notes",
    [
        ({"cpu": 2, "gpu": 1}, 4, 0, {"cpu": 2}, 1),
        ({"cpu": 0.5, "gpu": 0.25}, 4, 2, {"cpu": 0.5, "gpu": 0.25}, 0),
        ({"cpu": 1, "gpu": 0}, 1, 0, {"cpu": 1, "gpu": 0}, 0),
    ],
)
def test_resources_are_fitted(wanted, cpus, gpus, fitted, notes):
    result, said = resources.fit_resources(wanted, cpus, gpus)
    assert result == fitted and len(said) == notes


@pytest.mark.parametrize(
    "wanted, text",
    [({"cpu": 64}, "cpu 64 can never be met, there are 2"), ({"gpu": 4}, "gpu 4 can never"),
     ({"cpus": 1}, "did you mean 'cpu'"), ({"cpu": -1}, "no amount")],
)  # fmt: skip
def test_impossible_resources_are_refused(wanted, text):
    with pytest.raises(UserError, match=text):
        resources.fit_resources(wanted, 2, 2)


def test_trials_side_by_side():
    assert resources.trials_at_once({"cpu": 0.5, "gpu": 0.25}, 8, 2) == 8
    assert (
        resources.trials_at_once({"cpu": 2}, 8, 0) == 4
        and resources.trials_at_once({}, 8, 0) == 1
    )


def test_ray_configs_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RAY_DIR", tmp_path)
    (tmp_path / "a.py").write_text("exp_args = {'num_sampels': 3}")
    (tmp_path / "b.py").write_text("x = 1")
    (tmp_path / "c.py").write_text("1 / 0")
    (tmp_path / "d.py").write_text("import not_there_at_all\nexp_args = {}")
    answers = {
        "a": "did you mean 'num_samples'",
        "b": "defines no exp_args",
        "c": "ZeroDivisionError",
        "d": "pip install not_there_at_all",
        "e": "no ray config is called 'e'",
        "../a": "no ray config",
    }
    for name, text in answers.items():
        with pytest.raises(UserError, match=text):
            rayconfig.exp_args(name)


def test_values_to_draw_are_noticed():
    assert not rayconfig.has_variants({"a.b": [1, {"c": None}], "d": "x"})
    assert rayconfig.has_variants({"a.b": {"grid_search": [1, 2]}})
    assert rayconfig.has_variants({"valid": {"a.b": object()}})


def test_repeats_of_another_job_get_seeds_of_that_job():
    spec = configure.Spec(("simulation/search",), ())
    plan = plans.make("x", spec, "single_run", ray_args(num_samples=2), None)
    assert [row.overrides for row in plan.rows] == [{}, {"simulation.seed": 1}]


def test_what_was_planned_holds_where_the_file_is_read_again():
    """As -c does: it changes an entry that the file does not have."""
    live = dataclasses.replace(rayconfig.exp_args("asha"), checkpoint_at_end=False, config={})
    plan = plans.make("x", SPEC, "asha", live, None)
    again = plan.ray_args()
    assert again.checkpoint_at_end is False and rayconfig.exp_args("asha").checkpoint_at_end
    assert not isinstance(again.scheduler, str) and again.config


def test_without_a_file_a_sweep_of_files_has_no_other(monkeypatch):
    args = main.parser().parse_args(["-r", "grid_methods", "--dry-run"])
    plan, _ = main.planned(args)
    assert plan.spec.gin == () and len(plan.rows) > 10
    assert plan.rows[1].overrides == {"include": "digits/r9/simclr"}
    assert plan.rows[1].name == "e_include=digits-r9-simclr_0001"
    args = main.parser().parse_args(
        ["-r", "grid_methods", "-g", "fashion/r9/moco", "--dry-run"]
    )
    assert main.planned(args)[0].spec.gin == ("fashion/r9/moco",)
