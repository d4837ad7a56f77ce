"""Contrastive losses, forward and backward, against lightly and plain implementations.

`python -m bench.contrastive` prints a Markdown table. All rows of a loss use the same vectors;
differing gradients are an error.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor

from bench.common import interleave, prepare, table
from selfstudy.losses.contrastive import info_nce, nt_xent

DIMS, TEMPERATURE = 128, 0.2
QUERIES, QUEUE = 256, 65536  # MoCo's
IMAGES = 512  # of NT-Xent, two views each
AGREEMENT = 1e-5  # of gradients, relative to the largest
BLOCK = 1024  # rows of the queue at a time, for the floor

Loss = Callable[[Tensor, Tensor], Tensor]


def run(quick: bool = False) -> list[tuple]:
    """Rows (what, milliseconds, ratio to ours, goal, difference of the gradients)."""
    return queue(3 if quick else 15) + batch(9 if quick else 45)


def vectors(rows: int, grad: bool = False) -> Tensor:
    """Random unit vectors [rows, DIMS]."""
    return F.normalize(torch.randn(rows, DIMS)).requires_grad_(grad)


def queue(repeats: int) -> list[tuple]:
    """InfoNCE with a queue of negatives; only the query has a gradient."""
    queries, keys, negatives = vectors(QUERIES, grad=True), vectors(QUERIES), vectors(QUEUE)
    columns = negatives.T.contiguous()  # layout of the published code
    bank = NTXentLoss(TEMPERATURE, memory_bank_size=(QUEUE, DIMS))
    bank.memory_bank.bank = negatives.clone()
    losses: dict[str, Loss] = {
        "queue, ours": lambda q, k: info_nce(F.normalize(q), k, TEMPERATURE, negatives).loss,
        "queue, clone, concatenate, cross-entropy": lambda q, k: concatenated_loss(
            q, k, columns
        ),
        "queue, lightly's memory bank": bank,
    }
    floor = functools.partial(two_products, queries, negatives)
    return compare(losses, queries, keys, floor, 3.5, repeats)


def concatenated_loss(queries: Tensor, keys: Tensor, columns: Tensor) -> Tensor:
    """MoCo's loss with all logits concatenated in one matrix; `columns` is [DIMS, QUEUE]."""
    queries = F.normalize(queries)
    positive = torch.einsum("nd,nd->n", queries, keys)[:, None]
    negative = torch.einsum("nd,dk->nk", queries, columns.clone())
    logits = torch.cat((positive, negative), 1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64))


@torch.no_grad()
def two_products(queries: Tensor, negatives: Tensor) -> None:
    """Lower bound: logits and a weighted sum of negatives, in blocks that fit the cache."""
    logits, total = torch.empty(len(queries), BLOCK), torch.zeros_like(queries)
    for block in negatives.split(BLOCK):
        torch.mm(queries, block.T, out=logits)
        total.addmm_(logits, block)


def batch(repeats: int) -> list[tuple]:
    """NT-Xent; both views have gradients."""
    z0, z1 = vectors(IMAGES, grad=True), vectors(IMAGES, grad=True)
    losses: dict[str, Loss] = {
        "NT-Xent, ours": lambda a, b: nt_xent(F.normalize(a), F.normalize(b), TEMPERATURE),
        "NT-Xent, lightly": NTXentLoss(TEMPERATURE),
    }

    @torch.no_grad()
    def products() -> None:
        rows = torch.cat((z0, z1))
        (rows @ rows.T) @ rows

    return compare(losses, z0, z1, products, 2.5, repeats)


def compare(
    losses: dict[str, Loss],
    first: Tensor,
    second: Tensor,
    floor: Callable[[], None],
    goal: float,
    repeats: int,
) -> list[tuple]:
    """Rows for the losses (ours first), their gradients, and the lower bound."""
    expected, *others = [gradient(loss, first, second) for loss in losses.values()]
    apart = [float((other - expected).abs().max() / expected.abs().max()) for other in others]
    if max(apart) > AGREEMENT:
        raise SystemExit(f"gradients differ by {max(apart):.1g}: {', '.join(losses)}")
    ours, *_ = losses
    work = {name: lambda loss=loss: gradient(loss, first, second)
            for name, loss in losses.items()}  # fmt: skip
    products = f"{ours.split(',')[0]}, floor: its two products"
    seconds = interleave(work | {products: floor}, repeats)
    goals = [""] + [f">= {goal}"] * len(others) + [""]
    rows = zip(seconds.items(), goals, ["", *apart, ""], strict=True)
    return [(name, 1e3 * value, value / seconds[ours], wanted, difference)
            for (name, value), wanted, difference in rows]  # fmt: skip


def gradient(loss: Loss, first: Tensor, second: Tensor) -> Tensor:
    """Gradient of the first argument and, if it requires one, of the second."""
    wanted = [item for item in (first, second) if item.requires_grad]
    return torch.cat(torch.autograd.grad(loss(first, second), wanted))


if __name__ == "__main__":
    print(prepare(), end="\n\n")
    print(table(run(), ("what", "ms", "ratio", "goal", "gradients differ by")))
