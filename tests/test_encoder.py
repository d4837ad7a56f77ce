"""Encoders come back as they were trained; tables of their features are right and cached."""

import dataclasses
import json
import os
from types import SimpleNamespace

import gin
import h5py
import numpy as np
import pytest
import torch
from later import Later
from torch import nn

import paths
from selfstudy import configure, registry
from selfstudy.data.augment import Augmentation
from selfstudy.datasets.digits import DigitsDataset
from selfstudy.evaluate import features, logistic
from selfstudy.evaluate.encoder import Encoder
from selfstudy.storage import snapshot
from selfstudy.train.session import Session
from selfstudy.types import Batch
from util.errors import UserError

LogisticRegression = Later("sklearn.linear_model", "LogisticRegression")

registry.discover()
TINY = (
    "ResNet.width = 0.125", "ResNet.out_feats = 16", "scheduler.milestones = [1, 4]",
    "session.train_iters = 6", "dataloader.batch_size = 32", "BaseDataset.input_res = 16",
)  # fmt: skip


def trained(file="digits/r9/rotate", name="one/rotate", *params):
    """A session after a round, and its snapshot."""
    configure.load(configure.Spec((file,), (*TINY, *params)))
    session = Session(torch.device("cpu"))
    session.round()
    snapshot.save(paths.EXP_DIR / name, session.state_dict(), configure.operative_text(),
                  {"round": 1})  # fmt: skip
    gin.clear_config()
    return session


def tell_data(name, info):
    """Put what the data are into a snapshot's card."""
    path = paths.EXP_DIR / name / "card.json"
    card = json.loads(path.read_text()) | {"data": info}
    path.write_text(json.dumps(card))


@pytest.fixture
def digits(folders):
    """The training digits, opened under no configuration but their size."""
    gin.bind_parameter("BaseDataset.input_res", 16)
    data = DigitsDataset("train")
    gin.clear_config()
    return data


# ---- the encoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["digits/r9/classify", "digits/r9/rotate"])
def test_it_computes_what_the_session_computed(file, digits):
    session = trained(file)
    encoder = Encoder("one/rotate", "cpu")
    images = torch.randn(5, 3, 16, 16)
    session.model.eval()
    with torch.no_grad():
        expected = session.model.backbone.encode(images)
        out = session.model(Batch((images,), {}, torch.arange(5)))
    found = encoder(images)
    assert torch.equal(found["embedding"], expected.pooled)
    assert torch.equal(found["embedding"], out.feats.pooled)
    assert torch.equal(found["dense"], expected.dense)
    assert list(found) == ["embedding", "dense", "conv", "block1", "block2", "block3"]
    for name, layer in expected.layers.items():
        assert torch.equal(found[name], layer)
    assert encoder.out_feats == 16 and encoder.info == session.loaders["train"].dataset.info
    assert encoder.info.targets == {"class": 10}


def test_nothing_of_it_learns_or_moves(digits):
    trained()
    encoder = Encoder("one/rotate", "cpu")
    before = {name: item.clone() for name, item in encoder.backbone.state_dict().items()}
    out = encoder(torch.randn(5, 3, 16, 16).requires_grad_())
    assert not any(item.requires_grad for item in out.values())
    assert not any(item.requires_grad for item in encoder.backbone.parameters())
    after = encoder.backbone.state_dict()
    assert all(torch.equal(after[name], item) for name, item in before.items())


def test_its_own_configuration_counts_and_the_other_stays(digits):
    """Built within a job of another width, precision and random state."""
    trained()
    configure.load(configure.Spec(("digits/r9/classify",), ("ResNet.width = 0.5",)))
    outer = Session(torch.device("cpu"))
    bound, used = configure.current_bindings(), configure.operative_text()
    state = torch.get_rng_state()
    with gin.config_scope("train"):
        encoder = Encoder("one/rotate", "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.out_feats == 16
    assert encoder.backbone.encoder.layers["conv"][0].out_channels == 8
    assert (configure.current_bindings(), configure.operative_text()) == (bound, used)
    assert gin.config_is_locked()
    assert outer.model.backbone.encoder.layers["conv"][0].out_channels == 32


def test_probes_and_heads_stay_behind_and_pretrained_is_not_asked_for(digits):
    trained(name="one/first")
    trained("digits/r9/classify", "one/second", 'Wrapper.pretrained = "one/first"')
    os.remove(paths.EXP_DIR / "one" / "first" / "card.json")
    encoder = Encoder("one/second", "cpu")
    assert all(name.startswith("encoder.") for name in encoder.backbone.state_dict())


@pytest.mark.parametrize("to_lab", [True, False])
def test_bytes_are_normalised_as_in_the_training(digits, to_lab):
    trained()
    info = dataclasses.replace(
        digits.info, space="lab" if to_lab else "rgb", mean=(50.0, 0.5, 6.0), std=(24.0, 10, 16)
    )
    tell_data("one/rotate", dataclasses.asdict(info))
    encoder = Encoder("one/rotate", "cpu")
    assert encoder.info == info
    images = digits.store.map()["images"][:4]
    normalised = Augmentation(info, {}).apply(images, {})
    expected = encoder(normalised)["embedding"]
    assert torch.equal(encoder.from_bytes(images)["embedding"], expected)
    if not to_lab:
        by_hand = (images.float() - torch.tensor(info.mean).view(3, 1, 1)) / torch.tensor(
            info.std
        ).view(3, 1, 1)
        assert torch.allclose(normalised, by_hand, atol=1e-5)
    # Trained on floats of the original layout, it reads bytes all the same.
    tell_data("one/rotate", dataclasses.asdict(info) | {"stored": "normalised"})
    again = Encoder("one/rotate", "cpu").from_bytes(images)["embedding"]
    assert torch.equal(again, expected)


def test_a_card_that_tells_the_data_needs_no_data_file(digits, tmp_path, monkeypatch):
    trained()
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path / "empty")
    with pytest.raises(UserError, match="one/rotate has no data description") as caught:
        Encoder("one/rotate", "cpu")
    assert "prepare it by" in caught.value.text and not list(tmp_path.rglob("*.h5"))
    tell_data("one/rotate", dataclasses.asdict(digits.info))
    assert Encoder("one/rotate", "cpu").info == digits.info


@pytest.mark.parametrize("change", [
    {"mean": [1.0]}, {"mean": None}, {"mean": ["x"] * 3}, {"rows": 3}, {"channels": "3"},
    {"targets": {"class": -1}},
])  # fmt: skip
def test_a_damaged_card_is_one_line(digits, change):
    trained()
    tell_data("one/rotate", dataclasses.asdict(digits.info) | change)
    with pytest.raises(UserError, match="one/rotate: the card's 'data' is damaged"):
        Encoder("one/rotate", "cpu")
    tell_data("one/rotate", {})
    with pytest.raises(UserError, match="is damaged"):
        Encoder("one/rotate", "cpu")


def test_weights_that_do_not_fit_are_refused(digits):
    session = trained()
    state = session.state_dict()
    config = (paths.EXP_DIR / "one" / "rotate" / "config.gin").read_text()
    name = "backbone.encoder.fc.weight"
    missing = {key: item for key, item in state["model"].items() if key != name}
    more = state["model"] | {"backbone.encoder.other": torch.zeros(2)}
    for wrong, words in ((missing, "missing in the snapshot"), (more, "encoder.other")):
        snapshot.save(paths.EXP_DIR / "wrong", {"model": wrong}, config, {})
        with pytest.raises(UserError, match=f"^wrong: .*{words}"):
            Encoder("wrong", "cpu")
    snapshot.save(paths.EXP_DIR / "none", {"other": 1}, config, {})
    with pytest.raises(UserError, match="holds no model's weights"):
        Encoder("none", "cpu")
    snapshot.save(paths.EXP_DIR / "odd", state, "ResNet.widht = 1\n", {})
    with pytest.raises(UserError, match=r"odd/config.gin:1: 'ResNet' has no .*'widht'"):
        Encoder("odd", "cpu")


def test_what_it_is_given_is_checked(digits):
    trained()
    encoder = Encoder("one/rotate", "cpu")
    with pytest.raises(ValueError, match=r"expected \[B, 3, H, W\]"):
        encoder(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.from_bytes(torch.zeros(2, 3, 16, 16))


# ---- tables --------------------------------------------------------------------------------


@pytest.fixture
def encoder(digits):
    trained()
    return Encoder("one/rotate", "cpu")


def made(monkeypatch, encoder):
    """How many images go through the encoder from now on."""
    seen, real = [], encoder.from_bytes
    monkeypatch.setattr(encoder, "from_bytes", lambda images: seen.append(len(images)) or
                        real(images))  # fmt: skip
    return seen


def test_a_table_holds_every_row_in_order(encoder, digits, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 100)
    seen = made(monkeypatch, encoder)
    table = features.table(encoder, digits, ("embedding", "block3"), dtype="float32")
    assert seen == [100] * 11 + [97]
    assert table.path.parent == paths.EXP_DIR / "one" / "rotate"
    assert table.path.name.startswith("features_train_")
    assert np.array_equal(table.rows, np.arange(1197))
    expected = encoder.from_bytes(digits.store.map()["images"][:1197])
    assert torch.allclose(table.layer(), expected["embedding"], atol=1e-5)
    assert torch.allclose(table.layer("block3"), expected["block3"], atol=1e-5)
    half = features.table(encoder, digits)
    assert half.layer().dtype == torch.float16 and half.path != table.path
    assert torch.allclose(half.layer().float(), table.layer(), rtol=1e-3, atol=1e-3)
    with h5py.File(half.path) as file:
        assert file.attrs["snapshot"] == "one/rotate"


def test_a_table_is_made_once_and_anew_when_anything_changes(encoder, digits, monkeypatch):
    seen = made(monkeypatch, encoder)
    rows = np.array([3, 4, 9])
    paths_seen = set()

    def take(**options):
        given = {"encoder": encoder, "data": digits, "rows": rows} | options
        paths_seen.add(features.table(**given).path)
        return sum(seen)

    assert (take(), take()) == (3, 3)
    assert take(rows=np.array([3, 4, 8])) == 6
    assert take(layers=("conv",)) == 9
    assert take(dtype="float32") == 12
    assert take(folder=paths.EXP_DIR / "elsewhere") == 15
    other = SimpleNamespace(**vars(encoder))
    other.snapshot = dataclasses.replace(encoder.snapshot, card={"sha256": "other"})
    assert take(encoder=other) == 18
    changed = SimpleNamespace(**vars(digits) | {"attributes": {"sha256": "x"}})
    assert take(data=changed) == 21
    assert len(paths_seen) == 7 and take() == 21


def test_repeated_rows_of_few_labels_are_computed_once(encoder, folders, monkeypatch):
    seen = made(monkeypatch, encoder)
    gin.bind_parameter("BaseDataset.input_res", 16)
    gin.bind_parameter("BaseDataset.semisupervised", 20)
    table = features.table(encoder, DigitsDataset("train"))
    assert sum(seen) == len(table.rows) == len(table.layer()) == 20


def test_what_no_table_can_hold_is_refused_and_leaves_nothing(encoder, digits, monkeypatch):
    folder = paths.EXP_DIR / "one" / "rotate"
    with pytest.raises(UserError, match="no layer is called 'block4' .known: embedding, dense"):
        features.table(encoder, digits, ("block4",))
    real = encoder.from_bytes
    monkeypatch.setattr(encoder, "from_bytes", lambda images: {
        "embedding": real(images)["embedding"] * 1e6})  # fmt: skip
    with pytest.raises(UserError, match="no float16: try float32"):
        features.table(encoder, digits)
    assert not list(folder.glob("*features*.h5")) + list(folder.glob(".*.part"))
    floats = dataclasses.replace(digits.info, stored="normalised", mean=(0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="use a file of bytes"):
        features.check(encoder, SimpleNamespace(info=floats, path="x"))
    same = dataclasses.replace(encoder.info, stored="normalised")
    features.check(encoder, SimpleNamespace(info=same, path="x"))


# ---- logistic regression -------------------------------------------------------------------


def blobs(count, classes, seed=0):
    draw = np.random.RandomState(seed)
    labels = draw.randint(0, classes, count)
    centres = np.random.RandomState(7).randn(classes, 6)
    return torch.from_numpy(centres[labels] + draw.randn(count, 6)).float(), torch.from_numpy(
        labels
    )


@pytest.mark.parametrize("classes", [2, 5])
def test_the_classifier_is_sklearns_as_a_linear_layer(classes):
    values, truth = blobs(300, classes)
    found = logistic.fit(values, truth, classes)
    theirs = LogisticRegression(max_iter=500).fit(values.double().numpy(), truth.numpy())
    layer = nn.Linear(6, classes)
    layer.load_state_dict(found.state())
    test, answer = blobs(200, classes, seed=1)
    mine = layer(test).softmax(1).detach().numpy()
    np.testing.assert_allclose(mine, theirs.predict_proba(test.double().numpy()), atol=1e-5)
    assert found.accuracy(test, answer) == theirs.score(test.numpy(), answer.numpy())
    assert found.converged and not logistic.fit(values, truth, classes, 2).converged
    assert found.accuracy(test.half(), answer) > 0.5


def test_it_is_the_optimum_of_the_penalised_loss():
    """Its gradient, written down independently, is zero."""
    values, truth = blobs(100, 4)
    found = logistic.fit(values, truth, 4)
    weight = found.weight.double().requires_grad_()
    bias = found.bias.double().requires_grad_()
    loss = nn.functional.cross_entropy(values.double() @ weight.T + bias, truth,
                                       reduction="sum") + weight.square().sum() / 2  # fmt: skip
    loss.backward()
    # sklearn stops where no entry of the mean loss's gradient is above 1e-4.
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) / 100 < 1.1e-4


def test_absent_classes_are_never_predicted():
    values, truth = blobs(200, 3)
    kept = truth != 1
    found = logistic.fit(values[kept], truth[kept], 4)
    assert found.weight.shape == (4, 6)
    predicted = (values @ found.weight.T + found.bias).argmax(1)
    assert set(predicted.tolist()) == {0, 2}
    with pytest.raises(UserError, match="are of one class"):
        logistic.fit(values[truth == 1], truth[truth == 1], 3)


def test_rows_without_a_class_do_not_count():
    values, truth = blobs(100, 3)
    found = logistic.fit(values, truth, 3)
    hidden = truth.clone()
    hidden[::2] = -100
    assert found.accuracy(values, hidden) == pytest.approx(
        found.accuracy(values[1::2], truth[1::2])
    )
    assert np.isnan(found.accuracy(values, torch.full_like(truth, -100)))
    assert logistic.balanced(hidden, 30).remainder(2).all()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_cut_is_the_one_that_training_sees(digits, folders, seed):
    truth = logistic.labels(digits, np.arange(1197))
    cut = logistic.balanced(truth, 100, seed)
    gin.bind_parameter("BaseDataset.input_res", 16)
    gin.bind_parameter("BaseDataset.semisupervised", 100)
    gin.bind_parameter("BaseDataset.label_seed", seed)
    assert np.array_equal(cut.numpy(), np.unique(DigitsDataset("train").rows))
    assert torch.bincount(truth[cut]).tolist() == [10] * 10
    assert set(logistic.balanced(truth, 30, seed).tolist()) < set(cut.tolist())
    with pytest.raises(UserError, match="expected 1 to 1197"):
        logistic.balanced(truth, 1198)
