"""Log-sum-exp over a long queue of negatives without storing all logits.

The logits of 256 queries and 65,536 negatives are 64 MiB, and the plain way makes several
copies of them. Here the queue is processed in blocks: while a block's logits are in the cache,
they are added to the sum of exponentials and its gradient, which backward only scales.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits per block: 1 MiB of float32 fits a CPU's cache; a GPU needs fewer, larger kernels.
_CELLS = {"cpu": 2**18}
_CELLS_OTHER = 2**24


class _QueueSum(torch.autograd.Function):
    """Log-sum-exp over the queue, and its gradient: the softmax-weighted mean of the queue.

    Blocks are combined as in online softmax (Milakov, Gimelshein, arXiv 1805.02867).
    """

    @staticmethod
    def forward(ctx, queries: Tensor, queue: Tensor, bar: Tensor, temperature: float):
        scaled = queries / temperature
        size = max(1, _CELLS.get(queries.device.type, _CELLS_OTHER) // len(queries))
        # Buffers are reused: allocating for each block took 1.5 times as long.
        buffers = queries.new_empty(2, len(queries), min(size, len(queue)))
        parts = [_softmax(scaled, block, bar, *buffers[..., : len(block)])
                 for block in queue.split(size)]  # fmt: skip
        logsums, means, above = (torch.stack(part) for part in zip(*parts, strict=True))
        mean = (torch.softmax(logsums, 0) * means).sum(0)
        ctx.save_for_backward(mean.div_(temperature))
        above = above.sum(0)
        ctx.mark_non_differentiable(above)
        return logsums.logsumexp(0)[:, 0], above

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, None, None, None]:
        (direction,) = ctx.saved_tensors
        return grad[:, None] * direction, None, None, None


def _softmax(
    scaled: Tensor, block: Tensor, bar: Tensor, logits: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a block [n, D]: log-sum-exp [B, 1], weighted mean [B, D], count of logits >= bar [B].

    The last two arguments, [B, n], are overwritten.
    """
    torch.mm(scaled, block.T, out=logits)
    peak = logits.amax(1, True)
    torch.softmax(logits, 1, out=shares)  # takes less time than torch's exp alone
    # As floats: summing booleans takes several times as long.
    above = logits.ge_(bar).sum(1)
    # The greatest share is 1 / (sum of the exponentials, each less the greatest logit).
    return peak - shares.amax(1, True).log(), shares @ block, above


def queue_logsumexp(
    queries: Tensor, queue: Tensor, bar: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Logarithm of each query's sum over the queue of exp(query . negative / temperature).

    Args:
        queries: [B, D], of any length; the only argument that gets a gradient.
        queue: [K, D], of the queries' dtype.
        bar: [B], a logit to count against.
        temperature: T.

    Returns:
        The logarithms [B] in nats, and how many logits are at least the bar [B].
    """
    return _QueueSum.apply(queries, queue.detach(), bar.detach()[:, None], temperature)
