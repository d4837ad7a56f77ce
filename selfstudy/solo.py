"""All trials of a plan in this process, one after another, without Ray."""

from selfstudy.plan import Plan
from selfstudy.trial import Rules, Trial, note_failure, use_threads
from util.progress import Progress


def run(plan: Plan, progress: Progress, resources: dict[str, float]) -> dict[str, str]:
    """Run the unfinished trials; returns the failed ones with the first line of why.

    Args:
        plan: as written to disk.
        progress: told of each round.
        resources: of one trial; its CPUs are the number of threads.
    """
    use_threads(resources.get("cpu", 1))
    device = None if resources.get("gpu") else "cpu"
    failed = {}
    for row in plan.unfinished():
        try:
            _run_one(plan, row.name, row.overrides, progress, device)
            progress.end(row.name)
        except Exception as error:  # a trial's failure must not take the others along
            failed[row.name] = note_failure(plan.folder / row.name, error)
            progress.end(row.name, failed[row.name])
    return failed


def _run_one(
    plan: Plan, name: str, overrides: dict, progress: Progress, device: str | None
) -> None:
    rules = Rules(**plan.rules)
    trial = Trial(plan.spec, overrides, plan.folder / name, rules, plan.command, device)
    if plan.exp_args["verbose"] > 1:
        print(trial.config)
    while not trial.done:
        result = trial.step(lambda *at: progress.partial(name, *at))
        progress.round(name, result)
