"""What is due now and then while an experiment runs, with Ray and without."""

import time

from selfstudy.experiment import disk
from selfstudy.experiment.interrupts import Interrupts
from selfstudy.experiment.plan import Plan
from selfstudy.storage import checkpoints
from selfstudy.storage.mirror import Mirror
from util.errors import cause
from util.progress import ProgressTable

EVERY = 10.0  # seconds between two looks at the quota and the mirror


class Upkeep:
    """The time budget, the quota, a sign of life, the mirror.

    Args:
        plan: of the experiment.
        progress: shows what was done.
        interrupts: asks running trials to stop when the budget is used.
    """

    def __init__(self, plan: Plan, progress: ProgressTable, interrupts: Interrupts):
        self.plan, self.progress, self.interrupts = plan, progress, interrupts
        self.mirror = Mirror.from_environment()
        self.begun = self.looked = time.monotonic()

    def look(self) -> None:
        """Do what is due; cheap enough to be called between minibatches."""
        now, budget = time.monotonic(), self.plan.exp_args["time_budget_s"]
        if budget is not None and now - self.begun > budget:
            self.interrupts.stop("the time budget is used: running trials save and end")
        if now - self.looked > EVERY:
            self.looked = now
            self.tidy()

    def tidy(self) -> None:
        """Show that we live, keep to the quota, and bring the mirror up to date."""
        self.plan.beat()
        for folder in disk.enforce(self.plan):
            self.progress.say(f"{checkpoints.short_name(folder)} deleted: the quota is used")
        try:
            if self.mirror:
                self.mirror.upload(self.plan.folder)
                self.mirror.prune(self.plan.folder)
        except OSError as error:
            self.progress.say(f"the mirror was not reached: {cause(error)}")
