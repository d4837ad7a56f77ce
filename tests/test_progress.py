"""Progress, tables and error lines: what is printed, and that nothing can inject into it."""

import pytest

from util import progress
from util.errors import UserError, cause, nearest, printable, reports_errors


def result(number, done=False):
    return {"round": number, "rounds": 4, "round_s": 1.25, "valid_accuracy": 0.5, "done": done}


def test_plain_lines_where_there_is_no_terminal(capsys):
    with progress.Progress(2, 8) as shown:
        for number in range(1, 5):
            shown.partial("e_0", "train", 1, 2)
            shown.round("e_0", result(number, number == 4))
        shown.end("e_0")
        assert shown.share == pytest.approx(0.5)
        shown.end("e_1", "boom \x1b[31m\nsecond")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 3  # the first round, the last, the failure
    assert "round 4/4" in lines[1] and "ETA" in lines[1]
    assert lines[2] == "e_1 failed: boom [31m second"
    assert "\x1b" not in captured.err


def test_quiet_shows_nothing(capsys):
    with progress.Progress(1, 2, quiet=True) as shown:
        shown.round("e", result(1))
        shown.say("hello")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_eta_follows_the_share(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress(1, 4)
    assert shown.eta() == "--:--"
    now[0] = 30.0
    shown.step("e", 1)
    assert shown.eta() == "01:30"


def test_clock_and_table():
    assert [progress.clock(s) for s in (-3, 59.6, 3723)] == ["00:00", "01:00", "1:02:03"]
    text = progress.table([["a\x1b]0;x\x07", "0.5"], ["bb", "10"]], ["name", "x"])
    assert text.splitlines() == ["name       x", "a ]0;x   0.5", "bb        10"]


def test_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress(1, 2) as shown:
        assert shown.bar is not None
        shown.round("[red]e", result(1))
        shown.say("[bold]kept as it is")
    assert "[bold]kept as it is" in capsys.readouterr().err


def test_errors_become_one_line_and_a_code(capsys):
    @reports_errors
    def fails(kind):
        if kind == "user":
            raise UserError("no\nsuch \x1b[0m thing", 4)
        if kind == "stop":
            raise KeyboardInterrupt
        return 3

    for kind, code in (("user", 4), ("stop", 130), ("three", 3)):
        with pytest.raises(SystemExit) as error:
            fails(kind)
        assert error.value.code == code
    assert capsys.readouterr().err == "error: no such  [0m thing\n"


def test_hints_name_the_nearest():
    assert nearest("batchsize", ["batch_size", "shuffle"]).startswith(
        " - did you mean 'batch_size'?")  # fmt: skip
    assert nearest("zzz", ["a"]) == " (known: a)" and nearest("x", []) == ""
    assert printable("a\tb\nc\x00") == "a b c "
    assert cause(UserError("told")) == "told" and cause(KeyError("x")) == "KeyError: 'x'"
