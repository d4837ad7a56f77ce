"""The sum over a long queue of negatives, in one pass that never holds its logits.

The logits of 256 queries and 65,536 negatives are 64 MiB, and the plain way makes several
copies of them. Here the queue is read in blocks: while a block's logits are in the cache they
enter the sum of exponentials and its gradient, so that backward only scales what forward made.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits at a time: 2 MiB of float32 fit a CPU's cache; a GPU wants fewer, larger kernels.
_CELLS = {"cpu": 2**19}
_CELLS_OTHER = 2**24


class _QueueSum(torch.autograd.Function):
    """Online log-sum-exp (Milakov, Gimelshein, arXiv 1805.02867) with its gradient."""

    @staticmethod
    def forward(ctx, queries: Tensor, queue: Tensor, bar: Tensor, temperature: float):
        count, scaled = len(queries), queries / temperature
        size = max(1, _CELLS.get(queries.device.type, _CELLS_OTHER) // count)
        logits_buffer, hits_buffer = queries.new_empty(2, count * min(size, len(queue)))
        peak = queries.new_full((count, 1), -torch.inf)
        total, above = torch.zeros_like(peak), torch.zeros_like(peak)
        mean = torch.zeros_like(queries)  # of the queue, weighted by the exponentials
        for block in queue.split(size):
            shape, cells = (count, len(block)), count * len(block)
            logits = torch.mm(scaled, block.T, out=logits_buffer[:cells].view(shape))
            # Ones and zeros as floats: adding up booleans takes as long as a tenth of the rest.
            above += torch.ge(logits, bar, out=hits_buffer[:cells].view(shape)).sum(1, True)
            higher = torch.maximum(peak, logits.amax(1, True))
            fade, peak = torch.exp(peak - higher), higher
            weights = logits.sub_(peak).exp_()
            total = total * fade + weights.sum(1, True)
            if ctx.needs_input_grad[0]:
                mean = mean.mul_(fade).addmm_(weights, block)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(mean.div_(total * temperature))
        above = above[:, 0]
        ctx.mark_non_differentiable(above)
        return (peak + total.log())[:, 0], above

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, None, None, None]:
        (direction,) = ctx.saved_tensors
        return grad[:, None] * direction, None, None, None


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
