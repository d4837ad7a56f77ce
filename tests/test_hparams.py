import logging

import pytest
from later import Later
from tensorboard.plugins.hparams import api_pb2

from selfstudy.train import tensorboard as hparams

SummaryWriter = Later("torch.utils.tensorboard", "SummaryWriter")

logging.getLogger("tensorboard").setLevel(logging.ERROR)


@pytest.fixture
def page(tmp_path):
    """What TensorBoard's own HParams page finds in the runs of a folder."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import (
        backend_context,
        get_experiment,
        list_session_groups,
    )

    def read():
        runs = plugin_event_multiplexer.EventMultiplexer()
        runs.AddRunsFromDirectory(str(tmp_path))
        runs.Reload()
        provider = data_provider.MultiplexerDataProvider(runs, str(tmp_path))
        plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider))
        ask = context.RequestContext()
        request = api_pb2.GetExperimentRequest()
        experiment = get_experiment.Handler(ask, plugin, "", request).run()
        request = api_pb2.ListSessionGroupsRequest(slice_size=100)
        request.allowed_statuses.extend(api_pb2.Status.values())
        groups = list_session_groups.Handler(ask, plugin, "", request).run().session_groups
        return experiment, {group.name: group for group in groups}

    return read


def trial(folder, values, accuracies, ended=True, failed=False):
    writer = SummaryWriter(str(folder))
    hparams.start(writer, values)
    for number, accuracy in enumerate(accuracies, 1):
        writer.add_scalar("mean_accuracy", accuracy, number)
    if ended:
        hparams.end(writer, failed)
    writer.close()


def shown(group) -> dict:
    return {name: value.number_value if value.HasField("number_value") else value.string_value
            for name, value in group.hparams.items()}  # fmt: skip


def test_the_page_shows_values_metrics_and_how_trials_ended(tmp_path, page):
    values = {
        "optimizer.lr": 0.1,
        "session.seed": 3,
        "scheduler.target_lrs": [0, 0.01, 0],
        "Wrapper.pretrained": None,
        "SynDataset.use_lab": True,
        "optimizer.optim_fn": "SGD",
        "far": float("inf"),
    }
    trial(tmp_path / "e_0000", values, [0.5, 0.75])
    trial(tmp_path / "e_0001", {"optimizer.lr": 0.2, "own": 1}, [0.25], failed=True)
    trial(tmp_path / "e_0002", {"optimizer.lr": 0.2}, [], ended=False)
    experiment, groups = page()
    assert {info.name for info in experiment.hparam_infos} == {*values, "own"}
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"optimizer.lr"}
    assert [info.name.tag for info in experiment.metric_infos] == ["mean_accuracy"]
    assert shown(groups["e_0000"]) == {
        "optimizer.lr": 0.1,
        "session.seed": 3,
        "scheduler.target_lrs": "[0, 0.01, 0]",
        "Wrapper.pretrained": "None",
        "SynDataset.use_lab": "True",
        "optimizer.optim_fn": "SGD",
        "far": "inf",
    }
    assert [metric.value for metric in groups["e_0000"].metric_values] == [0.75]
    assert {name: group.sessions[0].status for name, group in groups.items()} == {
        "e_0000": api_pb2.STATUS_SUCCESS,
        "e_0001": api_pb2.STATUS_FAILURE,
        "e_0002": api_pb2.STATUS_UNKNOWN,
    }
    first = groups["e_0000"].sessions[0]
    assert 0 < first.start_time_secs <= first.end_time_secs


def test_they_are_in_the_trials_own_run(tmp_path):
    trial(tmp_path / "e_0000", {"a": 1}, [0.5])
    assert [path.name for path in tmp_path.iterdir()] == ["e_0000"]
    assert not [path for path in (tmp_path / "e_0000").iterdir() if path.is_dir()]


def test_a_trial_that_continues_is_still_one(tmp_path, page):
    trial(tmp_path / "e_0000", {"a": 1}, [0.5], ended=False)
    trial(tmp_path / "e_0000", {"a": 1}, [0.5, 0.75])
    _, groups = page()
    assert list(groups) == ["e_0000"]
    assert [metric.value for metric in groups["e_0000"].metric_values] == [0.75]
