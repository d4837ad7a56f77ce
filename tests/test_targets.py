"""Targets of every kind: declared, prepared, checked, cut, loaded, moved or refused, drawn."""

import dataclasses
import math
import re

import gin
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import paths
from misc import data as tool
from selfstudy import registry
from selfstudy.data.augment import augment
from selfstudy.data.dataset import BaseDataset
from selfstudy.data.loader import Loader
from selfstudy.data.prepare import Source
from selfstudy.data.targets import check
from selfstudy.data.transforms import Cutout, Flip, PadCrop, ResizedCrop, Rotate90
from selfstudy.evaluate import encoder
from selfstudy.types import DataInfo, Target
from util import hdf5
from util.errors import UserError

CPU = torch.device("cpu")
RES, ROWS, TRAIN = 16, 60, 48
KINDS = {
    "tags": Target("labels", classes=5),
    "ages": Target("vector", width=2, invariant=True),
    "heading": Target("angle"),
    "corners": Target("points", width=3, mirror=(1, 0, 2)),
    "objects": Target("boxes", classes=4, width=3),
    "parts": Target("map", classes=6),
    "heat": Target("map"),
    "flow": Target("map", channels=2, vectors="flow"),
    "facing": Target("map", channels=3, vectors="normals", dtype="int8", fill=0),
}
GEOMETRY = [Flip(), PadCrop(), ResizedCrop(), Rotate90()]


def made(n=ROWS, res=RES, seed=0):
    """Target -> values [n, ...] of `KINDS`, with something unknown in each."""
    draw = np.random.RandomState(seed)
    tags = draw.randint(0, 2, (n, 5))
    corners, low = draw.rand(n, 3, 2) * res, draw.randint(0, res - 2, (n, 3, 2))
    high = low + 1 + (draw.rand(n, 3, 2) * (res - low - 1)).astype(int)
    objects = np.concatenate([low, high, draw.randint(0, 4, (n, 3, 1))], 2).astype(np.float32)
    heat = draw.randn(n, res, res)
    parts = draw.randint(0, 6, (n, res, res))
    tags[::7], corners[::5, 1], objects[::2, 2] = -100, np.nan, np.nan
    heat[:, 3, 4], parts[:, 2, 2] = np.nan, -100
    return {
        "tags": tags,
        "ages": draw.rand(n, 2) * 90,
        "heading": draw.rand(n, 1) * 6,
        "corners": corners,
        "objects": objects,
        "parts": parts,
        "heat": heat,
        "flow": draw.randn(n, 2, res, res),
        "facing": draw.randint(-127, 128, (n, 3, res, res)),
    }


class Every(BaseDataset):
    """A tiny data set with `kinds`, of `shape` pictures a sample."""

    kinds, values = KINDS, staticmethod(made)
    shape: tuple[int, ...] = ()

    @property
    def stem(self):
        return f"every/data_{self.input_res}"

    def declare(self):
        return self.kinds

    def source(self):
        images = np.random.RandomState(1).randint(0, 256, (ROWS, *self.shape, 3, RES, RES))
        return Source(ROWS, [images[:40].astype(np.uint8), images[40:].astype(np.uint8)],
                      self.values(), {"train": TRAIN, "test": ROWS - TRAIN}, TRAIN)  # fmt: skip


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    gin.bind_parameter("BaseDataset.input_res", RES)
    gin.bind_parameter("BaseDataset.num_valid", 8)
    return tmp_path


def bind(**values):
    for name, value in values.items():
        gin.bind_parameter(name.replace("__", "."), value)


def with_kinds(**kinds):
    """A data set that declares these alone, with the values of `made`."""
    held = {name: made()[name] for name in kinds if name in KINDS}
    return type("Some", (Every,), {"kinds": kinds, "values": staticmethod(lambda: held)})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def equal(one, other, atol=1e-4):
    torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)


# ---- declared, prepared, opened -------------------------------------------------------------


def test_every_kind_comes_back_as_it_was_prepared():
    data = Every("train")
    columns = data.store.map()
    for name, values in made().items():
        kind = KINDS[name]
        assert tuple(columns[name].shape) == kind.shape(ROWS, RES, RES)
        assert str(columns[name].dtype) == f"torch.{kind.stored}"
        assert np.allclose(columns[name].numpy(), values, atol=1e-5, equal_nan=True)
    assert data.store.mappable and data.attributes["sha256"] == hdf5.content_hash(data.path)
    assert data.info.kinds == KINDS
    classes = {"tags": 5, "objects": 4, "parts": 6}
    assert data.info.targets == {name: classes.get(name, 0) for name in KINDS}


def test_targets_may_come_in_blocks():
    class Blocks(Every):
        def source(self):
            found = super().source()
            targets = {name: iter(np.split(np.asarray(values), [7, 7, 50]))
                       for name, values in found.targets.items()}  # fmt: skip
            return dataclasses.replace(found, targets=targets)

    whole, path = Every("train"), paths.DATA_DIR / "every" / f"data_{RES}.h5"
    path.rename(path.with_name("whole.h5"))
    assert Blocks("train").attributes["sha256"] == whole.attributes["sha256"]


@pytest.mark.parametrize("names, values, message", [
    (["tags"], {}, "declares 'tags' and its source has no such"),
    (["tags"], {"tags": np.zeros((ROWS, 4))}, r"expected \[60, 5\]"),
    (["tags"], {"tags": np.zeros((50, 5))}, "50 rows and .* 60"),
    (["tags"], {"tags": np.full((ROWS, 5), 300)}, "no int8"),
    (["class"], {}, "declares a target 'class': rename"),
])  # fmt: skip
def test_a_source_that_does_not_fit_is_refused(data_dir, names, values, message):
    kinds = dict.fromkeys(names, KINDS["tags"])
    wrong = type("Wrong", (Every,), {"kinds": kinds, "values": staticmethod(lambda: values)})
    with pytest.raises(UserError, match=message):
        wrong("train")
    assert not list(data_dir.rglob("*.h5"))


def test_a_file_of_another_declaration_is_refused():
    with_kinds(heading=Target("angle"))("train")
    other = with_kinds(heading=Target("angle", width=3))
    with pytest.raises(UserError, match=r"holds \[1\] .* 'heading', declared is \[3\]"):
        other("train")


def test_targets_can_be_left_out():
    bind(BaseDataset__targets=["corners", "tags"])
    data = Every("train")
    assert set(data.info.targets) == set(data.info.kinds) == {"corners", "tags"}
    assert set(data.store.map()) == {"images", "corners", "tags"}
    bind(BaseDataset__targets=["cornerz"])
    with pytest.raises(UserError, match="has no 'cornerz'.*did you mean 'corners'"):
        Every("train")


def test_an_old_file_opens_as_before(data_dir):
    """A file written by hand in the present layout: the same columns, types and facts."""
    path = data_dir / "every" / f"data_{RES}.h5"
    path.parent.mkdir()
    images = np.random.RandomState(0).randint(0, 256, (30, 3, RES, RES)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file["data"], file["targets"] = images, np.arange(30, dtype=np.int64) % 3
        file.attrs["classes"], file.attrs["splits"] = (
            '["a", "b", "c"]',
            '{"train": 24, "test": 6}',
        )
        file.attrs["mean"], file.attrs["std"] = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    before = path.read_bytes()
    bind(BaseDataset__semisupervised=6)
    data = with_kinds()("train")
    expected = DataInfo(3, RES, "rgb", "uint8", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0),
                        {"train": 6, "valid": 8, "test": 6}, {"class": 3},
                        data.last_row)  # fmt: skip
    assert data.info == expected and data.info.kind("class") == Target("class", classes=3)
    assert np.array_equal(np.bincount(np.unique(data.rows) % 3), [2, 2, 2])
    batch = next(iter(Loader(data, augment(data.info, False), CPU, 6)))
    assert torch.equal(batch.targets["class"], batch.idxs % 3)
    assert path.read_bytes() == before


def test_a_card_keeps_the_kinds_and_an_older_one_needs_none():
    info = dataclasses.replace(Every("train").info, frames=1)
    card = dataclasses.asdict(info)
    assert encoder._from_card(card, "x") == info
    card = {key: value for key, value in card.items() if key not in ("kinds", "frames")}
    assert encoder._from_card(card, "x") == dataclasses.replace(info, kinds={})


PAGE = paths.ROOT / "docs" / "how-to" / "add-a-dataset.md"
SIZES = {"K": 4, "M": 3, "C": 2, "N": 2, "H": 8, "W": 8}


def test_the_declarations_of_the_page_give_what_it_says():
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| (`Target[^|]+) \| (\w+) \| ([^|]+) \|$",
                      PAGE.read_text("utf-8"), re.MULTILINE)  # fmt: skip
    assert len(rows) == 9
    for arrays, declarations, dtype, moving in rows:
        shapes = re.findall(r"\[(N.*?)\]", arrays)
        kinds = [eval(text, {"Target": Target} | SIZES)
                 for text in re.findall(r"`(Target\(.*?\))`", declarations)]  # fmt: skip
        assert len(shapes) == len(kinds)
        for shape, kind in zip(shapes, kinds, strict=True):
            found = kind.placeholder(2, 8, 8)
            expected = [SIZES.get(part) or int(part) for part in shape.split(", ")]
            assert found.shape == tuple(expected)
            assert found.dtype == getattr(torch, dtype)
            assert kind.moves == moving.startswith("moves")
            assert Flip().refuses(kind) == moving.startswith("refused")


# ---- cut ------------------------------------------------------------------------------------


def test_a_cut_keeps_no_image_without_a_label():
    bind(BaseDataset__semisupervised=20)
    data = with_kinds(tags=KINDS["tags"])("train")
    assert data.info.rows["train"] == 20 and not (np.unique(data.rows) % 7 == 0).any()
    bind(BaseDataset__semisupervised=TRAIN)
    with pytest.raises(UserError, match="expected 1 to 34"):  # of 40 for training
        with_kinds(tags=KINDS["tags"])("train")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_can_be_cut(name):
    bind(BaseDataset__semisupervised=12)
    small = with_kinds(**{name: KINDS[name]})("train")
    bind(BaseDataset__semisupervised=20)
    large = with_kinds(**{name: KINDS[name]})("train")
    assert small.info.rows["train"] == 12 and set(small.rows) < set(large.rows)


# ---- loaded ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["mapped", "read"])
def test_a_minibatch_has_the_values_of_its_rows(way):
    data = Every("test")
    if way == "read":
        data.store.mappable = False
    values = made()
    for batch in Loader(data, augment(data.info, False), CPU, batch_size=5):
        assert batch.views[0].shape == (len(batch.idxs), 3, RES, RES)
        for name, kind in KINDS.items():
            found = batch.targets[name]
            blank = kind.placeholder(len(batch.idxs), RES, RES)
            assert found.dtype == blank.dtype and found.shape == blank.shape
            wanted = torch.from_numpy(values[name])[batch.idxs].to(found.dtype)
            equal(found, wanted)


def test_placeholders_know_the_present_targets():
    targets = {"class": 3, "pose": 5, "segment": 4, "depth": 0, "normals": 0}
    info = DataInfo(3, 8, "rgb", "uint8", (0.0,), (1.0,), {}, targets)
    found = {name: info.kind(name).placeholder(2, 8, 8) for name in info.targets}
    assert {name: (tuple(each.shape), each.dtype) for name, each in found.items()} == {
        "class": ((2,), torch.int64),
        "pose": ((2,), torch.int64),
        "segment": ((2, 8, 8), torch.int64),
        "depth": ((2, 8, 8), torch.float16),
        "normals": ((2, 3, 8, 8), torch.int8),
    }
    assert info.kind("depth").placeholder(2, 8, 8, torch.device("meta")).is_meta


@pytest.mark.parametrize("frames, double", [(2, False), (6, False), (2, True)])
def test_samples_of_several_pictures(frames, double):
    bind(BaseDataset__double_sample=double, BaseDataset__max_images=10**6)
    cls = with_kinds(flow=KINDS["flow"])
    cls.frames, cls.shape = frames, (frames,)
    data = cls("train")
    images = hdf5.open_map(data.path, "data")
    assert images.shape == (ROWS, frames, 3, RES, RES) and data.info.frames == frames
    fit = images[:TRAIN].double().transpose(1, 2).reshape(TRAIN, 3, -1)
    equal(torch.tensor(data.info.mean).double(), fit.mean((0, 2)))
    plain = Loader(data, augment(data.info, False), CPU, batch_size=8, shuffle=False)
    batch = next(iter(plain))
    assert len(batch.views) == plain.views == frames * (1 + double)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.info.mean, data.info.std))
    for number, view in enumerate(batch.views):
        stored = images[batch.idxs, number % frames].float()
        equal(view, (stored - mean) / std)


def test_frames_of_a_view_are_changed_alike_and_views_are_not():
    images = torch.randint(0, 256, (12, 1, 3, RES, RES), generator=generator())
    info = DataInfo(3, RES, "rgb", "uint8", (120.0,) * 3, (60.0,) * 3, frames=3)
    same = images.to(torch.uint8).expand(-1, 3, -1, -1, -1)
    views, _ = augment(info, True)(same, {}, generator(), views=2)
    assert len(views) == 6
    for frame in (1, 2):
        assert torch.equal(views[0], views[frame])
        assert torch.equal(views[3], views[3 + frame])
    assert not torch.equal(views[0], views[3])


def test_frames_count_as_images():
    bind(BaseDataset__max_images=30)
    cls = type("Frames", (Every,), {"frames": 2, "shape": (2,), "kinds": {}, "values": dict})
    data = cls("train")
    assert data.divisions == 3 and max(map(len, data.blocks(None))) <= 15  # 40 rows
    bind(BaseDataset__max_images=1)
    with pytest.raises(UserError, match="max_images is 1, expected at least 2"):
        cls("train")


# ---- moved: against a loop over single pixels and points ------------------------------------


def source_of(transform, row, x, y, size=RES):
    """The place (x, y) of the old image that the new image shows at (x, y), by definition."""
    if isinstance(transform, Flip):
        return (size - x, y) if row[0] else (x, y)
    if isinstance(transform, PadCrop):
        return x + int(row[1]) - size // 8, y + int(row[0]) - size // 8
    if isinstance(transform, Rotate90):
        for _ in range(int(row[0])):  # each turn, counter-clockwise, brings (x, y) from here
            x, y = size - y, x
        return x, y
    top, left, tall, wide = row.tolist()
    return left + x * wide / size, top + y * tall / size


def drawn(transform, n=40, seed=3):
    return transform.draw(n, RES, RES, generator(seed), CPU)


def move(transform, name, values, params):
    return transform.move(values, params, KINDS[name], (RES, RES))


@pytest.mark.parametrize("transform", GEOMETRY)
def test_places_go_where_their_pixels_go(transform):
    """The map of places is the inverse of where new pixels come from, image by image."""
    params = drawn(transform)
    matrix, offset = transform.affine(params, RES, RES)
    for row, turn, shift in zip(params, matrix, offset, strict=True):
        for x, y in ((0.0, 0.0), (3.5, 11.25), (16.0, 2.0)):
            old = torch.tensor(source_of(transform, row, x, y), dtype=torch.float32)
            equal(turn @ old + shift, torch.tensor([x, y]))


@pytest.mark.parametrize("transform", GEOMETRY)
def test_the_pixel_at_a_point_stays_at_the_point(transform):
    """Against the images: a single bright pixel and a point at its centre."""
    at = torch.randint(0, RES, (40, 2), generator=generator(5))
    images = torch.zeros(40, RES, RES)
    images[torch.arange(40), at[:, 1], at[:, 0]] = 1
    params = drawn(transform)
    moved = transform.apply(images, params)
    points = transform.move((at + 0.5)[:, None], params, Target("points"), (RES, RES))
    seen = 0
    for image, (point,) in zip(moved, points.tolist(), strict=True):
        if math.isnan(point[0]):
            assert not image.any()
        elif image.any():  # an enlarged pixel covers several, a shrunken one may be skipped
            rows, columns = image.nonzero().float().T + 0.5
            assert abs(float(columns.mean()) - point[0]) <= 0.51
            assert abs(float(rows.mean()) - point[1]) <= 0.51
            seen += 1
    assert seen > 8


@pytest.mark.parametrize("transform", GEOMETRY)
def test_points_against_a_loop(transform):
    points = torch.from_numpy(made(40)["corners"]).float()
    params = drawn(transform)
    found = move(transform, "corners", points, params)
    matrix, offset = transform.affine(params, RES, RES)
    expected = torch.full_like(points, math.nan)
    for image in range(40):
        mirrored = isinstance(transform, Flip) and bool(params[image, 0])
        for number in range(3):
            old = points[image, KINDS["corners"].mirror[number] if mirrored else number]
            new = matrix[image] @ old + offset[image]
            if 0 <= new[0] <= RES and 0 <= new[1] <= RES:
                expected[image, number] = new
    equal(found, expected)
    if isinstance(transform, (PadCrop, ResizedCrop)):
        assert found.isnan().sum() > points.isnan().sum()


@pytest.mark.parametrize("transform", GEOMETRY)
def test_boxes_against_filled_pictures(transform):
    """A moved box frames exactly what has become of its filled pixels, in whole pixels."""
    boxes = torch.from_numpy(made(40)["objects"])
    params = drawn(transform)
    if isinstance(transform, ResizedCrop):  # whole factors, so that edges stay on pixels
        params = torch.tensor([[4, 2, 8, 8], [0, 8, 4, 8], [0, 0, 16, 16], [8, 8, 8, 2]] * 10)
    found = move(transform, "objects", boxes, params)
    for number in range(3):
        filled = torch.zeros(40, RES, RES)
        for image, (left, top, right, bottom, _) in enumerate(boxes[:, number].tolist()):
            if not math.isnan(left):
                filled[image, int(top) : int(bottom), int(left) : int(right)] = 1
        filled = transform.apply(filled, params)
        for image in range(40):
            box = found[image, number]
            if not filled[image].any():
                assert box.isnan().all()
                continue
            rows, columns = filled[image].nonzero().T
            label = boxes[image, number, 4]
            equal(box, torch.tensor([columns.min(), rows.min(), columns.max() + 1,
                                     rows.max() + 1, label]).float())  # fmt: skip


@pytest.mark.parametrize("transform", GEOMETRY)
@pytest.mark.parametrize("name", ["parts", "heat", "flow", "facing"])
def test_maps_against_a_loop(transform, name):
    values = KINDS[name].loaded(torch.from_numpy(made(12)[name]).to(getattr(
        torch, KINDS[name].stored)))  # fmt: skip
    params = drawn(transform, 12)
    found = move(transform, name, values, params)
    assert found.dtype == values.dtype
    matrix, _ = transform.affine(params, RES, RES)
    expected = torch.full_like(values, KINDS[name].unknown)
    for image in range(12):
        for row in range(RES):
            for column in range(RES):
                x, y = source_of(transform, params[image], column + 0.5, row + 0.5)
                if 0 <= x < RES and 0 <= y < RES:
                    old = values[image, ..., math.floor(y), math.floor(x)]
                    expected[image, ..., row, column] = turned(name, old, matrix[image])
    equal(found, expected)


def turned(name, value, matrix):
    """A displacement or normal after its image was changed by `matrix` (x right, y down)."""
    if name == "flow":
        return matrix @ value
    if name == "facing":
        x, y, z = value.tolist()
        right, down = (matrix.sign() @ torch.tensor([x, -y], dtype=torch.float32)).tolist()
        return torch.tensor([right, -down, z], dtype=value.dtype)
    return value


def test_displacements_follow_the_second_frame():
    """What moves by the flow between two frames does so between the changed frames."""
    start = torch.rand(40, 1, 2, generator=generator(1)) * 8 + 4
    flow = torch.randn(40, 2, 1, 1, generator=generator(2)).expand(-1, -1, RES, RES)
    end = start + flow[:, None, :, 0, 0]
    for transform in GEOMETRY:
        params = drawn(transform)
        first, second = (transform.move(p, params, Target("points"), (RES, RES))
                         for p in (start, end))  # fmt: skip
        moved = move(transform, "flow", flow, params)
        kept = ~(first.isnan() | second.isnan()).flatten(1).any(1)
        there = moved[:, :, 8, 8]  # the same at all places; NaN in a pad
        equal(first[kept, 0] + there[kept], second[kept, 0])
        assert kept.sum() > 10


def test_the_pipeline_moves_all_kinds_in_its_order():
    kinds = {name: kind for name, kind in KINDS.items() if name != "heading"}
    info = DataInfo(3, RES, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {},
                    dict.fromkeys(kinds, 0), kinds=kinds)  # fmt: skip
    images = torch.zeros(40, 3, RES, RES, dtype=torch.uint8)
    values = {name: torch.from_numpy(made(40)[name]) for name in kinds}
    augmentation = augment(info, True, transform_targets=True)
    _, moved = augmentation(images, values, generator(4), views=2)
    params = augmentation.draw(40, RES, RES, generator(4), CPU)
    for name, value in values.items():
        for key in ("flip", "crop"):
            value = augmentation.transforms[key].move(
                value, params[key], kinds[name], (RES, RES)
            )
        equal(moved[name], value)
    for name in ("tags", "ages"):
        assert torch.equal(moved[name], values[name])


# ---- refused --------------------------------------------------------------------------------


def info_of(**kinds):
    targets = {name: kind.classes for name, kind in kinds.items()}
    return DataInfo(3, RES, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {}, targets, kinds=kinds)


@pytest.mark.parametrize("name", ["corners", "objects", "parts", "heat", "flow", "facing"])
def test_images_may_not_move_away_from_any_place(name):
    message = rf"augment.flip = True moves .* \({name}\): set augment.transform_targets = True"
    with pytest.raises(UserError, match=message):
        augment(info_of(**{name: KINDS[name]}), True)
    still: dict = dict(flip=False, crop=False)
    augment(info_of(**{name: KINDS[name]}), True, **still)
    augment(info_of(**{name: KINDS[name]}), False)


ALONE = {"flip": Flip(), "crop": PadCrop(), "resized_crop": ResizedCrop(), "cutout": Cutout()}


@pytest.mark.parametrize("kind, refused", [
    (Target("angle"), {"flip", "resized_crop"}),
    (Target("vector"), {"flip", "crop", "resized_crop"}),
    (Target("angle", invariant=True), set()),
    (Target("vector", invariant=True), set()),
    (Target("class", classes=2), set()),
    (Target("labels", classes=2), set()),
])  # fmt: skip
def test_numbers_that_lose_their_meaning_are_refused(kind, refused):
    for argument in ALONE:
        options: dict = dict.fromkeys(("flip", "crop", "cutout"), False) | {argument: True}
        if argument not in refused:
            augment(info_of(it=kind), True, **options)
            continue
        message = (
            rf"augment.{argument} = True changes what the target 'it' \({kind.kind}\) .*"
            f"set augment.{argument} = False, .*BaseDataset.targets.*invariant"
        )
        with pytest.raises(UserError, match=message):
            augment(info_of(it=kind), True, transform_targets=True, **options)


def test_rotation_refuses_what_it_cannot_turn():
    registry.discover()
    task = registry.get("task", "RotateTask")
    with pytest.raises(UserError, match="RotateTask turns the images.*'heading'"):
        task(info_of(heading=Target("angle")))
    task(info_of(heading=Target("angle", invariant=True), corners=KINDS["corners"]))


# ---- misc/data.py ---------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """Registers data sets for one test."""
    registry.discover()
    known = dict(registry._known["dataset"])
    monkeypatch.setitem(registry._known, "dataset", known)
    return lambda cls: known.setdefault("EveryDataset", cls)


def test_verify_reports_each_kind(call, registered):
    registered(Every)
    words = ("verify", "every", "-p", f"BaseDataset.input_res = {RES}",
             "BaseDataset.num_valid = 8")  # fmt: skip
    code, out, err = call(tool.main, *words)
    assert code == 0, err
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("target ")}
    assert list(lines) == list(KINDS)
    values = made()
    for name, kind in KINDS.items():
        held = values[name]
        unknown = held == -100 if kind.discrete else np.isnan(held)
        unit = {"points": 2, "boxes": 5}.get(kind.kind, 1)
        assert f"({kind.kind}): {list(held.shape)} {kind.stored}, " in lines[name]
        assert lines[name].endswith(f"{unknown.sum() // unit} of {held.size // unit} unknown")
        low, high = held[~unknown].min(), held[~unknown].max()
        assert f" {low:g} to {high:g}, mean " in lines[name] or kind.stored == "float32"
    assert out.splitlines()[-1].endswith(" ok")


BAD = {
    "tags": ((17, 2), 2, "row 17: expected 0 to 1, or -100 where it is unknown, not 2"),
    "ages": ((17, 1), np.inf, "row 17: expected a finite value or NaN, not inf"),
    "corners": ((17, 0, 1), np.nan, "row 17: expected all of it to be known, or all NaN"),
    "objects": (
        (17, 0, 2),
        -1,
        "row 17: expected a place in the image, 16 wide and 16 high",
    ),
    "parts": ((17, 3, 3), 6, "row 17: expected 0 to 5, or -100 where it is unknown, not 6"),
    "heat": ((17, 3, 3), -np.inf, "row 17: expected a finite value or NaN, not -inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_verify_names_the_row_that_cannot_be(call, registered, name):
    place, value, message = BAD[name]
    values = {name: made()[name].astype(float)}
    values[name][place] = value
    registered(type("Bad", (Every,), {
        "kinds": {name: KINDS[name]}, "values": staticmethod(lambda: values)}))  # fmt: skip
    words = ("verify", "every", "-p", f"BaseDataset.input_res = {RES}")
    code, out, err = call(tool.main, *words)
    assert code == 2 and f"\nerror: target '{name}', {message}" in err, err


@pytest.mark.parametrize("box, message", [
    ((3, 3, 3, 9, 0), "expected left < right"), ((3, 3, 5, 9, 4), "expected a class of 0 to 3"),
    ((3, 3, 5, 9, 1.5), "expected a class"),
])  # fmt: skip
def test_boxes_that_cannot_be(box, message):
    values = torch.full((9, 3, 5), math.nan)
    assert "nothing known" in check("it", KINDS["objects"], values, (RES, RES))
    values[4, 1] = torch.tensor(box)
    with pytest.raises(UserError, match=f"row 4.*{message}"):
        check("it", KINDS["objects"], values, (RES, RES))


def tile(sheet, block, column=0, line=0, across=1):
    """A picture of the sheet; all blocks are `ACROSS` pictures wide."""
    pitch = tool.TILE * across + tool.EDGE
    left = tool.LABEL + block * (tool.ACROSS * pitch + tool.GAP) + column * pitch
    top = tool.LINE + line * (tool.TILE + tool.EDGE)
    return sheet[top : top + tool.TILE, left : left + tool.TILE * across]


def drawn_sheet(call, data_dir, *more):
    words = ("show", "every", "-o", data_dir / "sheet.png", "-p",
             f"BaseDataset.input_res = {RES}", "augment.color_jitter = False",
             "augment.grayscale = False", "augment.cutout = False", *more)  # fmt: skip
    code, out, err = call(tool.main, *words)
    assert code == 0, err
    return np.asarray(Image.open(data_dir / "sheet.png")), out


def test_the_sheet_shows_points_and_boxes_where_they_are(call, registered, data_dir):
    corners = np.full((ROWS, 1, 2), 4.0)
    objects = np.tile(np.array([8, 8, 14, 12, 2.0]), (ROWS, 1, 1))
    kinds = {"corners": Target("points"), "objects": Target("boxes", classes=4)}
    values = {"corners": corners, "objects": objects}
    registered(type("Some", (Every,), {"kinds": kinds, "values": staticmethod(lambda: values)}))
    sheet, out = drawn_sheet(call, data_dir, "augment.crop = False")
    assert out.strip().endswith("targets: corners objects, moved: corners objects")
    scale, dot, frame = tool.TILE // RES, tuple(tool._tone(0)), tuple(tool._tone(2))
    plain, flipped = tile(sheet, 2), set()
    assert tuple(plain[4 * scale, 4 * scale]) == dot
    assert (
        tuple(plain[8 * scale, 10 * scale]) == tuple(plain[12 * scale - 1, 8 * scale]) == frame
    )
    assert tuple(plain[10 * scale, 10 * scale]) == tuple(tile(sheet, 0)[10 * scale, 10 * scale])
    for line in range(8):
        moved = tile(sheet, 3, line=line)
        at = [tuple(moved[4 * scale, column * scale]) == dot for column in (4, 12)]
        assert sum(at) == 1
        flipped.add(at.index(True))
    assert flipped == {0, 1}


def test_the_sheet_colours_maps(call, registered, data_dir):
    parts = np.zeros((ROWS, RES, RES))
    parts[:, :, 8:], parts[:, 0, 0] = 3, -100
    flow = np.zeros((ROWS, 2, RES, RES))
    flow[:, 0, 8:], flow[:, :, 0] = 2.5, np.nan
    kinds = {"parts": KINDS["parts"], "flow": KINDS["flow"]}
    values = {"parts": parts, "flow": flow}
    registered(type("Some", (Every,), {"kinds": kinds, "values": staticmethod(lambda: values)}))
    sheet, out = drawn_sheet(call, data_dir)
    assert "targets: parts | flow, moved: parts | flow" in out
    first, second = tile(sheet, 2), tile(sheet, 2, column=1)
    assert tuple(first[0, 0]) == tuple(second[0, 30]) == tool.MAGENTA
    assert tuple(first[30, 10]) == tuple(tool.PALETTE[0])
    assert tuple(first[30, 40]) == tuple(tool.PALETTE[3])
    assert tuple(second[20, 20]) == (255, 255, 255)  # nothing moves
    assert tuple(second[40, 20]) == (255, 0, 0)  # to the right


def test_the_sheet_shows_frames_side_by_side(call, registered, data_dir):
    registered(type("Some", (Every,), {
        "frames": 3, "shape": (3,), "kinds": {}, "values": dict}))  # fmt: skip
    sheet, out = drawn_sheet(call, data_dir)
    images = hdf5.open_map(data_dir / "every" / f"data_{RES}.h5", "data")
    wide = tile(sheet, 0, column=2, across=3)[:: tool.TILE // RES, :: tool.TILE // RES]
    expected = images[2].permute(2, 0, 3, 1).reshape(RES, 3 * RES, 3)
    assert np.array_equal(wide, expected.numpy())
    assert out.strip().endswith("raw, augmented")


def test_labels_and_numbers_are_written_on_the_images(call, registered, data_dir):
    registered(with_kinds(tags=KINDS["tags"], ages=KINDS["ages"], heading=KINDS["heading"]))
    sheet, out = drawn_sheet(call, data_dir)
    assert out.strip().endswith("raw, augmented, targets: tags ages heading")
    assert not np.array_equal(tile(sheet, 2), tile(sheet, 0))
    tags, numbers = torch.tensor([0, 1, -100, 1, 0]), torch.tensor([1.25, math.nan])
    assert tool._text(KINDS["tags"], tags) == "1,2?,3"
    assert tool._text(KINDS["tags"], 0 * tags) == "none"
    assert tool._text(KINDS["ages"], numbers) == "1.25 ?"
