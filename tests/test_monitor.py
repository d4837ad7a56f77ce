"""The numbers that tell how good features are while they train, and that they collapse."""

import json
import math
from types import SimpleNamespace

import gin
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from later import Later

import main
import paths
from selfstudy import configure, devices, distributed, registry
from selfstudy.experiment import summary
from selfstudy.losses.monitors import feature_std, nearest_classes, rank_me
from selfstudy.methods.rotate import RotateTask
from selfstudy.tasks.classify import ClassifyTask
from selfstudy.train import online_eval as monitor
from selfstudy.train.online_eval import CLASSES, HEALTH, Monitor, half_half, has_collapsed
from selfstudy.train.session import Session
from selfstudy.types import IGNORED, Batch, DataInfo, Features
from util.errors import UserError

knn_predict = Later("lightly.utils.benchmarking", "knn_predict")
KNeighborsClassifier = Later("sklearn.neighbors", "KNeighborsClassifier")

LogisticRegression = Later("sklearn.linear_model", "LogisticRegression")

registry.discover()

CPU, META = torch.device("cpu"), torch.device("meta")
SMALL = (
    "ResNet.width = 0.125",
    "ResNet.out_feats = 16",
    "session.train_iters = 4",
    "session.test_iters = 0",
    "scheduler.milestones = [1, 2]",
    "dataloader.batch_size = 32",
)


def clouds(count=400, dims=16, classes=5):
    """Rows around a centre of each class, near enough to be mistaken at times."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, dims, generator=generator)
    return centres[truth] + 1.5 * torch.randn(count, dims, generator=generator), truth


# ---- the classifiers ------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [1, 20, 5000])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nearest_classes_are_lightlys(neighbours, temperature):
    rows, truth = clouds()
    found = nearest_classes(rows[200:], rows[:200], truth[:200], neighbours, temperature)
    bank, queries = F.normalize(rows[:200]), F.normalize(rows[200:])
    k = min(neighbours, 200)
    expected = knn_predict(queries, bank.T, truth[:200], 5, knn_k=k, knn_t=temperature)
    assert torch.equal(found, expected[:, 0])


def test_a_high_temperature_counts_the_neighbours():
    rows, truth = clouds()
    plain = KNeighborsClassifier(7, metric="cosine").fit(rows[:200], truth[:200])
    found = nearest_classes(rows[200:], rows[:200], truth[:200], 7, 1e4)
    votes = plain.predict_proba(rows[200:])
    clear = np.sort(votes)[:, -1] > np.sort(votes)[:, -2]
    assert clear.sum() > 100 and (found.numpy() == votes.argmax(1))[clear].all()


def test_nearest_classes_block_by_block(monkeypatch):
    rows, truth = clouds()
    whole = nearest_classes(rows[200:], rows[:200], truth[:200], 20, 0.07)
    monkeypatch.setattr("selfstudy.losses.monitors.ROWS", 33)
    blocks = nearest_classes(rows[200:], rows[:200], truth[:200], 20, 0.07)
    assert torch.equal(whole, blocks)


def test_the_probe_is_one_class_against_the_rest():
    rows, truth = clouds()
    x, scores = rows.double().numpy(), []
    for label in range(5):
        binary = LogisticRegression(solver="liblinear", max_iter=100)
        binary.fit(x[:200], truth[:200].numpy() == label)
        scores.append(binary.decision_function(x))
    hits = np.argmax(scores, 0) == truth.numpy()
    np.random.seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert half_half(rows, truth) == [hits[:200].mean(), hits[200:].mean()]
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


# ---- what is kept ---------------------------------------------------------------------------


def info(rows=400, classes=5):
    return DataInfo(3, 16, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {"valid": rows},
                    {"class": classes} if classes else {})  # fmt: skip


def watching(*params, rows=400, classes=5):
    gin.parse_config(params)
    return Monitor(RotateTask(info(rows, classes)))


def minibatches(size=64, again=False):
    """A validation's minibatches; those of a second time round follow the first."""
    rows, truth = clouds()
    for step, where in enumerate(torch.arange(400).split(size)):
        feats = Features(rows[where], rows[where, :, None, None])
        batch = Batch((), {"class": truth[where]}, where)
        yield step, batch, feats
    if again:
        first = -(-400 // size)
        yield from ((first + step, *rest) for step, *rest in minibatches(size))


def seen(watch, steps, number=1, rounds=10):
    watch.begin(number, rounds)
    for step in steps:
        watch.keep(*step)
    return watch.numbers()


def test_numbers_of_the_first_images():
    rows, truth = clouds()
    found = seen(watching("monitor.rows = 300"), minibatches())
    assert [*found] == [*HEALTH, *CLASSES]
    assert found["valid_rank_me"] == pytest.approx(rank_me(rows[:300]).item())
    assert found["valid_feature_std"] == pytest.approx(feature_std(rows[:300]).item())
    guesses = nearest_classes(rows[150:300], rows[:150], truth[:150], 20, 0.07)
    expected = (guesses == truth[150:300]).double().mean().item()
    assert found["valid_knn_accuracy"] == pytest.approx(expected)
    assert [found[name] for name in CLASSES[1:]] == half_half(rows[:300], truth[:300])
    assert 0.5 < expected < 1 and found["valid_class_acc"] < found["train_class_acc"]


@pytest.mark.parametrize("size", [64, 50, 399])
def test_each_image_counts_once(size):
    watch = watching()
    once = seen(watch, minibatches(size))
    assert once == seen(watch, minibatches(size, again=True)) == seen(watch, minibatches(400))


def test_images_without_a_label_count_for_the_embedding_alone():
    def steps():
        for step, batch, feats in minibatches(1):
            if step % 4:
                batch.targets["class"] = torch.tensor([IGNORED])
            yield step, batch, feats

    rows, truth = clouds()
    found = seen(watching(), steps())
    assert found["valid_rank_me"] == pytest.approx(rank_me(rows).item())
    assert [found[name] for name in CLASSES[1:]] == half_half(rows[::4], truth[::4])


def test_without_labels_there_is_no_number():
    def steps(label):
        for step, batch, feats in minibatches():
            batch.targets["class"].fill_(label)
            yield step, batch, feats

    for label in (IGNORED, 3):
        found = seen(watching(), steps(label))
        assert [math.isnan(item) for item in found.values()] == [False] * 2 + [True] * 3
    watch = watching(classes=0)
    assert watch.names() == [*seen(watch, minibatches())] == [*HEALTH]


def test_a_diverged_network_fails_no_measurement():
    def steps():
        for step, batch, feats in minibatches():
            feats.pooled[0, 0] = math.inf
            yield step, batch, feats

    found = seen(watching(), steps())
    assert [*found] == [*HEALTH, *CLASSES] and all(map(math.isnan, found.values()))
    assert not has_collapsed(found)


def test_it_measures_when_it_is_due():
    watch = watching("monitor.every = 4", "monitor.probe = False")
    due = [number for number in range(1, 11) if seen(watch, minibatches(), number)]
    assert due == [4, 8, 10] and watch.names() == []
    assert [*seen(watch, minibatches(), 4)] == [*HEALTH, CLASSES[0]]
    assert seen(watch, (), 4) == {}  # session.valid_iters = 0
    watch.keep(*next(minibatches()))
    assert watch.begin(5, 10) is None and watch.numbers() == {}
    assert seen(watching("monitor.every = 0"), minibatches(), 10) == {}
    supervised = Monitor(ClassifyTask(info()))
    assert seen(supervised, minibatches()) == {} and supervised.names() == []


@pytest.mark.parametrize("name, value", [("every", -1), ("rows", 1), ("neighbours", 0),
                                         ("temperature", 0.0)])  # fmt: skip
def test_settings_are_checked(name, value):
    with pytest.raises(UserError, match=rf"monitor.{name} = {value}: expected"):
        watching(f"monitor.{name} = {value}")


def test_several_processes_measure_what_one_does(monkeypatch):
    """Each has every second minibatch; process 0 measures, and tells the other."""
    steps, told = [*minibatches()], []
    expected = seen(watching(), steps)
    other = watching()
    other.begin(1, 10)
    for step in steps[1::2]:
        other.keep(*step)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [other._kept, mine])
    monkeypatch.setattr(distributed, "broadcast_object", lambda mine: told.append(mine) or mine)
    assert seen(watching(), steps[::2]) == expected == told[0]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert seen(watching(), steps[::2]) is None  # it leaves the word to process 0


# ---- in a session ---------------------------------------------------------------------------


def session(*params, device=CPU):
    configure.load(configure.Spec(("digits/r9/rotate",), (*SMALL, *params)))
    return Session(device)


@pytest.mark.parametrize(
    "more, expected",
    [
        ((), {*HEALTH, *CLASSES}),
        (("monitor.probe = False",), {*HEALTH, CLASSES[0]}),
        (("session.valid_iters = 0",), set()),
    ],
)
def test_a_session_has_the_numbers_that_its_rehearsal_names(folders, more, expected):
    names = {*session(*more, device=META).rehearse()}
    found = session(*more).round()
    assert names <= found.keys()
    assert names & {*HEALTH, *CLASSES} == found.keys() & {*HEALTH, *CLASSES} == expected


def test_it_leaves_no_trace_in_the_training(folders):
    few = ("session.train_iters = 2", "session.valid_iters = 2")
    with_it, without = session(*few), session(*few, "monitor.every = 0")
    results = [[run.round() for _ in range(2)] for run in (with_it, without)]
    for one, other in zip(*results, strict=True):
        assert not {*HEALTH} & other.keys()
        assert {key: one[key] for key in other if not key.endswith("_s")} == {
            key: item for key, item in other.items() if not key.endswith("_s")
        }
    state, plain = with_it.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(item, plain[name]) for name, item in state.items())
    assert with_it.state_dict().keys() == without.state_dict().keys()


# ---- collapse -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers, expected",
    [
        ({"valid_feature_std": 0.2, "valid_rank_me": 30.0, "valid_pretext_spread": 0.2}, False),
        ({"valid_feature_std": 0.2, "valid_rank_me": 30.0, "valid_pretext_spread": 0.01}, True),
        ({"valid_feature_std": 0.01, "valid_rank_me": 3.0}, True),
        ({"valid_feature_std": 0.9, "valid_rank_me": 1.01}, True),
        ({"train_pretext_spread": 0.01}, True),
        ({"train_pretext_spread": 0.01, "valid_pretext_spread": 0.3}, False),
        ({"train_loss": 0.1, "valid_pretext_spread": math.nan}, False),
    ],
)
def test_what_a_collapse_is(numbers, expected):
    assert has_collapsed(numbers) is expected


@pytest.fixture
def typed(call, folders, monkeypatch):
    """Run a command line in this process; returns (lines of result.json, stdout, stderr)."""
    monkeypatch.setattr(devices, "use_share", lambda resources: None)

    def run(*params):
        line = ["-l", "-e", "e", "-g", "digits/r9/simclr", "-p", *SMALL, *params]
        code, out, err = call(main.main, *line)
        assert code == 0, err
        text = (paths.EXP_DIR / "e" / "e_0000" / paths.RESULT).read_text()
        return [json.loads(row) for row in text.splitlines()], out, err

    return run


def test_a_collapse_is_said_once_and_in_the_summary(typed, monkeypatch):
    """A run is healthy in its first round; then its projections are zeros."""
    train = Session._train

    def collapsing(self, report):
        images = train(self, report)
        if self.rounds_done:
            layers = self.model.backbone.projector.modules()
            last = [layer for layer in layers if isinstance(layer, torch.nn.Linear)][-1]
            torch.nn.init.zeros_(last.weight)
        return images

    monkeypatch.setattr(Session, "_train", collapsing)
    params = ("scheduler.milestones = [1, 3]", "session.train_iters = 12")
    rows, out, err = typed(*params, "projector.norm = 'bn'")
    assert [row.get("collapsed") for row in rows] == [None, 2, 2]
    assert rows[0]["valid_pretext_spread"] > 3 * monitor.POINT
    (told,) = (line for line in err.splitlines() if "collapsed" in line)
    assert told.startswith("e_0000: collapsed in round 2, it makes nearly the same of all ")
    assert "spread in the pretext task" in told and "docs/explanation/pretraining.md" in told
    (last,) = (line for line in out.splitlines() if "collapsed" in line)
    assert last == summary.collapse("e_0000", rows[-1])


def test_a_collapse_is_said_with_ray_as_well():
    from selfstudy.tune.runner import _Watch

    said = []
    progress = SimpleNamespace(round=lambda *_: None, say=lambda text, color: said.append(text))
    watch = SimpleNamespace(progress=progress, _unsaved=lambda *_: None, _memory=lambda *_: 0)
    for number, more in ((1, {}), (2, {"collapsed": 2}), (3, {"collapsed": 2})):
        line = json.dumps({"round": number, "valid_rank_me": 1.04, "valid_knn": None} | more)
        _Watch.on_trial_result(watch, number, [], "e_7", {"line": line})
    assert said == ["e_7: collapsed in round 2, it makes nearly the same of all images (RankMe "
                    "1.04); see docs/explanation/pretraining.md"]  # fmt: skip
