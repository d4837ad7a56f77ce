import threading

import gin
import h5py
import numpy as np
import pytest
import torch

import paths
from selfstudy.data.loader import Loader
from selfstudy.datasets.syn import SynDataset
from selfstudy.types import Batch

ROWS, RES = 600, 4
TRAIN = 500  # 5/6
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A file whose images tell their own row: the first pixels are row // 256, row % 256."""
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    images = np.zeros((ROWS, 3, RES, RES), np.uint8)
    images[:, :, 0, 0] = (np.arange(ROWS) // 256)[:, None]
    images[:, :, 0, 1] = (np.arange(ROWS) % 256)[:, None]
    path = tmp_path / "syn" / "lg_3222" / f"data_{RES}.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["data"] = images
        file["targets"] = (np.arange(ROWS) % 10).astype(np.int32)
    return path


def rewritten(data, **options):
    """Stores the images of that file in another way."""
    with h5py.File(data, "r+") as file:
        images = file["data"][:]
        del file["data"]
        file.create_dataset("data", data=images, **options)


@pytest.fixture(params=["mapped", "read"])
def way(request, data):
    """The same data where they can be mapped and where blocks have to be read."""
    if request.param == "read":
        rewritten(data, chunks=(50, 3, RES, RES))
    return request.param


def augmentation(images, targets, generator, views):
    """Stands in for the real one: bytes as floats, plus noise that the generator draws."""
    assert images.dtype == torch.uint8
    noise = [torch.rand(len(images), generator=generator) for _ in range(views)]
    return tuple(images.float() + draw.view(-1, 1, 1, 1) / 2 for draw in noise), targets


def make(split="train", device=CPU, **options):
    bindings = {"input_res": RES} | options.pop("base", {})
    with gin.unlock_config():
        for name, value in bindings.items():
            gin.bind_parameter(f"BaseDataset.{name}", value)
    return Loader(SynDataset(split), augmentation, device, **({"batch_size": 32} | options))


def rows_of(batches):
    """Row numbers, after checking that images and labels belong to them."""
    found = []
    for batch in batches:
        assert isinstance(batch, Batch) and batch.idxs.dtype == torch.int64
        for view in batch.views:
            pixels = view[:, 0, 0, :2].floor().long()
            assert torch.equal(pixels[:, 0] * 256 + pixels[:, 1], batch.idxs)
        assert torch.equal(batch.targets["class"], batch.idxs % 10)
        assert batch.targets["class"].dtype == torch.int64
        found.append(batch.idxs)
    return torch.cat(found).tolist()


def test_training_drops_the_incomplete_minibatch(way):
    loader = make()
    batches = list(loader)
    assert len(batches) == len(loader) == 15 and {len(b.idxs) for b in batches} == {32}
    rows = rows_of(batches)
    assert len(set(rows)) == 480 and set(rows) <= set(range(TRAIN)) and rows != sorted(rows)


def test_a_block_smaller_than_a_minibatch_is_used(way):
    loader = make(batch_size=1000)
    assert len(loader) == 1 and sorted(rows_of(loader)) == list(range(TRAIN))


@pytest.mark.parametrize("limit", [50000, 37])
def test_evaluation_sees_the_split_whole_and_in_order(way, limit):
    loader = make("valid", base={"max_images": limit})
    assert len(list(loader)) == len(loader)
    assert rows_of(loader) == list(range(500, 550))


def test_an_epoch_of_rounds_covers_each_row_once(way):
    loader = make(batch_size=1, base={"max_images": 150, "chunk_size": 10})
    assert loader.dataset.divisions == 4
    for epoch in range(2):
        rows = []
        for part in range(4):
            loader.set_round(0, 4 * epoch + part)
            block = rows_of(loader)
            assert len(block) == len(loader) <= 150
            rows += block
        assert sorted(rows) == list(range(TRAIN))


def test_randomness_depends_on_seed_round_and_split_alone(way):
    def first(seed, round, **base):
        loader = make(base={"max_images": 150, **base})
        for other in (0, 3):  # what was done before does not matter
            loader.set_round(7, other)
            next(iter(loader))
        loader.set_round(seed, round)
        return torch.cat([batch.views[0] for batch in loader])

    assert torch.equal(first(1, 5), first(1, 5))
    assert not torch.equal(first(1, 5), first(1, 9))
    assert not torch.equal(first(1, 5), first(2, 5))


def test_mapping_and_reading_give_the_same(data):
    mapped = [batch.views[0] for batch in make(base={"max_images": 150})]
    rewritten(data, compression="gzip", chunks=True)
    read = [batch.views[0] for batch in make(base={"max_images": 150})]
    assert all(torch.equal(*pair) for pair in zip(mapped, read, strict=True))


@pytest.mark.parametrize("n", [0, 1, 15, 40])
def test_exactly_n_minibatches(way, n):
    loader = make()
    rows = rows_of(loader.batches(n)) if n else list(loader.batches(n))
    assert len(rows) == 32 * n
    passes = [rows[start : start + 480] for start in range(0, len(rows), 480)]
    assert all(len(set(part)) == len(part) for part in passes)
    assert len(passes) < 2 or passes[0] != passes[1]
    whole = rows_of(loader.batches(-1))
    assert n == 0 or whole[: 32 * n] == rows[:480]


def test_an_empty_split_has_no_minibatches():
    loader = make("valid", base={"num_valid": 0})
    assert len(loader) == 0 and list(loader.batches(5)) == list(loader) == []


def test_two_views(way):
    loader = make(base={"double_sample": True, "max_images": 300})
    assert loader.dataset.divisions == 4
    batch = next(iter(loader))
    assert len(batch.views) == 2 and not torch.equal(*batch.views)
    rows_of(loader)


def test_few_labels_are_visited_equally_often(way):
    loader = make(batch_size=1, base={"semisupervised": 20})
    counts = np.bincount(rows_of(loader), minlength=TRAIN)
    assert sorted(set(counts)) == [0, 25] and (counts > 0).sum() == 20


def test_shuffle_on_request(way):
    assert rows_of(make(shuffle=False)) == list(range(480))
    rows = rows_of(make("valid", shuffle=True))
    assert rows != sorted(rows) and sorted(rows) == list(range(500, 550))


def test_the_next_block_is_read_ahead_in_a_thread(data, monkeypatch):
    rewritten(data, chunks=True)
    loader = make(base={"max_images": 150}, num_workers=2)
    readers, read = [], loader.dataset.store.read
    monkeypatch.setattr(
        loader.dataset.store,
        "read",
        lambda *args: readers.append(threading.current_thread()) or read(*args),
    )
    for round in range(6):
        loader.set_round(0, round)
        rows_of(loader)
    loader._reader.coming[1].result()
    assert len(readers) == 7  # six rounds and the one ahead, none twice
    assert readers[0] is threading.main_thread()
    assert all(reader is not threading.main_thread() for reader in readers[1:])


def test_a_single_block_is_loaded_once(data, monkeypatch):
    loader = make("valid", shuffle=True)
    loader._reader.map = None
    calls, read = [], loader.dataset.store.read
    monkeypatch.setattr(
        loader.dataset.store, "read", lambda *args: calls.append(1) or read(*args)
    )
    for round in range(3):
        loader.set_round(0, round)
        rows_of(loader)
    assert len(calls) == 1


def test_no_copy_of_the_data_on_a_cpu():
    loader = make()
    block = loader._reader.block(loader.dataset.rows)
    assert block.columns["images"].shape[0] == ROWS
    assert block.columns["images"] is loader._reader.map["images"]


def test_the_loader_is_configurable_by_scope():
    gin.parse_config("train/dataloader.batch_size = 7\ndataloader.batch_size = 9")
    gin.bind_parameter("BaseDataset.input_res", RES)
    with gin.config_scope("train"):
        assert Loader(SynDataset("train"), augmentation, CPU).batch_size == 7
    with gin.config_scope("valid"):
        assert Loader(SynDataset("valid"), augmentation, CPU).batch_size == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("chunks", [None, True])
def test_a_gpu_gets_the_same_rows(data, chunks):
    rewritten(data, chunks=chunks)
    device = torch.accelerator.current_accelerator()
    loader = make(device=device, base={"max_images": 150})
    loader.augmentation = lambda images, targets, generator, views: ((images.float(),), targets)
    for round in range(5):
        loader.set_round(0, round)
        for batch in loader:
            assert batch.views[0].device.type == batch.idxs.device.type == device.type
            pixels = batch.views[0][:, 0, 0, :2].long()
            assert torch.equal(pixels[:, 0] * 256 + pixels[:, 1], batch.idxs)
