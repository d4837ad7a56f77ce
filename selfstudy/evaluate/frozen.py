"""Logistic regression on a snapshot's frozen features, `trial.job = 'evaluate'`."""

from typing import Annotated

from selfstudy import registry
from selfstudy.data.dataset import SPLITS
from selfstudy.evaluate import features, logistic
from selfstudy.evaluate.encoder import Encoder
from selfstudy.evaluate.job import Evaluation
from selfstudy.registry import REQUIRED, Names, configurable, register


@register("job", "evaluate")
@configurable("evaluate", denylist=["device"])
class FrozenAccuracy(Evaluation):
    """Accuracy of logistic regression on frozen features; a round is one number of labels.

    Args:
        device: where the encoder computes.
        snapshot: "EXP/name".
        dataset: a registered data set with classes.
        labels: how many training labels, one number a round; each cut is class-balanced.
        seed: of the cuts.
    """

    def __init__(self, device, snapshot: str = REQUIRED,
                 dataset: Annotated[str, Names("dataset")] = "DigitsDataset",
                 labels: tuple[int, ...] = (100, 1000), seed: int = 0):  # fmt: skip
        super().__init__(seed, len(labels))
        self.labels, self.encoder = labels, Encoder(snapshot, device)
        self.splits = {name: registry.get("dataset", dataset)(name) for name in SPLITS}

    @classmethod
    def length(cls, parts):
        """Rounds: one for each number of labels."""
        return len(parts["evaluate"]["labels"])

    def rehearse(self):
        """Try the cuts; returns the numbers that each round will have."""
        classes = logistic.labels(self.splits["train"], self.splits["train"].rows)
        for amount in self.labels:
            logistic.balanced(classes, amount)
        return ["valid_accuracy", "test_accuracy"]

    def data(self):
        """The data file, for the experiment's record."""
        return [self.splits["train"].use()]

    def cell(self, number, report):
        """Accuracies in [0, 1] on the validation and test images."""
        columns = {}
        for done, (name, data) in enumerate(self.splits.items()):
            report("features", done, len(SPLITS))
            table = features.table(self.encoder, data)
            columns[name] = table.layer().float(), logistic.labels(data, table.rows)
        x, y = columns["train"]
        kept = logistic.balanced(y, self.labels[number], self.seed)
        model = logistic.fit(x[kept], y[kept], self.splits["train"].info.targets["class"])
        scores = {f"{name}_accuracy": model.accuracy(*columns[name]) for name in SPLITS[1:]}
        return {"labels": self.labels[number], **scores}
