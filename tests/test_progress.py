"""Progress, tables and error lines: what is printed, and that nothing can inject into it."""

import io
import itertools
import threading

import pytest
from rich.console import Console

from util import live, progress, text
from util.errors import UserError, cause, nearest, printable, reports_errors
from util.forecast import TrialProgress
from util.progress import ProgressTable

EVIL = "\x1b]0;x\x07[red]"


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """What a terminal says of itself, whoever runs the tests."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def now(monkeypatch):
    """The time, which passes only when a test says so."""
    passed = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: passed[0])
    return passed


def result(number, done=False, metric=0.5, rounds=4, seconds=1.25):
    return {"round": number, "rounds": rounds, "round_s": seconds, "valid_accuracy": metric,
            "mean_accuracy": metric, "done": done}  # fmt: skip


def trials(count, rounds=4, total=0, quiet=False, mode="max", **more):
    """So many trials, e_0000 and on, that differ in their learning rate."""
    rows = {
        f"e_{i:04d}": TrialProgress({"optim.lr": i / 8, "same": 1}, rounds)
        for i in range(count)
    }
    return ProgressTable(rows, total=total or count, metric="mean_accuracy", mode=mode,
                         quiet=quiet, **more)  # fmt: skip


def ran(shown, name, metric=0.5, rounds=4, status="done"):
    """`name` has run for so many rounds and ended."""
    shown.start(name)
    for number in range(1, rounds + 1):
        shown.round(name, result(number, metric=metric))
    shown.end(name, status)


def lines(shown, width=80, height=24):
    """What a terminal of this size shows."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True,
                      color_system=None)  # fmt: skip
    console.print(shown.picture(width, height))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_plain_lines_where_there_is_no_terminal(capsys):
    with trials(4) as shown:
        shown.start("e_0000")
        for number in range(1, 5):
            shown.partial("e_0000", "train", 1, 2)
            shown.round("e_0000", result(number, number == 4))
        shown.end("e_0000", "done")
        shown.start("e_0001")
        shown.round("e_0001", result(1))
        shown.retry("e_0001", "its worker died")
        shown.end("e_0001", "failed", "boom \x1b[31m\nsecond")
        shown.start("e_0002")
        shown.round("e_0002", result(1, metric=0.25) | {"weights": f"from {EVIL}"})
        shown.end("e_0002", "stopped")
        shown.start("e_0003")
        shown.round("e_0003", result(1, done=True, rounds=1))
        shown.end("e_0003", "done")
    captured = capsys.readouterr()
    assert captured.out == "" and "\x1b" not in captured.err and "\r" not in captured.err
    assert [line.partition(" - ETA")[0] for line in captured.err.splitlines()] == [
        "e_0000 started",
        "0/4 trials - e_0000 round 1/4 valid_accuracy 0.5000 1.2 s/round",
        "e_0000 done - round 4/4 - mean_accuracy 0.5000 (best 0.5000)",
        "e_0001 started",
        "1/4 trials - e_0001 round 1/4 valid_accuracy 0.5000 1.2 s/round",
        "e_0001: its worker died; it continues",
        "e_0001 failed: boom  [31m second - round 1/4 - mean_accuracy 0.5000 (best 0.5000)",
        "e_0002 started",
        "e_0002: from  ]0;x [red]",
        "2/4 trials - e_0002 round 1/4 valid_accuracy 0.2500 1.2 s/round",
        "e_0002 stopped - round 1/4 - mean_accuracy 0.2500 (best 0.2500)",
        "e_0003 started",
        "e_0003 done - round 1/1 - mean_accuracy 0.5000 (best 0.5000)",
    ]


def test_a_single_trial_has_lines_of_results_alone(capsys):
    with trials(1) as shown:
        ran(shown, "e_0000", rounds=3)
        shown.round("e_0000", result(4, done=True))
        shown.end("e_0000", "done")
    said = capsys.readouterr().err.splitlines()
    assert [line[:9] for line in said] == ["round 1/4", "round 4/4"]
    assert said[1].endswith("ETA 00:00")


def test_results_every_ten_seconds_and_a_sign_of_life_every_minute(capsys, now):
    shown = trials(2, rounds=100)
    shown.start("e_0000")
    shown.round("e_0000", result(1))
    capsys.readouterr()
    for number in range(2, 30):  # four seconds each, 112 in all
        now[0] += 4
        shown.round("e_0000", result(number, rounds=100))
        shown._tick()
    assert len(capsys.readouterr().err.splitlines()) == 28 // 3
    for _ in range(130):
        now[0] += 1
        shown.partial("e_0000", "train", 3, 40)
        shown._tick()
    alive = capsys.readouterr().err.splitlines()
    assert len(alive) == 2
    assert "0/2 done - 1 running - best mean_accuracy 0.5000 (0000) - ETA" in alive[0]
    assert alive[0].endswith("e_0000 train 3/40")


def test_quiet_shows_nothing(capsys):
    before = threading.active_count()
    with trials(2, quiet=True) as shown:
        ran(shown, "e_0000")
        shown.end("e_0001", "failed", "why")
        shown.say("hello")
        assert threading.active_count() == before and shown.share == 1
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_eta_is_the_median_pace_times_the_rounds_that_are_left(now):
    shown = trials(3, quiet=True)
    assert shown.eta() == "--:--" and shown.share == 0
    shown.start("e_0000")
    now[0] += 25  # starting up is no part of the first round
    shown.round("e_0000", result(1, seconds=10))
    assert shown.eta() == "01:50"  # 3 + 4 + 4 rounds
    for number, passed in ((2, 10), (3, 50)):
        now[0] += passed
        shown.round("e_0000", result(number, seconds=10))
    assert shown.share == pytest.approx(3 / 12)
    assert shown.eta() == "01:30"  # 9 rounds; one slow round is no pace
    now[0] += 4
    assert shown.eta() == "01:26"
    now[0] += 60  # a round that takes its time is not paid twice
    assert shown.eta() == "01:20"
    shown.start("e_0001")  # from now on two side by side
    assert shown.eta() == "00:40"


def test_eta_of_a_round_that_takes_its_time(now):
    shown = trials(1, quiet=True)
    shown.start("e_0000")
    shown.round("e_0000", result(1, seconds=10))
    for passed, left in ((7, "00:23"), (100, "00:20")):  # two more will not be shorter for it
        now[0] += passed
        assert shown.eta() == left


def test_eta_waits_for_the_slowest(now):
    shown = trials(2, rounds=10, quiet=True)
    for name in ("e_0000", "e_0001"):
        shown.start(name)
        shown.round(name, result(1 if name == "e_0000" else 9, rounds=10, seconds=10))
    assert shown.eta() == "01:30"  # not (9 + 1) / 2 rounds


def test_eta_within_the_first_round(now):
    shown = trials(2, quiet=True)
    shown.start("e_0000")
    now[0] += 30
    shown.partial("e_0000", "train", 1, 2)
    assert shown.eta() == "07:30" and 0 < shown.share < 1 / 8
    shown.partial("e_0000", "valid", 1, 2)
    assert shown.share == pytest.approx(1 / 8, abs=1e-3)


def test_eta_expects_that_others_are_stopped_too(now):
    shown = trials(4, rounds=10, total=6, quiet=True)  # a search will add two
    for name, rounds, status in (("e_0000", 2, "stopped"), ("e_0001", 4, "stopped")):
        shown.start(name)
        for number in range(1, rounds + 1):
            now[0] += 10
            shown.round(name, result(number, rounds=10, seconds=10))
        shown.end(name, status)
    assert shown.eta() == "02:00"  # four trials of three rounds
    assert shown.share == pytest.approx(6 / 18)
    shown.start("e_0002")
    for number in (1, 2, 3):
        now[0] += 10
        shown.round("e_0002", result(number, rounds=10, seconds=10))
    assert shown.eta() == "01:40"  # one round, as the only one that came so far, and 3 x 3
    now[0] += 10
    shown.round("e_0002", result(4, rounds=10, seconds=10))
    assert shown.eta() == "02:30"  # beyond all others: six, and 3 x 3
    shown.end("e_0002", "failed", "why")  # says nothing of how long a trial takes
    assert shown.eta() == "01:30"


def test_what_was_done_before_counts():
    before = result(4, done=True, metric=0.75)
    rows = {"e_0000": TrialProgress({}, 4, 4, "done", before),
            "e_0001": TrialProgress({}, 4, 1, "running", result(1, metric=None))}  # fmt: skip
    shown = ProgressTable(rows, total=2, metric="mean_accuracy", mode="max", quiet=True)
    assert shown.share == pytest.approx(5 / 8) and shown.eta() == "00:04"
    assert rows["e_0001"].status == "planned" and rows["e_0000"].best == 0.75
    assert lines(shown)[-1] == "1/2 done - best mean_accuracy 0.7500 (0000) - ETA 00:04"


def test_the_table_has_the_best_first():
    shown = trials(6, total=8, quiet=True, slots="CPU 2/2")
    ran(shown, "e_0000", metric=0.25)
    ran(shown, "e_0001", metric=0.75, rounds=2, status="stopped")
    ran(shown, "e_0002", metric=float("nan"), rounds=1, status="diverged")
    shown.start("e_0003")
    shown.start("e_0004")
    shown.round("e_0004", result(1, metric=0.5))
    shown.round("e_0004", result(2, metric=0.375))
    shown.partial("e_0004", "train", 1, 2)
    seen = lines(shown)
    assert seen[0].split() == "trial status lr round last best s/round ETA".split()
    assert [line.split()[:2] for line in seen[1:-2]] == [
        ["0001", "stopped"],
        ["0004", "running"],
        ["0000", "done"],
        ["0003", "running"],
        ["0002", "diverged"],
        ["0005", "planned"],
    ]
    assert seen[2].split()[2:7] == ["0.5", "2.4/4", "0.3750", "0.5000", "1.2"]
    shown.round("e_0004", result(3, metric=0.375))  # no wider or narrower all the time
    assert "3.0/4" in lines(shown)[2] and " 4/4" in lines(shown)[3]
    assert seen[-2] == "... 2 more (2 planned)"
    assert seen[-1].startswith(
        "1/8 done - 2 running - 1 stopped - 1 diverged - best 0.7500 (0001)"
    )


def test_the_smallest_can_be_the_best():
    shown = trials(2, quiet=True, mode="min")
    for name, loss in (("e_0000", 2.0), ("e_0001", 1.0)):
        ran(shown, name, metric=loss)
        shown.round(name, result(4, metric=loss + 1))
    assert [line.split()[0] for line in lines(shown)[1:3]] == ["0001", "0000"]
    assert "best mean_accuracy 1.0000 (0001)" in lines(shown)[-1]


def test_those_that_run_are_never_cut_off():
    shown = trials(1000, quiet=True)
    for number in range(900):
        ran(shown, f"e_{number:04d}", metric=number / 1000, rounds=1)
    for number in (950, 960, 970):
        shown.start(f"e_{number:04d}")
    seen = lines(shown, 80, 12)
    assert len(seen) == 12 - 4 + 3
    shown_ids = [line.split()[0] for line in seen[1:9]]
    assert shown_ids == ["0899", "0898", "0897", "0896", "0895", "0950", "0960", "0970"]
    assert seen[9] == "... 992 more (895 done, 97 planned)"


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 10), (80, 24), (120, 40), (9, 2)])
def test_the_picture_fits_the_terminal(width, height):
    rows = {f"e_a=b_{i:04d}": TrialProgress({"x.name": "long " * 99, "y.lr": [i / 7] * 99,
                                    "z.seed": i, "w.size": "\u6f22" * i}, 1e6)
            for i in range(60)}  # fmt: skip
    shown = ProgressTable(rows, total=60, metric="mean_accuracy", mode="max", quiet=True,
                   slots="CPU 2/2 GPU 3.5/4")  # fmt: skip
    shown.start("e_a=b_0003")
    shown.round("e_a=b_0003", result(1, rounds=1e6))
    seen = lines(shown, width, height)
    assert all(live.cell_len(line) <= width for line in seen)
    assert len(seen) <= max(4, height - 1)
    assert any(line.startswith("0003") for line in seen)


def test_a_narrow_terminal_does_without_what_matters_least():
    rows = {f"e_{i:04d}": TrialProgress({"optim.lr": 0.00012345 * i,
                                      "optim.optim_fn": "SGD" * i}, 4)
            for i in range(3)}  # fmt: skip
    shown = ProgressTable(rows, total=3, metric="mean_accuracy", mode="max", quiet=True)
    ran(shown, "e_0002")
    wide, narrow, tiny = lines(shown, 100), lines(shown, 54), lines(shown, 25)
    assert "s/round" in wide[0] and "SGDSGD" in wide[1] and "columns left out" not in wide[-2]
    assert "s/round" not in narrow[0] and "0.0002469" in narrow[1]  # a number stays whole
    assert tiny[0].split()[0] == "trial" and "columns left out" in tiny[-2]


def test_headings_are_what_varies_by_its_last_part_where_that_is_clear():
    rows = [{"a.lr": 1, "b.lr": 1, "c.seed": 1, "d.same": 1, "e.round": 1},
            {"a.lr": 2, "b.lr": 2, "c.seed": 2, "d.same": 1}]  # fmt: skip
    assert text.headings(rows) == {
        "a.lr": "a.lr", "b.lr": "b.lr", "c.seed": "seed", "e.round": "e.round",
    }  # fmt: skip
    assert text.short_names(["e_x=1_0001", "e_0002", "e"]) == {
        "e_x=1_0001": "0001", "e_0002": "0002", "e": "e",
    }  # fmt: skip
    assert text.short_names(["a_01", "b_01"]) == {"a_01": "a_01", "b_01": "b_01"}


def test_settings_and_figures_are_short():
    said = [text.setting(value) for value in (0.1 + 0.2, 1e-5, [0, 1 / 3], None, "a\x1b")]
    assert said == ["0.3", "1e-05", "[0, 0.3333]", "None", "a "]
    assert [text.figure(value) for value in (None, 0.5, 0, 1e-5, 1234.5)] == [
        "-", "0.5000", "0.0000", "1e-05", "1234",
    ]  # fmt: skip


def test_a_search_adds_trials_and_the_rung_has_a_column():
    shown = trials(1, total=3, quiet=True, rung=lambda result: f"r{result['round']}")
    shown.add("e_0001", {"optim.lr": 0.5, "new": "x"}, 4)
    ran(shown, "e_0001", rounds=2, status="stopped")
    head, first, *_ = lines(shown)
    assert head.split() == "trial status lr same new round last best rung s/round ETA".split()
    assert first.split()[:4] == ["0001", "stopped", "0.5", "x"] and " r2 " in first
    for name in ("e_0002", "e_0003"):
        shown.add(name, {}, 4)
    assert shown.total == 4


def test_nothing_injects_into_the_picture():
    rows = {f"{EVIL}_{i}": TrialProgress({f"a.{EVIL}": EVIL * (i + 1)}, 4) for i in range(2)}
    for total, height in ((2, 24), (2, 5), (1, 24)):
        shown = ProgressTable(dict(list(rows.items())[:total]), total=total, metric=EVIL,
                              mode="max", quiet=True, slots=EVIL,
                              rung=lambda result: EVIL)  # fmt: skip
        shown.start(f"{EVIL}_0")
        shown.round(f"{EVIL}_0", result(1) | {EVIL: 0.5})
        console = Console(file=io.StringIO(), width=200, force_terminal=True)
        console.print(shown.picture(200, height))
        text = console.file.getvalue()
        assert "\x1b]" not in text and "\x07" not in text
        assert total == 1 or "[red]" in text  # no markup


def typed(monkeypatch, capsys, **environment):
    """What comes to a terminal with this environment from two trials, one of which fails."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with trials(2) as shown:
        ran(shown, "e_0000")
        shown._tick()
        shown.say("[bold]kept as it is")
        shown.end("e_0001", "failed", "why")
    return capsys.readouterr().err


def test_a_table_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    text = typed(monkeypatch, capsys)
    assert "\x1b[2K" in text and "\x1b[32m" in text  # drawn anew, in colours
    assert "[bold]kept as it is" in text and "e_0001 failed: why" in text
    assert "e_0000 started" not in text and "s/round" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    assert "\x1b[32m" not in typed(monkeypatch, capsys, NO_COLOR="1")
    dumb = typed(monkeypatch, capsys, TERM="dumb")
    assert "\x1b" not in dumb and "e_0000 started" in dumb


def test_colours_without_a_terminal_only_if_asked_for(monkeypatch, capsys):
    assert "\x1b" not in typed(monkeypatch, capsys)
    forced = typed(monkeypatch, capsys, FORCE_COLOR="1")
    assert "\x1b[31me_0001 failed" in forced and "\x1b[2K" not in forced
    assert "\x1b" not in typed(monkeypatch, capsys, FORCE_COLOR="1", NO_COLOR="1")


def test_a_single_trial_has_a_bar(monkeypatch, capsys):
    shown = trials(1, quiet=True)
    assert lines(shown)[0].endswith("0%  ETA --:-- round 0/4")
    shown.start("e_0000")
    shown.round("e_0000", result(1))
    for width in (60, 120):
        (line,) = lines(shown, width)
        assert "25%  ETA 00:04 round 1/4" in line and len(line) <= width


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_drawing_and_reporting_at_once(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "REFRESH", 1e-4)
    drawn, deadline = [], progress.time.monotonic() + 20
    with trials(1, total=10**6, rung=lambda result: "r") as shown:
        picture = shown.picture
        shown.picture = lambda *size: (picture(*size), drawn.append(size))[0]
        for number in itertools.count(1):
            shown.add(f"e_{number:06d}", {"optim.lr": number}, 4)
            ran(shown, f"e_{number:06d}", rounds=1, status="stopped")
            if len(drawn) >= 20 or progress.time.monotonic() > deadline:
                break
        shown.say("a line")
        assert shown._watching.is_alive() and len(drawn) >= 20
    text = capsys.readouterr().err
    assert "a line" in text and text.count("ETA") >= 20


def test_nothing_changes_within_a_picture():
    shown = trials(2, quiet=True)
    adding = threading.Thread(target=shown.add, args=("e_0002", {}, 4))
    with shown._lock:  # as `picture` holds it
        adding.start()
        adding.join(0.05)
        assert adding.is_alive() and len(shown.trials) == 2
    adding.join(5)
    assert len(shown.trials) == 3


def test_a_thousand_trials_are_drawn_in_time():
    shown = trials(1000, quiet=True)
    for number in range(500):
        ran(shown, f"e_{number:04d}", metric=number / 500, rounds=1)
    lines(shown, 200, 60)
    start = progress.time.perf_counter()
    shown.picture(200, 60)
    assert progress.time.perf_counter() - start < progress.REFRESH  # some 10 ms


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("tty", [False, True])
def test_the_trials_go_on_when_the_terminal_is_gone(monkeypatch, tty):
    class Terminal(io.StringIO):
        gone = False

        def isatty(self):
            return tty

        def write(self, text):
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "REFRESH", 1e-3)
    with trials(2) as shown:
        Terminal.gone = True
        ran(shown, "e_0000")
        shown.say("a line")
        if tty:
            shown._watching.join(5)  # nothing is left to draw on
            assert not shown._watching.is_alive()
    assert shown.trials["e_0000"].status == "done"


def test_clock_table_and_summary():
    assert [text.clock(s) for s in (-3, 59.6, 3723)] == ["00:00", "01:00", "1:02:03"]
    aligned = text.table([["a\x1b]0;x\x07", "0.5"], ["bb", "10"]], ["name", "x"])
    assert aligned.splitlines() == ["name       x", "a ]0;x   0.5", "bb        10"]
    diverged = {"round": 2, "rounds": 4.0, "train_loss": None, "round_s": None}
    assert text.summary(diverged) == "round 2/4"


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
