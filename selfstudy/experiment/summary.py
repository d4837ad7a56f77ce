"""What `main.py` prints before and after: the plan, the results, and what to type next."""

import json
import shlex
import statistics
from typing import Any

import paths
from selfstudy.configure import INCLUDE, included_files
from selfstudy.experiment.plan import Plan, Row
from selfstudy.storage.manifest import Manifest
from util import files
from util.errors import UserError, printable
from util.text import clock, headings, setting, table

SHOWN = 24  # trials in a table; misc/results.py lists them all
COLLAPSE = {  # the numbers that tell of one
    "valid_feature_std": "spread",
    "valid_rank_me": "RankMe",
    "valid_pretext_spread": "spread in the pretext task",
}


def plan_table(plan: Plan, rounds: list[float]) -> str:
    """The trials with what varies between them."""
    names = plan.varying() or sorted({name for row in plan.rows for name in row.overrides})
    rows = [[row.name, *(setting(row.overrides.get(name)) for name in names), f"{count:g}"]
            for row, count in zip(plan.rows, rounds, strict=True)]  # fmt: skip
    return table(rows, ["trial", *names, "rounds"])


def duration(plan: Plan, rounds: float, at_once: int) -> str:
    """How long the plan may take, from how long the same files took before, in words."""
    seen = []
    for path in paths.EXP_DIR.glob(f"*/{paths.PLAN}"):
        try:
            manifest = Manifest.read(path.parent)
        except UserError:
            continue
        if tuple(manifest.plan["spec"]["gin"]) == plan.spec.gin:
            for row in manifest.rows[:8]:
                lines = files.read_lines(path.parent / row["name"] / paths.RESULT)
                seen += [line["round_s"] for line in lines[-3:] if line.get("round_s")]
    if not seen:
        return "time: not known before the first round with these files"
    each = statistics.median(seen)
    return (
        f"time: about {clock(each * rounds / at_once)} "
        f"({each:.2g} s a round in earlier experiments with these files)"
    )


def results(plan: Plan, failed: dict[str, str], seconds: float) -> str:
    """The final table, best first, and why trials failed."""
    metric, mode = plan.objectives[0]
    names = plan.varying()
    standard = ["train_accuracy", "valid_accuracy", "test_accuracy"]
    known = ("mean_accuracy", *standard)
    shown = [name for name, _ in plan.objectives if name not in known] + standard
    manifest, lasts = plan.manifest(), {row.name: plan.last(row) for row in plan.rows}
    rows = _ranked(plan, lasts, metric, mode) if plan.is_ranked else plan.rows
    lines = []
    for row in rows[:SHOWN]:
        last = lasts[row.name]
        if last.get("exploited"):  # population based training has changed its values
            row = Row(row.name, plan.current(row))
        numbers = [_number(last.get(name)) for name in shown]
        lines.append([row.name, *(setting(row.overrides.get(name)) for name in names),
                      f"{last.get('round', 0):g}", *numbers,
                      manifest.status(row.name, last)])  # fmt: skip
    leaves = headings([row.overrides for row in plan.rows])
    heads = [name.removesuffix("_accuracy") for name in shown]
    heads = [*(leaves.get(name, name) for name in names), "rounds", *heads, "state"]
    text = table(lines, ["trial", *heads])
    if len(rows) > SHOWN:
        text += f"\n... {len(rows) - SHOWN} more: python misc/results.py ls {plan.exp_id}"
    text += f"\n\n{clock(seconds)} in all; trial folders below {plan.folder}"
    for name, why in failed.items():
        text += f"\n{name} failed: {printable(why)}"
        if (plan.folder / name / paths.ERROR).exists():
            text += f" (see {name}/{paths.ERROR})"
    for name, last in lasts.items():
        if last.get("collapsed"):
            text += f"\n{collapse(name, last)}"
    return text


def collapse(name: str, line: dict[str, Any]) -> str:
    """What a trial's result that has 'collapsed', the round when it began, tells in a line."""
    signs = [f"{what} {line[key]:.3g}" for key, what in COLLAPSE.items()
            if isinstance(line.get(key), float)]  # fmt: skip
    return (
        f"{name}: collapsed in round {line['collapsed']}, it makes nearly the same of all "
        f"images ({', '.join(signs)}); see docs/explanation/pretraining.md"
    )


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"


def _ranked(plan: Plan, lasts: dict[str, dict], metric: str, mode: str) -> list[Row]:
    """The trials, the best first, those without a number last."""
    sign = -1 if mode == "max" else 1

    def key(row: Row) -> tuple[bool, float]:
        value = lasts[row.name].get(metric)
        known = isinstance(value, (int, float))
        return (not known, sign * value if known else 0.0)

    return sorted(plan.rows, key=key)


def best(plan: Plan) -> str | None:
    """The best trial, and the command line that runs its configuration again."""
    metric, mode = plan.objectives[0]
    lasts = {row.name: plan.last(row) for row in plan.rows}
    row = _ranked(plan, lasts, metric, mode)[0]
    value = lasts[row.name].get(metric)
    if not isinstance(value, (int, float)):
        return None
    return f"best: {row.name} with {metric} {value:.4f}\n  {command(plan, plan.current(row))}"


def command(plan: Plan, overrides: dict[str, Any]) -> str:
    """The command line that runs a configuration of a plan by itself."""
    files = [*plan.spec.gin, *included_files(overrides)]
    given = [f"{name} = {json_free(value)}" for name, value in overrides.items()
             if name != INCLUDE]  # fmt: skip
    params = [*plan.spec.params, *given]
    flags = f" -p {shlex.join(params)}" if params else ""
    return f"python main.py -g {shlex.join(files)}{flags}"


def json_free(value: Any) -> str:
    """A value as gin reads it; text gets double quotes, which a shell's single ones keep."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def next_commands(plan: Plan, default_gin: tuple[str, ...], leaves_weights: bool) -> list[str]:
    """Command lines that follow naturally, with the snapshots of jobs that leave weights."""
    many = len(plan.rows) > 1
    saved = plan.exp_args["checkpoint_at_end"] and leaves_weights
    lines = []
    if many:
        lines.append(f"python misc/results.py best {plan.exp_id}")
    if saved:
        names = "-".join(f"{{cfg[{name}]}}" for name in plan.varying())
        template = f" -p '{names}'" if many else ""
        lines.append(f"python misc/move_snapshots.py -e {plan.exp_id}{template} -m")
    if saved and not many:
        # The experiment's name stands for its only snapshot, moved or not.
        gin = "" if plan.spec.gin == default_gin else f" -g {shlex.join(plan.spec.gin)}"
        weights = f'Wrapper.pretrained = "{plan.exp_id}"'
        lines.append(f"python main.py{gin} -p {shlex.join([*plan.spec.params, weights])}")
    if not many:
        lines += [
            "python main.py -e grid -r grid_search -g digits/r9/classify",
            "python main.py -g fashion/r9/classify",
            "python main.py -g cifar/r9/classify -p 'dataloader.batch_size=128'",
        ]
    return lines
