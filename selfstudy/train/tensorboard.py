"""TensorBoard: a trial's numbers, and its values and end for the HParams page.

Both entries of that page go into the trial's own run. `SummaryWriter.add_hparams` would make a
run beside it and describe the whole experiment with that one trial's names; the page believes
the first description that it finds. Without any it puts together the names of all trials, and
takes every scalar of their runs as a metric. TensorBoard is imported late, as the writer is.
"""

import importlib
import math
import os
import time
from pathlib import Path
from typing import Any


def open_writer(folder: Path) -> Any:
    """A SummaryWriter of a trial's folder."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter  # takes a second

    return SummaryWriter(str(folder))


def add_numbers(writer: Any, result: dict[str, Any]) -> None:
    """Write the finite numbers of a round."""
    for name, value in result.items():
        if isinstance(value, float) and math.isfinite(value):
            writer.add_scalar(name, value, result["round"])


def start(writer: Any, values: dict[str, Any]) -> None:
    """Write a trial's values when it begins, or continues.

    Args:
        writer: a SummaryWriter; what follows must be written with it too.
        values: gin name -> value. A number stays one; all else (lists, True, None) is shown as
            the text that a gin file would have.
    """
    from tensorboard.plugins.hparams import metadata

    messages = _messages("plugin_data_pb2")
    info = messages.SessionStartInfo(start_time_secs=time.time())
    for name, value in values.items():
        if _is_number(value):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = value if isinstance(value, str) else repr(value)
    data = messages.HParamsPluginData(session_start_info=info)
    _write(writer, metadata.SESSION_START_INFO_TAG, data)


def end(writer: Any, failed: bool = False) -> None:
    """Write that a trial has ended; its metrics are the last scalars of its run.

    Args:
        writer: as for `start`.
        failed: whether it diverged.
    """
    from tensorboard.plugins.hparams import metadata

    messages, states = _messages("plugin_data_pb2"), _messages("api_pb2")
    status = states.STATUS_FAILURE if failed else states.STATUS_SUCCESS
    info = messages.SessionEndInfo(status=status, end_time_secs=time.time())
    data = messages.HParamsPluginData(session_end_info=info)
    _write(writer, metadata.SESSION_END_INFO_TAG, data)


def _messages(module: str) -> Any:
    """Generated protocol messages, whose names no type checker sees."""
    return importlib.import_module(f"tensorboard.plugins.hparams.{module}")


def _is_number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def _write(writer: Any, tag: str, data: Any) -> None:
    from tensorboard.plugins.hparams import metadata

    summaries: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
    entry = summaries.Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))
    writer.file_writer.add_summary(summaries.Summary(value=[entry]))
