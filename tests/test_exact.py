"""Numbers over a split depend neither on minibatches, nor on their order, nor on processes.

Generated from the registry: a task that is registered is tested here.
"""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from test_methods import COLOURED, METHODS, NARROW, blobs  # noqa: F401
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

import paths
from selfstudy import configure, distributed, registry
from selfstudy.configure import Spec
from selfstudy.job import silent
from selfstudy.models.wrapper import Wrapper
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.tasks import metrics
from selfstudy.tasks.base import PretextTask, classification_metrics, depth_errors
from selfstudy.tasks.classify import ClassifyTask
from selfstudy.train import meters, processes
from selfstudy.train.processes import Workers
from selfstudy.train.session import Session
from selfstudy.trial import Trial
from selfstudy.types import IGNORED, Batch
from util import files

registry.discover()
CPU = torch.device("cpu")
ROWS = 65  # the last minibatch of 64 has one row
SUPERVISED = {"classify": ("digits/r9/classify", ()), "depth": ("digits/r9/classify", ())}
DENSE = ("classify-dense", "depth", "rotate-dense")
CASES = ("classify", *DENSE, *METHODS)

pytestmark = pytest.mark.usefixtures("folders", "blobs")


class Rows:
    """The rows of a split in memory, in some order and in minibatches of some size."""

    def __init__(self, session, batch, size, order):
        self.batch, self.size, self.order = batch, size, order
        self.views, self.batch_size = session.loaders["valid"].views, size
        self.dataset = session.loaders["valid"].dataset

    def set_round(self, seed, number):
        """Nothing is random here."""

    def __len__(self):
        return math.ceil(len(self.order) / self.size)

    def batches(self, count=-1):
        """All minibatches once."""
        assert count < 0
        for where in self.order.split(self.size):
            yield Batch(
                tuple(view[where] for view in self.batch.views),
                {name: item[where] for name, item in self.batch.targets.items()},
                self.batch.idxs[where],
            )


def built(case: str) -> Session:
    """A session of a case after a round, its probes dense where the case is."""
    name = case.partition("-")[0]
    file, own = (METHODS | SUPERVISED)[name]
    data = COLOURED if file.startswith("syn/") else ()
    configure.load(Spec((file,), (*NARROW, *data, *own)))
    session = Session(CPU)
    session.round()
    session.iters["valid"] = -1
    if case in DENSE:
        targets = {"segment": 4, "depth": 0}
        session.info = info = dataclasses.replace(session.info, targets=targets)
        torch.manual_seed(4)
        session.model = session.forward = Wrapper(info, dense_pred=True)
        kind = "DepthTask" if name == "depth" else type(session.task).__name__
        session.task = registry.get("task", kind)(info)
    return session


def rows_of(session: Session) -> Batch:
    """`ROWS` images, a third of them with labels, few pixels of some of them with a surface."""
    generator = torch.Generator().manual_seed(5)
    info = session.info
    shape = (ROWS, info.channels, info.input_res, info.input_res)
    first = torch.randn(shape, generator=generator)
    second = first + 0.3 * torch.randn(shape, generator=generator)
    views = (first, second)[: session.loaders["valid"].views]
    labels = torch.randint(10, (ROWS,), generator=generator)
    labels[torch.rand(ROWS, generator=generator) < 0.66] = IGNORED
    segment = torch.randint(4, (ROWS, *shape[2:]), generator=generator)
    share = torch.linspace(0, 1, ROWS)[:, None, None]
    away = torch.rand(segment.shape, generator=generator) > share
    depth = 0.5 + 3 * torch.rand(segment.shape, generator=generator)
    targets = {"class": labels, "segment": segment.masked_fill(away, IGNORED),
               "depth": depth.masked_fill(away, 0)}  # fmt: skip
    known = {name: item for name, item in targets.items() if name in info.targets}
    return Batch(views, known, torch.arange(ROWS))


def evaluated(session: Session, batch: Batch, size: int, order=None) -> dict[str, float]:
    """The numbers of an evaluation in minibatches of `size`."""
    order = torch.arange(ROWS) if order is None else order
    session.loaders["valid"] = Rows(session, batch, size, order)
    return session._evaluate("valid", lambda *_: None).numbers()


def close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, number in expected.items():
        assert found[name] == pytest.approx(number, rel=1e-6, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("case", CASES)
def test_any_minibatches_in_any_order_give_the_same_numbers(case):
    session = built(case)
    batch, declared = rows_of(session), session.task.batch_dependent
    whole = evaluated(session, batch, ROWS)
    assert declared <= whole.keys()
    exact = {name: item for name, item in whole.items() if name not in declared}
    assert all(map(math.isfinite, whole.values()))
    orders = {"rising": None, "mixed": torch.randperm(ROWS)}
    for size in (1, 7, 64):
        for order in orders.values():
            found = evaluated(session, batch, size, order)
            close({name: found[name] for name in exact}, exact)
            # The sum of the parts of a loss has the probes' left, where they are all.
            alone = [math.isnan(found[name]) for name in declared - {"loss"}]
            assert all(alone) if size == 1 else not any(alone)
    # None is declared that could be held to it.
    found = evaluated(session, batch, 7)
    for name in declared:
        perfect = whole[name] == 1 and name in ("pretext_accuracy", "pretext_top5")
        assert perfect or found[name] != pytest.approx(whole[name], rel=1e-6, abs=0), name


def test_every_registered_task_has_a_case():
    tasks = {registry.get("task", name) for name in registry.names("task")}
    backbones = {cls.backbone for cls in tasks if issubclass(cls, PretextTask)}
    assert backbones <= {name for name in METHODS}
    assert {cls.__name__ for cls in tasks if not issubclass(cls, PretextTask)} == {
        "ClassifyTask", "DepthTask",
    }  # fmt: skip


@pytest.mark.parametrize("case", ["classify", "classify-dense", "depth", "rotate-dense"])
def test_probes_equal_a_computation_over_all_rows(case):
    session = built(case)
    batch = rows_of(session)
    found = evaluated(session, batch, 7)
    with torch.no_grad():
        batch = session.task.prepare(batch, session._generator("valid", 0))
        logits = session.model.eval()(batch).logits
    for name, output in logits.items():
        kind, _, target = name.partition("/")
        truth = batch.targets[target]
        if output.ndim == 4:
            truth = F.interpolate(truth[:, None].double(), output.shape[2:])[:, 0]
        numbers = {
            key.removeprefix(f"{kind}_{target}_"): item
            for key, item in found.items()
            if key.startswith(f"{kind}_{target}_")
        }
        expected = naive_depth if target == "depth" else naive_classes
        if target == "depth" and case == "classify-dense":
            continue
        if numbers:
            close(numbers, expected(output.double(), truth))


def naive_classes(output, truth) -> dict[str, float]:
    """By scikit-learn and torchmetrics."""
    classes, dense = output.shape[1], output.ndim == 4
    guesses, there = output.argmax(1), truth != IGNORED
    y, guessed = truth[there].long(), guesses[there]
    found = {
        "accuracy": (y == guessed).double().mean().item(),
        "mean_class_accuracy": balanced_accuracy_score(y, guessed),
    }
    if dense:
        options = {"num_classes": classes, "average": "none"}
        each = multiclass_jaccard_index(guessed, y, **options)
        occurs = torch.bincount(torch.cat((y, guessed)), minlength=classes) > 0
        found["mean_iou"] = each[occurs].double().mean().item()
        found["foreground"] = (y == guessed)[y > 0].double().mean().item()
    return found


def naive_depth(output, metres) -> dict[str, float]:
    """By numpy."""
    there = metres > 0
    p, t = (1 + output[:, 0] / 4)[there].numpy(), metres[there].numpy()
    ratio = np.maximum(np.maximum(p, 1e-6) / t, t / np.maximum(p, 1e-6))
    return {
        "accuracy": np.mean(ratio < 1.25), "strict": np.mean(ratio < 1.1),
        "rmse": np.sqrt(np.mean((p - t) ** 2)), "error": np.abs(p - t).mean(),
    }  # fmt: skip


def test_confusion_is_scikit_learns_and_torchmetrics():
    generator = torch.Generator().manual_seed(2)
    truth, guesses = torch.randint(6, (2, 50, 4, 4), generator=generator)
    truth[truth == 3] = 2  # a class that does not occur, but is guessed
    guesses[guesses == 5] = 4
    truth[truth == 5] = 0  # and one that occurs nowhere
    truth[::3] = IGNORED
    parts = [metrics.confusion(g, t, 6) for g, t in zip(guesses, truth, strict=True)]
    matrix = torch.stack(parts).sum(0)
    y, guessed = truth[truth != IGNORED], guesses[truth != IGNORED]
    assert matrix.tolist() == confusion_matrix(y, guessed, labels=range(6)).tolist()
    assert torch.equal(matrix, multiclass_confusion_matrix(guessed, y, 6))
    counts = metrics.per_class(guesses, truth, 6)
    assert torch.equal(counts, metrics.from_confusion(matrix))
    right = metrics.class_accuracies(counts)
    expected = multiclass_accuracy(guessed, y, 6, average="none").double()
    assert right.isnan().tolist() == [False, False, False, True, False, True]
    torch.testing.assert_close(right.nan_to_num(), expected.nan_to_num(), rtol=0, atol=1e-6)
    score = metrics.MeanAccuracy(counts).finish()
    with pytest.warns(UserWarning, match="not in y_true"):
        assert score == pytest.approx(balanced_accuracy_score(y, guessed))
    each = multiclass_jaccard_index(guessed, y, 6, average="none").double()
    torch.testing.assert_close(metrics.class_ious(counts)[:5], each[:5], rtol=0, atol=1e-6)
    assert metrics.MeanIoU(counts).finish() == pytest.approx(each[:5].mean().item(), abs=1e-6)


# ---- what was wrong -------------------------------------------------------------------------


def summed(states: list[dict]) -> dict[str, float]:
    meter = meters.Meter()
    for each in states:
        meter.update(each)
    return meter.numbers()


def test_accuracy_counts_labelled_rows_and_not_minibatches():
    """13 of 96 rows are labelled and 4 of these right: .308, which was .208 in eights."""
    truth = torch.full((96,), IGNORED)
    truth[:: 96 // 13][:13] = 1
    labelled = (truth == 1).nonzero()[:, 0][:13]
    truth[:] = IGNORED
    truth[labelled] = 1
    logits = torch.zeros(96, 3)
    logits[labelled[:4], 1] = 1
    for size in (1, 8, 96):
        parts = zip(logits.split(size), truth.split(size), strict=True)
        found = summed([classification_metrics(*part)[2] for part in parts])
        assert found["accuracy"] == 4 / 13


def test_a_root_is_taken_last():
    """A mean of minibatches' roots is less than the root of the mean."""
    generator = torch.Generator().manual_seed(3)
    metres = 1 + torch.rand(20, 4, 4, generator=generator)
    output = torch.randn(20, 4, 4, generator=generator) * torch.arange(20)[:, None, None] / 9
    wanted = ((1 + output / 4 - metres).double().square().mean()).sqrt().item()
    for size in (1, 10, 20):
        parts = zip(output.split(size), metres.split(size), strict=True)
        found = summed([depth_errors(*part)[2] for part in parts])
        assert found["rmse"] == pytest.approx(wanted, rel=1e-6)


# ---- running means --------------------------------------------------------------------------


def test_a_running_mean_of_full_minibatches_is_the_published_one():
    values, running, meter = torch.rand(30, dtype=torch.float64), None, meters.RunningMeter()
    for value in values:
        meter.update({"loss": metrics.mean_of(value, 32)})
        running = value if running is None else 0.95 * running + 0.05 * value
    assert meter.numbers()["loss"] == pytest.approx(running.item(), rel=1e-12)


def test_a_running_mean_weighs_by_what_counted():
    meter = meters.RunningMeter()
    for value, rows in ((0.0, 1), (1.0, 0), (1.0, 19)):
        meter.update({"accuracy": metrics.mean_of(torch.tensor(value), rows)})
    assert meter.numbers()["accuracy"] == pytest.approx(0.05 * 19 / (0.95**2 + 0.05 * 19))
    assert meter.has_counted("accuracy") and not meter.has_counted("loss")


def test_where_nothing_counted_there_is_no_number_and_no_divergence(tmp_path, monkeypatch):
    """The first of two rounds has no label at all, neither in training nor in validation."""
    trials = []

    def prepare(task, batch, generator):
        if trials and trials[0].session.rounds_done:
            return batch
        unknown = torch.full_like(batch.targets["class"], IGNORED)
        return dataclasses.replace(batch, targets={"class": unknown})

    monkeypatch.setattr(ClassifyTask, "prepare", prepare)
    spec = Spec(("digits/r9/classify",), NARROW)
    trials.append(Trial(spec, {}, tmp_path / "e_0000", CheckpointPolicy(), device="cpu"))
    results = [trials[0].step(), trials[0].step()]
    trials[0].close()
    first, second = files.read_lines(tmp_path / "e_0000" / paths.RESULT)
    names = ("train_loss", "valid_loss", "valid_fc_class_accuracy", "mean_accuracy",
             "best_accuracy")  # fmt: skip
    assert [first[name] for name in names] == [None] * 5 and first["train_counted"] is False
    assert all(math.isnan(results[0][name]) for name in names)
    assert all(math.isfinite(second[name]) for name in names)
    assert second["done"] and "diverged" not in second and "train_counted" not in second


def test_a_loss_that_is_not_finite_counts_as_such():
    """So that a divergence is told from rounds in which nothing counted."""
    meter = meters.RunningMeter()
    meter.update({"loss": metrics.total([metrics.mean_of(torch.tensor(math.nan), 8)], [1.0])})
    assert math.isnan(meter.numbers()["loss"]) and meter.has_counted("loss")


# ---- the monitor ----------------------------------------------------------------------------


def test_the_monitor_sees_pictures_as_the_data_have_them():
    session = built("rotate")
    session.monitor.begin(1, 1)
    batch = rows_of(session)
    batch.targets["class"] = torch.arange(ROWS) % 10
    evaluated(session, batch, 7)
    found = session.monitor.numbers()
    with torch.no_grad():
        feats = session.model.eval().encode(batch.views[0])
    session.monitor.begin(1, 1)
    session.monitor.keep(0, batch, feats)
    close(found, session.monitor.numbers())
    assert found["valid_rank_me"] > 1


# ---- two processes --------------------------------------------------------------------------


class Evaluations:
    """The job of two processes: each case evaluated by both, and by each alone."""

    def __init__(self, device):
        pass

    def round(self, report=None):
        """Compare the numbers of each case."""
        assert distributed.size() == 2
        for case in CASES:
            with distributed.single_process():
                session = built(case)
            batch = rows_of(session)
            together = evaluated(session, batch, 7)
            with distributed.single_process():
                alone = evaluated(session, batch, 7)
            close(together, alone)
            few = evaluated(session, batch, 64, torch.arange(3))  # one process has none
            with distributed.single_process():
                close(few, evaluated(session, batch, 64, torch.arange(3)))
        return {}


def test_two_processes_give_the_numbers_of_one(shared_data, monkeypatch):
    extra = (
        f"import paths\npaths.DATA_DIR = type(paths.DATA_DIR)({str(shared_data)!r})\n"
        f"sys.path.insert(0, {str(paths.ROOT / 'tests')!r})\n"
        "import test_exact\nfrom selfstudy import registry\n"
        "registry.register('job', 'evaluations')(test_exact.Evaluations)\n"
    )
    boot = processes._BOOT.replace("processes.serve", f"{extra}processes.serve")
    monkeypatch.setattr(processes, "_BOOT", boot)
    with contextlib.closing(Workers(2, "cpu")) as crew:
        crew.build(Spec((), ("trial.job = 'evaluations'",)), {})
        crew.round(Evaluations(CPU), silent)
