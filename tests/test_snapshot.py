"""Snapshots are whole or absent, verified, free of code, and loaded strictly."""

import io
import json
import os
import random
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import paths
from selfstudy.storage import checkpoints, snapshot
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def exp_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXP_DIR", tmp_path / "exp")
    return tmp_path / "exp"


def state_of(number: int) -> dict:
    return {"model": {"w": torch.full((50, 7), float(number))}, "round": number}


def write(folder: Path, number: int = 1, **card) -> Path:
    snapshot.save(folder, state_of(number), f"a.b = {number}\n", {"round": number, **card})
    return folder


def forge(folder: Path, payload: bytes) -> Path:
    """A complete folder, its card in order, around any bytes."""
    write(folder)
    (folder / "snapshot").write_bytes(payload)
    card = json.loads((folder / "card.json").read_text())
    card |= {"size": len(payload), "sha256": checkpoints.sha256(folder / "snapshot")}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# ---- saving and reading ---------------------------------------------------------------------


def test_what_is_saved_comes_back(exp_dir):
    state = {
        "model": OrderedDict(
            w=torch.randn(3, 4), n=torch.tensor(7), b=torch.ones(2).bfloat16()
        ),
        "optimizer": {"state": {0: {"step": 3.0}}, "param_groups": [{"betas": (0.8, 0.999)}]},
        "none": None,
        "flag": True,
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
    }
    folder = exp_dir / "one" / "e_x" / "checkpoint_000012"
    snapshot.save(folder, state, "a.b = 1\n", {"round": 12, "metrics": {"m": float("nan")}})
    found = snapshot.Snapshot.open(folder)
    loaded = found.state()
    assert found.name == "one/e_x/checkpoint_000012" and found.config == "a.b = 1\n"
    assert found.card["round"] == 12 and found.card["metrics"] == {"m": None}
    assert found.card["size"] == (folder / "snapshot").stat().st_size
    for name, tensor in state["model"].items():
        assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(loaded["model"][name], tensor)
    assert {k: v for k, v in loaded.items() if k != "model"} == {
        k: v for k, v in state.items() if k != "model"
    }
    assert sorted(os.listdir(folder)) == ["card.json", "config.gin", "snapshot"]
    assert os.listdir(folder.parent) == ["checkpoint_000012"]


def test_states_of_optimizers_survive(exp_dir):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.8, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {"m": model.state_dict(), "o": optimizer.state_dict(), "s": schedule.state_dict()}
    snapshot.save(exp_dir / "a", state, "", {})
    loaded = snapshot.resolve("a").state()
    optimizer.load_state_dict(loaded["o"])
    for key, value in state["o"]["state"][0].items():
        assert torch.equal(value, loaded["o"]["state"][0][key])


@pytest.mark.parametrize("bad", [lambda: 0, {1, 2}, object(), __import__("numpy").float64(1)])
def test_states_that_could_not_be_read_back_are_refused_at_once(exp_dir, bad):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]"):
        snapshot.save(exp_dir / "a", {"a": [1, bad]}, "", {})
    assert not exp_dir.exists()


def test_replaces_an_old_one_and_an_empty_folder(exp_dir):
    folder = write(exp_dir / "t" / "checkpoint_000001", 1)
    write(folder, 2)
    assert torch.equal(
        snapshot.newest(exp_dir / "t").state()["model"]["w"], torch.full((50, 7), 2.0)
    )
    (exp_dir / "t" / "checkpoint_000002").mkdir()
    write(exp_dir / "t" / "checkpoint_000002", 3)
    assert snapshot.newest(exp_dir / "t").state()["round"] == 3
    assert sorted(os.listdir(exp_dir / "t")) == ["checkpoint_000001", "checkpoint_000002"]


@pytest.mark.parametrize("step", ["torch.save", "os.fsync", "os.replace"])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_the_old_one_and_nothing_partial(exp_dir, monkeypatch, step, old):
    folder = exp_dir / "t" / "checkpoint_000001"
    if old:
        write(folder, 1)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(OSError, match="No space left"):
            write(folder, 2)
    assert os.listdir(exp_dir / "t") == (["checkpoint_000001"] if old else [])
    if old:
        assert snapshot.newest(exp_dir / "t").state()["round"] == 1


def test_a_write_that_torch_reports_in_its_own_words_is_an_os_error(exp_dir, monkeypatch):
    def fail(state, file):
        file.write(b"some")
        raise RuntimeError("[enforce fail at inline_container.cc:672]")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="could not be written: is the disk full"):
        write(exp_dir / "t" / "checkpoint_000001")
    assert os.listdir(exp_dir / "t") == []


def test_a_failing_last_rename_puts_the_old_one_back(exp_dir, monkeypatch):
    folder = write(exp_dir / "t" / "checkpoint_000001", 1)
    rename = os.replace

    def fail(source, target):
        if Path(target) == folder and Path(source).suffix == ".tmp":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        write(folder, 2)
    assert snapshot.newest(exp_dir / "t").state()["round"] == 1
    assert os.listdir(exp_dir / "t") == ["checkpoint_000001"]


KILLS = """
    import os, random, signal, sys, time, warnings
    from pathlib import Path
    import torch
    import paths
    from selfstudy.storage import snapshot

    torch.set_num_threads(1)  # a fork does not take the threads along
    warnings.simplefilter("error")  # a damaged folder would warn
    paths.EXP_DIR = Path(sys.argv[1])
    trial = paths.EXP_DIR / "t"
    dice = random.Random(int(sys.argv[2]))

    def save(number, folder):
        state = {"w": torch.full((200, 200), float(number)), "round": number}
        snapshot.save(folder, state, f"n = {number}", {"round": number})

    def killed(work):
        child = os.fork()
        if child == 0:
            try:
                work()
            finally:
                os._exit(0)
        return child

    def verify():
        found = snapshot.newest(trial)
        state = found.state()
        assert found.card["round"] == state["round"] and found.config == f"n = {state['round']}"
        assert bool((state["w"] == state["round"]).all())
        return state["round"]

    def endless():  # the same folder again and again, and now and then a new one
        number = verify()
        while True:
            number += 1
            save(number, trial / f"checkpoint_{number // 4:06d}")

    save(0, trial / "checkpoint_000000")
    last = 0
    for _ in range(25):  # at random times
        child = killed(endless)
        time.sleep(dice.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert verify() >= last
        last = verify()

    def until(count):  # exactly before the count-th call that changes the disk
        left = [count]
        for name in ("open", "fsync", "replace", "rmdir", "unlink", "mkdir"):
            def step(*args, call=getattr(os, name), **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            setattr(os, name, step)
        save(last + 1, trial / f"checkpoint_{last // 4:06d}")

    count, status = 0, signal.SIGKILL
    while status == signal.SIGKILL:
        before = verify()
        _, status = os.waitpid(killed(lambda: until(count)), 0)
        assert verify() in (before, last + 1)
        count += 1
    assert status == 0 and count > 10 and verify() == last + 1
    print("points", count)
"""


@pytest.mark.slow
def test_a_kill_at_any_point_leaves_the_old_one_or_the_new_one(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLS), str(tmp_path), "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("points")


# ---- damage and malice ----------------------------------------------------------------------


def test_any_changed_byte_is_detected(exp_dir):
    folder = write(exp_dir / "a")
    whole = (folder / "snapshot").read_bytes()
    dice = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        (folder / "snapshot").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            snapshot.resolve("a").state()
    (folder / "snapshot").write_bytes(whole)
    assert snapshot.resolve("a").state()["round"] == 1


def _cut(folder):
    with open(folder / "snapshot", "r+b") as file:
        file.truncate(100)


def _link(folder):
    (folder / "snapshot").rename(folder / "other")
    (folder / "snapshot").symlink_to(folder / "other")


DAMAGE = {
    "cut": (_cut, "snapshot is damaged: it has 100 bytes of"),
    "empty": (lambda folder: (folder / "snapshot").write_bytes(b""), "it has 0 bytes of"),
    "gone": (lambda folder: (folder / "snapshot").unlink(), "snapshot is missing"),
    "linked": (_link, "not a plain file"),
    "no config": (lambda folder: (folder / "config.gin").unlink(), "config.gin"),
    "no card": (lambda folder: (folder / "card.json").unlink(), "never finished"),
    "torn card": (lambda folder: (folder / "card.json").write_text('{"a": '), "cannot be read"),
    "deep card": (lambda f: (f / "card.json").write_text("[" * 99999), "cannot be read"),
    "other card": (lambda folder: (folder / "card.json").write_text("[1]"), "is damaged"),
    "bare card": (lambda folder: (folder / "card.json").write_text("{}"), "is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_taken(exp_dir, kind):
    damage, text = DAMAGE[kind]
    write(exp_dir / "x" / "t" / "checkpoint_000009", 9)
    last = write(exp_dir / "x" / "t" / "checkpoint_000010", 10)
    damage(last)
    with pytest.raises(UserError, match=text):
        snapshot.Snapshot.open(last).state()
    with pytest.warns(UserWarning, match="checkpoint_000010.*" + text.split(":")[-1]):
        assert snapshot.newest(exp_dir / "x" / "t").card["round"] == 9
    with pytest.warns(UserWarning, match="checkpoint_000010"):
        assert snapshot.resolve("x").name == "x/t/checkpoint_000009"


def _torch_bytes(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", "b")
    return buffer.getvalue()


FORGED = {
    "text": (b"<html>not found</html>" * 50, "not a file of torch.save"),
    "any zip": (_zip_bytes(), "cannot be read"),
    "cut zip": (_torch_bytes(state_of(1))[:900], "not a file of torch.save"),
    "a list": (_torch_bytes([1, 2]), "holds a list"),
    "a model": (_torch_bytes({"model": nn.Linear(2, 2)}), "pickled code or objects"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_files_that_are_not_weights_are_refused(exp_dir, kind):
    payload, text = FORGED[kind]
    forge(exp_dir / "a", payload)
    with pytest.raises(UserError, match=text) as caught:
        snapshot.resolve("a").state()
    assert str(exp_dir / "a" / "snapshot") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_a_snapshot_is_refused_without_running(exp_dir, tmp_path):
    marker = tmp_path / "owned"
    plain_pickle = __import__("pickle").dumps(Evil(marker))
    for payload in (_torch_bytes({"model": Evil(marker)}), plain_pickle):
        forge(exp_dir / "a", payload)
        with pytest.raises(UserError, match="pickled code|not a file of torch.save"):
            snapshot.resolve("a").state()
    assert not marker.exists()


# ---- names ----------------------------------------------------------------------------------


def test_resolves_snapshots_trials_and_experiments_with_one_trial(exp_dir):
    for number in (2, 11, 9):
        write(exp_dir / "one" / "e_x_1" / f"checkpoint_{number:06d}", number)
    write(exp_dir / "one" / "handy" / "deep", 3)
    write(exp_dir / "whole", 4)
    write(exp_dir / "whole" / "e_y_1" / "checkpoint_000001", 1)
    names = {
        "one": 11,
        "one/e_x_1": 11,
        "one/e_x_1/checkpoint_000009": 9,
        "one/handy/deep": 3,
        "whole": 4,
        "whole/e_y_1": 1,
    }
    assert {name: snapshot.resolve(name).state()["round"] for name in names} == names
    assert snapshot.resolve("one").name == "one/e_x_1/checkpoint_000011"


def test_says_what_a_wrong_name_could_have_meant(exp_dir):
    for trial in ("e_a", "e_b"):
        write(exp_dir / "grid" / trial / "checkpoint_000001")
    write(exp_dir / "grid" / "xlg0010")
    (exp_dir / "new" / "e_a").mkdir(parents=True)
    (exp_dir / "new" / "e_a" / "params.json").write_text("{}")
    errors = {
        "gird": "did you mean 'grid'",
        "grid/xlg001": "did you mean 'grid/xlg0010'",
        "grid/xlg0010/deeper": "no snapshot is called",
        "grid": "2 trials: choose one.*grid/e_a.*move_snapshots.py -e grid",
        "new": "no checkpoint that is whole",
        "../x": "plain path",
        "/etc": "plain path",
        "": "plain path",
    }
    for name, text in errors.items():
        with pytest.raises(UserError, match=text):
            snapshot.resolve(name)


def test_a_link_cannot_lead_out(exp_dir, tmp_path):
    write(tmp_path / "outside")
    exp_dir.mkdir()
    (exp_dir / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out"):
        snapshot.resolve("a")


# ---- weights --------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, width: int = 4, classes: int = 3, extra: bool = False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.probe = nn.Linear(width, classes)
        if extra:
            self.head = nn.Linear(width, 1)


def never(name: str) -> bool:
    return False


def heads(name: str) -> bool:
    return not name.startswith("encoder.")


def equal(a: nn.Module, b: dict, names) -> bool:
    return all(torch.equal(a.state_dict()[name], b[name]) for name in names)


def test_strict_loading_takes_everything():
    model, source = Net(), Net().state_dict()
    source["encoder.1.num_batches_tracked"] += 5
    report = snapshot.load_weights(model, source, never)
    assert equal(model, source, source)
    assert set(report.matched) == set(source) and not report.left_out
    assert str(report) == "9 tensors loaded"


def test_what_may_stay_behind_is_reported_with_the_reason():
    source = Net(classes=5, extra=True).state_dict()
    del source["head.bias"]
    model = Net(classes=3)
    model.mlp = nn.Linear(4, 2)
    probe = model.probe.weight.clone()
    report = snapshot.load_weights(model, source, heads)
    encoder = [name for name in source if name.startswith("encoder.")]
    assert equal(model, source, encoder) and torch.equal(model.probe.weight, probe)
    assert set(report.matched) == set(encoder)
    assert report.left_out == {
        "probe.weight": "of another shape",
        "probe.bias": "of another shape",
        "mlp.weight": "start anew",
        "mlp.bias": "start anew",
        "head.weight": "left out, not in the model",
    }
    line = str(report)
    assert line.startswith("7 tensors loaded; 2 of another shape (probe.weight, probe.bias)")
    assert "1 left out, not in the model (head.weight)" in line and "\n" not in line


def test_a_partner_that_fits_is_loaded_though_it_might_stay_behind():
    model, source = Net(), Net().state_dict()
    assert snapshot.load_weights(model, source, heads).left_out == {}
    assert equal(model, source, source)


@pytest.mark.parametrize(
    "source, texts",
    [
        (Net(width=6), ["encoder.0.weight ([6, 2] in the snapshot, [4, 2] in the model)"]),
        (Net(extra=True), ["head.weight ([1, 4] in the snapshot, missing in the model)"]),
        (nn.Linear(1, 1), ["11 tensors", "missing in the snapshot", "and 8 more"]),
    ],
)
def test_a_misfit_is_an_error_that_changes_nothing(source, texts):
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        snapshot.load_weights(model, source.state_dict(), never)
    assert all(text in str(caught.value) for text in texts), str(caught.value)
    assert equal(model, before, before)


def test_parameters_are_counted_part_by_part():
    from misc import count_model_params

    model = nn.Module()
    model.encoder = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4).requires_grad_(False))
    model.probe = nn.Linear(4, 3)
    model.scale = nn.Parameter(torch.ones(5, device="meta"))
    assert count_model_params.parts(model) == [
        ("(itself)", 5, 5),
        ("encoder.0", 12, 12),
        ("encoder.1", 20, 0),
        ("probe", 15, 15),
    ]
