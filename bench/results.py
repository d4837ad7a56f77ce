"""Time to load the results of many trials, and to write their report.

python -m bench.results     1,000 trials of 100 rounds to load; a report of 200 (a minute)
"""

import json
import random
import tempfile
import time
from pathlib import Path

import paths
from bench.common import table

LINE = {
    "train_loss": 1.0, "train_accuracy": 0.5, "valid_loss": 1.0, "valid_accuracy": 0.5,
    "test_loss": 1.0, "test_accuracy": 0.5, "mean_accuracy": 0.5, "best_accuracy": 0.5,
    "learning_rate": 0.01, "images_per_s": 1e3, "round_s": 2.0, "memory_mb": 1e3,
}  # fmt: skip


def experiment(folder: Path, trials: int, rounds: int) -> None:
    """Write an experiment with synthetic results over learning rates, widths and seeds."""
    dice = random.Random(0)
    rows = [
        {"name": f"e_{number:04d}", "overrides": {
            "optimizer.lr": round(10 ** dice.uniform(-4, 0), 6),
            "optimizer.weight_decay": round(10 ** dice.uniform(-6, -2), 8),
            "ResNet.width": dice.choice([0.25, 0.5, 1.0]), "session.seed": number % 2}}
        for number in range(trials)
    ]  # fmt: skip
    folder.mkdir(parents=True)
    events = [{"time": 1e9, "event": "begin", "pid": 0, "host": "bench", "command": "main.py"}]
    for number, row in enumerate(rows):
        write_trial(folder / row["name"], row["overrides"], rounds, 1e9 + 100 * number, dice)
        for at, status in ((0, "started"), (1, "done")):
            events.append({"time": 1e9 + 100 * (number + at), "event": "trial", "why": None,
                           "name": row["name"], "status": status, "round": rounds})  # fmt: skip
    events.append({"time": 1e9 + 100 * trials, "event": "end", "code": 0})
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / paths.JOURNAL).write_text(text)
    plan = {"schema": 1, "exp_id": folder.name, "ray": "random_search", "rows": rows,
            "command": "python main.py", "exp_args": {"metric": "valid_accuracy"},
            "spec": {"gin": ["fashion/r9/search"], "params": []}}  # fmt: skip
    (folder / paths.PLAN).write_text(json.dumps(plan))


def write_trial(
    folder: Path, values: dict, rounds: int, begun: float, dice: random.Random
) -> None:
    folder.mkdir()
    (folder / paths.PARAMS).write_text(json.dumps(values))
    config = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    (folder / paths.CONFIG).write_text(config)
    lines = []
    for at in range(1, rounds + 1):
        line = {name: value * dice.random() for name, value in LINE.items()}
        line |= {"round": at, "training_iteration": at, "rounds": rounds,
                 "total_s": float(at), "time": begun + at, "is_finished": at == rounds,
                 "done": at == rounds}  # fmt: skip
        lines.append(json.dumps(line) + "\n")
    (folder / paths.RESULT).write_text("".join(lines))


def main() -> None:
    import pandas  # noqa: F401  (imports are not measured)

    from selfstudy.analysis import report, results

    with tempfile.TemporaryDirectory() as name:
        paths.EXP_DIR = Path(name)
        experiment(paths.EXP_DIR / "many", 1000, 100)
        experiment(paths.EXP_DIR / "some", 200, 100)
        measured = []
        for what, function in (("trials", results.trials), ("rounds", results.rounds)):
            start = time.process_time()
            function("many")
            seconds = time.process_time() - start
            measured.append((f"results.{what} of 1,000 x 100, s", seconds, "< 5"))
        start = time.process_time()
        page = report.make(["some"])
        measured.append(("report of 200 x 100, s", time.process_time() - start, "< 10"))
        measured.append(("report of 200 x 100, MB", len(page.encode()) / 1e6, "< 3"))
        print(table(measured, ["what", "measured", "goal"]))


if __name__ == "__main__":
    main()
