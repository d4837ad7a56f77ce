"""Rendered sets as data sets: names, splits, targets, and variants that are not there yet."""

import subprocess
import sys
from functools import partial

import gin
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from worlds import Fake

import paths
from misc import data as tool
from misc import render as command
from selfstudy.data.dataset import SPLITS, BaseDataset, NotPrepared
from selfstudy.data.loader import Loader
from selfstudy.datasets.syn import SynDataset, default_world
from selfstudy.render import chunks, produce, textures, world
from selfstudy.render.world import World
from util import hdf5
from util.errors import UserError

RES = 16


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    gin.bind_parameter("BaseDataset.input_res", RES)
    bank = textures.Bank(
        np.random.RandomState(0).randint(0, 256, (24, 8, 8, 3)).astype("uint8")
    )
    monkeypatch.setattr(textures, "procedural", lambda cache: bank)  # that takes seconds
    return tmp_path


def rendered(folder, name="1111", images=240, **options):
    path = folder / "syn" / name / f"data_{RES}.h5"
    produce.produce(path, Fake(**options), images, RES, 1)
    return path


def packed(folder, n=120):
    """An original file of several objects."""
    draw = np.random.RandomState(0)
    targets = draw.randint(0, 11, (n, 3, RES, RES)).astype(np.uint8)
    targets[:, 1][draw.rand(n, RES, RES) < 0.3] = 99
    path = folder / "syn" / "TCVL-multi" / f"data_{RES}_lab.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["data"] = draw.randn(n, 3, RES, RES).astype(np.float16)
        file["targets"] = targets
    return targets


def gather(data):
    loader = Loader(data, lambda images, columns, *_: ((images,), columns), "cpu", 8)
    return next(iter(loader))


# ---- files of ours -------------------------------------------------------------------------


@pytest.mark.parametrize("num_valid", [7, 5000])
def test_splits_are_the_buckets(data_dir, num_valid):
    path = rendered(data_dir, images=250)
    gin.bind_parameter("BaseDataset.num_valid", num_valid)
    rows = {split: SynDataset(split, "1111").rows for split in SPLITS}
    buckets = chunks.numbers(250) % 12
    assert len(rows["train"]) == 210 and set(buckets[rows["train"]]) == set(range(10))
    assert set(buckets[rows["valid"]]) == {10} and set(buckets[rows["test"]]) == {11}
    assert [len(rows[split]) for split in SPLITS[1:]] == [min(num_valid, 20)] * 2
    assert SynDataset("train", "1111").attributes["recipe"]["images"] == 250
    assert hdf5.content_hash(path) == hdf5.attributes(path)["sha256"]


def test_targets_of_single_objects(data_dir):
    path = rendered(data_dir)
    assert SynDataset("train", "1111").info.targets == {"class": 3}
    data = SynDataset("train", "1111", dense=["normals", "segment", "depth"])
    assert data.info.targets == {"class": 3, "segment": 4, "depth": 0, "normals": 0}
    assert data.store.mappable
    columns = data.store.map()
    with h5py.File(path) as file:
        for name in ("segment", "depth", "normals"):
            assert np.array_equal(columns[name].numpy(), file[name][:])
    assert columns["segment"].dtype == torch.uint8 and columns["depth"].dtype == torch.float16
    assert columns["normals"].dtype == torch.int8
    inside = columns["segment"] > 0
    assert torch.equal(columns["segment"].amax((1, 2)).long(), columns["class"] + 1)
    assert torch.equal(inside, columns["depth"] > 0)
    assert gather(data).targets["segment"].dtype == torch.int64
    gin.bind_parameter("BaseDataset.predict_pose", True)
    posed = SynDataset("train", "1111")
    assert posed.info.targets == {"class": 3, "pose": 5}
    assert set(posed.store.map()["pose"].tolist()) == {3}


def test_targets_of_several_objects(data_dir):
    rendered(data_dir, "TCVL-multi", objects=4)
    data = SynDataset("train", "TCVL-multi")
    assert data.info.targets == {"segment": 4, "depth": 0} and data.classes == list(
        Fake.classes
    )
    assert SynDataset("train", "TCVL-multi", dense=[]).info.targets == {}
    path = data_dir / "syn" / "TCVL-multi" / f"data_{RES}.h5"
    with h5py.File(path, "r+") as file:
        del file["segment"]
    assert SynDataset("train", "TCVL-multi").info.targets == {"depth": 0}
    gin.bind_parameter("BaseDataset.predict_pose", True)
    with pytest.raises(UserError, match=r"\[4, 3, 3\] in 'rot_mat', expected one rotation"):
        SynDataset("train", "TCVL-multi")


def test_a_label_cut_without_classes_draws_images(data_dir):
    rendered(data_dir, "TCVL-multi", objects=4)
    found = []
    for kept in (10, 30):
        gin.bind_parameter("BaseDataset.semisupervised", kept)
        data = SynDataset("train", "TCVL-multi")
        assert data.info.rows["train"] == kept and max(data.rows) < 200
        found.append(set(data.rows.tolist()))
    assert found[0] < found[1] and found[1] != set(range(30))
    with pytest.raises(UserError, match="no labels to balance"):
        SynDataset("train", "TCVL-multi", dense=[])


def test_dense_names_are_checked(data_dir):
    path = rendered(data_dir)
    with pytest.raises(UserError, match="dense: 'segments' is none - did you mean 'segment'"):
        SynDataset("train", "1111", dense=["segments"])
    with h5py.File(path, "r+") as file:
        del file["normals"]
    with pytest.raises(UserError, match="has no 'normals'"):
        SynDataset("train", "1111", dense=["normals"])


# ---- files of the original layout ----------------------------------------------------------


def test_original_files_of_several_objects(data_dir):
    targets = packed(data_dir)
    data = SynDataset("train", "TCVL-multi")
    assert data.info.targets == {"segment": 11, "depth": 0} and data.info.space == "lab"
    assert [len(SynDataset(split, "TCVL-multi").rows) for split in SPLITS] == [100, 10, 10]
    classes = np.where(targets[:, 1] == 99, 0, targets[:, 1])
    metres = (targets[:, 2] / 100).astype(np.float16)
    rows = np.array([5, 6, 99, 3])
    for columns, part in ((data.store.map(), slice(None)), (data.store.read(rows), rows)):
        assert np.array_equal(columns["segment"].numpy(), classes[part])
        assert np.array_equal(columns["depth"].numpy(), metres[part])
        assert columns["depth"].dtype == torch.float16
    assert not data.store.mappable, "each block is converted when it is read"
    batch = gather(data)
    assert torch.equal(batch.targets["segment"], torch.from_numpy(classes)[batch.idxs].long())
    only = SynDataset("train", "TCVL-multi", dense=["depth"])
    assert only.info.targets == {"depth": 0} and "segment" not in only.store.map()
    with pytest.raises(UserError, match="has no 'normals'"):
        SynDataset("train", "TCVL-multi", dense=["normals"])


# ---- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typed, folder", [
    ("0010", "0010"), ("xlg0010", "0010"), ("lg0010", "0010"), ("TCVL", "1111"),
    ("xlg0010", "xlg0010"), ("TCVL", "TCVL"), ("TCVL-multi", "TCVL-multi"), ("mine", "mine"),
])  # fmt: skip
def test_a_folder_as_typed_comes_before_the_variants(data_dir, typed, folder):
    path = rendered(data_dir, folder, images=24)
    if folder == typed and typed not in world.VARIANTS:
        rendered(data_dir, "0010", images=36)
        rendered(data_dir, "1111", images=36)
    assert SynDataset("train", typed).path == path


def test_a_strangers_folder_is_never_mixed_with_ours(data_dir):
    (data_dir / "syn" / "xlg0010").mkdir(parents=True)
    for name in ("xlg0010", "0002", "xxl0010"):
        with pytest.raises(UserError, match=r"is missing \(rendered when asked for: 0000, "):
            SynDataset("train", name)
    assert not (data_dir / "syn" / "0010").exists()


# ---- rendered at first use -----------------------------------------------------------------


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr("selfstudy.datasets.syn.cpus", lambda: 1)


@pytest.mark.parametrize("typed, folder, objects", [
    ("xlg0010", "0010", 1), ("TCVL-multi", "TCVL-multi", 4),
])  # fmt: skip
def test_a_variant_is_rendered_when_first_used(
    data_dir, one_process, capfd, typed, folder, objects
):
    gin.bind_parameter("SynDataset.render_images", 24)
    gin.bind_parameter("render.seed", 5)  # of misc/render.py; a name means one thing here
    data = SynDataset("train", typed)
    assert data.path == data_dir / "syn" / folder / f"data_{RES}.h5"
    told = capfd.readouterr().err.splitlines()
    assert told[0].startswith(f"data set '{folder}' is not there: 24 pictures of 16x16 are ")
    assert "about 00:0" in told[0]
    factors = "1111" if objects > 1 else folder
    expected = World(factors, objects, seed=0)
    assert data.attributes["recipe"]["world"] == expected.recipe()
    assert data.classes == list(expected.classes)
    assert [len(SynDataset(split, typed).rows) for split in SPLITS] == [20, 2, 2]
    row = 7
    picture = expected.picture(int(chunks.numbers(24)[row]), RES)
    assert np.array_equal(data.store.map()["images"][row].numpy(), picture["data"])
    assert capfd.readouterr().err == ""


def test_a_dry_run_renders_nothing(data_dir, monkeypatch):
    monkeypatch.setattr(BaseDataset, "may_prepare", False)
    with pytest.raises(NotPrepared, match="0010/data_16.h5 is made when it is first used"):
        SynDataset("train", "xlg0010")
    assert not (data_dir / "syn").exists()


def test_too_few_images_are_refused(data_dir):
    with pytest.raises(UserError, match="11 images: expected 12 or more"):
        SynDataset("train", "0010", render_images=11)


def test_each_variant_has_its_world():
    found = {name: default_world(name) for name in world.VARIANTS}
    bits = {name: made.recipe()["factors"] for name, made in found.items()}
    assert bits == {name: name for name in world.VARIANTS[:-1]} | {"TCVL-multi": "1111"}
    assert {name for name, made in found.items() if made.objects > 1} == {"TCVL-multi"}


# ---- misc/render.py ------------------------------------------------------------------------


@pytest.fixture
def render(call):
    """Runs `misc/render.py` with these words; returns its exit code, stdout and stderr."""
    return partial(call, command.main)


SMALL = ("--images", 24, "--res", 16, "--workers", 1)


def test_the_command_renders_and_says_what(render, data_dir):
    code, out, err = render("xlg0010", *SMALL)
    path = data_dir / "syn" / "0010" / "data_16.h5"
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith(f"{path}: 24 pictures, 24 of them now in ")
    assert lines[1] == f"sha256 {hdf5.attributes(path)['sha256']}"
    assert "misc/data.py show SynDataset -p 'SynDataset.dataset_choice = \"0010\"'" in lines[2]
    assert hdf5.attributes(path)["recipe"]["world"]["factors"] == "0010"
    code, out, err = render("0010", *SMALL)
    assert code == 0 and out.splitlines()[0] == f"{path}: 24 pictures, there already"
    code, out, err = render("0010", "--images", 36, "--res", 16)
    assert code == 4 and "is there and has images 24, not 36: choose another NAME" in err
    code, out, err = render("0010", *SMALL, "-p", "render.seed = 1")
    assert code == 4 and "is there and has seed 0, not 1" in err


def test_the_command_makes_sets_of_ones_own(render, data_dir):
    words = ("-p", "render.factors = '1000'", "render.pairs = True")
    code, out, err = render("mine", *SMALL, *words)
    assert code == 0, err
    path = data_dir / "syn" / "mine" / "data_16.h5"
    recipe = hdf5.attributes(path)["recipe"]["world"]
    assert recipe["factors"] == "1000" and recipe["pairs"] and hdf5.has(path, "flow")
    code, out, err = render("other-multi", *SMALL)
    path = data_dir / "syn" / "other-multi" / "data_16.h5"
    assert code == 0 and hdf5.attributes(path)["recipe"]["world"]["objects"] == 4


@pytest.mark.parametrize("words, told", [
    (("0010", "-p", "render.factors = '1111'"),
     "'0010' means render.factors = '0010', not '1111': choose another NAME, or"),
    (("TCVL-multi", "-p", "render.objects = 3"), "'TCVL-multi' means render.objects = 4, not"),
    (("../x",), "NAME: '../x/data_64.h5' must be a plain path"),
    (("0010", "--images", "11"), "11 images: expected 12 or more"),
    (("0010", "--res", "4"), "4 pixels: expected 8 to 1024"),
    (("0010", "--res", "2000"), "2000 pixels: expected 8 to 1024"),
    (("0010", "--workers", "0"), "0 processes: expected 1"),
    (("0010", "--workers", "2", "--address", "auto"), "leave one out"),
    (("mine", "-p", "render.factor = 1"), "'render' has no parameter 'factor'"),
    (("mine", "-p", "render.factors = '0'"), "render.factors: '0' is not four bits"),
    (("mine", "-p", "render.meshes = 'none'"), "render.meshes = 'none': no folder"),
    (("mine", "-g", "no/such"), "no config/gin/no/such.gin"),
    (("0010", "--address", "127.0.0.1:9"), "no Ray cluster at '127.0.0.1:9'"),
])  # fmt: skip
def test_mistakes_are_one_line_and_make_nothing(render, data_dir, words, told):
    code, out, err = render(*words)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert told in err and not list(data_dir.rglob("*.h5"))


def test_a_file_from_elsewhere_is_left_alone(render, data_dir):
    path = data_dir / "syn" / "0010" / "data_16.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((4, 3, 16, 16), np.float16)
    code, out, err = render("0010", *SMALL)
    assert code == 4 and "is there and was not rendered here" in err


def test_ctrl_c_says_how_to_continue(render, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(produce, "produce", stop)
    code, out, err = render("0010", *SMALL, "-p", "render.seed = 3")
    assert code == 130
    assert err.splitlines()[-1] == (
        "interrupted: what is rendered stays; continue with: python "
        "misc/render.py 0010 --images 24 --res 16 --workers 1 -p 'render.seed = 3'"
    )


def test_worker_processes_of_the_real_world_are_light():
    code = ("import sys; from selfstudy.render import chunks, world; "
            "print(*{'torch', 'h5py', 'ray'} & set(sys.modules))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == ""


# ---- misc/data.py --------------------------------------------------------------------------


@pytest.mark.parametrize("name, objects", [("mine", 1), ("TCVL-multi", 4)])
def test_the_sheet_shows_labels_on_the_objects(call, data_dir, name, objects):
    path = rendered(data_dir, name, images=60, objects=objects)
    words = ("SynDataset", "-p", f"SynDataset.dataset_choice = '{name}'",
             f"BaseDataset.input_res = {RES}", "SynDataset.use_lab = False")  # fmt: skip
    code, out, err = call(tool.main, "verify", *words)
    assert code == 0 and out.splitlines()[-1].endswith(" ok")
    sheet = data_dir / "sheet.png"
    code, out, err = call(tool.main, "show", *words, "-o", sheet)
    assert code == 0 and out.strip().endswith("raw, augmented, labels"), err
    page = np.asarray(Image.open(sheet))
    wide, pitch = tool.ACROSS * (tool.TILE + tool.EDGE) + tool.GAP, tool.TILE + tool.EDGE
    assert page.shape[1] == tool.LABEL + 3 * wide - tool.GAP
    left = tool.LABEL + 2 * wide
    raw, outline, depth, normals = (
        page[tool.LINE : tool.LINE + tool.TILE : 4, at : at + tool.TILE : 4]
        for at in (tool.LABEL, left, left + pitch, left + 2 * pitch)
    )
    square = np.zeros((RES, RES), bool)
    square[4:8, 4:8] = True
    edge = square.copy()
    edge[5:7, 5:7] = False
    assert (outline[edge] == tool.MAGENTA).all()
    assert np.array_equal(outline[~edge], raw[~edge])
    assert (depth[square] == 255).all() and (depth[~square] == 0).all()
    assert (normals[square] == (127, 127, 254)).all()
    assert hdf5.has(path, "instance")
