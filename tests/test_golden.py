"""The golden property: a study that was killed and resumed is the study that was not.

`bench/storm.py` kills at random moments and compares; here it does so a few times, with fixed
seeds. `python -m bench.storm --kills 50` is the same by hand.
"""

import shutil
import tempfile
from pathlib import Path

import pytest

import paths
from bench import storm

pytestmark = pytest.mark.slow
PBT = {
    "name": "pbt", "time_attr": "training_iteration", "perturbation_interval": 1,
    "hyperparam_mutations": {"simulation.x": [0.001, 0.01, 0.1], "simulation.y": [0.2, 0.5]},
}  # fmt: skip
HYPERBAND = {"name": "hyperband", "max_t": 9}


@pytest.fixture
def weather(monkeypatch):
    """A function that lets a storm pass over studies in a folder with a short name."""
    folder = Path(tempfile.mkdtemp(prefix="storm-"))  # Ray's sockets lie below it

    def run(**more):
        monkeypatch.setattr(paths, "EXP_DIR", folder / "exp")
        told = []
        given = {"reference": None, "seconds": 0.2, "early": 0.0} | more
        found = storm.run(folder, say=told.append, **given)
        return found, "\n".join(told)

    yield run
    shutil.rmtree(folder, ignore_errors=True)


def test_a_grid_is_equal_row_for_row(weather):
    found, told = weather(kills=2, seed=5, reference=["-l"])
    assert found == [], told
    assert "different from the undisturbed study: nothing" in told


def test_a_search_is_complete_and_every_row_is_as_computed(weather):
    kinds = ("worker SIGKILL", "driver SIGKILL")
    found, told = weather(ray="simulated_search", kills=2, seed=2, kinds=kinds)
    assert found == [], told


def test_a_population_is_complete_and_consistent(weather):
    flags = ("--set", f"scheduler={PBT}")
    found, told = weather(flags=flags, kills=1, seed=3, kinds=("worker SIGKILL",))
    assert found == [], told


def test_brackets_are_complete_and_consistent(weather):
    flags = ("--set", f"scheduler={HYPERBAND}")
    found, told = weather(flags=flags, kills=1, seed=3, kinds=("SIGINT",))
    assert found == [], told
