"""All trials of a plan in this process, one after another, without Ray."""

import time
from collections.abc import Callable

from selfstudy import disk
from selfstudy.interrupt import Interrupts
from selfstudy.plan import Plan, Row
from selfstudy.trial import Rules, Trial, note_failure, use_share
from util import checkpoints
from util.errors import cause
from util.mirror import Mirror
from util.progress import Trials

HOUSEKEEPING = 10.0  # seconds between two looks at the quota and the mirror


def run(
    plan: Plan, progress: Trials, resources: dict[str, float], interrupts: Interrupts
) -> tuple[dict[str, str], dict[str, str]]:
    """Run the unfinished trials.

    Args:
        plan: as written to disk.
        progress: told of each round.
        resources: of one trial; its CPUs are the number of threads.
        interrupts: tells when to stop.

    Returns:
        The failed trials with why, and those whose last checkpoint could not be written.
    """
    use_share(resources)
    device = None if resources.get("gpu") else "cpu"
    failed, unsaved = {}, {}
    upkeep = _Upkeep(plan, progress, interrupts)
    upkeep.tidy()  # the mirror needs the plan, or nobody could continue elsewhere
    for row in plan.unfinished():
        if upkeep.stopping():
            break
        plan.note("trial", name=row.name, status="started", why=None, round=0)
        progress.start(row.name)
        status, why, last = "done", None, {}
        try:
            last = _run_one(plan, row, progress, device, upkeep.stopping)
            if last.get("diverged"):
                status, why = "diverged", f"its loss was {last.get('train_loss')}"
            elif last.get("interrupted"):
                status = "interrupted"
            if last.get("unsaved"):
                unsaved[row.name] = last["unsaved"]
                progress.say(f"{row.name}: NO CHECKPOINT could be written: {unsaved[row.name]}")
        except Exception as error:  # a trial's failure must not take the others along
            status = "failed"
            why = failed[row.name] = note_failure(plan.folder / row.name, error)
        plan.note("trial", name=row.name, status=status, why=why, round=last.get("round", 0))
        progress.end(row.name, status, why)
    upkeep.tidy()
    return failed, unsaved


def _run_one(
    plan: Plan, row: Row, progress: Trials, device: str | None, stopping: Callable[[], bool]
) -> dict:
    trial = Trial(
        plan.spec, row.overrides, plan.folder / row.name, Rules(**plan.rules), plan.command,
        device, stopping,
    )  # fmt: skip
    if plan.exp_args["verbose"] > 1:
        print(trial.config)
    result = trial.result
    while not trial.done and not result.get("interrupted"):
        result = trial.step(lambda *at: progress.partial(row.name, *at))
        if not result.get("interrupted"):
            progress.round(row.name, result)
    return result


class _Upkeep:
    """What is due now and then: the time budget, the quota, a sign of life, the mirror."""

    def __init__(self, plan: Plan, progress: Trials, interrupts: Interrupts):
        self.plan, self.progress, self.interrupts = plan, progress, interrupts
        self.mirror = Mirror.from_environment()
        self.begun = self.looked = time.monotonic()

    def stopping(self) -> bool:
        """Whether to stop; asked between minibatches."""
        now, budget = time.monotonic(), self.plan.exp_args["time_budget_s"]
        if budget is not None and now - self.begun > budget:
            self.interrupts.stop("the time budget is used: the running trial saves and ends")
        if now - self.looked > HOUSEKEEPING:
            self.looked = now
            self.tidy()
        return self.interrupts.stopping

    def tidy(self) -> None:
        """Show that we live, keep to the quota, and bring the mirror up to date."""
        self.plan.beat()
        for folder in disk.enforce(self.plan):
            self.progress.say(f"{checkpoints.short_name(folder)} deleted: the quota is used")
        try:
            if self.mirror:
                self.mirror.upload(self.plan.folder)
        except OSError as error:
            self.progress.say(f"the mirror was not reached: {cause(error)}")
