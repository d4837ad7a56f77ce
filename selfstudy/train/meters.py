"""Means that stay on the device until someone looks."""

import torch
from torch import Tensor

from selfstudy import distributed

KEEP = 0.95  # share of the old value that a running mean keeps at each update, as published


class RunningMean:
    """Exponential running mean of several metrics, as logged while training.

    The first value starts the mean.
    """

    def __init__(self):
        self.names: list[str] = []
        self.values: Tensor | None = None

    def update(self, metrics: dict[str, Tensor], count: int) -> None:
        """Add 0-d metrics of a minibatch of `count` rows (which does not weigh here)."""
        new = torch.stack([item.float() for item in metrics.values()])
        if self.values is None or list(metrics) != self.names:
            self.names, self.values = list(metrics), new
        else:
            self.values = torch.lerp(new, self.values, KEEP)

    def average(self) -> None:
        """Take the mean over all processes."""
        if self.values is not None:
            distributed.all_reduce_mean_([self.values])

    def state_dict(self) -> dict:
        """Names and values, to continue from."""
        return {"names": self.names, "values": self.values}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Continue where `state_dict` was taken."""
        self.names = state["names"]
        self.values = None if state["values"] is None else state["values"].to(device)


class WeightedMean:
    """Mean over a whole split, each minibatch weighed by its rows."""

    def __init__(self):
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.count = 0

    def update(self, metrics: dict[str, Tensor], count: int) -> None:
        """Add 0-d metrics of a minibatch of `count` rows."""
        new = torch.stack([item.float() for item in metrics.values()]) * count
        self.names, self.count = list(metrics), self.count + count
        self.sums = new if self.sums is None else self.sums + new

    def merged(self) -> "WeightedMean":
        """The mean over what all processes have seen."""
        if distributed.size() == 1:
            return self
        whole, sums = WeightedMean(), None if self.sums is None else self.sums.cpu()
        for names, other, count in distributed.gather_objects((self.names, sums, self.count)):
            if other is not None:
                whole.names, whole.count = names, whole.count + count
                whole.sums = other if whole.sums is None else whole.sums + other
        return whole

    @property
    def values(self) -> Tensor | None:
        """The means, [M], or None before the first update."""
        return None if self.sums is None else self.sums / self.count


def read(meters: dict[str, RunningMean | WeightedMean]) -> dict[str, float]:
    """All meters as plain numbers, '<split>_<metric>', by one copy from the device."""
    filled = {split: meter for split, meter in meters.items() if meter.values is not None}
    if not filled:
        return {}
    values = [meter.values for meter in filled.values()]
    numbers = torch.cat([item.to(values[0].device) for item in values]).tolist()
    names = [f"{split}_{name}" for split, meter in filled.items() for name in meter.names]
    return dict(zip(names, numbers, strict=True))
