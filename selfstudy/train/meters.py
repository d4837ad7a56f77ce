"""Metric accumulators, kept on the device until they are read."""

import dataclasses

import torch
from torch import Tensor

from selfstudy import distributed
from selfstudy.tasks.base import States

KEEP = 0.95  # decay of a running mean per update, as published


class Meter:
    """Sums metric states over the minibatches of a split; each is finished once at the end.

    Attributes:
        names: of the metrics.
        values: concatenated flat states, None before the first minibatch.
    """

    def __init__(self):
        self.names: list[str] = []
        self.values: Tensor | None = None
        self._latest: States = {}  # of the last minibatch, for types and shapes of the states

    def update(self, states: States) -> None:
        """Add a minibatch; restarts if the set of metrics has changed."""
        new = torch.cat([item.state.reshape(-1) for item in states.values()])
        fits = self.values is not None and list(states) == self.names
        if self.values is None or not fits or len(self.values) != len(new):
            self.values = new
        else:
            self.values = self._join(self.values, new)
        self.names, self._latest = list(states), states

    def _join(self, old: Tensor, new: Tensor) -> Tensor:
        return old + new

    def merge(self) -> "Meter":
        """The sums over all processes."""
        if distributed.size() == 1:
            return self
        total = Meter()
        for states in distributed.gather_objects(self._states()):
            if states:
                total.update(states)
        return total

    def _states(self) -> States:
        """The summed states as metrics, on the CPU."""
        if self.values is None:
            return {}
        items = self._latest.values()
        parts = self.values.cpu().split([item.state.numel() for item in items])
        return {
            name: dataclasses.replace(item, state=part.view(item.state.shape))
            for (name, item), part in zip(self._latest.items(), parts, strict=True)
        }

    def has_counted(self, name: str) -> bool:
        """Whether a metric's count is above 0."""
        states = self._states()
        return name in states and bool((states[name].state[..., 1] > 0).any())

    def numbers(self) -> dict[str, float]:
        """The finished metrics, with one copy from the device."""
        return {name: item.finish() for name, item in self._states().items()}


class RunningMeter(Meter):
    """Exponential moving average of sums and counts, as logged during training.

    Initialised with the first minibatch. With equal counts per minibatch it is the published
    moving average of means; otherwise minibatches are weighted by their counts.
    """

    def _join(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.lerp(new, old, KEEP)

    def average(self) -> None:
        """Average sums and counts over all processes, which preserves ratios."""
        if self.values is not None:
            distributed.all_reduce_mean_([self.values])

    def state_dict(self) -> dict:
        """Names and values, to resume from."""
        return {"names": self.names, "values": self.values}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Resume from a `state_dict`; states of the former format restart."""
        self.names = state["names"]
        self.values = None if state["values"] is None else state["values"].to(device)


def read(meters: dict[str, Meter]) -> dict[str, float]:
    """The metrics of all meters, as '<split>_<metric>'."""
    return {f"{split}_{name}": number for split, meter in meters.items()
            for name, number in meter.numbers().items()}  # fmt: skip
