"""The chapters of a report: each makes blocks of a page from what experiments have found."""

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from selfstudy.analysis import efficiency, figures
from selfstudy.analysis.compare import Group, config, differences, groups, is_seed, settings
from selfstudy.analysis.efficiency import Curves
from selfstudy.analysis.figures.slots import LATEST, Elapsed, bars
from selfstudy.analysis.figures.sweep import varying
from selfstudy.analysis.listing import alternatives, quantity
from selfstudy.analysis.report import provenance
from selfstudy.analysis.report.page import Chapter, Facts, Table, Text
from selfstudy.analysis.results import Experiment, TrialRecord, number
from selfstudy.storage.manifest import STATUSES
from util.errors import printable
from util.text import clock, figure, headings, setting

if TYPE_CHECKING:
    import pandas

    from selfstudy.analysis.report import Drawer, Findings

SHOWN = 50  # rows of a table
SIDE_BY_SIDE = 6  # configurations
CELLS = 30  # values of a parameter in a heat map
FEW = 4  # trials that a sweep's figures are worth drawing: fewer show nothing


def values_text(values: dict[str, Any], heads: dict[str, str]) -> str:
    """Such as 'lr = 0.1, width = 2': the values of the names that have a heading."""
    return ", ".join(f"{heads[name]} = {setting(value)}" for name, value in values.items()
                     if name in heads)  # fmt: skip


def seconds_text(seconds: float) -> str:
    """A duration, or '?' when it is none."""
    return clock(seconds) if 0 <= seconds < LATEST else "?"


def spread_text(values: list[float], ends: tuple[float, float]) -> str:
    """A mean with its interval, such as '0.8120 [0.8010, 0.8230]'."""
    mean = figure(sum(values) / len(values))
    return mean if math.isnan(ends[0]) else f"{mean} [{figure(ends[0])}, {figure(ends[1])}]"


# ---- header ---------------------------------------------------------------------------------


def header(findings: "Findings") -> dict[str, Any]:
    """What was asked and run, when, with what, and what became of the trials."""
    trials = findings.trials
    count = Counter(trial.status for trial in trials)
    machines = [
        provenance.environment(experiment.folder) for experiment in findings.experiments
    ]
    elapsed = Elapsed(
        [span for experiment in findings.experiments for span in bars(experiment)[1]]
    )
    wall = elapsed(LATEST)
    hours = sum(number(trial.last, "total_s") or 0 for trial in trials) / 3600
    rows = [
        ("experiments", [experiment.name for experiment in findings.experiments]),
        ("command", [findings.study["command"]] if "command" in findings.study
         else provenance.plan_commands(findings.experiments)),
        ("when", _when(elapsed)),
        ("commit", provenance.distinct_texts(machines, provenance.commit)),
        ("hardware", provenance.distinct_texts(machines, provenance.hardware)),
        ("versions", provenance.distinct_texts(machines, provenance.versions)),
        ("wall time", [seconds_text(wall)] if wall else []),
        ("trial time", [f"{hours:.2f} hours"] if hours else []),
    ]  # fmt: skip
    preset = findings.study.get("preset")
    return {
        "lead": [f"Preset {preset}." if preset else "", quantity(len(trials), "trial")
                 + f" in {quantity(len(findings.experiments), 'experiment')}."],
        "counts": [(status, count[status]) for status in STATUSES if count[status]],
        "facts": Facts([row for row in rows if row[1]]),
        "reasons": _reasons(trials),
    }  # fmt: skip


def _when(elapsed: Elapsed) -> list[str]:
    if not elapsed.spans:
        return []
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
                   for when in (elapsed.spans[0][0], elapsed.spans[-1][1]))  # fmt: skip
    return [f"{first} to {last}"]


def _reasons(trials: list[TrialRecord]) -> Table | None:
    """Why trials did not end as planned, the commonest reasons first."""
    count = Counter((trial.status, trial.why) for trial in trials
                    if trial.why and trial.status != "done")  # fmt: skip
    rows = [[status, f"{times}", why] for (status, why), times in count.most_common(8)]
    note = f"{len(count) - 8} more reasons" if len(count) > 8 else ""
    return Table(["status", "trials", "reason"], rows, note=note) if rows else None


# ---- headline -------------------------------------------------------------------------------


def headline(findings: "Findings", draw: "Drawer") -> Chapter:
    """The answer: label efficiency where it was measured, else the best trial."""
    blocks = (
        _efficiency(findings, findings.curves, draw)
        if findings.curves
        else _best(findings, draw)
    )
    return Chapter("answer", "Answer", blocks)


def _efficiency(found: "Findings", curves: Curves, draw: "Drawer") -> list[Any]:
    frame = efficiency.table(curves)
    lines = efficiency.sentences(curves)
    blocks: list[Any] = [Text(lines)] if lines else []
    metric = curves.metric.replace("_", " ")
    blocks += draw(f"{metric} against the number of labels", figures.accuracy, curves)
    if lines:
        blocks += draw("Utility: how many more labels training from scratch would have needed",
                       figures.utility, curves)  # fmt: skip
    blocks.append(_cells(frame, f"{metric}: mean ± standard deviation (repeats)", _accuracy))
    others = frame.loc[frame.utility.notna() & (frame.method != efficiency.SCRATCH)]
    if lines:
        title = "Utility over scratch, with its 95 % bootstrap interval"
        blocks.append(_cells(others, title, efficiency.value, "utility"))
    return blocks


def _accuracy(row: Any) -> str:
    spread = "" if row.spread != row.spread else f" ± {row.spread:.3f}"
    return f"{row.accuracy:.3f}{spread} ({row.repeats})"


def _cells(frame: "pandas.DataFrame", title: str, text: Any, by: str = "accuracy") -> Table:
    """A row a method and a column a number of labels; the best of each column is strong."""
    amounts = sorted(frame.labels.unique())
    panels = list(dict.fromkeys(frame.data_set))
    rows, strong = [], set()
    for panel in panels:
        part, first = frame.loc[frame.data_set == panel], len(rows)
        methods = list(dict.fromkeys(part.method))
        for method in methods:
            by_labels = {
                row.labels: row for row in part.loc[part.method == method].itertuples()
            }
            cells = [text(by_labels[n]) if n in by_labels else "" for n in amounts]
            rows.append([*([panel] if len(panels) > 1 else []), method, *cells])
        for at, amount in enumerate(amounts):
            cell = part.loc[part.labels == amount]
            if len(cell) and cell[by].notna().any():
                # Of equal utilities, one that is only a lower bound is larger.
                order = cell.assign(at_least=cell.bound == ">=").sort_values([by, "at_least"])
                best = methods.index(order.method.iloc[-1])
                strong.add((first + best, at + 1 + (len(panels) > 1)))
    head = [*(["data set"] if len(panels) > 1 else []), "method",
            *(f"{amount:,.0f}" for amount in amounts)]  # fmt: skip
    return Table(head, rows, frozenset(strong), title=title)


def _best(findings: "Findings", draw: "Drawer") -> list[Any]:
    scored = [group for group in findings.groups if group.scores]
    if not scored:
        return (
            [Text([f"No trial has a value of {findings.metric} yet."])]
            if findings.trials
            else []
        )
    heads = headings([trial.overrides for group in findings.groups for trial in group.trials])
    without = [f"No trial has a value of {findings.valueless}."] if findings.valueless else []
    blocks: list[Any] = [Text([*without, _sentence(findings, scored, heads)])]
    rounds = findings.rounds[
        findings.rounds.exp.isin([experiment.name for experiment in findings.answering])
    ]
    metric = findings.metric.replace("_", " ")
    if any(rounds["round"] > 1):
        blocks += draw(f"{metric} over rounds", figures.training, rounds, findings.metric,
                       trials=findings.part)  # fmt: skip
    return blocks


def _sentence(findings: "Findings", scored: list[Group], heads: dict[str, str]) -> str:
    pick = min if findings.mode == "min" else max
    pairs = [(score, group) for group in scored for score in group.scores]
    score, group = pick(pairs, key=lambda pair: pair[0])
    trial = next(
        entry for entry in group.trials if number(entry.last, findings.metric) == score
    )
    name = f"{trial.exp}/{trial.name}" if findings.several else trial.name
    overrides = values_text(trial.overrides, heads)
    way = "smallest" if findings.mode == "min" else "largest"
    where = f"{name} with {overrides}" if overrides else name
    text = f"The {way} {findings.metric} is {figure(score)}: {where}, "
    text += f"round {trial.last['round']}."
    if len(group.scores) > 1:
        mean = spread_text(group.scores, group.interval())
        text += f" Over {len(group.scores)} seeds the mean is {mean} (95 % bootstrap interval)."
    others = len(scored) - 1
    if others and scored[0] is not group:
        text += f" The best mean over seeds is {figure(scored[0].mean)}: " + (
            values_text(scored[0].values, heads) or "without overrides") + "."  # fmt: skip
    return text


# ---- leaderboard ----------------------------------------------------------------------------


def leaderboard(findings: "Findings", draw: "Drawer") -> Chapter:
    """Trials grouped over seeds, the best mean first."""
    scored = [group for group in findings.groups if group.scores]
    if not scored or len(findings.groups) < 2:
        return Chapter("leaderboard", "Leaderboard", [])
    best = (min if findings.mode == "min" else max)(group.mean for group in scored)
    top = scored[:SHOWN]
    columns = [("", [f"{place}" for place in range(1, len(top) + 1)])]
    if findings.several:
        columns.append(("experiment", [group.exp for group in top]))
    for name, heading in headings([group.values for group in findings.groups]).items():
        cells = [setting(group.values[name]) if name in group.values else "" for group in top]
        columns.append((heading, cells))
    at_metric = len(columns)
    columns.append((findings.metric, [figure(group.mean) for group in top]))
    intervals = [_interval_text(group) for group in top]
    if any(intervals):
        columns.append(("95 % interval", intervals))
    columns += [
        ("n", [f"{len(group.scores)}" for group in top]),
        ("rounds", [_rounds(group.trials) for group in top]),
        ("trials", [_states(group.trials) for group in top]),
    ]
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    strong = {(row, at_metric) for row, group in enumerate(top) if group.mean == best}
    table = Table([heading for heading, _ in columns], rows, frozenset(strong),
                  _board_note(findings, scored))  # fmt: skip
    return Chapter("leaderboard", "Leaderboard", [table])


def _interval_text(group: Group) -> str:
    """The ends of a group's interval; empty for one score."""
    low, high = group.interval()
    return "" if math.isnan(low) else f"{figure(low)} to {figure(high)}"


def _board_note(findings: "Findings", scored: list[Group]) -> str:
    parts = ["Last round's value; trials that differ in their seeds only share a row, with "
            "the mean and its bootstrap interval."]  # fmt: skip
    if len(scored) > SHOWN:
        parts.append(f"{len(scored) - SHOWN} more are left out.")
    if without := len(findings.groups) - len(scored):
        parts.append(f"{without} without a value.")
    return " ".join(parts)


def _rounds(trials: list[TrialRecord]) -> str:
    at = sorted({trial.last.get("round", 0) for trial in trials})
    return f"{at[0]}" if len(at) == 1 else f"{at[0]} to {at[-1]}"


def _states(trials: list[TrialRecord]) -> str:
    count = Counter(trial.status for trial in trials)
    return ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])


# ---- sweep and schedule ---------------------------------------------------------------------


def sweep(findings: "Findings", draw: "Drawer") -> Chapter:
    """How the metric depends on what was varied; label efficiency has its own figures."""
    blocks: list[Any] = []
    frame, metric = findings.part, findings.metric
    known = metric in frame and sum(frame[metric].notna()) >= FEW
    names = list(varying(frame)) if known and not findings.curves else []
    if len(names) > 1:
        blocks += draw("Each line is a trial, from its parameters to its result",
                       figures.parallel, frame, metric, findings.mode)  # fmt: skip
    # A single choice among names is a leaderboard already.
    if len(names) > 1 or any(frame[name].dtype.kind in "if" for name in names):
        blocks += draw("The result against each parameter alone", figures.slices, frame, metric)
    if len(names) > 1:
        blocks += draw("How much each parameter matters", figures.importance, frame, metric)
        if pair := _grid(frame, names):
            blocks += draw("The result for two parameters", figures.heat_map, frame, *pair,
                           metric)  # fmt: skip
    return Chapter("sweep", "Sweep", blocks)


def _grid(frame: "pandas.DataFrame", names: list[str]) -> tuple[str, str] | None:
    """The two parameters of which most combinations were tried."""
    levels = {name: len(set(map(repr, frame[name]))) for name in names}
    names = [name for name in names if 1 < levels[name] <= CELLS]
    pairs = [(x, y) for at, x in enumerate(names) for y in names[at + 1 :]
             if levels[x] * levels[y] <= len(frame)]  # fmt: skip
    return max(pairs, key=lambda pair: levels[pair[0]] * levels[pair[1]], default=None)


def schedule(findings: "Findings", draw: "Drawer") -> Chapter:
    """When which trial ran, and what early stopping saved."""
    blocks: list[Any] = []
    if any(bars(experiment)[0] for experiment in findings.experiments):
        blocks += draw("When which trial ran, and the best result so far", figures.timeline,
                       findings.experiments)  # fmt: skip
    if (findings.part.status == "stopped").any():
        rounds = findings.rounds[
            findings.rounds.exp.isin([experiment.name for experiment in findings.answering])
        ]
        blocks += draw("What early stopping saved", figures.rungs, rounds, findings.part,
                       findings.metric)  # fmt: skip
    return Chapter("schedule", "Schedule", blocks)


# ---- failures -------------------------------------------------------------------------------


def failures(findings: "Findings", draw: "Drawer") -> Chapter:
    """Trials that failed or diverged with the first line of why, and what could not be read."""
    blocks: list[Any] = []
    bad = [trial for trial in findings.trials if trial.status in ("failed", "diverged")]
    if bad:
        rows = [[f"{trial.exp}/{trial.name}", trial.status, f"{trial.last.get('round', 0)}",
                 _why(trial)] for trial in bad[:SHOWN]]  # fmt: skip
        more = f"{len(bad) - SHOWN} more are left out." if len(bad) > SHOWN else ""
        blocks.append(Table(["trial", "status", "round", "why"], rows, note=more))
    lines = findings.frame.attrs["unreadable"]
    if lines:
        more = f"{len(lines) - SHOWN} more are left out." if len(lines) > SHOWN else ""
        blocks.append(
            Table(["could not be read"], [[line] for line in lines[:SHOWN]], note=more)
        )
    if torn := findings.frame.attrs["torn"]:
        blocks.append(Text([f"{quantity(torn, 'damaged line')} left out."]))
    return Chapter("failures", "Failures", blocks)


def _why(trial: TrialRecord) -> str:
    if trial.why:
        return printable(trial.why)
    return "the loss was not finite" if trial.status == "diverged" else "no reason was written"


# ---- configurations -------------------------------------------------------------------------


def configurations(findings: "Findings", draw: "Drawer") -> Chapter:
    """In what the configurations behind the results differ."""
    blocks: list[Any] = []
    for experiment in findings.experiments:
        sides = _sides(findings, experiment)
        if len(sides) < 2:
            continue
        used = [settings(experiment, trials) for trials in sides.values()]
        differ = {
            name: column for name, column in differences(used).items() if not is_seed(name)
        }
        rows = [
            [name, *map(alternatives, column)] for name, column in list(differ.items())[:SHOWN]
        ]
        more = f"{len(differ) - SHOWN} more are left out." if len(differ) > SHOWN else ""
        if rows:
            title = experiment.name if len(findings.experiments) > 1 else ""
            blocks.append(Table(["parameter", *sides], rows, note=more, title=title))
    return Chapter("configurations", "Differences of configuration", blocks)


def _sides(findings: "Findings", experiment: Experiment) -> dict[str, list[TrialRecord]]:
    """Methods, or few configurations, against each other; else the best against the rest."""
    trials = [trial for trial in experiment.trials if config(experiment, trial)]
    if findings.curves and experiment in findings.answering:
        part = findings.frame.loc[findings.frame.exp == experiment.name]
        method = dict(zip(part.trial, efficiency.methods(part), strict=True))
        sides: dict[str, list[TrialRecord]] = {}
        for trial in trials:
            sides.setdefault(method[trial.name], []).append(trial)
        return sides
    ranked = groups(trials, findings.metric, findings.mode)
    heads = headings([group.values for group in ranked])
    if len(ranked) <= SIDE_BY_SIDE:
        return {values_text(group.values, heads) or group.trials[0].name: group.trials
                for group in ranked}  # fmt: skip
    best = ranked[0].trials
    others = [trial for group in ranked[1:] for trial in group.trials]
    return {f"the best, {best[0].name}": best, f"the other {len(others)}": others}


ALL = (headline, leaderboard, sweep, schedule, provenance.pictures, failures, configurations,
       provenance.origins, provenance.downloads)  # fmt: skip
