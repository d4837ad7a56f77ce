"""A training run: `Session.round` is the training, validation and test loop."""

import contextlib
import math
import time
from typing import Annotated, Any, Literal

import torch

from selfstudy import devices, distributed, registry
from selfstudy.data.augment import augment
from selfstudy.data.loader import Loader, derived_seed
from selfstudy.job import DataUse, Report, round_entries, silent
from selfstudy.registry import Names, config_scope, configurable, register
from selfstudy.storage import snapshot
from selfstudy.train import meters, optim, preview
from selfstudy.train.online_eval import Monitor
from util.errors import UserError

SPLITS = ("train", "valid", "test")


@register("job", "session")
@configurable("session", denylist=["device"])
class Session:
    """Trains a model on a task; independent of Ray, the command line and folders.

    Several processes with a session each (`processes.Workers`) train one model: each processes
    its share of every training minibatch, and every n-th minibatch in evaluation. Results do
    not depend on the number of processes, up to rounding, unless `batch_norm` is 'local'.

    Args:
        device: of model and data.
        model, dataset, task: registered names.
        train_iters: minibatches per round; -1 is one pass over a block of rows.
        valid_iters: minibatches per validation; -1 is the whole split, 0 none.
        test_iters: minibatches per test; -1 is the whole split, 0 none.
        test_every: rounds between two tests; 0 tests in the last round only.
        precision: 'auto' is float32 on a CPU, and on CUDA bfloat16 where it is supported,
            else float16.
        compile: use torch.compile on the model.
        batch_norm: with several processes: 'sync' normalises over all shares of a minibatch,
            'local' over each process's own; evaluation then uses rank 0's statistics.
        restore_session: "EXP/name" of a snapshot to resume: weights, optimizer, schedule and
            counters.
        seed: of all random numbers.

    Raises:
        UserError: names, shapes or settings that do not fit together.
    """

    leaves_weights = True
    uses = ("train/dataloader", "valid/dataloader", "test/dataloader", "augment", "optimizer",
            "scheduler", "monitor")  # fmt: skip

    def __init__(
        self,
        device: torch.device,
        model: Annotated[str, Names("model")] = "Wrapper",
        dataset: Annotated[str, Names("dataset")] = "DigitsDataset",
        task: Annotated[str, Names("task")] = "ClassifyTask",
        train_iters: int = -1,
        valid_iters: int = -1,
        test_iters: int = 0,
        test_every: int = 0,
        precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        compile: bool = False,
        batch_norm: Literal["sync", "local"] = "sync",
        restore_session: str | None = None,
        seed: int = 0,
    ):
        self.device = torch.device(device)
        counts = train_iters, valid_iters, test_iters
        self.iters: dict[str, int] = dict(zip(SPLITS, counts, strict=True))
        for split, iters in self.iters.items():
            if iters < -1 or (split == "train" and iters == 0):
                raise UserError(f"session.{split}_iters = {iters}: -1 is all, else a number")
        self.test_every = test_every
        self.seed = seed
        torch.manual_seed(derived_seed(seed, "build"))
        self.precision = devices.precision(precision, self.device)
        self.loaders = {split: self._loader(dataset, split)
                        for split in SPLITS if self.iters[split] != 0}  # fmt: skip
        self.info = info = self.loaders["train"].dataset.info
        self.task = registry.get("task", task)(info)
        self.monitor = Monitor(self.task)
        # Initial weights are drawn on the CPU, to be the same for every device.
        with self.device if self.device.type == "meta" else contextlib.nullcontext():
            self.model = registry.get("model", model)(info)
        if batch_norm == "sync":
            distributed.synchronise(self.model)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.forward = torch.compile(self.model) if compile else self.model
        if not any(item.requires_grad for item in self.model.parameters()):
            raise UserError(
                "nothing is left to train: see Wrapper.finetune_selfsup, run_classifier"
            )
        self.optimizer = optim.optimizer(self.model)
        self.schedule = optim.scheduler(self.optimizer)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision is torch.float16
        )
        self.log = meters.RunningMeter()
        self.rounds_done = 0
        self.steps = 0
        self.best_accuracy: float | None = None
        if restore_session:
            self.load_state_dict(snapshot.resolve(restore_session).state())

    @classmethod
    def length(cls, parts: dict[str, dict[str, Any]]) -> float:
        """The last of the schedule's milestones."""
        return parts["scheduler"]["milestones"][-1]

    def rehearse(self) -> list[str]:
        """One step on placeholder rows, for a session on 'meta'; see `preview.rehearse`."""
        return preview.rehearse(self)

    def estimate(self) -> float:
        """Estimated seconds of the whole run; see `preview.seconds`."""
        return preview.seconds(self)

    def data(self) -> list[DataUse]:
        """The data file that is read."""
        return [self.loaders["train"].dataset.use()]

    def notes(self) -> dict[str, Any]:
        """Report of loaded weights, for a model with pretrained ones."""
        return {"weights": self.model.report} if self.model.report else {}

    def _loader(self, dataset: str, split: str) -> Loader:
        data = registry.get("dataset", dataset)(split)
        augmentation = augment(data.info, split == "train")
        with config_scope(split):
            return Loader(data, augmentation, self.device)

    @property
    def rounds(self) -> float:
        """Rounds in the whole run."""
        return self.schedule.rounds

    @property
    def finished(self) -> bool:
        """Whether the last milestone has been reached."""
        return self.rounds_done >= self.rounds

    def round(self, report: Report = silent) -> dict[str, float]:
        """One round of training, validation and, when it is due, testing.

        Args:
            report: called with the split, minibatches done and their total, to show progress.

        Returns:
            train_*, valid_* and test_* metrics, those of the `Monitor`, images per second,
            `mean_accuracy` (of validation, else of training), `best_accuracy`, `is_finished`.
        """
        # All random numbers of a round derive from the seed and the round's number, so that a
        # resumed run draws the same ones as an uninterrupted run.
        torch.manual_seed(derived_seed(self.seed, "round", self.rounds_done))
        start = time.perf_counter()
        images = self._train(report)
        log: dict[str, Any] = {"train": self.log}
        train_seconds = self._seconds(start)
        self.monitor.begin(self.rounds_done + 1, self.rounds)
        for split in ("valid", "test"):
            if split in self.loaders and (split == "valid" or self._test_is_due()):
                log[split] = self._evaluate(split, report)
        self.rounds_done += 1
        numbers = meters.read(log) | self.monitor.numbers()
        if not self.log.has_counted("loss"):
            numbers["train_counted"] = False  # a NaN loss is then no divergence
        self.schedule.after_round(numbers)
        accuracy = numbers.get("valid_accuracy", numbers.get("train_accuracy"))
        if accuracy is not None:
            if not math.isnan(accuracy):
                self.best_accuracy = max(accuracy, self.best_accuracy or 0.0)
            best = math.nan if self.best_accuracy is None else self.best_accuracy
            numbers |= {"mean_accuracy": accuracy, "best_accuracy": best}
        return numbers | {
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "images_per_s": images / train_seconds,
            "round_s": self._seconds(start),
            **round_entries(self.rounds_done, self.rounds),
        }

    def _seconds(self, start: float) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    def _test_is_due(self) -> bool:
        number = self.rounds_done + 1
        return number >= self.rounds or bool(self.test_every and number % self.test_every == 0)

    def _train(self, report: Report) -> int:
        """A round of optimizer steps; returns the number of images."""
        loader, images = self.loaders["train"], 0
        loader.set_round(self.seed, self.rounds_done)
        generator = self._generator("train")
        count = len(loader) if self.iters["train"] < 0 else self.iters["train"]
        self.model.train()
        for step, batch in enumerate(loader.batches(self.iters["train"])):
            progress = self.rounds_done + step / count
            self.schedule.before_step(progress)
            self.model.before_step(self.steps)
            batch = self.task.prepare(batch, generator)
            with self._autocast():
                out = self.forward(batch)
                loss, states = self.task.evaluate(batch, out)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            distributed.average_gradients(self.optimizer)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.steps += 1
            self.model.after_step(min(1.0, progress / self.rounds))
            self.log.update(states)
            images += len(batch.idxs) * len(batch.views) * distributed.size()
            report("train", step + 1, count)
        distributed.broadcast_(self.model.buffers())  # rank 0's state is the one saved
        self.log.average()
        return images

    @torch.inference_mode()
    def _evaluate(self, split: str, report: Report) -> meters.Meter:
        loader, meter = self.loaders[split], meters.Meter()
        loader.set_round(self.seed, 0)  # same random numbers in every round, to be comparable
        generator = self._generator(split, 0)
        self.model.eval()
        rank, size = distributed.rank(), distributed.size()
        with distributed.single_process():
            count = len(loader) if self.iters[split] < 0 else self.iters[split]
            for step, batch in enumerate(loader.batches(self.iters[split])):
                views, batch = batch.views, self.task.prepare(batch, generator)
                if step % size == rank:  # other ranks' are prepared too: equal random state
                    with self._autocast():
                        out = self.forward(batch)
                        _, states = self.task.evaluate(batch, out)
                        if split == "valid" and self.monitor.wants(step, batch):
                            feats = out.feats
                            if batch.views[0] is not views[0]:  # the task changed the view
                                feats = self.model.encode(views[0])
                            self.monitor.keep(step, batch, feats)
                    meter.update(states)
                report(split, step + 1, count)
        return meter.merge()

    def _generator(self, split: str, number: int | None = None) -> torch.Generator:
        number = self.rounds_done if number is None else number
        seed = derived_seed(self.seed, "task", split, number)
        return torch.Generator(self.device).manual_seed(seed)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def state_dict(self) -> dict:
        """Complete state to resume from: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "log": self.log.state_dict(),
            "rounds_done": self.rounds_done,
            "steps": self.steps,
            "best_accuracy": self.best_accuracy,
        }

    def load_state_dict(self, state: dict) -> None:
        """Resume from a `state_dict`; every tensor must match."""
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise UserError(
                f"the snapshot is no session's: it lacks {', '.join(sorted(missing))}"
            )
        snapshot.load_weights(self.model, state["model"], lambda name: False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.log.load_state_dict(state["log"], self.device)
        self.rounds_done = state["rounds_done"]
        self.steps = state["steps"]
        self.best_accuracy = state["best_accuracy"]

    def adopt(self, state: dict) -> None:
        """Load another run's state, but keep this configuration's optimizer settings.

        For population based training: `load_state_dict` alone would also load the other
        run's weight decay, momentum and so on.
        """
        own = [{key: item for key, item in group.items() if key not in ("params", "lr")}
               for group in self.optimizer.param_groups]  # fmt: skip
        self.load_state_dict(state)
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
