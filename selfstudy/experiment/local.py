"""All trials of a plan in this process, one after another, without Ray."""

from collections.abc import Callable

from selfstudy import devices
from selfstudy.experiment import summary
from selfstudy.experiment.failures import record_failure
from selfstudy.experiment.interrupts import Interrupts
from selfstudy.experiment.plan import Plan, Row
from selfstudy.experiment.upkeep import Upkeep
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.trial import Trial
from util.progress import ProgressTable


def run(
    plan: Plan, progress: ProgressTable, resources: dict[str, float], interrupts: Interrupts
) -> tuple[dict[str, str], dict[str, str]]:
    """Run the unfinished trials.

    Args:
        plan: as written to disk.
        progress: shows each round.
        resources: of one trial; its CPUs are the number of threads.
        interrupts: tells when to stop.

    Returns:
        The failed trials with why, and those whose last checkpoint could not be written.
    """
    devices.use_share(resources)
    device = None if resources.get("gpu") else "cpu"
    failed, unsaved = {}, {}
    upkeep = Upkeep(plan, progress, interrupts)

    def stopping() -> bool:
        upkeep.look()
        return interrupts.stopping

    upkeep.tidy()  # the mirror needs the plan, or nobody could continue elsewhere
    for row in plan.unfinished():
        if stopping():
            break
        plan.note("trial", name=row.name, status="started", why=None, round=0)
        progress.start(row.name)
        status, why, last = "done", None, {}
        try:
            last = _run_one(plan, row, progress, device, stopping)
            if last.get("diverged"):
                status, why = "diverged", f"its loss was {last.get('train_loss')}"
            elif last.get("interrupted"):
                status = "interrupted"
            if last.get("unsaved"):
                unsaved[row.name] = last["unsaved"]
                progress.say(f"{row.name}: NO CHECKPOINT could be written: {unsaved[row.name]}")
        except Exception as error:  # a trial's failure must not take the others along
            status = "failed"
            why = failed[row.name] = record_failure(plan.folder / row.name, error)
        plan.note("trial", name=row.name, status=status, why=why, round=last.get("round", 0))
        progress.end(row.name, status, why)
    upkeep.tidy()
    return failed, unsaved


def _run_one(
    plan: Plan,
    row: Row,
    progress: ProgressTable,
    device: str | None,
    stopping: Callable[[], bool],
) -> dict:
    trial = Trial(
        plan.spec, row.overrides, plan.folder / row.name, CheckpointPolicy(**plan.policy),
        plan.command, device, stopping,
    )  # fmt: skip
    if plan.exp_args["verbose"] > 1:
        print(trial.config)
    result = trial.result
    while not trial.done and not result.get("interrupted"):
        result = trial.step(lambda *at: progress.partial(row.name, *at))
        if not result.get("interrupted"):
            progress.round(row.name, result)
            if result.get("collapsed") == result["round"]:
                progress.say(summary.collapse(row.name, result), "diverged")
    return result
