"""STL-10 in its published bytes and ImageNet in its folders, both in miniature."""

import io
import tarfile

import gin
import numpy as np
import pytest
import torch
from PIL import Image

import paths
from selfstudy.data.dataset import SPLITS
from selfstudy.data.prepare import resize
from selfstudy.datasets import stl10
from selfstudy.datasets.imagenet import ImageNetDataset
from selfstudy.datasets.stl10 import STL10Dataset
from util.errors import UserError

COUNTS = {"unlabelled": 30, "train": 40, "test": 20}


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    bind(input_res=96)
    return tmp_path


def bind(**values):
    for name, value in values.items():
        gin.bind_parameter(f"BaseDataset.{name}", value)


# ---- STL-10 --------------------------------------------------------------------------------


def stl10_files():
    """Name -> bytes of the published files, and the pictures [90, 3, 96, 96] and labels."""
    draw = np.random.RandomState(0)
    images = draw.randint(0, 256, (sum(COUNTS.values()), 3, 96, 96)).astype(np.uint8)
    labels = {"train": np.arange(40) % 10, "test": draw.randint(0, 10, 20)}
    parts = dict(zip(COUNTS, np.split(images, [30, 70]), strict=True))
    # As the authors' description has it: column after column, so that the picture as rows
    # and columns is the transpose of what lies in the file.
    files = {stl10.PICTURES[name]: np.swapaxes(part, 2, 3).tobytes()
             for name, part in parts.items()}  # fmt: skip
    for name, values in labels.items():
        files[stl10.LABELS[name]] = (values + 1).astype(np.uint8).tobytes()
    folds = [" ".join(map(str, range(4 * k, 4 * k + 8))) for k in range(9)] + ["0 39"]
    files["fold_indices.txt"] = "\n".join(folds).encode()
    names = [f"c{number}" for number in range(10)]
    files["class_names.txt"] = "\n".join(names).encode()
    return files, images, labels


def write_folder(folder, without=()):
    files, images, labels = stl10_files()
    (folder / "stl10_binary").mkdir()
    for name, content in files.items():
        if name not in without:
            (folder / "stl10_binary" / name).write_bytes(content)
    return images, labels


def write_archive(folder):
    files, images, labels = stl10_files()
    with tarfile.open(folder / "stl10_binary.tar.gz", "w:gz") as archive:
        for name in sorted(files):  # not in the order of the data file
            member = tarfile.TarInfo(f"stl10_binary/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return images, labels


@pytest.mark.parametrize("write", [write_folder, write_archive])
def test_stl10_as_published(tmp_path, write, monkeypatch):
    monkeypatch.setattr(stl10, "BLOCK", 7)
    images, labels = write(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    data = {split: STL10Dataset(split) for split in SPLITS}
    columns = data["train"].store.map()
    assert np.array_equal(columns["images"].numpy(), images)
    assert columns["class"].tolist() == [-100] * 30 + [*labels["train"], *labels["test"]]
    assert data["train"].rows.tolist() == list(range(30, 66))
    assert data["valid"].rows.tolist() == list(range(66, 70))
    assert data["test"].rows.tolist() == list(range(70, 90))
    assert data["train"].info.targets == {"class": 10} and data["train"].classes[3] == "c3"
    fit = images[:66].astype(float)
    np.testing.assert_allclose(data["train"].info.mean, fit.mean((0, 2, 3)), rtol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "stl10"])
    whole = {split: STL10Dataset(split, part="all") for split in SPLITS}
    assert whole["train"].rows.tolist() == list(range(66))
    assert whole["train"].info.rows == {"train": 66, "valid": 4, "test": 20}
    for split in ("valid", "test"):
        assert np.array_equal(whole[split].rows, data[split].rows)
    assert [path.name for path in (tmp_path / "stl10").glob("*.h5")] == ["data_96.h5"]


def test_published_sizes_of_stl10(tmp_path):
    write_folder(tmp_path)
    splits = {"unlabelled": 100_000, "train": 5000, "test": 8000}
    spans = STL10Dataset("train").spans(113_000, splits)
    assert spans == {"train": (100_000, 104_500), "valid": (104_500, 105_000),
                     "test": (105_000, 113_000)}  # fmt: skip
    assert STL10Dataset("train", "all").spans(113_000, splits)["train"] == (0, 104_500)


@pytest.mark.parametrize("part", ["labelled", "all"])
def test_label_cuts_of_stl10_keep_labelled_pictures_only(tmp_path, part):
    write_folder(tmp_path)
    bind(semisupervised=20)
    data = STL10Dataset("train", part)
    kept = np.unique(data.rows)
    assert len(kept) == data.info.rows["train"] == 20
    counts = np.bincount(data.store.map()["class"].numpy()[kept], minlength=10)
    assert counts.tolist() == [2] * 10 and kept.min() >= 30 and kept.max() < 66
    bind(label_cut="first")
    assert np.unique(STL10Dataset("train", part).rows).tolist() == list(range(30, 50))
    bind(semisupervised=37)
    with pytest.raises(UserError, match="expected 1 to 36"):
        STL10Dataset("train", part)


def test_folds_of_stl10(tmp_path):
    write_folder(tmp_path)
    bind(num_valid=5)
    data = {split: STL10Dataset(split, fold=1) for split in SPLITS}
    assert data["train"].rows.tolist() == list(range(34, 42))
    assert data["valid"].rows.tolist() == list(range(65, 70))
    assert data["test"].rows.tolist() == list(range(70, 90))
    assert data["valid"].info.rows == {"train": 8, "valid": 5, "test": 20}
    # Fold 9 holds the last picture, so that the validation is of those before it.
    assert STL10Dataset("train", fold=9).rows.tolist() == [30, 69]
    assert STL10Dataset("valid", fold=9).rows.tolist() == list(range(64, 69))
    both = STL10Dataset("train", "all", fold=1)
    assert both.rows.tolist() == [*range(30), *range(34, 42)]
    bind(semisupervised=4)
    kept = STL10Dataset("train", "all", fold=1)
    assert len(np.unique(kept.rows)) == 4 and set(kept.rows) <= set(range(34, 42))
    assert len(kept.rows) % 4 == 0 and len(kept.rows) > 4
    with pytest.raises(UserError, match="expected 0 to 9"):
        STL10Dataset("train", fold=10)


def test_stl10_is_scaled_to_other_sizes(tmp_path):
    images, _ = write_folder(tmp_path)
    bind(input_res=24)
    found = STL10Dataset("train").store.map()["images"].numpy()
    assert np.array_equal(found, resize(images, 24))


def test_stl10_without_some_files(tmp_path):
    write_folder(tmp_path, without=("unlabeled_X.bin", "fold_indices.txt", "class_names.txt"))
    data = STL10Dataset("train")
    assert data.rows.tolist() == list(range(36)) and data.classes[0] == "airplane"
    with pytest.raises(UserError, match="no unlabelled pictures; put unlabeled_X.bin"):
        STL10Dataset("train", "all")
    with pytest.raises(UserError, match="fold_indices.txt was missing"):
        STL10Dataset("train", fold=0)
    (tmp_path / "stl10_binary" / "test_y.bin").unlink()
    (tmp_path / "stl10" / "data_96.h5").unlink()
    with pytest.raises(UserError, match="lacks the file test_y.bin"):
        STL10Dataset("train")


@pytest.mark.parametrize("name, content, words", [
    ("train_X.bin", b"x" * 100, "train_X.bin has 100 bytes"),
    ("train_y.bin", b"\1" * 39, "39 labels of 40 pictures"),
    ("train_y.bin", b"\0" * 40, "has classes 0 to 0"),
    ("fold_indices.txt", b"1 2 x", "fold_indices.txt"),
    ("fold_indices.txt", b"1 2 40", "fold_indices.txt"),
])  # fmt: skip
def test_damaged_files_of_stl10(tmp_path, name, content, words):
    write_folder(tmp_path)
    (tmp_path / "stl10_binary" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged .*{words}") as caught:
        STL10Dataset("train")
    assert "\n" not in caught.value.text and not list(tmp_path.rglob("*.h5"))


def test_a_cut_archive_of_stl10(tmp_path):
    write_archive(tmp_path)
    path = tmp_path / "stl10_binary.tar.gz"
    whole = path.read_bytes()
    for part in (whole[:1000], whole[: len(whole) // 2], b"<html>"):
        path.write_bytes(part)
        with pytest.raises(UserError, match="stl10_binary.tar.gz is damaged"):
            STL10Dataset("train")


def test_stl10_without_a_network_says_what_to_do(offline):
    with pytest.raises(UserError, match=r"STL-10 is not in .*\(no network\): put stl10_binary"):
        STL10Dataset("train")


# ---- ImageNet ------------------------------------------------------------------------------

COLORS = {"n03": (250, 10, 10), "n01": (10, 250, 10), "n02": (10, 10, 250)}


def imagenet_folder(root, each=20):
    for part, count in (("train", each), ("val", 4)):
        for wnid, color in COLORS.items():
            folder = root / part / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                size = (40 + number, 30)
                Image.new("RGB", size, color).save(folder / f"{wnid}_{number}.JPEG", quality=95)
    return root


def test_imagenets_folders(tmp_path):
    root = imagenet_folder(tmp_path / "imagenet")
    bind(input_res=16, num_valid=9)
    data = {split: ImageNetDataset(split) for split in SPLITS}
    assert data["train"].path == root / "data_16.h5"
    assert data["train"].info.rows == {"train": 51, "valid": 9, "test": 12}
    assert data["train"].classes == sorted(COLORS)
    columns = data["train"].store.map()
    for image, label in zip(columns["images"], columns["class"], strict=True):
        color = torch.tensor(COLORS[data["train"].classes[label]])[:, None, None]
        assert image.shape == (3, 16, 16) and (image.int() - color).abs().max() < 8
    assert np.bincount(columns["class"].numpy()[data["test"].rows]).tolist() == [4, 4, 4]
    for split in ("train", "valid"):
        counts = np.bincount(columns["class"].numpy()[data[split].rows], minlength=3)
        assert counts.max() - counts.min() <= 2, "the validation is no class of its own"
    fit = columns["images"][:51].double()
    np.testing.assert_allclose(data["train"].info.mean, fit.mean((0, 2, 3)), rtol=1e-9)
    (root / "train").rename(root / "elsewhere")  # opened again without a look at the pictures
    bind(num_valid=6)
    assert ImageNetDataset("valid").info.rows["valid"] == 6


def test_the_short_side_fits_and_the_centre_stays(tmp_path):
    root = imagenet_folder(tmp_path / "imagenet", 1)
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    Image.fromarray(wide).save(root / "train" / "n01" / "wide.png")
    bind(input_res=16, num_valid=0)
    data = ImageNetDataset("train")
    values = [image.unique().tolist() for image in data.store.map()["images"]]
    assert [200] in values


def test_imagenet_elsewhere_leaves_that_folder_alone(tmp_path):
    root = imagenet_folder(tmp_path / "read only" / "imagenet", 2)
    bind(input_res=8, num_valid=0)
    data = ImageNetDataset("test", str(root))
    assert data.info.rows["test"] == 12 and data.path.is_relative_to(tmp_path / "imagenet")
    assert sorted(path.name for path in root.iterdir()) == ["train", "val"]
    assert ImageNetDataset("test", "read only/imagenet").path.parent == root


def test_wrong_folders_of_imagenet(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*train; expected train/<wnid>"):
        ImageNetDataset("train")
    with pytest.raises(UserError, match="ImageNetDataset.folder: '../x'"):
        ImageNetDataset("train", "../x")
    root = imagenet_folder(tmp_path / "imagenet", 2)
    (root / "val" / "n09").mkdir()
    Image.new("RGB", (9, 9)).save(root / "val" / "n09" / "x.JPEG")
    with pytest.raises(UserError, match="has classes that train lacks: n09"):
        ImageNetDataset("train")
    (root / "val").rename(root / "sorted")
    (root / "val").mkdir()
    Image.new("RGB", (9, 9)).save(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match="holds no folders of classes: sort its pictures"):
        ImageNetDataset("train")
