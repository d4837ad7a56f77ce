"""Several processes that train one model: they do what one does, and end together."""

import os
import signal

import gin
import h5py
import numpy as np
import pytest
import torch
from torch import nn

import paths
from selfstudy import configure, distributed, registry
from selfstudy.configure import Spec
from selfstudy.experiment.failures import is_retryable
from selfstudy.losses import contrastive, redundancy
from selfstudy.models.heads import BatchRenorm
from selfstudy.storage.retention import CheckpointPolicy
from selfstudy.tasks.base import classification_metrics, depth_errors
from selfstudy.train import processes
from selfstudy.train.processes import Workers
from selfstudy.train.session import Session
from selfstudy.trial import Trial
from selfstudy.types import IGNORED
from util.errors import UserError

CPU = torch.device("cpu")
ROWS, DIMS = 8, 6
TINY = (
    "session.train_iters = 3", "session.valid_iters = 3", "session.test_iters = 0",
    "train/dataloader.batch_size = 16", "BaseDataset.input_res = 16", "ResNet.width = 0.125",
    "optimizer.optim_fn = 'SGD'", "optimizer.momentum = 0.9", "optimizer.betas = None",
    "optimizer.eps = None", "scheduler.milestones = [1, 3]", "scheduler.target_lrs = 0.05",
)  # fmt: skip
HEADS = ("projector.hidden = 32", "projector.out = 16")
VIT = (
    "init_resnet.choice = 'vit'", "ViT.patch = 8", "ViT.width = 24", "ViT.depth = 1",
    "ViT.grid = 2", "Wrapper.run_classifier = False", "session.batch_norm = 'local'",
)  # fmt: skip


class OpenRenorm(BatchRenorm):
    """With its bounds open from the first step on."""

    def _bounds(self):
        return 3.0, 5.0


def loss_of(name, z0, z1):
    """A loss of this process's rows, as the methods compute it."""
    all0, all1, offset = distributed.gather(z0), distributed.gather(z1), distributed.offset(z0)
    if name == "nt_xent":
        return contrastive.nt_xent(z0, z1, 0.3, all0, all1, offset)
    if name == "cross_view":
        return contrastive.cross_view(z0, z1, 0.3, all0, all1, offset)
    if name == "info_nce":
        return contrastive.info_nce(z0, z1, 0.3, None, True, all1, offset).loss
    if name == "vicreg":
        return redundancy.vicreg(z0, z1, all_z0=all0, all_z1=all1)
    return redundancy.barlow_twins(z0, z1, all_z0=all0, all_z1=all1)


def trained(name, norm):
    """Value, gradients and buffers of a small float64 network's loss on this process's rows."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, ROWS, DIMS, dtype=torch.float64, generator=generator)
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(DIMS, DIMS), norm(DIMS), nn.Linear(DIMS, DIMS)).double()
    distributed.synchronise(net)
    mine = x[:, distributed.share(ROWS)]
    loss = loss_of(name, net(mine[0]), net(mine[1]))
    loss.backward()
    found = [loss.detach(), *(item.grad for item in net.parameters())]
    distributed.all_reduce_mean_(found)
    return found + list(net.buffers())


def masked(target):
    """Loss, gradient and metrics of a probe; most places count in the first rows, few later."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 5, generator=generator, requires_grad=True)
    x = torch.randn(ROWS, 5, 3, 3, generator=generator)
    truth = torch.randint(4, (ROWS, 3, 3), generator=generator)
    places = torch.rand(truth.shape, generator=generator)
    places = places < torch.linspace(1, 0.1, ROWS)[:, None, None]
    if target == "class":
        x, truth, places = x[..., 0, 0], truth[:, 0, 0], places[:, 0, 0]
    mine = distributed.share(ROWS)
    out = torch.einsum("kc,bc...->bk...", weight, x[mine])
    if target == "depth":
        metres = torch.where(places, 0.5 + truth, 0)[mine]
        loss, part, metrics = depth_errors(out[:, 0], metres, use_l2=True)
    else:
        loss, part, metrics = classification_metrics(
            out, truth.masked_fill(~places, IGNORED)[mine]
        )
    loss.backward()
    found = [loss.detach(), weight.grad]
    states = [item.state for item in (part, *metrics.values())]
    distributed.all_reduce_mean_(found + states)
    return found + [item * distributed.size() for item in states]


class Checks:
    """What the processes of `crew` do in step in `test_what_processes_say...`."""

    def __init__(self, device):
        pass

    def round(self, report=None):
        """Everything that the processes say to each other."""
        rank, size = distributed.rank(), distributed.size()
        assert size == 2 and distributed.share(9) == slice(4 * rank, 4 * rank + 4)
        rows = torch.arange(4.0)[:, None] + 10 * rank
        whole = torch.cat([torch.arange(4.0), 10 + torch.arange(4.0)])[:, None]
        assert torch.equal(distributed.gather_detached(rows), whole)
        mixed = distributed.all_to_all(rows)
        assert mixed[:, 0].tolist() == ([0, 1, 10, 11] if rank == 0 else [2, 3, 12, 13])
        assert torch.equal(distributed.all_to_all(mixed), rows)
        with pytest.raises(UserError, match="make dataloader.batch_size a multiple of 4"):
            distributed.all_to_all(rows[:3])
        some = [torch.full((3, 2), rank).float(), torch.full((), 4.0 * rank).double()]
        distributed.all_reduce_mean_(some)
        assert some[0].eq(0.5).all() and some[1] == 2
        flags = [torch.tensor([rank == 0]), torch.tensor(7 + rank)]
        distributed.broadcast_(flags)
        assert flags[0].all() and flags[1] == 7
        assert distributed.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        torch.manual_seed(3)
        drawn = distributed.draw_share(lambda n: torch.rand(n, 2), 4)
        assert torch.equal(distributed.gather_detached(drawn), self._seeded(8))
        with distributed.single_process():
            assert distributed.size() == 1 and distributed.gather(rows) is rows
            assert torch.equal(distributed.draw_share(lambda n: rows[:n], 4), rows)
        for name in ("nt_xent", "cross_view", "info_nce", "vicreg", "barlow_twins"):
            self._equal(trained, name, nn.BatchNorm1d if name == "nt_xent" else nn.LayerNorm)
        self._equal(trained, "vicreg", OpenRenorm)
        for name in ("class", "segment", "depth"):
            self._equal(masked, name)
        return {}

    @staticmethod
    def _seeded(count):
        torch.manual_seed(3)
        return torch.rand(count, 2)

    @staticmethod
    def _equal(act, *args):
        together = act(*args)
        with distributed.single_process():
            apart = act(*args)
        for ours, whole in zip(together, apart, strict=True):
            close = 1e-10 if whole.dtype == torch.float64 else 1e-6
            torch.testing.assert_close(ours, whole, rtol=close, atol=close)


@pytest.fixture(scope="module")
def held():
    """The crew that tests share, since to start one takes seconds."""
    found = []
    yield found
    for crew in found:
        crew.close()


@pytest.fixture
def crew(held, shared_data, monkeypatch):
    """Two processes; another time the same ones, if they are whole."""
    if not (held and held[0]._children):
        extra = (
            f"sys.path.insert(0, {str(paths.ROOT / 'tests')!r})\n"
            "import test_distributed\nfrom selfstudy import registry\n"
            "registry.register('job', 'checks')(test_distributed.Checks)\n"
        )
        boot = processes._BOOT.replace("processes.serve", f"{extra}processes.serve")
        monkeypatch.setattr(processes, "_BOOT", boot)
        monkeypatch.setattr(paths, "DATA_DIR", shared_data)
        held[:] = [Workers(2, "cpu")]
    return held[0]


@pytest.fixture
def free(held):
    """No crew, so that a test can have its own."""
    while held:
        held.pop().close()


@pytest.fixture(autouse=True)
def data(shared_data, monkeypatch):
    registry.discover()
    monkeypatch.setattr(paths, "DATA_DIR", shared_data)


@pytest.fixture(scope="module")
def noise(shared_data):
    """Coloured pictures, which digits are not."""
    path = shared_data / "syn" / "noise" / "data_16.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = np.random.RandomState(0).randint(
            256, size=(96, 3, 16, 16), dtype=np.uint8
        )
        file["targets"] = np.arange(96) % 10


def silent(*_):
    pass


def built(*params, file="digits/r9/classify", crew=None):
    spec = Spec((file,), (*TINY, *params))
    if crew:
        crew.build(spec, {})
    configure.load(spec)
    return Session(CPU)


def numbers(result):
    """Without times, and votes of neighbours, which turn at the least change in rounding."""
    other = ("images_per_s", "round_s", "valid_knn_accuracy")
    return {key: item for key, item in result.items() if key not in other}


def test_what_processes_say_to_each_other(crew):
    """Also: losses have, averaged, the value and gradient of the whole minibatch."""
    crew.build(Spec((), ("trial.job = 'checks'",)), {})
    crew.round(Checks(CPU), silent)


BLOBS = (
    "session.dataset = 'SynDataset'", "SynDataset.dataset_choice = 'noise'",
    "BaseDataset.num_valid = 16", "BaseDataset.predict_pose = False",
)  # fmt: skip
PROMISES = {
    "classify": (*VIT, "Wrapper.run_classifier = True", "session.batch_norm = 'sync'"),
    "rotate": VIT,
    "simclr": (*VIT, *HEADS, "projector.norm = 'ln'"),
    "moco": (*VIT, *HEADS, "MoCoModel.queue_size = 40"),
    "byol": (*VIT, *HEADS, "projector.norm = 'ln'", "predictor.hidden = 32"),
    "eqco": (*VIT, *HEADS, "MoCoModel.queue_size = 8", "MoCoTask.in_batch = True",
             "MomentumEncoder.both_as_queries = True",
             "MomentumEncoder.shuffle_batch_norm = True"),
    "simsiam": (*VIT, *HEADS, "projector.norm = 'ln'", "predictor.hidden = 16"),
    "vicreg": (*VIT, *HEADS, "projector.norm = 'ln'", "scheduler.target_lrs = 0.01"),
    "barlow": (*VIT, *HEADS, "projector.norm = 'ln'", "scheduler.target_lrs = 0.002"),
    "supcon": (*VIT, *HEADS, "projector.norm = 'ln'"),
    "swav": (*VIT, *HEADS, "projector.norm = 'ln'", "SwAVModel.prototypes = 20",
             "SwAVModel.queue_size = 24", "SwAVModel.queue_start = 0.1",
             "SwAVModel.frozen = 0"),
    "dino": (*VIT, *HEADS, "projector.norm = 'ln'", "DINOModel.outputs = 24",
             "DINOModel.frozen = 0"),
    "amdim": (*VIT, "ViT.depth = 2"),
    "cmc": (*VIT, *BLOBS, "CMCModel.nce_k = 32"),
    "vae": (*VIT, "session.batch_norm = 'sync'", "VAETask.kl_sum_over_batch = True",
            "VAETask.lmd = 0.0001"),
    "vae of images with holes": (*VIT, "session.batch_norm = 'sync'",
                                 "VAEModel.inpainting = True"),
    # Each step of this one makes ten times as much of a difference in rounding.
    "simclr with batch norm": (*HEADS, "projector.norm = 'bn'", "session.train_iters = 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMISES)
def test_two_processes_are_as_good_as_one(name, crew, noise):
    file = "syn/r9n/cmc" if name == "cmc" else f"digits/r9/{name.split()[0]}"
    together = built(*PROMISES[name], file=file, crew=crew)
    start = {key: item.clone() for key, item in together.model.named_parameters()}
    found = numbers(crew.round(together, silent))
    with distributed.single_process():
        apart = built(*PROMISES[name], file=file)
        expected = numbers(apart.round())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    ours = together.model.state_dict()
    for key, item in apart.model.state_dict().items():
        assert torch.allclose(ours[key].double(), item.double(), rtol=1e-5, atol=1e-5), key
    moved = [(item - start[key]).abs().max() for key, item in together.model.named_parameters()]
    assert max(moved) > 1e-3


LOCAL = (*HEADS, "session.batch_norm = 'local'", "projector.norm = 'bn'")


def test_batch_norm_that_stays_local_gives_other_results(crew):
    rounds = []
    for more in ((), ("MomentumEncoder.shuffle_batch_norm = True",)):
        run = built(*LOCAL, *more, file="digits/r9/moco", crew=crew)
        rounds.append(crew.round(run, silent)["train_loss"])
    with distributed.single_process():
        rounds.append(built(*LOCAL, file="digits/r9/moco").round()["train_loss"])
    assert len(set(rounds)) == 3


def test_a_resumed_run_goes_on_bit_for_bit(crew):
    more = (*LOCAL, "MomentumEncoder.shuffle_batch_norm = True", "MoCoModel.queue_size = 40")
    whole = built(*more, file="digits/r9/moco", crew=crew)
    crew.round(whole, silent)
    half = torch.utils._pytree.tree_map(
        lambda item: item.clone() if isinstance(item, torch.Tensor) else item,
        whole.state_dict(),
    )
    results = [crew.round(whole, silent) for _ in range(2)]
    again = built(*more, file="digits/r9/moco", crew=crew)
    crew.load(again, half)
    assert [numbers(crew.round(again, silent)) for _ in range(2)] == list(map(numbers, results))
    for key, item in whole.model.state_dict().items():
        assert torch.equal(item, again.model.state_dict()[key]), key


def test_population_based_training_takes_over_in_all_processes(crew):
    donor = built(crew=crew)
    crew.round(donor, silent)
    state = donor.state_dict()
    heir = built("optimizer.weight_decay = 0.01", crew=crew)
    crew.adopt(heir, state)
    assert heir.optimizer.param_groups[0]["weight_decay"] == 0.01
    result = crew.round(heir, silent)
    with distributed.single_process():
        apart = built("optimizer.weight_decay = 0.01")
        apart.adopt(state)
    assert result["round"] == 2 and apart.rounds_done == 1


def test_a_minibatch_must_be_shared_evenly(crew):
    with pytest.raises(UserError, match="= 15: 2 processes cannot share it evenly; take 14"):
        built("train/dataloader.batch_size = 15")
    gin.clear_config()
    parts = {"trial": {"processes": 4}, "train/dataloader": {"batch_size": 30}}
    with pytest.raises(UserError, match="= 30: 4 processes"):
        processes.check(parts)
    processes.check(parts | {"train/dataloader": {"batch_size": 32}})


def test_a_process_ends_with_its_parent(crew):
    (child,) = crew._children
    os.kill(child.pid, signal.SIGTERM)  # is for the first process alone
    run = built(crew=crew)
    crew.round(run, silent)
    child.stdin.close()  # as when the first process is killed
    assert child.wait(60) == 0
    child.stdin = open(os.devnull, "w")
    with pytest.raises(processes.Failed, match="process 2 of 2 ended with code 0"):
        crew.round(run, silent)
    assert not torch.distributed.is_initialized() and not crew._folder.exists()


def test_why_another_process_has_failed_is_told(free):
    crew = Workers(2, "cpu")
    run = built(crew=crew)
    crew.build(Spec(("digits/r9/classify",), ("no.such = 1",)), {})
    with pytest.raises(processes.Failed, match="process 2 of 2: -p 'no.such = 1': nothing is"):
        crew.round(run, silent)


def trial_of(count, folder, asked=()):
    """Of three rounds, in `count` processes; once `asked` is not empty it is to stop."""
    spec = Spec(("digits/r9/rotate",), (*TINY, *VIT, f"trial.processes = {count}"))
    policy = CheckpointPolicy(checkpoint_freq=1)
    return Trial(spec, {}, folder, policy, device="cpu", stopping=lambda: bool(asked))


def test_a_trial_survives_the_end_of_a_process(free, tmp_path):
    one = trial_of(1, tmp_path / "one")
    expected = [one.step() for _ in range(2)][1]
    first = trial_of(2, tmp_path / "two")
    first.step()
    first.workers._children[0].kill()
    with pytest.raises(
        processes.Killed, match=r"process 2 of 2 was killed \(SIGKILL\)"
    ) as error:
        first.step()
    assert is_retryable(error.value)
    second = trial_of(2, tmp_path / "two")  # as Ray does
    assert second.result["round"] == 1
    result = second.step()
    for key, item in numbers(expected).items():
        if key.startswith(("train_", "valid_")):
            assert result[key] == pytest.approx(item, rel=1e-4, abs=1e-5), key
    (child,) = second.workers._children
    assert second.step()["round"] == 3 and second.done
    assert child.poll() == 0 and not torch.distributed.is_initialized()
    assert "trial.processes = 2" in (second.folder / paths.CONFIG).read_text()


def test_a_trial_that_is_stopped_leaves_no_process(free, tmp_path, monkeypatch):
    monkeypatch.setattr("selfstudy.job.POLL", 0)
    asked = []
    trial = trial_of(2, tmp_path / "trial", asked)
    (child,) = trial.workers._children
    trial.step()
    for _ in range(2):
        assert trial.step(lambda *_: asked.append(1))["interrupted"]
        assert child.poll() is not None and not torch.distributed.is_initialized()
    assert trial.result["round"] == 1


def test_there_must_be_processes_and_devices(free):
    with pytest.raises(UserError, match="trial.processes = 0: expected 1 or more"):
        Workers(0, "cpu")
    if not torch.accelerator.is_available():
        with pytest.raises(UserError, match="needs as many GPUs and this trial has 0"):
            Workers(2, "cuda")
