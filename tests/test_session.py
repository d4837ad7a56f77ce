"""A session on real digits: it learns, resumes bit for bit, and obeys its settings."""

import pytest
import torch

from selfstudy import configure, registry
from selfstudy.data.loader import derived_seed
from selfstudy.storage import snapshot
from selfstudy.train.session import Session
from util.errors import UserError

pytestmark = pytest.mark.usefixtures("folders")
registry.discover()
TINY = (
    "ResNet.width = 0.125", "scheduler.milestones = [1, 4]", "session.train_iters = 6",
    "dataloader.batch_size = 32", "BaseDataset.input_res = 16",
)  # fmt: skip


def session(*params, files=("digits/r9/classify",)):
    configure.load(configure.Spec(files, (*TINY, *params)))
    return Session(torch.device("cpu"))


def numbers(result):
    return {key: item for key, item in result.items() if key not in ("images_per_s", "round_s")}


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("file", ["digits/r9/classify", "digits/r9/rotate"])
@pytest.mark.parametrize("max_images", [50000, 500])
def test_four_rounds_are_two_and_two(file, max_images, tmp_path):
    more = (f"BaseDataset.max_images = {max_images}", "session.train_iters = -1")
    whole = session(*more, files=(file,))
    results = [whole.round() for _ in range(4)]
    first = session(*more, files=(file,))
    again = [first.round() for _ in range(2)]
    snapshot.save(tmp_path / "half", first.state_dict(), "", {})
    torch.manual_seed(12345)
    second = session(*more, files=(file,))
    second.load_state_dict(snapshot.Snapshot.open(tmp_path / "half").state())
    again += [second.round() for _ in range(2)]
    assert list(map(numbers, results)) == list(map(numbers, again))
    assert same(whole.state_dict(), second.state_dict())


def test_it_learns_real_digits():
    run = session("session.train_iters = -1", "scheduler.milestones = [1, 3]")
    results = [run.round() for _ in range(3)]
    last = results[-1]
    assert last["is_finished"] and last["valid_accuracy"] > 0.9 and last["test_accuracy"] > 0.9
    assert "test_accuracy" not in results[0]
    assert last["best_accuracy"] == max(item["valid_accuracy"] for item in results)
    assert last["mean_accuracy"] == last["valid_accuracy"]


def test_it_overfits_a_few_labels():
    run = session("BaseDataset.semisupervised = 20", "session.train_iters = 60",
                  "augment.do_augment = False", "scheduler.target_lrs = 0.01")  # fmt: skip
    assert [run.round() for _ in range(3)][-1]["train_accuracy"] > 0.95


def test_seeds_change_everything_and_nothing_else_does():
    first, second = session().round(), session().round()
    other = session("session.seed = 1").round()
    assert numbers(first) == numbers(second) != numbers(other)
    assert derived_seed(0, "a") == derived_seed(0, "a") != derived_seed(0, "b")


def test_iterations_and_splits_follow_the_settings():
    run = session("session.valid_iters = 0", "session.test_iters = 2", "session.test_every = 1")
    seen = []
    result = run.round(lambda *at: seen.append(at))
    assert [at for at in seen if at[0] == "train"][-1] == ("train", 6, 6)
    assert [at for at in seen if at[0] == "test"][-1] == ("test", 2, 2)
    assert (
        "valid_accuracy" not in result and result["mean_accuracy"] == result["train_accuracy"]
    )


def test_whole_evaluation_counts_each_row_once():
    run = session()
    seen = []
    inner = run.task.evaluate
    run.task.evaluate = lambda batch, out: (
        seen.extend(batch.idxs.tolist()),
        inner(batch, out),
    )[1]
    run.model.eval()
    run._evaluate("valid", lambda *_: None)
    assert len(seen) == len(set(seen)) == run.loaders["valid"].dataset.info.rows["valid"]


def test_evaluation_leaves_no_trace():
    run = session()
    before = {name: item.clone() for name, item in run.model.state_dict().items()}
    run._evaluate("valid", lambda *_: None)
    assert same(before, run.model.state_dict())


def test_restore_session_continues_in_full(tmp_path):
    first = session()
    first.round()
    snapshot.save(tmp_path / "exp" / "one", first.state_dict(), "", {})
    second = session('session.restore_session = "one"')
    assert second.rounds_done == 1 and second.steps == 6
    assert numbers(first.round()) == numbers(second.round())
    with pytest.raises(UserError, match="did you mean 'one'"):
        session('session.restore_session = "oen"')


def test_pretrained_brings_the_encoder_and_leaves_the_probes(tmp_path):
    pretext = session(files=("digits/r9/rotate",))
    pretext.round()
    snapshot.save(tmp_path / "exp" / "rot", pretext.state_dict(), "", {})
    fine = session('Wrapper.pretrained = "rot"')
    source, target = pretext.model.state_dict(), fine.model.state_dict()
    for name, item in target.items():
        assert torch.equal(item, source[name]) is (name.startswith("backbone.encoder.")) or (
            not item.is_floating_point() or item.unique().numel() == 1
        ), name
    report = fine.model.report
    assert "2 left out, not in the model (backbone.angle.weight" in report
    assert "10 start anew" in report and "10 of its probes left out" in report
    with pytest.raises(UserError, match="does not fit the model"):
        session('Wrapper.pretrained = "rot"', "ResNet.width = 0.25")


def test_bfloat16_and_channels_last():
    run = session("session.precision = 'bfloat16'")
    result = run.round()
    assert result["train_loss"] == result["train_loss"]
    weight = run.model.backbone.encoder.layers["block2"][0].weight
    assert weight.dtype is torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_any_optimizer_and_scheduler_run():
    run = session("optimizer.optim_fn = 'AdamW'", "optimizer.lr = 0.01",
                  "scheduler.scheduler_fn = 'CosineAnnealingLR'",
                  "scheduler.arguments = {'T_max': 4}")  # fmt: skip
    rates = [run.round()["learning_rate"] for _ in range(4)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0, abs=1e-9)


def test_nothing_to_train_is_said():
    with pytest.raises(UserError, match="nothing is left to train"):
        session("Wrapper.finetune_selfsup = False", "Wrapper.run_classifier = False")
