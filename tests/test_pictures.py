"""Contact sheets and predictions of real, tiny trials."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from misc import pictures as tool
from selfstudy import configure
from selfstudy.analysis import results
from selfstudy.configure import Spec
from selfstudy.evaluate import pictures
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.trial import Trial
from util.errors import UserError

SMALL = ("BaseDataset.input_res = 16", "ResNet.width = 0.125", "session.train_iters = 2",
         "scheduler.milestones = [0.5, 1]", "session.test_iters = -1")  # fmt: skip


@pytest.fixture
def trained(folders):
    def make(name, gin, *params, overrides=None):
        spec = Spec((gin,), (*SMALL, *params))
        trial = Trial(spec, overrides or {}, folders / "exp" / name / "e_0000",
                      CheckpointPolicy({}, 0, True), device="cpu")  # fmt: skip
        trial.step()
        trial.close()
        return trial.folder

    return make


def tiles(path, rows):
    """Whether a sheet is `rows` times as wide as high, a picture about 1:1."""
    width, height = Image.open(path).size
    return round(width / height * rows / pictures.ACROSS, 1)


def test_views_and_predictions_of_a_supervised_trial(trained):
    folder = trained("first", "digits/r9/classify")
    found = {path.name: path for path in pictures.draw("first", folder)}
    assert {"views.png", "predictions.csv"} <= found.keys() and "dense.png" not in found
    assert tiles(found["views.png"], 2) == pytest.approx(1, abs=0.1)
    rows = list(csv.DictReader(found["predictions.csv"].open()))
    assert {row["split"] for row in rows} == {"test"}
    right = np.mean([row["truth"] == row["predicted"] for row in rows])
    frame = results.trials("first")
    assert right == pytest.approx(frame["test_accuracy"].iloc[0], abs=1e-6)
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in rows)
    assert len({row["row"] for row in rows}) == len(rows) == 300


def test_two_views_and_what_a_vae_draws(trained):
    folder = trained("vae", "digits/r9/vae", "VAEModel.output_res = 16")
    found = {path.name: path for path in pictures.draw("vae", folder)}
    assert tiles(found["reconstructions.png"], 2) == pytest.approx(1, abs=0.1)
    folder = trained("two", "digits/r9/simclr")
    found = {path.name: path for path in pictures.draw("two", folder)}
    assert tiles(found["views.png"], 3) == pytest.approx(1, abs=0.1)


def test_the_configuration_stays_as_it_was(trained):
    folder = trained("first", "digits/r9/classify")
    configure.load(Spec(("digits/r9/vae",), ()))
    before = configure.current_bindings()
    pictures.draw("first", folder)
    assert configure.current_bindings() == before


def test_segments_and_depths_in_their_colours():
    from selfstudy.types import Batch, Output

    truth = torch.zeros(2, 4, 4, dtype=torch.int64)
    truth[:, 2:] = 3
    logits = torch.nn.functional.one_hot(truth[:, ::2, ::2], 5).permute(0, 3, 1, 2).float()
    depth = torch.full((2, 4, 4), 2.0)
    batch = Batch((), {"segment": truth, "depth": depth}, torch.arange(2))
    out = Output({"fc/segment": logits, "fc/depth": torch.full((2, 1, 2, 2), 4.0)}, {}, None)
    real, guess, far, near = pictures._maps(batch, out)
    assert (real[0, 3, 0] == pictures.PALETTE[3]).all() and (real[0, 0, 0] == 0).all()
    assert (pictures._enlarge(guess, 4) == real).all()
    assert (far == 255).all() and (near == 255).all()  # 1 m + 4 units of 25 cm are 2 m


def test_trials_without_a_checkpoint_are_told(trained, call):
    folder = trained("first", "digits/r9/classify")
    code, out, _ = call(tool.main, "first")
    assert code == 0 and "first/e_0000/pictures/views.png" in out
    for path in folder.glob("checkpoint_*"):
        shutil.rmtree(path)
    code, _, err = call(tool.main, "first")
    assert code == 2 and "-c saves one" in err


def test_a_snapshot_that_is_none(folders):
    with pytest.raises(UserError):
        pictures.draw("nothing", folders)
