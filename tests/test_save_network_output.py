"""Frozen features and linear classifiers of snapshots, by the command and its parts."""

import sys
from functools import partial

import gin
import h5py
import numpy as np
import pytest
import torch
from later import Later
from test_encoder import trained as train
from torch import nn

import paths
from misc import save_network_output as tool
from selfstudy import registry
from selfstudy.data.dataset import BaseDataset, Store
from selfstudy.datasets.digits import DigitsDataset
from selfstudy.evaluate import features, logistic
from selfstudy.evaluate.encoder import Encoder
from selfstudy.storage import snapshot
from util.errors import UserError

LogisticRegression = Later("sklearn.linear_model", "LogisticRegression")

registry.discover()


def trained(name, *params, file="digits/r9/rotate"):
    """A snapshot after one round."""
    train(file, name, *params)
    return paths.EXP_DIR / name


@pytest.fixture
def run(call):
    """The command in this process: its arguments -> exit code, stdout, stderr."""
    return partial(call, tool.main, "-d", "cpu")


def read(path):
    return torch.load(path, weights_only=True)


def rows_of(out):
    """File -> the other cells of its line in the table."""
    header, *lines = [line.split() for line in out.splitlines()]
    return {cells[1]: dict(zip(header, cells, strict=False)) for cells in lines}


def digits(split, **bound):
    gin.clear_config()
    for key, value in {"input_res": 16, "num_valid": 300, **bound}.items():
        gin.bind_parameter(f"BaseDataset.{key}", value)
    data = DigitsDataset(split)
    gin.clear_config()
    return data


# ---- images --------------------------------------------------------------------------------


def test_features_and_classifiers_of_a_snapshot(folders, run):
    folder = trained("one/rotate", "BaseDataset.semisupervised = 50")
    code, out, _ = run("-e", "one/rotate", "--get_feats", "--train_lr", "--include_test")
    assert code == 0
    saved = read(folder / "network_output.pt")
    assert set(saved) == {f"{split}_{name}" for split in ("train", "valid", "test")
                          for name in ("features", "class", "rows")}  # fmt: skip
    encoder = Encoder("one/rotate", "cpu")
    for split, count in (("train", 1197), ("valid", 300), ("test", 300)):
        data = digits(split)  # all of its labels, not the 50 that training saw
        assert np.array_equal(saved[f"{split}_rows"].numpy(), data.rows)
        columns = data.store.map()
        assert torch.equal(saved[f"{split}_class"], columns["class"][data.rows])
        expected = encoder.from_bytes(columns["images"][data.rows])["embedding"]
        found = saved[f"{split}_features"]
        assert found.dtype == torch.float16 and found.shape == (count, 16)
        assert torch.allclose(found.float(), expected, rtol=2e-3, atol=2e-3)
    table = rows_of(out)
    assert list(table) == ["network_output.pt", "fc_100.pt", "fc_250.pt", "fc_1000.pt"]
    assert table["network_output.pt"]["train"] == "1197"
    for amount in (100, 250, 1000):
        kept = read(folder / f"fc_{amount}.pt")
        rows = np.unique(digits("train", semisupervised=amount).rows)
        values, classes = saved["train_features"].double(), saved["train_class"]
        theirs = LogisticRegression(max_iter=500).fit(values[rows].numpy(), classes[rows])
        layer = nn.Linear(16, 10)
        layer.load_state_dict(kept["state"])
        for split, used in (("train", rows), ("valid", slice(None)), ("test", slice(None))):
            values, classes = saved[f"{split}_features"][used], saved[f"{split}_class"][used]
            found = (layer(values.float()).argmax(1) == classes).float().mean().item()
            assert kept[f"{split}_accuracy"] == pytest.approx(found, abs=2e-3)
            score = theirs.score(values.double().numpy(), classes.numpy())
            assert found == pytest.approx(score, abs=2e-3)
            assert table[f"fc_{amount}.pt"][split] == f"{kept[f'{split}_accuracy']:.4f}"
        assert kept["amount"] == amount and kept["valid_accuracy"] > 0.25, "chance is 0.1"
    assert read(folder / "fc_1000.pt")["valid_accuracy"] > 0.5
    snapshot.Snapshot.open(folder).state()  # the snapshot itself is whole


def test_the_test_split_waits_to_be_asked_for_and_features_are_kept(folders, run, monkeypatch):
    folder = trained("one/rotate")
    assert run("-e", "one/rotate", "--train_lr", "--data_amts", "all", "30")[0] == 0
    kept = read(folder / "fc_1197.pt")
    assert "test_accuracy" not in kept and kept["amount"] == 1197
    assert sorted(path.name for path in folder.glob("*.pt")) == ["fc_1197.pt", "fc_30.pt"]
    monkeypatch.setattr(Encoder, "from_bytes", None)  # a second run computes no features
    code, out, _ = run("-e", "one/rotate", "--get_feats")
    assert code == 0 and "valid_class" in read(folder / "network_output.pt")
    assert rows_of(out)["network_output.pt"] == {
        "snapshot": "one/rotate", "file": "network_output.pt", "train": "1197", "valid": "300"
    }  # fmt: skip


def test_other_data_by_g_and_p(folders, run):
    folder = trained("one/rotate")
    code, _, _ = run("-e", "one/rotate", "--get_feats", "-g", "digits/r9/classify",
                     "-p", "BaseDataset.num_valid = 100",
                     "BaseDataset.semisupervised = 20")  # fmt: skip
    saved = read(folder / "network_output.pt")
    assert code == 0 and len(saved["train_rows"]) == 20
    assert len(saved["valid_rows"]) == 300, "digits come with a split of their own"
    code, _, err = run("-e", "one/rotate", "--get_feats", "-p", "BaseDataset.num_vlid = 100")
    assert code == 2 and "num_valid" in err


def test_all_snapshots_of_an_experiment(folders, run):
    trained("many/e_a_0000/checkpoint_000001")
    trained("many/e_a_0000/checkpoint_000002")
    trained("many/by/name")
    (paths.EXP_DIR / "many" / "e_b_0001").mkdir()
    (paths.EXP_DIR / "many" / "e_b_0001" / "params.json").write_text("{}")
    code, out, err = run("-e", "many", "--train_lr", "--data_amts", "20")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "many/by/name", "many/e_a_0000/checkpoint_000002"
    ]  # fmt: skip
    (paths.EXP_DIR / "many" / "by" / "name" / "snapshot").write_bytes(b"cut")
    code, out, err = run("-e", "many", "--train_lr", "--data_amts", "20")
    assert code == 3 and "Skipping: many/by/name: " in err and "is damaged" in err
    assert "e_a_0000" in out
    code, out, err = run("-e", "many/by/name", "--train_lr")
    assert code == 2 and out == "" and err.startswith("error: ")


def test_baselines_stand_beside_it(folders, run):
    folder = trained("based")
    asked = ("-e", "based", "--train_lr", "--data_amts", "40")
    code, out, err = run(*asked, "--baselines")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [
        ["pixels", "fc_pixels_40.pt"],
        ["untrained", "fc_untrained_40.pt"],
        ["based", "fc_40.pt"],
    ]
    data = digits("train", label_seed=0)
    rows = np.unique(data.rows)
    classes = logistic.labels(data, rows)
    cut = logistic.balanced(classes, 40)
    images = data.store.read(rows)["images"].float()
    mean, std = (torch.tensor(item)[:, None, None] for item in (data.info.mean, data.info.std))
    pixels = ((images - mean) / std).flatten(1).half()
    model = logistic.fit(pixels[cut], classes[cut], 10)
    accuracy = model.accuracy(pixels[cut], classes[cut])
    assert float(lines[0][2]) == pytest.approx(accuracy, abs=1e-4)
    found = read(folder / "fc_pixels_40.pt")["state"]
    torch.testing.assert_close(found["weight"], model.weight, atol=1e-3, rtol=0)
    untrained = Encoder("based", "cpu", trained=False)
    features.settle(untrained, data)
    norm = next(m for m in untrained.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    untrained((images - mean) / std)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), atol=2e-2, rtol=0)
    again = run(*asked, "--baselines")[1]
    assert again == out  # untrained weights are drawn alike
    assert run(*asked[:2], "--get_feats", "--baselines")[0] == 2


def test_mistakes_are_one_line(folders, run):
    trained("one/rotate")
    for args, words in (
        (("-e", "one/rotate"), "add --get_feats, --train_lr or both"),
        (("-e", "one/rotat", "--train_lr"), "did you mean 'one/rotate'"),
        (("-e", "../x", "--train_lr"), "must be a plain path"),
        (("-e", "one/rotate", "--train_lr", "-d", "gpu"), "-d 'gpu' is no device"),
        (("-e", "one/rotate", "--train_lr", "--data_amts", "2000"), "there are 1197 labelled"),
        (("-e", "one/rotate", "--train_lr", "--data_amts", "1"), "1 labels are of one class"),
        (("-e", "one/rotate", "--train_lr", "--dense"), "no segmentation: leave --dense out"),
        (("-e", "one/rotate", "--train_lr", "--data_amts", "0"), "'0' is no number of labels"),
    ):
        code, out, err = run(*args)
        assert code == 2 and words in err.splitlines()[-1], err


@pytest.mark.slow
def test_the_command_as_typed(cli, folders):
    trained("first/e_0000/checkpoint_000001")
    done = cli("-e", "first", "--get_feats", "--train_lr", "--data_amts", "100", "all",
               script="misc/save_network_output.py")  # fmt: skip
    assert done.code == 0, done.err
    table = rows_of(done.out)
    assert list(table) == ["network_output.pt", "fc_100.pt", "fc_1197.pt"]
    names = {line["snapshot"] for line in table.values()}
    assert names == {"first/e_0000/checkpoint_000001"} and "ray" not in done.modules


# ---- positions of feature maps --------------------------------------------------------------


@gin.configurable("TilesForTests", denylist=["split"])
class Tiles(BaseDataset):
    """Images of which each quarter is a colour and its class, 0 to 3."""

    def __init__(self, split: str):
        super().__init__(split)

    @property
    def stem(self) -> str:
        return f"tiles/data_{self.input_res}"

    def _open(self, predict_pose, wanted):
        return Store(self.path, {"images": "data", "segment": "segment"}, {})

    def _targets(self):
        return {"segment": 4}

    def _cut_labels(self, rows, kept, how, seed):
        return rows


TILES = ("session.dataset = 'TilesForTests'", "augment.transform_targets = True")


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    """60 training, 20 validation and 20 test images of 16 pixels."""
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
    monkeypatch.setitem(registry._known["dataset"], "TilesForTests", Tiles)
    draw = np.random.RandomState(0)
    quarters = draw.randint(0, 4, (100, 2, 2))
    segment = quarters.repeat(8, 1).repeat(8, 2).astype(np.uint8)
    colors = np.array([[20, 20, 20], [220, 40, 40], [40, 220, 40], [40, 40, 220]])
    images = colors[segment].transpose(0, 3, 1, 2) + draw.randint(-20, 20, (100, 3, 16, 16))
    path = tmp_path / "data" / "tiles" / "data_16.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["data"], file["segment"] = images.clip(0, 255).astype(np.uint8), segment
        file.attrs["mean"], file.attrs["std"] = [100.0] * 3, [90.0] * 3
        file.attrs["splits"] = '{"train": 60, "valid": 20, "test": 20}'
    return segment


def test_segmentation_of_feature_maps(tiles, run, monkeypatch):
    monkeypatch.setattr(tool, "TRAIN_PIXELS", 70)
    monkeypatch.setattr(tool, "HELD_PIXELS", 50)
    monkeypatch.setattr(tool, "HELD_IMAGES", 15)
    monkeypatch.setattr(tool, "BLOCK", 7)
    folder = trained("one/tiles", *TILES, "Wrapper.dense_pred = True")
    code, out, err = run("-e", "one/tiles", "--dense", "--get_feats", "--train_lr",
                         "--data_amts", "20", "40", "--include_test")  # fmt: skip
    assert code == 0, err
    saved = read(folder / "network_output_dense.pt")
    encoder = Encoder("one/tiles", "cpu")
    with h5py.File(paths.DATA_DIR / "tiles" / "data_16.h5") as file:
        images = torch.from_numpy(file["data"][:])
    for split, count, span in (("train", 40, (0, 60)), ("valid", 15, (60, 80)),
                               ("test", 15, (80, 100))):  # fmt: skip
        rows = saved[f"{split}_rows"]
        assert len(rows) == len(rows.unique()) == count
        assert span[0] <= rows.min() and rows.max() < span[1]
        maps = encoder.from_bytes(images[rows])["dense"]
        assert maps.shape[2:] == (2, 2)
        assert torch.allclose(saved[f"{split}_features"].float(), maps, rtol=2e-3, atol=2e-3)
        assert np.array_equal(saved[f"{split}_segment"].numpy(), tiles[rows][:, ::8, ::8])
    table = rows_of(out)
    assert list(table) == ["network_output_dense.pt", "fc_dense_20.pt", "fc_dense_40.pt"]
    kept = read(folder / "fc_dense_40.pt")
    assert kept["state"]["weight"].shape == (4, saved["train_features"].shape[1])
    assert kept["valid_accuracy"] > 0.6 and kept["test_accuracy"] > 0.6, "chance is 0.25"
    # What was computed for 40 images serves 20, whose positions are fewer than asked for.
    fewer = read(folder / "fc_dense_20.pt")
    assert set(fewer) == set(kept) and fewer["amount"] == 20


def test_dense_cuts_are_nested_in_the_images_that_were_read(tiles, monkeypatch):
    folder = trained("one/tiles", *TILES)
    monkeypatch.setattr(sys, "argv", ["x", "-e", "one/tiles", "--dense", "--train_lr",
                                      "--data_amts", "10", "all"])  # fmt: skip
    args = tool._arguments()
    encoder = Encoder("one/tiles", "cpu")
    data, seed = tool.datasets(snapshot.Snapshot.open(folder), args)
    probe_data = tool.of_pixels(encoder, data, seed, args)
    assert probe_data.images == 60 and len(probe_data.saved["train_rows"]) == 60
    drawn, real = {}, features.pixels

    def pixels(maps, truth, cut, *rest):
        drawn[len(cut)] = set(cut.tolist())
        return real(maps, truth, cut, *rest)

    monkeypatch.setattr(features, "pixels", pixels)
    for amount in (10, 60):
        values, classes = probe_data.examples(amount)
        assert len(values) == len(classes) == 4 * amount
    assert drawn[10] < drawn[60] == set(range(60))


def test_pixels_are_drawn_once_and_with_their_class():
    maps = torch.arange(5 * 3 * 2 * 4).view(5, 3, 2, 4).half()
    classes = torch.arange(40).view(5, 2, 4)
    classes[2, 0] = -100
    images = torch.tensor([0, 2, 4])
    values, found = features.pixels(maps, classes, images, 10, seed=1)
    assert len(found) == len(found.unique()) == 10
    for value, label in zip(values, found.tolist(), strict=True):
        image, place = divmod(label, 8)
        assert image in (0, 2, 4) and torch.equal(value, maps[image, :, place // 4, place % 4])
    every = features.pixels(maps, classes, images, 1000, seed=1)[1]
    assert sorted(every.tolist()) == [*range(8), *range(20, 24), *range(32, 40)]
    other = features.pixels(maps, classes, images, 10, seed=2)[1]
    assert not torch.equal(found, other)
    assert torch.equal(found, features.pixels(maps, classes, images, 10, seed=1)[1])


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="x.pt could not be written: RuntimeError"):
        tool.save({}, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []
