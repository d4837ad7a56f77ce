"""The sum over a long queue of negatives, in one pass that never holds its logits.

The logits of 256 queries and 65,536 negatives are 64 MiB, and the plain way makes several
copies of them. Here the queue is read in blocks: while a block's logits are in the cache they
enter the sum of exponentials and its gradient, so that backward only scales what forward made.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits at a time: 1 MiB of float32 fits a CPU's cache; a GPU wants fewer, larger kernels.
_CELLS = {"cpu": 2**18}
_CELLS_OTHER = 2**24


class _QueueSum(torch.autograd.Function):
    """Softmax over the queue, and the mean of the queue under it, which is the gradient.

    Blocks are joined as in Milakov, Gimelshein (arXiv 1805.02867).
    """

    @staticmethod
    def forward(ctx, queries: Tensor, queue: Tensor, bar: Tensor, temperature: float):
        count, scaled = len(queries), queries / temperature
        size = max(1, _CELLS.get(queries.device.type, _CELLS_OTHER) // count)
        first, second = queries.new_empty(2, count * min(size, len(queue)))
        logsum = queries.new_full((count, 1), -torch.inf)
        above, mean = torch.zeros_like(logsum), torch.zeros_like(queries)
        for block in queue.split(size):
            shape, cells = (count, len(block)), count * len(block)
            logits, spare = first[:cells].view(shape), second[:cells].view(shape)
            torch.mm(scaled, block.T, out=logits)
            # Ones and zeros as floats: adding up booleans takes several times as long.
            above += torch.ge(logits, bar, out=spare).sum(1, True)
            # Torch's softmax takes less time than its exp. The greatest share is 1 / (sum of
            # the exponentials, each less the greatest logit).
            shares = torch.softmax(logits, 1, out=spare)
            found = logits.amax(1, True) - shares.amax(1, True).log()
            if ctx.needs_input_grad[0]:
                mean.lerp_(shares @ block, torch.sigmoid(found - logsum))
            logsum = torch.logaddexp(logsum, found)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(mean.div_(temperature))
        logsum, above = logsum[:, 0], above[:, 0]
        ctx.mark_non_differentiable(above)
        return logsum, above

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
