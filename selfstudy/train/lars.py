"""LARS: stochastic gradient descent with a rate of its own for each layer.

You, Gitman, Ginsburg, "Large batch training of convolutional networks" (arXiv 1708.03888,
algorithm 1), in the form of the contrastive family: the rate and its warm-up are inside the
momentum buffer, so that a step taken at a high rate keeps its length when the rate falls.
"""

from typing import Any, cast

import torch
from torch import Tensor

STEPS = "steps"  # key in `state` of the step count, which is saved with the buffers


class LARS(torch.optim.Optimizer):
    """Momentum over gradients that are scaled by the norms of weights and gradients.

    With the local rate r = eta |w| / (|g| + weight_decay |w|) of a parameter w, gradient g:
    buffer = momentum * buffer + lr * r * (g + weight_decay * w), then w = w - buffer. Where
    one of the norms is zero r is 1, else a weight at zero would stay there.

    A parameter group with `adapt = False` has r = 1 (biases and norms, as is usual).

    Args:
        params: parameters, or groups of them.
        lr: the rate that local rates are multiplied by.
        momentum: share of the buffer that is kept.
        weight_decay: L2 penalty; it takes part in the local rate.
        eta: trust in the local rate.
        warmup_steps: optimizer steps over which the rate grows linearly; the first one is at
            1 / warmup_steps of it. 0 has none.
        adapt: False switches the local rate off.
    """

    def __init__(
        self,
        params,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        warmup_steps: int = 0,
        adapt: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta,
                    "warmup_steps": warmup_steps, "adapt": adapt}  # fmt: skip
        for name, value in defaults.items():
            if value < 0:
                raise ValueError(f"{name} = {value} is negative")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        """One optimizer step, without a host synchronisation."""
        state = cast(dict[Any, Any], self.state)  # by parameter, and the count by its name
        state[STEPS] = steps = state.get(STEPS, 0) + 1
        for group in self.param_groups:
            params = [item for item in group["params"] if item.grad is not None]
            if params:
                self._step(params, group, steps)

    def _step(self, params: list[Tensor], group: dict, steps: int) -> None:
        """Update the parameters of one group with multi-tensor kernels."""
        decay, rate = group["weight_decay"], group["lr"]
        if group["warmup_steps"]:
            rate = rate * min(1.0, steps / group["warmup_steps"])
        grads = [item.grad for item in params if item.grad is not None]
        updates = list(torch._foreach_add(grads, params, alpha=decay))
        if group["adapt"]:
            torch._foreach_mul_(updates, local_rates(params, grads, group["eta"], decay))
        buffers = [self._buffer(item) for item in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates, alpha=rate)
        torch._foreach_sub_(params, buffers)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def local_rates(
    params: list[Tensor], grads: list[Tensor], eta: float, decay: float
) -> list[Tensor]:
    """For each parameter eta |w| / (|g| + decay |w|), 0-d; 1 where a norm is zero."""
    weights = torch.stack(torch._foreach_norm(params))
    slopes = torch.stack(torch._foreach_norm(grads))
    rates = eta * weights / (slopes + decay * weights)
    return list(torch.where((weights > 0) & (slopes > 0), rates, 1.0).unbind())
