"""Losses against independent implementations, value and gradient, and what must hold anyway."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from selfstudy.losses.banks import amdim_nce, bank_nce
from selfstudy.losses.clusters import dino, sinkhorn, swav
from selfstudy.losses.contrastive import (
    bce,
    cross_view,
    info_nce,
    inner_product,
    nt_xent,
    supervised_contrastive,
)
from selfstudy.losses.monitors import cosines, feature_std, rank_me, retrieval
from selfstudy.losses.queue import queue_logsumexp
from selfstudy.losses.redundancy import barlow_twins, byol, simsiam, vicreg
from util.errors import UserError

DOUBLE = torch.float64


def rows(*shape, unit=True, dtype=DOUBLE, grad=True):
    made = torch.randn(*shape, dtype=dtype)
    return (F.normalize(made, dim=-1) if unit else made).requires_grad_(grad)


def gradients(function, tensors):
    """The value of `function(*tensors)` and its gradients, None where there is none."""
    copies = [item.detach().clone().requires_grad_(item.requires_grad) for item in tensors]
    value = function(*copies)
    value.backward()
    return [value.detach(), *(item.grad for item in copies)]


def assert_equal(ours, theirs, tensors, rtol=1e-7):
    """Two functions of the tensors agree in value and in every gradient."""
    mine, other = gradients(ours, tensors), gradients(theirs, tensors)
    for a, b in zip(mine, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.allclose(a, b.squeeze().view_as(a), rtol, rtol * 1e-2), (a, b)


def logits_of(q, k, queue=None, in_batch=False):
    """[B, 1 + negatives], the positive first, in the plainest way."""
    listed = []
    for i in range(len(q)):
        parts = [q[i] @ k[i]]
        if in_batch:
            parts += [q[i] @ k[j] for j in range(len(k)) if j != i]
        if queue is not None:
            parts += list(queue @ q[i])
        listed.append(torch.stack(parts))
    return torch.stack(listed)


# ---- contrastive --------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("use_queue, in_batch", [(True, False), (False, True), (True, True)])
def test_info_nce_is_the_cross_entropy_of_the_logits(temperature, unit, use_queue, in_batch):
    q, k = rows(6, 8, unit=unit), rows(6, 8, unit=unit)
    queue = rows(50, 8, unit=unit, grad=False) if use_queue else None
    arguments = {"queue": queue, "in_batch": in_batch}

    def plain(q, k):
        logits = logits_of(q, k, queue, in_batch) / temperature
        return F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))

    assert_equal(lambda q, k: info_nce(q, k, temperature, **arguments).loss, plain, (q, k))
    assert torch.isfinite(plain(q, k))


@pytest.mark.parametrize("count", [1, 7, 8, 500])
def test_the_queue_is_read_in_blocks_of_any_size(monkeypatch, count):
    monkeypatch.setitem(queue_logsumexp.__globals__["_CELLS"], "cpu", 4 * 7)
    queue = rows(count, 8, unit=False, grad=False)  # in blocks of seven, the peak growing
    q, bar = rows(4, 8, unit=False), rows(4, unit=False, grad=False)
    logits = q @ queue.T / 0.3

    def fused(q):
        return (queue_logsumexp(q, queue, bar, 0.3)[0] * torch.arange(4)).sum()

    assert_equal(
        fused, lambda q: ((q @ queue.T / 0.3).logsumexp(1) * torch.arange(4)).sum(), (q,)
    )
    above = queue_logsumexp(q, queue, bar, 0.3)[1]
    assert torch.equal(above, (logits >= bar[:, None]).sum(1).to(DOUBLE))


def test_the_fused_queue_passes_gradcheck():
    queue, bar = rows(9, 5, grad=False), torch.zeros(3, dtype=DOUBLE)
    assert torch.autograd.gradcheck(
        lambda q: queue_logsumexp(q, queue, bar, 0.2)[0], rows(3, 5)
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_the_fused_queue_is_stable_in_single_precision(scale, temperature):
    """With rows of length 100 and T = .01 logits differ by a million; exp ends at 88."""
    q = rows(8, 16, dtype=torch.float32)
    k, queue = rows(8, 16, grad=False), rows(3000, 16, grad=False)
    single = info_nce(scale * q, scale * k.float(), temperature, scale * queue.float())
    single.loss.backward()
    exact = q.detach().double().requires_grad_()
    double = info_nce(scale * exact, scale * k, temperature, scale * queue)
    double.loss.backward()
    assert torch.allclose(single.loss.double(), double.loss, rtol=1e-5)
    assert torch.allclose(
        q.grad.double(), exact.grad, rtol=1e-3, atol=1e-4 * exact.grad.abs().max()
    )


def test_the_fused_queue_keeps_no_matrix_for_backward():
    q, queue = rows(4, 8), rows(5000, 8, grad=False)
    loss, _ = queue_logsumexp(q, queue, torch.zeros(4), 0.2)
    assert [tuple(item.shape) for item in loss.grad_fn.saved_tensors] == [(4, 8)]


def test_moco_equals_lightlys_memory_bank():
    from lightly.loss import NTXentLoss

    theirs = NTXentLoss(0.2, memory_bank_size=(64, 8))
    bank = rows(64, 8, grad=False)
    theirs.memory_bank.bank = bank.clone()  # rows here, columns in its answer

    def lightly(q, k):
        theirs.memory_bank.bank = bank.clone()
        return theirs(q, k)

    q, k = rows(6, 8), rows(6, 8, grad=False)
    # Lightly normalises inside, which takes the radial part out of the gradient.
    ours = lambda q, k: info_nce(F.normalize(q), k, 0.2, bank).loss  # noqa: E731
    assert_equal(ours, lightly, (q, k), 1e-6)


def test_what_info_nce_reports():
    q, queue = rows(40, 4), rows(6, 4, grad=False)
    k = F.normalize(q + 0.3 * torch.randn_like(q))
    found = info_nce(q, k, 0.2, queue, in_batch=True)
    logits = logits_of(q, k, queue, True).detach()
    place = (logits[:, 1:] >= logits[:, :1]).sum(1)
    assert 0 < found.top1 < found.top5 < 1
    assert torch.allclose(found.top1, (place < 1).float().mean())
    assert torch.allclose(found.top5, (place < 5).float().mean())
    assert torch.allclose(found.positive, logits[:, 0].mean())
    assert torch.allclose(found.negative, logits[:, 1:].mean())
    assert not any(item.requires_grad for item in found[1:])
    longer = info_nce(3 * q, 2 * k, 0.2, 5 * queue, in_batch=True)  # cosines have no length
    assert torch.allclose(longer.positive, found.positive)
    assert torch.allclose(longer.negative, found.negative)


def test_a_collapse_is_no_success():
    same = torch.ones(8, 4)
    assert info_nce(same, same, 0.2, torch.ones(9, 4), in_batch=True).top1 == 0
    assert retrieval(same, same)[0] == 0


def test_eqco_with_alpha_the_number_of_negatives_is_moco():
    q, k, queue = rows(6, 8), rows(6, 8), rows(50, 8, grad=False)
    plain = info_nce(q, k, 0.2, queue)
    with_margin = info_nce(q, k, 0.2, queue, log_margin=math.log(50 / 50))
    assert torch.equal(plain.loss, with_margin.loss)


@pytest.mark.parametrize("in_batch", [False, True])
def test_eqco_is_its_closed_form(in_batch):
    q, k, queue = rows(6, 8), rows(6, 8), rows(50, 8, grad=False)
    alpha, count = 4096, 50 + 5 * in_batch

    def closed(q, k):
        e = (logits_of(q, k, queue, in_batch) / 0.2).exp()
        return -(e[:, 0] / (e[:, 0] + alpha / count * e[:, 1:].sum(1))).log().mean()

    def ours(q, k):
        margin = math.log(alpha / count)
        return info_nce(q, k, 0.2, queue, in_batch, log_margin=margin).loss

    assert_equal(ours, closed, (q, k))


def test_info_nce_without_negatives_is_refused():
    q = rows(1, 4)
    for arguments in ({}, {"in_batch": True}, {"queue": q[:0]}):
        with pytest.raises(UserError, match="has none"):
            info_nce(q, q, 0.2, **arguments)


@pytest.mark.parametrize("use_queue, in_batch", [(True, False), (True, True), (False, False)])
def test_bce_and_inner_product_are_their_formulas(use_queue, in_batch):
    q, k = rows(6, 8), rows(6, 8)
    queue = rows(50, 8, grad=False) if use_queue else None

    def binary(q, k):
        logits = logits_of(q, k, queue, in_batch) / 0.2
        truth = torch.zeros_like(logits)
        truth[:, 0] = 1
        return F.binary_cross_entropy_with_logits(logits, truth) * logits.shape[1]

    def signed(q, k):
        logits = logits_of(q, k, queue, in_batch)
        sign = torch.ones_like(logits)
        sign[:, 0] = -1
        return (1 + sign * logits).mean()

    assert_equal(lambda q, k: bce(q, k, 0.2, queue, in_batch).loss, binary, (q, k))
    assert_equal(lambda q, k: inner_product(q, k, queue, in_batch).loss, signed, (q, k))
    for found in (bce(q, k, 0.2, queue, in_batch), inner_product(q, k, queue, in_batch)):
        if use_queue:
            expected = info_nce(q, k, 0.2, queue, in_batch)
            assert [float(x) for x in found[1:]] == [float(x) for x in expected[1:]]
        else:
            assert found.top1 is None and found.negative is None


def test_twice_the_inner_product_is_byol():
    p, z = rows(6, 8), rows(6, 8, grad=False)
    assert torch.allclose(2 * inner_product(p, z).loss, byol(p, z))


def test_nt_xent_equals_lightly_and_metric_learning():
    from lightly.loss import NTXentLoss
    from pytorch_metric_learning.losses import NTXentLoss as Metric

    views = rows(7, 8, unit=False), rows(7, 8, unit=False)
    labels = torch.arange(7).repeat(2)

    def ours(a, b):
        return nt_xent(F.normalize(a), F.normalize(b), 0.1)

    assert_equal(ours, NTXentLoss(0.1), views, 1e-6)
    assert_equal(ours, lambda a, b: Metric(0.1)(torch.cat((a, b)), labels), views, 1e-6)


def test_cross_view_is_cross_entropy_both_ways():
    truth = torch.arange(7)

    def plain(a, b):
        logits = a @ b.T / 0.1
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    assert_equal(lambda a, b: cross_view(a, b, 0.1), plain, (rows(7, 8), rows(7, 8)))
    a, b = rows(7, 8), rows(7, 8)
    both = (info_nce(x, y, 0.1, in_batch=True).loss for x, y in ((a, b), (b, a)))
    assert torch.allclose(2 * cross_view(a, b, 0.1), sum(both))


@pytest.mark.parametrize("loss", [nt_xent, cross_view])
def test_the_analytic_gradients(loss):
    a, b = rows(4, 3, unit=False), rows(4, 3, unit=False)
    assert torch.autograd.gradcheck(lambda a, b: 1.7 * loss(a, b, 0.5), (a, b))
    one_sided = gradients(lambda a, b: loss(a, b, 0.5), (a, b.detach()))
    assert one_sided[2] is None and one_sided[1].any()
    single = loss(100 * a.float(), 100 * b.float(), 0.01)
    assert torch.allclose(single.double(), loss(100 * a, 100 * b, 0.01), rtol=1e-4)


def test_nt_xent_of_an_infinite_temperature():
    assert torch.allclose(
        nt_xent(rows(9, 8), rows(9, 8), 1e9), torch.tensor(math.log(17), dtype=DOUBLE)
    )


def test_supervised_contrastive_equals_metric_learning():
    from pytorch_metric_learning.losses import SupConLoss

    z, labels = rows(2, 9, 8), torch.arange(9) % 4
    theirs = SupConLoss(0.1)

    def metric(z):
        return theirs(z.flatten(0, 1), labels.repeat(2))

    def ours(z):
        return supervised_contrastive(F.normalize(z, dim=2), labels, 0.1)

    assert_equal(ours, metric, (z,), 1e-6)


def test_supervised_contrastive_with_a_class_an_image_is_simclr():
    z = rows(2, 6, 8)
    assert torch.allclose(
        supervised_contrastive(z, torch.arange(6), 0.2), nt_xent(z[0], z[1], 0.2)
    )
    alone = gradients(lambda z: supervised_contrastive(z, torch.arange(6), 0.2), (z[:1],))
    assert alone[0] == 0 and not alone[1].any()


# ---- redundancy ---------------------------------------------------------------------------


@pytest.mark.parametrize("count, dims", [(12, 5), (5, 12)])
def test_vicreg_equals_lightly(count, dims):
    """Lightly halves the variance term: our weight w is its 2 w, or w with `halve_variance`."""
    from lightly.loss import VICRegLoss

    views = rows(count, dims, unit=False), rows(count, dims, unit=False)
    twice = VICRegLoss(25.0, 50.0, 1.0)
    assert_equal(lambda a, b: vicreg(a, b), twice, views, 1e-6)
    paper = lambda a, b: vicreg(a, b, halve_variance=True)  # noqa: E731
    assert_equal(paper, VICRegLoss(25.0, 25.0, 1.0), views, 1e-6)


def test_vicreg_of_a_whitened_batch_has_no_covariance():
    made = rows(40, 5, unit=False, grad=False)
    white = torch.linalg.qr(made - made.mean(0))[0] * math.sqrt(39)
    assert vicreg(white, white, 0.0, 0.0, 1.0).abs() < 1e-12
    assert vicreg(white, white, 25.0, 25.0, 1.0, eps=0.0).abs() < 1e-12
    assert vicreg(made, made, 0.0, 0.0, 1.0) > 1e-3


@pytest.mark.parametrize("count, dims", [(12, 5), (5, 12)])
def test_barlow_twins_equals_lightly(count, dims):
    from lightly.loss import BarlowTwinsLoss

    views = rows(count, dims, unit=False), rows(count, dims, unit=False)
    assert_equal(lambda a, b: barlow_twins(a, b), BarlowTwinsLoss(5e-3), views, 1e-5)


def test_byol_and_simsiam_equal_lightly():
    from lightly.loss import NegativeCosineSimilarity

    views = rows(6, 8, unit=False), rows(6, 8, unit=False, grad=False)
    theirs = NegativeCosineSimilarity()
    assert_equal(lambda p, z: byol(p, z), lambda p, z: 2 + 2 * theirs(p, z), views)
    assert_equal(lambda p, z: simsiam(p, z), theirs, views)
    for loss in (byol, simsiam):  # the target gets no gradient even where it wants one
        assert gradients(loss, (rows(6, 8), rows(6, 8)))[2] is None


# ---- clusters -----------------------------------------------------------------------------


def test_sinkhorn_equals_lightly_and_balances():
    from lightly.loss.swav_loss import sinkhorn as theirs

    scores = rows(30, 6, grad=False) @ rows(6, 5, grad=False)
    assert torch.allclose(sinkhorn(scores), theirs(scores))
    many = sinkhorn(scores, iterations=200)
    assert torch.allclose(many.sum(0), torch.full((5,), 30 / 5, dtype=DOUBLE), rtol=1e-3)
    assert torch.allclose(many.sum(1), torch.ones(30, dtype=DOUBLE))
    assert torch.isfinite(sinkhorn(100 * scores.float())).all()


@pytest.mark.parametrize("views", [2, 4])
def test_swav_equals_lightly(views):
    from lightly.loss import SwaVLoss

    scores = [rows(8, 5) for _ in range(views)]
    theirs = SwaVLoss()
    assert_equal(lambda *s: swav(s), lambda *s: theirs(list(s[:2]), list(s[2:])), scores, 1e-6)
    queue = [rows(11, 5, grad=False) for _ in range(2)]

    def with_queue(*s):
        return swav(s, all_scores=[torch.cat(pair) for pair in zip(s, queue, strict=False)])

    assert_equal(with_queue, lambda *s: theirs(list(s[:2]), list(s[2:]), queue), scores, 1e-6)


@pytest.mark.parametrize("views", [2, 5])
def test_dino_equals_lightly(views):
    from lightly.loss import DINOLoss

    student = [rows(6, 9, unit=False) for _ in range(views)]
    teacher = [rows(6, 9, unit=False, grad=False) for _ in range(2)]
    centre = rows(9, unit=False, grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = DINOLoss(9)

    def lightly(*student):
        theirs.center = centre.view(1, 1, 9).clone()
        return theirs(teacher, list(student), teacher_temp=0.04)

    assert_equal(lambda *s: dino(s, teacher, centre), lightly, student, 1e-6)


# ---- banks --------------------------------------------------------------------------------


def amdim_by_loops(source, target, clip=30.0):
    """Each location of an image against all locations of all other images."""
    scores = torch.einsum("id,jdl->ijl", source, target) / source.shape[1] ** 0.5
    clipped = clip * torch.tanh(scores / clip)
    losses = []
    for i in range(len(source)):
        others = torch.cat([clipped[i, j] for j in range(len(target)) if j != i])
        for location in range(target.shape[2]):
            logits = torch.cat((clipped[i, i, location].view(1), others))
            losses.append(-logits.log_softmax(0)[0])
    return torch.stack(losses).mean(), 5e-2 * scores.square().mean()


@pytest.mark.parametrize("clip", [1.0, 30.0])
@pytest.mark.parametrize("part", [0, 1])
def test_amdim_equals_naive_loops(part, clip):
    source, target = rows(4, 6, unit=False), rows(4, 6, 9, unit=False)
    ours = lambda s, t: amdim_nce(4 * s, 4 * t, clip)[part]  # noqa: E731
    theirs = lambda s, t: amdim_by_loops(4 * s, 4 * t, clip)[part]  # noqa: E731
    assert_equal(ours, theirs, (source, target), 1e-6)


def test_amdim_of_one_image_is_refused():
    with pytest.raises(UserError, match="batch_size to 2"):
        amdim_nce(rows(1, 4), rows(1, 4, 3))


def test_bank_nce_is_cross_entropy_of_gathered_rows(monkeypatch):
    monkeypatch.setitem(bank_nce.__wrapped__.__globals__, "_CELLS", 3 * 20)  # three rows a time
    feats, bank = rows(7, 8), rows(20, 8, grad=False)
    where, drawn = torch.randint(20, (7,)), torch.randint(20, (7, 30))

    def gathered(feats):
        picked = torch.cat((bank[where][:, None], bank[drawn]), 1)
        logits = torch.einsum("bd,bkd->bk", feats, picked) / 0.1
        return F.cross_entropy(logits, torch.zeros(7, dtype=torch.long))

    assert_equal(lambda f: bank_nce(f, bank, where, drawn, 0.1), gathered, (feats,))


# ---- all of them --------------------------------------------------------------------------

LABELS = torch.arange(8) % 3


def queue(like):
    """Twenty fixed rows in a dtype that goes with `like`."""
    made = torch.randn(20, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    return F.normalize(made).to(torch.promote_types(like.dtype, torch.float32))


# name -> the loss of two views' rows here (a, b), of all processes (x, y), and the offset.
GATHERED = {
    "info_nce": lambda a, b, x, y, o: info_nce(a, b, 0.2, queue(a), True, y, o).loss,
    "info_nce margin": lambda a, b, x, y, o: info_nce(a, b, 0.2, None, True, y, o, 0.7).loss,
    "bce": lambda a, b, x, y, o: bce(a, b, 0.2, queue(a), True, y, o).loss,
    "inner_product": lambda a, b, x, y, o: inner_product(a, b, queue(a), True, y, o).loss,
    "nt_xent": lambda a, b, x, y, o: nt_xent(a, b, 0.2, x, y, o),
    "cross_view": lambda a, b, x, y, o: cross_view(a, b, 0.2, x, y, o),
    "supervised_contrastive": lambda a, b, x, y, o: supervised_contrastive(
        torch.stack((a, b)), LABELS[o : o + len(a)], 0.2, torch.stack((x, y)), LABELS, o
    ),
    "vicreg": lambda a, b, x, y, o: vicreg(a, b, all_z0=x, all_z1=y),
    "barlow_twins": lambda a, b, x, y, o: barlow_twins(a, b, all_z0=x, all_z1=y),
    "byol": lambda a, b, x, y, o: byol(a, b),
    "simsiam": lambda a, b, x, y, o: simsiam(a, b),
    "swav": lambda a, b, x, y, o: swav((a, b), all_scores=(x, y), offset=o),
    "dino": lambda a, b, x, y, o: dino((a, b), (b, a), queue(a)[0]),
    "amdim": lambda a, b, x, y, o: sum(
        amdim_nce(a[:, :3], b.unflatten(1, (3, 2)), all_trg=y.unflatten(1, (3, 2)), offset=o)
    ),
    "bank_nce": lambda a, b, x, y, o: bank_nce(a, queue(a), LABELS[o : o + len(a)],
                                               LABELS[o : o + len(a), None] + 2, 0.2),
}  # fmt: skip
LOCAL = {
    "info_nce": lambda a, b: info_nce(a, b, 0.2, queue(a), True).loss,
    "info_nce margin": lambda a, b: info_nce(a, b, 0.2, None, True, log_margin=0.7).loss,
    "bce": lambda a, b: bce(a, b, 0.2, queue(a), True).loss,
    "inner_product": lambda a, b: inner_product(a, b, queue(a), True).loss,
    "nt_xent": lambda a, b: nt_xent(a, b, 0.2),
    "cross_view": lambda a, b: cross_view(a, b, 0.2),
    "supervised_contrastive": lambda a, b: supervised_contrastive(
        torch.stack((a, b)), LABELS, 0.2
    ),
    "vicreg": lambda a, b: vicreg(a, b),
    "barlow_twins": lambda a, b: barlow_twins(a, b),
    "swav": lambda a, b: swav((a, b)),
    "amdim": lambda a, b: sum(amdim_nce(a[:, :3], b.unflatten(1, (3, 2)))),
}


@pytest.mark.parametrize("name", GATHERED)
@pytest.mark.parametrize("cut", [4, 2])
def test_the_processes_average_to_the_whole_batch(name, cut):
    """Equal parts of a batch, each with its own rows, all rows, and where its own begin."""
    loss = GATHERED[name]
    whole = LOCAL.get(name, lambda a, b: loss(a, b, a, b, 0))

    def averaged(x, y):
        parts = [loss(x[o : o + cut], y[o : o + cut], x, y, o) for o in range(0, 8, cut)]
        return torch.stack(parts).mean()

    assert_equal(averaged, whole, (rows(8, 6), rows(8, 6)), 1e-9)


@pytest.mark.parametrize("name", sorted(set(GATHERED) - {"supervised_contrastive", "bank_nce"}))
def test_the_order_of_a_batch_does_not_matter(name):
    """Nor the order of its gradients; those two come with labels and indices of their own."""
    order, loss = torch.randperm(8), GATHERED[name]
    views = rows(8, 6), rows(8, 6)
    assert_equal(
        lambda a, b: loss(a[order], b[order], a[order], b[order], 0),
        lambda a, b: loss(a, b, a, b, 0),
        views,
        1e-9,
    )


@pytest.mark.parametrize("name", sorted(GATHERED))
def test_autocast_does_not_reach_the_losses(name):
    views = [F.normalize(torch.randn(8, 6)).bfloat16().float() for _ in range(2)]
    halves = [item.bfloat16() for item in views]
    plain = GATHERED[name](*views, *views, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GATHERED[name](*views, *views, 0), plain)
        found = GATHERED[name](*halves, *halves, 0)
    assert found.dtype == torch.float32 and torch.equal(found, plain)


# ---- monitors -----------------------------------------------------------------------------


def test_rank_me():
    assert torch.allclose(rank_me(torch.eye(7)), torch.tensor(7.0), rtol=1e-4)
    line = torch.randn(50, 1) @ torch.randn(1, 7)
    assert torch.allclose(rank_me(line), torch.tensor(1.0), atol=1e-3)
    made = torch.randn(60, 7, dtype=DOUBLE)
    shares = torch.linalg.svdvals(made)
    entropy = torch.distributions.Categorical(shares / shares.sum()).entropy()
    assert torch.allclose(rank_me(made), entropy.exp(), rtol=1e-4)


def test_feature_std():
    assert feature_std(torch.randn(1, 5).expand(10, 5)) < 1e-6
    assert torch.allclose(feature_std(3 * torch.randn(20000, 8)), torch.tensor(1.0), atol=0.02)


def test_cosines_and_retrieval():
    a, b = rows(9, 6, unit=False, grad=False), rows(9, 6, unit=False, grad=False)
    matrix = F.cosine_similarity(a[:, None], b[None], dim=2)
    positive, negative = cosines(a, b)
    assert torch.allclose(positive, matrix.diagonal().mean())
    assert torch.allclose(negative, matrix[~torch.eye(9, dtype=torch.bool)].mean())
    place = (matrix > matrix.diagonal()[:, None]).sum(1)
    expected = (place < 1).float().mean(), (place < 5).float().mean()
    assert retrieval(a, b) == expected
    found = [retrieval(a[o : o + 3], b[o : o + 3], b, o) for o in (0, 3, 6)]
    averaged = torch.tensor(found).mean(0)
    assert torch.allclose(averaged, torch.stack(expected))
