"""Studies: experiments that follow one another, planned together, and a report at the end.

Each stage is an ordinary experiment `<study>/<stage>` with its own plan, so that everything
works on it that works on experiments. When a stage has result its checkpoints get their names,
and the next one may start from them. `study.json` says what the study is.
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paths
from selfstudy import configure, registry
from selfstudy import run as runs
from selfstudy.experiment import disk, rayconfig
from selfstudy.experiment import plan as plans
from selfstudy.experiment.plan import Plan
from selfstudy.experiment.rayconfig import Stage
from selfstudy.experiment.resources import fit_resources, trials_at_once
from selfstudy.storage import relocate
from selfstudy.storage.checkpoints import is_snapshot, short_name, under_experiments
from util import files
from util.environment import cpus
from util.errors import UserError, nearest
from util.text import clock, table

if TYPE_CHECKING:  # it imports torch
    from selfstudy.experiment.preflight import Preflight

SCHEMA = 1
PRETRAINED = "Wrapper.pretrained"
SAME_PACE = ("seed", "label_seed", "pretrained", "semisupervised")
OVERHEAD = 1.0  # seconds of a trial beside its rounds
REPORT = "report.html"


@dataclasses.dataclass
class Study:
    """A study as it was planned.

    Attributes:
        exp_id: folder below EXP_DIR.
        ray: name of its file below config/ray.
        settings: texts of `--set`.
        params: `-p` bindings, which every stage gets.
        question: what it asks.
        chosen: all settings with their values.
        stages: its stages, with the plan of each.
        command: the command line that made it.
        digest: SHA-256 of its file.
    """

    exp_id: str
    ray: str
    settings: tuple[str, ...]
    params: tuple[str, ...]
    question: str
    chosen: dict[str, Any]
    stages: list[tuple[Stage, Plan]]
    command: str
    digest: str

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return under_experiments(self.exp_id)

    def write(self) -> None:
        """Write `study.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA, "ray": self.ray, "settings": self.settings,
            "params": self.params, "question": self.question, "chosen": self.chosen,
            "stages": [stage.name for stage, _ in self.stages], "command": self.command,
            "digest": self.digest,
        }  # fmt: skip
        files.write_json(self.folder / paths.STUDY, content)


def make(exp_id: str, ray: str, settings: tuple[str, ...], params: tuple[str, ...]) -> Study:
    """Plan a study from its file; the plans of stages that have begun are those on the disk.

    Raises:
        UserError: anything in the file or the settings that cannot work.
    """
    question, chosen, stages = rayconfig.study(ray, exp_id, settings)
    planned = []
    for stage in stages:
        name = f"{exp_id}/{stage.name}"
        if (under_experiments(name) / paths.PLAN).is_file():
            plan = Plan.stored(name)
        else:
            spec = configure.Spec(stage.gin, (*stage.params, *params))
            plan = plans.make(
                name, spec, ray, stage.ray_args, lambda *_, rows=stage.trials: rows, settings
            )
        planned.append((stage, plan))
    command = shlex.join(["python", *sys.argv])
    digest = rayconfig.digest(ray)
    return Study(exp_id, ray, settings, params, question, chosen, planned, command, digest)


def is_stored(exp_id: str) -> bool:
    """Whether the experiment of this name is a study."""
    return (under_experiments(exp_id) / paths.STUDY).is_file()


def stored(exp_id: str, accept_changes: bool = False) -> Study:
    """The study of this name.

    Args:
        exp_id: its name.
        accept_changes: take its file although it has changed since.

    Raises:
        UserError: its record is damaged, or its file is gone or has changed.
    """
    path = under_experiments(exp_id) / paths.STUDY
    try:
        record = files.read_json(path)
        ray, digest = record["ray"], record["digest"]
        settings, params = tuple(record["settings"]), tuple(record["params"])
        command = record["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if rayconfig.digest(ray) != digest and not accept_changes:
        raise UserError(
            f"{rayconfig.label(ray)} has changed since '{exp_id}' was planned: restore it, or "
            f"add -r {ray} to go on with the file as it is"
        )
    study = make(exp_id, ray, settings, params)
    return dataclasses.replace(study, command=command)


# ---- before it runs -------------------------------------------------------------------------


def check(study: Study, prepare: bool, resumed: bool) -> list["Preflight"]:
    """Check the trials of all stages, of later ones as if the earlier had result well.

    Args:
        study: the study.
        prepare: it is going to run: make data files that are missing, and refuse the name of
            another experiment.
        resumed: it was begun before.

    Raises:
        UserError: whatever cannot work, a snapshot among it that no stage makes.
    """
    from selfstudy.experiment import preflight

    if prepare and not resumed:
        runs.refuse_existing(study.exp_id, study.folder.exists())
    registry.discover()
    checks, promised = [], set()
    for stage, plan in study.stages:
        _require_made(study, plan, promised)
        begun = resumed and plan.exists()
        checks.append(preflight.check(plan, stage.ray_args, prepare, begun, promised))
        if stage.move:
            promised |= {_destination(stage, plan, row) for row in plan.rows}
    return checks


def _destination(stage: Stage, plan: Plan, row: plans.Row) -> str:
    """The snapshot that a trial's checkpoint will be."""
    configure.load(plan.spec, row.overrides)
    parts = configure.would_build("trial")
    values = {f"{part}.{key}": item
              for part, known in parts.items() for key, item in known.items()}  # fmt: skip
    return f"{plan.exp_id}/{relocate.format_name(stage.move or '', values | row.overrides)}"


def _require_made(study: Study, plan: Plan, promised: set[str]) -> None:
    for row in plan.rows:
        name = row.overrides.get(PRETRAINED)
        if name and name.startswith(f"{study.exp_id}/") and name not in promised:
            raise UserError(f"{rayconfig.label(study.ray)}: no earlier stage makes the "
                            f"snapshot '{name}'{nearest(name, promised)}")  # fmt: skip


def show(study: Study, checks: list["Preflight"], options: runs.RunOptions) -> None:
    """Print the stages with what they vary and how long they may take."""
    from selfstudy import devices

    rows, whole = [], 0.0
    for (stage, plan), checked in zip(study.stages, checks, strict=True):
        each = None
        if not options.address:  # whose machines are not known here
            have = cpus(), devices.gpus()
            resources, _ = fit_resources(plan.exp_args["resources_per_trial"], *have)
            each = _seconds(plan, resources)
            side = 1 if options.local else trials_at_once(resources, *have)
            whole += sum(each or ()) / side
        rows.append([stage.name, plan.total, _variety(plan), round(checked.total(plan)),
                     "?" if each is None else clock(sum(each))])  # fmt: skip
        if needed := disk.estimate(plan, checked.bytes, max([0, *checked.rounds.values()])):
            print(f"{stage.name}: {disk.check_room(plan, needed)}")
    print(study.question)
    print(table(rows, ["stage", "trials", "of", "rounds", "trial time"]))
    unknown = any(row[-1] == "?" for row in rows)
    estimate = f"about {clock(whole)}, from a few minibatches of each kind of trial"
    print(f"time: {'not known: no data here, or a cluster' if unknown else estimate}; "
          f"results in {study.folder}")  # fmt: skip


def _variety(plan: Plan) -> str:
    """Such as '5 include x 3 seed'; of names that vary together the first."""
    counts: dict[tuple[int, ...], str] = {}
    for name in plan.varying():
        values = [repr(row.overrides.get(name)) for row in plan.rows]
        known = list(dict.fromkeys(values))
        same = tuple(known.index(value) for value in values)
        counts.setdefault(same, f"{len(known)} {name.rpartition('.')[2]}")
    return " x ".join(counts.values())


def _seconds(plan: Plan, resources: dict[str, float]) -> list[float] | None:
    """Of each trial; one of each kind is timed."""
    from selfstudy.experiment import duration

    known: dict[str, float | None] = {}
    for row in plan.rows:
        kind = _kind(row)
        if kind not in known:
            values = {key: item for key, item in row.overrides.items() if key != PRETRAINED}
            known[kind] = duration.seconds(plan.spec, values, resources)
    each = [seconds for row in plan.rows if (seconds := known[_kind(row)]) is not None]
    return None if len(each) < len(plan.rows) else [seconds + OVERHEAD for seconds in each]


def _kind(row: plans.Row) -> str:
    values = row.overrides.items()
    return repr([pair for pair in values if pair[0].rpartition(".")[2] not in SAME_PACE])


# ---- running --------------------------------------------------------------------------------


def run(study: Study, checks: list["Preflight"], options: runs.RunOptions) -> int:
    """Run the stages one after another and write the report; returns the exit code."""
    start = time.monotonic()
    study.write()
    code = 0
    for number, ((stage, plan), checked) in enumerate(
        zip(study.stages, checks, strict=True), 1
    ):
        print(f"\n{study.exp_id}, stage {number} of {len(study.stages)}: {stage.name}, "
              f"{plan.total} trials", flush=True)  # fmt: skip
        result = _run_stage(study, stage, plan, checked, options)
        if result.early:
            result.follow_up(study.exp_id)
            return result.code
        code = max(code, result.code)
    path = _write_report(study)
    print(f"\n{clock(time.monotonic() - start)} in all; open {path}")
    return code


def _write_report(study: Study) -> Path:
    from selfstudy.analysis import report

    path = study.folder / REPORT
    report.write([study.exp_id], path)
    runs.upload(study.folder)
    return path


def _run_stage(
    study: Study, stage: Stage, plan: Plan, checked: "Preflight", options: runs.RunOptions
) -> runs.RunResult:
    begun = plan.exists()
    plan.waiting = frozenset(_waiting(study, plan))
    if plan.waiting:
        few = f"{len(plan.waiting)} of {plan.total} trials"
        print(f"{few} cannot begin: their snapshot was not made")
    if not begun or plan.unfinished():
        result = runs.execute(plan, stage.ray_args, checked, options, resumed=begun)
        if result.early:
            return result
    else:
        result = runs.RunResult(3 if runs.diverged(plan) else 0)
        print("all trials have ended")
    if stage.move:
        ended_well = {name for name, status in plan.statuses().items() if status == "done"}
        moves, _ = relocate.relocations(plan.exp_id, stage.move)
        moves = [move for move in moves if move[0].parent.name in ended_well]
        relocate.move(moves)
        _draw(moves)
    return dataclasses.replace(result, code=max(result.code, 3 * bool(plan.waiting)))


def _draw(moves: list[relocate.Move]) -> None:
    """Pictures of what trials have learnt, for the report; without them a study goes on."""
    from selfstudy.evaluate import pictures

    for source, destination in moves:
        try:
            pictures.draw(short_name(destination), source.parent)
        except UserError as error:
            print(f"no pictures of {short_name(destination)}: {error.text}")


def _waiting(study: Study, plan: Plan) -> Iterator[str]:
    """Trials that cannot begin, since the pretraining they start from has not result well."""
    for row in plan.rows:
        name = row.overrides.get(PRETRAINED)
        if name and name.startswith(f"{study.exp_id}/"):
            if not is_snapshot(under_experiments(name)):
                yield row.name
