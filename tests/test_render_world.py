"""Worlds: what a picture depends on, what its labels say, and what must not tell the class."""

import colorsys
import dataclasses
import pickle

import numpy as np
import pytest
from later import Later

import paths
from selfstudy.render import patterns, textures, world
from selfstudy.render.mesh import BUCKETS
from selfstudy.render.scene import CAMERA
from selfstudy.render.shade import colour
from selfstudy.render.textures import Bank
from selfstudy.render.world import VARIANTS, World, configuration
from util.errors import UserError

LogisticRegression = Later("sklearn.linear_model", "LogisticRegression")

RES = 24
SOME = range(0, 40)


@pytest.fixture(scope="module")
def few() -> Bank:
    """Four textures a bucket, in the place of all of them."""
    return Bank(np.stack([patterns.make(number) for number in range(4 * BUCKETS)]))


@pytest.fixture
def made(few, monkeypatch, tmp_path):
    """A function that makes a world with few textures."""
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    monkeypatch.setattr(textures, "procedural", lambda cache: few)
    return World


def same(one: dict, two: dict, but: tuple[str, ...] = ()) -> None:
    for name in one.keys() - set(but):
        assert np.array_equal(one[name], two[name]), name


@pytest.mark.parametrize("settings", [{}, {"objects": 4, "pairs": True}], ids=["one", "four"])
def test_a_picture_depends_on_its_number_alone(made, settings):
    first, second = made(**settings), pickle.loads(pickle.dumps(made(**settings)))
    ahead = [first.picture(number, RES) for number in (3, 17, 4)]
    back = [second.picture(number, RES) for number in (4, 17, 3)][::-1]
    for one, two in zip(ahead, back, strict=True):
        same(one, two)
    assert not np.array_equal(ahead[0]["data"], ahead[1]["data"])
    other = made(seed=1, **settings).picture(3, RES)
    assert not np.array_equal(ahead[0]["data"], other["data"])


@pytest.mark.parametrize("settings", [{}, {"objects": 3, "pairs": True}], ids=["one", "three"])
def test_arrays_are_as_announced_and_agree_with_each_other(made, settings):
    place = made(**settings)
    count = settings.get("objects", 1)
    for number in range(5):
        found = place.picture(number, RES)
        announced = place.arrays(RES)
        assert found.keys() == announced.keys()
        for name, (shape, kind) in announced.items():
            assert (found[name].shape, found[name].dtype) == (shape, kind), name
        labels = np.atleast_1d(found["object_class" if count > 1 else "targets"])
        on = found["instance"] > 0
        assert on.any() and found["instance"].max() <= count
        owner = found["instance"][on] - 1
        assert np.array_equal(found["segment"][on], labels[owner] + 1)
        assert not found["segment"][~on].any() and not found["depth"][~on].any()
        assert not found["normals"][:, ~on].any() and (found["depth"][on] > 0.3).all()
        length = np.linalg.norm(found["normals"][:, on] / 127.0, axis=0)
        assert np.abs(length - 1).max() < 0.02
        for index, box in enumerate(found["box"].reshape(count, 4)):
            rows, columns = np.nonzero(found["instance"] == index + 1)
            if len(rows):
                assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1,
                                        rows.max() + 1]  # fmt: skip
            else:
                assert not box.any()


def test_labels_can_be_left_out(made):
    found = made(labels=["segment"]).picture(0, RES)
    assert "segment" in found and not {"depth", "normals", "instance"} & found.keys()


# ---- factors ---------------------------------------------------------------------------------


FACTORS = {
    "T": lambda scene: scene.bodies[0].texture,
    "V": lambda scene: scene.bodies[0].rotation,
    "L": lambda scene: scene.light,
}


@pytest.mark.parametrize("bits", ["0000", "1000", "0100", "0010", "0001", "1111"])
def test_what_is_off_stays_and_what_is_on_varies(made, bits):
    place = made(bits)
    on = {factor for factor, bit in zip("TCVL", bits, strict=True) if bit == "1"}
    scenes = [place.scene(number) for number in SOME]
    for factor, read in FACTORS.items():
        values = {np.asarray(read(scene)).tobytes() for scene in scenes}
        assert (len(values) > 1) == (factor in on), factor
    # Colour: without the factor the class has its own hue.
    hues = [colorsys.rgb_to_hsv(*scene.bodies[0].color)[0] for scene in scenes]
    labels = np.array([scene.bodies[0].label for scene in scenes])
    away = np.abs((np.array(hues) - labels / 10 + 0.5) % 1 - 0.5)
    assert (away < 0.025).all() == ("C" not in on)


@pytest.mark.parametrize("factor", "TCVL")
def test_a_factor_changes_nothing_but_itself(made, factor):
    bits = "".join(str(int(factor == each)) for each in "TCVL")
    depends = {
        "T": ("texture", "back_texture"),
        "C": ("color",),
        "V": ("rot_mat", "bbox", "box", "instance", "segment", "depth", "normals"),
        "L": ("light",),
    }
    for number in SOME[:3]:
        off, on = made("0000").picture(number, RES), made(bits).picture(number, RES)
        same(off, on, but=(*depends[factor], "data"))
        assert not np.array_equal(off["data"], on["data"])


def test_grey_colours_are_grey(made):
    found = made("0100", grey=True).picture(1, RES)
    assert len(set(found["color"].tolist())) == len(set(found["back_color"].tolist())) == 1
    spread = np.ptp(found["data"].astype(int), axis=0)
    assert spread.max() <= 1


# ---- buckets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [1, 4])
def test_buckets_share_no_shape_and_no_texture(made, objects):
    place = made(objects=objects)
    shapes, patterns = {}, {}
    for number in range(240):
        for chosen in place.models(number):
            shapes.setdefault(chosen, set()).add(number % BUCKETS)
    for number in range(60):
        scene = place.scene(number)
        for texture in [scene.backdrop.texture, *(body.texture for body in scene.bodies)]:
            patterns.setdefault(texture, set()).add(number % BUCKETS)
    assert all(len(found) == 1 for found in (*shapes.values(), *patterns.values()))
    assert len(patterns) > BUCKETS


def test_classes_are_balanced_in_every_bucket_and_a_shape_returns_ten_times(made):
    place = made("0000")
    for bucket in (0, 11):
        numbers = range(bucket, 12 * 200, BUCKETS)
        chosen = [place.models(number)[0] for number in numbers]
        counts = np.bincount([label for label, _ in chosen])
        assert (counts == 20).all()
        times = {each: chosen.count(each) for each in chosen}
        assert set(times.values()) == {world.REUSE}
        orders = {tuple(label for label, _ in chosen[at : at + 10]) for at in range(0, 200, 10)}
        assert len(orders) == 20


# ---- what must not tell the class ------------------------------------------------------------

SHOWN = 1000


@pytest.mark.parametrize("bits", ["1111", "0000"])
def test_no_class_can_be_told_from_the_background_or_the_order(made, bits):
    place = made(bits)
    scenes = [place.scene(number) for number in range(SHOWN)]
    labels = np.array([scene.bodies[0].label for scene in scenes])
    empty = [dataclasses.replace(scene, bodies=()) for scene in scenes]
    pictures = np.stack([colour(scene, CAMERA, 8, place.bank) for scene in empty])
    order = np.arange(SHOWN)[:, None] // BUCKETS % np.array([2, 3, 5, 7, 10, 20])
    places = np.eye(20)[order].reshape(SHOWN, -1)
    half = np.random.default_rng(0).permutation(SHOWN) < SHOWN // 2
    for features in (pictures.reshape(SHOWN, -1) / 255.0, places):
        scores = []
        for fit in (half, ~half):
            probe = LogisticRegression(C=0.01, max_iter=100)
            probe.fit(features[fit], labels[fit])
            scores.append(probe.score(features[~fit], labels[~fit]))
        assert np.mean(scores) <= 0.13


# ---- names and mistakes ----------------------------------------------------------------------


def test_names_of_variants():
    assert len(VARIANTS) == 13
    for name in VARIANTS:
        assert configuration(name) == name
    assert configuration("xlg0010") == configuration("lg0010") == "0010"
    assert configuration("TCVL") == "1111" and configuration("1010") == "1010"
    for name in ("lg_3222", "tiny", "0002", "xxlg0010", "", "TCVL-", "10", "xlgTCVL"):
        assert configuration(name) is None


MISTAKES = [
    ({"factors": "12"}, "render.factors: '12' is not four bits, such as '1010'"),
    ({"objects": 0}, "render.objects = 0: expected 1 to 100"),
    ({"seed": -1}, "render.seed = -1: expected 0 to"),
    ({"labels": ["depht"]}, "render.labels: no labels are called depht"),
    ({"factors": "0000", "textures": "x"}, "'0000' have no textures"),
]


@pytest.mark.parametrize("settings, message", MISTAKES, ids=str)
def test_mistakes_are_told(made, settings, message):
    with pytest.raises(UserError) as told:
        made(**settings)
    assert message in told.value.text


@pytest.mark.parametrize("name", ["meshes", "textures"])
def test_a_missing_folder_is_told(made, name):
    with pytest.raises(UserError, match=f"render.{name} = 'none': no folder "):
        made(**{name: "none"}).recipe()


def test_the_recipe_tells_worlds_apart(made, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"x")
    settings = [{}, {"seed": 1}, {"factors": "1110"}, {"objects": 2}, {"pairs": True},
                {"labels": ["depth"]}, {"grey": True}, {"view_spread": 0.1},
                {"textures": "pictures"}]  # fmt: skip
    recipes = [made(**each).recipe() for each in settings]
    (tmp_path / "pictures" / "a.png").write_bytes(b"xy")
    recipes.append(made(textures="pictures").recipe())
    assert len({repr(recipe) for recipe in recipes}) == len(recipes)
    assert made().recipe() == made().recipe()
