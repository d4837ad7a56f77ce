"""What is special in AMDIM, CMC and the autoencoder."""

import dataclasses
import math

import gin
import pytest
import torch
import torch.nn.functional as F
from test_dense import output
from test_losses import amdim_by_loops
from torch.distributions import Normal, kl_divergence

from selfstudy import registry
from selfstudy.methods import amdim, cmc, vae
from selfstudy.models.wrapper import Wrapper
from selfstudy.types import Batch, DataInfo, Features
from util.errors import UserError

registry.discover()
DOUBLE = torch.float64
INFO = DataInfo(3, 16, "lab", "uint8", (0.0,) * 3, (1.0,) * 3, {"train": 40}, {"class": 10})

# ---- the autoencoder ------------------------------------------------------------------------


def test_the_divergence_equals_torchs():
    mean, log_variance = (torch.randn(7, 5, dtype=DOUBLE, requires_grad=True) for _ in "ab")
    ours = vae.kl_to_normal(mean, log_variance)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(ours, theirs, rtol=1e-9)
    for found, expected in zip(
        *(torch.autograd.grad(item.sum(), (mean, log_variance)) for item in (ours, theirs)),
        strict=True,
    ):
        assert torch.allclose(found, expected, rtol=1e-9)
    assert vae.kl_to_normal(mean.bfloat16(), log_variance.bfloat16()).dtype == torch.float32


def test_the_published_weight_is_that_of_a_mean_times_the_batch():
    mean, log_variance = torch.randn(2, 512, 6)
    out = output({}, drawn=torch.randn(512, 3, 4, 4), truth=torch.randn(512, 3, 4, 4),
                      mean=mean, log_variance=log_variance)  # fmt: skip
    published = vae.VAETask(INFO, 1e-5, kl_sum_over_batch=True).pretext(None, out)
    ours = vae.VAETask(INFO, 0.00512).pretext(None, out)
    assert torch.allclose(published["loss"], ours["loss"])
    error = (out.selfsup["drawn"] - out.selfsup["truth"]).square().mean()
    total = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum()
    assert torch.allclose(published["loss"], error + 1e-5 * total)
    assert torch.allclose(ours["kl"], total / 512)


def vae_model(res=16, **options):
    gin.bind_parameter("ResNet.width", 0.125)
    gin.bind_parameter("ResNet.out_feats", 16)
    return vae.VAEModel(dataclasses.replace(INFO, input_res=res), True, **options)


def batch_of(images):
    return Batch((images,), {}, torch.arange(len(images)))


@pytest.mark.parametrize("res, maps", [(32, [4, 8, 16, 32]), (64, [4, 8, 16, 32, 64])])
def test_the_decoder_doubles_the_size_up_to_the_images(res, maps):
    decoder = vae.decoder(256, 3, res, 1.0)
    with torch.device("meta"):
        decoder.to("meta")
        image, found = torch.zeros(2, 256, 1, 1), []
        for layer in decoder:
            image = layer(image)
            if isinstance(layer, torch.nn.ReLU):
                found.append((image.shape[1], image.shape[2]))
    assert found == list(zip([256, 256, 256, 128, 64], maps, strict=False))
    assert image.shape == (2, 3, res, res)


def test_the_code_is_drawn_in_training_and_the_mean_in_evaluation():
    model, images = vae_model(), torch.randn(64, 3, 16, 16)
    codes = []
    model.decoder = torch.nn.Module()
    model.decoder.forward = lambda code: codes.append(code[:, :, 0, 0]) or code
    for training in (True, True, False):
        model.train(training)
        out = model.selfsup((model.encode(images),), batch_of(images))
        if training:
            scaled = (codes[-1] - out["mean"]) / (out["log_variance"] / 2).exp()
            assert abs(scaled.mean()) < 0.15 and abs(scaled.std() - 1) < 0.1
        else:
            assert torch.equal(codes[-1], out["mean"])
    model.do_reparameterize = False
    out = model.train().selfsup((model.encode(images),), batch_of(images))
    assert torch.equal(codes[-1], out["mean"])


def test_the_truth_is_the_image_by_nearest_neighbour():
    model, images = vae_model(32, output_res=8), torch.randn(4, 3, 32, 32)
    out = model.selfsup((model.encode(images),), batch_of(images))
    assert torch.equal(out["truth"], images[:, :, ::4, ::4])
    assert out["drawn"].shape == out["truth"].shape
    assert vae_model(28).output_res == 16


def test_erasing_puts_noise_into_a_box_of_half_of_the_images():
    images = torch.full((600, 3, 24, 24), 7.0)
    noisy = vae.erase_boxes(images)
    assert not torch.equal(noisy, vae.erase_boxes(images))
    changed = (noisy != 7).all(1)
    assert torch.equal(changed, (noisy != 7).any(1))  # in all channels
    hit = changed.flatten(1).any(1)
    assert 0.4 < hit.float().mean() < 0.6
    for hole in changed[hit]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns)
        assert all((side.nonzero().diff(dim=0) == 1).all() for side in (rows, columns))
    area = changed[hit].float().mean((1, 2))
    assert area.max() < 0.36 and 0.12 < area.mean() < 0.23
    noise = noisy[noisy != 7]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_inpainting_hides_from_the_encoder_and_not_from_the_truth():
    model, images = vae_model(inpainting=True), torch.randn(32, 3, 16, 16)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = model.selfsup((model.encode(images),), batch_of(images))
    assert not torch.equal(seen[-1], images) and torch.equal(out["truth"], images)
    model.eval().encode(images)
    assert torch.equal(seen[-1], images)


@pytest.mark.parametrize("options, text", [
    ({"output_res": 24}, "output_res = 24: expected a power of two"),
    ({"output_res": 2}, "output_res = 2: expected a power of two"),
    ({"width": 0.0}, "width = 0.0: expected a positive"),
])  # fmt: skip
def test_a_decoder_that_cannot_be_is_refused(options, text):
    with pytest.raises(UserError, match=f"VAEModel.{text}"):
        vae_model(**options)


# ---- AMDIM ----------------------------------------------------------------------------------


def two_views(res, n=4):
    views = tuple(torch.randn(2, n, 3, res, res))
    return Batch(views, {}, torch.arange(n))


@pytest.mark.parametrize("name, coarse, fine", [
    ("amdim", "block3", "block2"), ("amdim_ref", "block3", "block2"),
])  # fmt: skip
def test_maps_come_from_the_last_stages(name, coarse, fine):
    """The layer and then the average, as published; the mean commutes with the layer."""
    gin.bind_parameter("ResNet.width", 0.125)
    gin.bind_parameter("AmdimEncoder.ndf", 8)
    gin.bind_parameter("AmdimEncoder.n_rkhs", 24)
    model = registry.get("backbone", name)(dataclasses.replace(INFO, input_res=32), True)
    batch = two_views(32)
    feats = tuple(model.encode(view) for view in batch.views)
    found = model.selfsup(feats, batch)
    dims = model.out_feats
    for view in (0, 1):
        assert torch.equal(found[f"global{view}"], feats[view].pooled)
        for key, stage, layer, side in (("coarse", coarse, model.coarse, 5),
                                        ("fine", fine, model.fine, 7)):  # fmt: skip
            whole = F.adaptive_avg_pool2d(layer(feats[view].layers[stage]), side)
            assert found[f"{key}{view}"].shape == (4, dims, side**2)
            assert torch.allclose(found[f"{key}{view}"], whole.flatten(2), atol=1e-5)
    if name == "amdim_ref":
        assert feats[0].layers[coarse].shape[2] == 5 and feats[0].layers[fine].shape[2] == 7


def test_six_pairs_are_compared():
    """Three kinds of pairs both ways, the cell of 'coarse' being each image's own choice."""
    task, cells = amdim.AMDIMTask(INFO, 4.0), torch.tensor([[3, 0, 24], [7, 7, 11]])
    maps = {f"{name}{view}": torch.randn(*shape, dtype=DOUBLE, requires_grad=True)
            for view in (0, 1) for name, shape in (
                ("global", (3, 6)), ("coarse", (3, 6, 25)), ("fine", (3, 6, 49)))}  # fmt: skip
    targets = {"cell0": cells[0], "cell1": cells[1]}
    found = task.pretext(Batch((), targets, torch.arange(3)), output({}, **maps))
    nce = penalty = 0
    for a, b in ((0, 1), (1, 0)):
        one = torch.stack([maps[f"coarse{a}"][i, :, cells[a, i]] for i in range(3)])
        for source, target in ((maps[f"global{a}"], maps[f"coarse{b}"]),
                               (maps[f"global{a}"], maps[f"fine{b}"]),
                               (one, maps[f"coarse{b}"])):  # fmt: skip
            loss, weight = amdim_by_loops(source, target, 4.0)
            nce, penalty = nce + loss / 2, penalty + weight / 2
    assert torch.allclose(found["nce"], nce, rtol=1e-6)
    assert torch.allclose(found["penalty"], penalty, rtol=1e-6)
    gradients = [torch.autograd.grad(item, list(maps.values()))
                 for item in (found["loss"], nce + penalty)]  # fmt: skip
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(*gradients, strict=True))


def test_cells_are_drawn_for_each_image_and_view():
    task, batch = amdim.AMDIMTask(INFO), two_views(4, 5000)
    draw = lambda: task.prepare(batch, torch.Generator().manual_seed(3)).targets  # noqa: E731
    first, again = draw(), draw()
    assert all(torch.equal(first[key], again[key]) for key in ("cell0", "cell1"))
    assert not torch.equal(first["cell0"], first["cell1"]) and batch.targets == {}
    counts = torch.bincount(first["cell0"], minlength=25)
    assert len(counts) == 25 and counts.min() > 140


def test_a_single_view_and_a_single_image_are_refused():
    gin.bind_parameter("ResNet.width", 0.125)
    model, task = Wrapper(INFO, model_choice="amdim"), amdim.AMDIMTask(INFO)
    with pytest.raises(UserError, match="double_sample = True"):
        model(batch_of(torch.randn(2, 3, 16, 16)))
    one = task.prepare(two_views(16, 1), None)
    with torch.inference_mode():  # the last image of a validation split
        assert task.pretext(one, model.eval()(one))["loss"] == 0
    out = model(one)
    with pytest.raises(UserError, match="batch_size to 2"):
        task.pretext(one, out)


def test_an_encoder_of_one_stage_is_refused():
    gin.bind_parameter("ResNet.feat_layer", 0)
    with pytest.raises(UserError, match="maps of two stages"):
        amdim.AMDIMModel(INFO, True)


# ---- CMC ------------------------------------------------------------------------------------


def cmc_model(**options):
    gin.bind_parameter("ResNet.width", 0.125)
    gin.bind_parameter("ResNet.out_feats", 16)
    gin.bind_parameter("ResNet.is_half", True)
    return cmc.CMCModel(INFO, True, **{"nce_k": 12} | options)


def lab(n=6):
    return Batch((torch.randn(n, 3, 16, 16),), {}, torch.randperm(40)[:n])


def run(model, batch):
    return model.selfsup((model.encode(batch.views[0]),), batch)


def test_one_network_sees_lightness_and_the_other_colour():
    model, images = cmc_model().eval(), lab().views[0]
    grey, other = images.clone(), images.clone()
    grey[:, 1:], other[:, :1] = 0, 0
    whole, first, second = (model.encode(item) for item in (images, grey, other))
    for of in (lambda f: f.pooled, lambda f: f.dense, lambda f: f.layers["block1"]):
        half = of(whole).shape[1] // 2
        assert torch.equal(of(whole)[:, :half], of(first)[:, :half])
        assert torch.equal(of(whole)[:, half:], of(second)[:, half:])
        assert not torch.equal(of(whole)[:, half:], of(first)[:, half:])
    assert whole.pooled.shape == (6, 32) == (6, model.out_feats)
    conv = model.encoder.l.layers["conv"][0]
    assert conv.in_channels == 1 and conv.out_channels == 4  # half of 64 / 8


def test_colours_are_needed():
    for space, run_selfsup in (("rgb", True), ("rgb", False)):
        with pytest.raises(UserError, match="images are rgb: set CIFARDataset.to_lab or"):
            cmc.CMCModel(dataclasses.replace(INFO, space=space), run_selfsup)


@pytest.mark.parametrize("exclude", [True, False])
def test_the_loss_is_cross_entropy_of_gathered_logits(exclude, monkeypatch):
    model, batch = cmc_model(exclude_positive=exclude).double(), lab()
    batch.views = (batch.views[0].double(),)
    drawn = model.negatives(batch.idxs)
    monkeypatch.setattr(model, "negatives", lambda rows: drawn)
    feats = Features(torch.randn(6, 32, dtype=DOUBLE, requires_grad=True), None)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda item: item)  # keep the double precision
        found = model.selfsup((feats,), batch)

    light, colour = (F.normalize(part, dim=1) for part in feats.pooled.split(16, 1))
    where = torch.cat((batch.idxs[:, None], drawn), 1)
    expected = sum(
        F.cross_entropy(
            torch.einsum("bd,bkd->bk", own, bank[where]) / 0.1, torch.zeros(6, dtype=torch.long)
        )
        for own, bank in ((light, model.bank_ab), (colour, model.bank_l))
    )
    assert torch.allclose(found["loss"], expected, rtol=1e-9)
    gradients = [
        torch.autograd.grad(item, feats.pooled)[0] for item in (found["loss"], expected)
    ]
    assert torch.allclose(*gradients, rtol=1e-7, atol=1e-10)
    metrics = cmc.CMCTask(INFO).pretext(batch, output({}, **found))
    assert metrics["loss"] is found["loss"] and {"accuracy", "spread"} <= metrics.keys()


@pytest.mark.parametrize("exclude", [True, False])
def test_negatives_are_uniform_without_the_positive(exclude):
    model, rows = cmc_model(nce_k=40000, exclude_positive=exclude), torch.tensor([0, 17, 39])
    for row, drawn in zip(rows, model.negatives(rows), strict=True):
        counts = torch.bincount(drawn, minlength=40)
        assert len(counts) == 40 and (counts[row] == 0) == exclude
        counts = torch.cat((counts[:row], counts[row + 1 :]))
        assert counts.min() > 850 and counts.max() < 1200


def test_banks_begin_uniform_and_as_large_as_the_data():
    model = cmc_model()
    for bank in (model.bank_l, model.bank_ab):
        assert bank.shape == (40, 16)
        most = 1 / math.sqrt(16 / 3)
        assert 0.95 * most < bank.max() <= most and -most <= bank.min() < -0.95 * most
        assert abs(bank.norm(dim=1).mean() - 1) < 0.1
    assert cmc_model(dataset_size=70).bank_l.shape == (70, 16)


def test_a_step_moves_the_rows_of_its_images_only():
    model, batch = cmc_model(nce_m=0.4), lab()
    before = {key: item.clone() for key, item in model.named_buffers() if "bank" in key}
    found = run(model, batch)
    assert torch.equal(model.bank_l, before["bank_l"])  # not before the step
    model.after_step(0.5)
    for name in ("l", "ab"):
        old, new = before[f"bank_{name}"], getattr(model, f"bank_{name}")
        expected = old.clone()
        mixed = 0.4 * old[batch.idxs] + 0.6 * found[name].detach()
        expected[batch.idxs] = mixed / mixed.norm(dim=1, keepdim=True)
        assert torch.allclose(new, expected) and not new.requires_grad
    after = model.bank_l.clone()
    run(model.eval(), batch)
    model.after_step(0.5)
    assert torch.equal(model.bank_l, after)


def test_evaluation_compares_an_image_with_itself_and_all_rows():
    model, batch = cmc_model().eval(), lab()
    batch.idxs = batch.idxs + 1000  # rows that no bank has
    with torch.inference_mode():
        found, again = run(model, batch), run(model, batch)
    assert torch.equal(found["loss"], again["loss"])
    loss = 0
    for own, other, bank in ((found["l"], found["ab"], model.bank_ab),
                             (found["ab"], found["l"], model.bank_l)):  # fmt: skip
        positive = ((own * other).sum(1) / 0.1).exp()
        negative = (own @ bank.T / 0.1).exp().mean(1) * 12  # as if there were K of them
        loss -= (positive / (positive + negative)).log().mean()
    assert torch.allclose(found["loss"], loss, rtol=1e-5)


def test_a_bank_that_is_too_small_is_said_at_the_first_step():
    model, batch = cmc_model(dataset_size=30), lab()
    batch.idxs = torch.tensor([0, 1, 33, 2, 3, 4])
    with pytest.raises(UserError, match="have 30 rows and an image is row 33 .*semisup"):
        run(model, batch)


@pytest.mark.parametrize("options, text", [
    ({"dataset_size": 1}, "dataset_size = 1"), ({"nce_k": 0}, "nce_k = 0"),
    ({"nce_t": 0.0}, "nce_t = 0.0"), ({"nce_m": 1.0}, "nce_m = 1.0"),
])  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(options, text):
    with pytest.raises(UserError, match=f"CMCModel.{text}: expected"):
        cmc_model(**options)
