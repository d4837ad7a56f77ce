"""Sums of metrics that stay on the device until someone looks."""

import dataclasses

import torch
from torch import Tensor

from selfstudy import distributed
from selfstudy.tasks.base import States

KEEP = 0.95  # share of the old value that a running mean keeps at each update, as published


class Meter:
    """Sums of the metrics of a split's minibatches, each finished once at the end.

    Attributes:
        names: of the metrics.
        values: all their states, flat, or None before the first minibatch.
    """

    def __init__(self):
        self.names: list[str] = []
        self.values: Tensor | None = None
        self._latest: States = {}  # of the last minibatch: the kinds and shapes of the states

    def update(self, states: States) -> None:
        """Add a minibatch; a change of the metrics begins anew."""
        new = torch.cat([item.state.reshape(-1) for item in states.values()])
        fits = self.values is not None and list(states) == self.names
        if self.values is None or not fits or len(self.values) != len(new):
            self.values = new
        else:
            self.values = self._joined(self.values, new)
        self.names, self._latest = list(states), states

    def _joined(self, old: Tensor, new: Tensor) -> Tensor:
        return old + new

    def merged(self) -> "Meter":
        """The sums over what all processes have seen."""
        if distributed.size() == 1:
            return self
        whole = Meter()
        for states in distributed.gather_objects(self._states()):
            if states:
                whole.update(states)
        return whole

    def _states(self) -> States:
        """The sums as metrics, on the CPU."""
        if self.values is None:
            return {}
        items = self._latest.values()
        parts = self.values.cpu().split([item.state.numel() for item in items])
        return {
            name: dataclasses.replace(item, state=part.view(item.state.shape))
            for (name, item), part in zip(self._latest.items(), parts, strict=True)
        }

    def counted(self, name: str) -> bool:
        """Whether anything counted in a metric that is a mean."""
        states = self._states()
        return name in states and bool((states[name].state[..., 1] > 0).any())

    def numbers(self) -> dict[str, float]:
        """The finished metrics, by one copy from the device."""
        return {name: item.finish() for name, item in self._states().items()}


class RunningMeter(Meter):
    """Exponential running mean of sums and counts, as logged while training.

    The first minibatch starts it. A mean over equally many rows of each minibatch is the
    published running mean of means; where rows count unequally, or a root is taken last, it
    is theirs weighed by what counted.
    """

    def _joined(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.lerp(new, old, KEEP)

    def average(self) -> None:
        """Take the mean over all processes: of sums and of counts, so that ratios stay."""
        if self.values is not None:
            distributed.all_reduce_mean_([self.values])

    def state_dict(self) -> dict:
        """Names and values, to continue from."""
        return {"names": self.names, "values": self.values}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Continue where `state_dict` was taken; values of before sums were kept begin anew."""
        self.names = state["names"]
        self.values = None if state["values"] is None else state["values"].to(device)


def read(meters: dict[str, Meter]) -> dict[str, float]:
    """All meters as plain numbers, '<split>_<metric>'."""
    return {f"{split}_{name}": number for split, meter in meters.items()
            for name, number in meter.numbers().items()}  # fmt: skip
