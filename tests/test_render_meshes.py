"""People's own meshes: five formats, ShapeNet's folders, and files of strangers."""

import json
import struct
import sys

import numpy as np
import pytest
from later import Later

from selfstudy.render import meshes
from selfstudy.render.mesh import BUCKETS, Mesh, normalise
from selfstudy.render.meshes import ENDINGS, Meshes
from util.errors import UserError

trimesh = Later("trimesh")

SOLID = trimesh.creation.cone(0.3, 1, sections=7)


def fill(folder, count=BUCKETS, ending=".off", made=SOLID) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        made.export(folder / f"{index:02}{ending}")


def corners(mesh: Mesh) -> np.ndarray:
    """Triangles in an order of their own."""
    found = mesh.vertices[mesh.faces].round(5)
    found = np.array([sorted(map(tuple, triangle)) for triangle in found.tolist()])
    return found[np.lexsort(found.reshape(len(found), -1).T)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_shape_as_it_stands(tmp_path, ending):
    fill(tmp_path / "cone", ending=ending)
    library = Meshes(tmp_path)
    expected = normalise(Mesh(np.array(SOLID.vertices), np.array(SOLID.faces)))
    found = library.make(0, 3)
    assert library.classes == ("cone",) and len(found.faces) == len(SOLID.faces)
    assert np.allclose(corners(found), corners(expected), atol=1e-5)


def test_shapenets_folders_are_understood(tmp_path):
    for kind in ("02691156", "02828884"):
        for index in range(BUCKETS + 2):
            place = tmp_path / kind / f"{index:02}aa" / "models"
            place.mkdir(parents=True)
            SOLID.export(place / "model_normalized.obj")
            (place / "model_normalized.mtl").write_text("newmtl a")
    library = Meshes(tmp_path)
    assert library.classes == ("02691156", "02828884")
    assert len(library.files["02828884"]) == BUCKETS + 2


def test_parts_of_a_scene_keep_their_places(tmp_path):
    scene = trimesh.Scene()
    for shift in (0, 5):
        moved = trimesh.transformations.translation_matrix([shift, 0, 0])
        scene.add_geometry(trimesh.creation.box(), transform=moved)
    fill(tmp_path / "pair", ending=".glb", made=scene)
    found = Meshes(tmp_path).make(0, 0)
    size = np.ptp(found.vertices, axis=0)
    assert size[0] / size[1] == pytest.approx(6)


def test_buckets_share_no_file_and_take_turns(tmp_path):
    fill(tmp_path / "cone", 30)
    library = Meshes(tmp_path)
    seen = [[library.pick(0, bucket, turn) for turn in range(6)] for bucket in range(BUCKETS)]
    assert seen[0] == [0, 12, 24, 0, 12, 24] and seen[11] == [11, 23] * 3
    assert sorted(set(sum(seen, []))) == list(range(30))


# ---- what is wrong ---------------------------------------------------------------------------


def test_too_few_models_or_no_classes_are_told(tmp_path):
    with pytest.raises(UserError, match="has 0 folders, expected one for each class"):
        Meshes(tmp_path)
    fill(tmp_path / "cone", 11)
    (tmp_path / "cone" / "empty.obj").touch()
    with pytest.raises(UserError, match=r"cone holds 11 meshes \(.*at least 12: ten to train"):
        Meshes(tmp_path)


BROKEN = {
    "text.obj": b"this is no mesh",
    "cut.glb": b"glTF\x02\x00\x00\x00",
    "nan.off": b"OFF\n3 1 0\nnan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
    "point.off": b"OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n",
    "far.off": b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n",
    "negative.ply": b"""ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
0 1 0
3 0 1 -1
""",
    "noise.stl": bytes(range(200)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_named(tmp_path, name):
    fill(tmp_path / "cone")
    (tmp_path / "cone" / f"00{name}").write_bytes(BROKEN[name])
    library = Meshes(tmp_path)
    files = [path.name for path in library.files["cone"]]
    with pytest.raises(UserError, match=f"00{name} is not a readable mesh") as told:
        library.make(0, files.index(f"00{name}"))
    assert "\n" not in told.value.text


def test_a_mesh_that_is_too_large_is_refused(tmp_path, monkeypatch):
    fill(tmp_path / "cone")
    monkeypatch.setattr(meshes, "MOST_FACES", 5)
    with pytest.raises(UserError, match="has 14 faces, expected at most 5: decimate it"):
        Meshes(tmp_path).make(0, 0)
    monkeypatch.setattr(meshes, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="is larger than 0 MB"):
        Meshes(tmp_path).make(0, 1)


def test_a_small_file_that_places_a_part_too_often_is_refused(tmp_path, monkeypatch):
    scene = trimesh.Scene(SOLID)
    (name,) = scene.geometry
    for index in range(99):
        scene.graph.update(f"again{index}", geometry=name)
    fill(tmp_path / "cone", ending=".glb", made=scene)
    monkeypatch.setattr(meshes, "MOST_FACES", 1399)
    monkeypatch.setattr(trimesh.Scene, "to_mesh", lambda scene: pytest.fail("put together"))
    with pytest.raises(UserError, match="has 1400 faces, expected at most 1399"):
        Meshes(tmp_path).make(0, 0)


def test_without_trimesh_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    fill(tmp_path / "cone")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(UserError, match="pip install trimesh"):
        Meshes(tmp_path).make(0, 0)


# ---- strangers' files ------------------------------------------------------------------------


def test_links_that_lead_out_of_a_class_are_left_out(tmp_path):
    fill(tmp_path / "shapes" / "cone")
    SOLID.export(tmp_path / "secret.off")
    (tmp_path / "shapes" / "cone" / "link.off").symlink_to(tmp_path / "secret.off")
    assert len(Meshes(tmp_path / "shapes").files["cone"]) == BUCKETS


def test_nothing_that_a_file_refers_to_is_opened(tmp_path, monkeypatch):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(struct.pack("<9f", *range(9)))
    fill(tmp_path / "shapes" / "cone")
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": "../../secret.bin", "byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}], "scene": 0,
    }  # fmt: skip
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text), len(text), 0x4E4F534A)
    (tmp_path / "shapes" / "cone" / "00a.glb").write_bytes(header + text)
    (tmp_path / "shapes" / "cone" / "00b.obj").write_text(
        "mtllib ../../secret.bin\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl a\nf 1 2 3\n"
    )
    opened = []
    sys.addaudithook(
        lambda event, args: opened.append(str(args[0])) if event == "open" else None
    )
    library = Meshes(tmp_path / "shapes")
    names = [path.name for path in library.files["cone"]]
    with pytest.raises(UserError, match="it needs another file, '../../secret.bin'"):
        library.make(0, names.index("00a.glb"))
    assert len(library.make(0, names.index("00b.obj")).faces) == 1
    assert not any("secret" in name for name in opened)
