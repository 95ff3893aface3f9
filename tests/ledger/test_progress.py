"""Plain progress: few lines, with speed and time left, and a resumed count that does not claim what was done before."""

from __future__ import annotations

import io

import pytest

from cairn.ledger.progress import Plain, Silent, make_progress, show_number, show_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_at_most_one_line_in_five_seconds_with_speed_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Plain("base", stream, clock=clock)
    progress.start(100, "steps")
    for step in range(1, 51):
        clock.now += 1
        progress.update(step, loss=2.0, tokens_per_second=1234.0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1] == "base: 50/100 steps · loss 2 · tokens/s 1,234 · 50 s left"


def test_a_resumed_count_does_not_take_old_work_for_speed() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Plain("base", stream, clock=clock)
    progress.start(100, "steps", 80)
    clock.now += 2
    progress.update(81)
    clock.now += 10
    progress.update(86)
    assert stream.getvalue().splitlines()[-1] == "base: 86/100 steps · 0.5 steps/s · 28 s left"


def test_notes_come_at_once_and_short_work_is_quiet() -> None:
    stream = io.StringIO()
    progress = Plain("data", stream, clock=Clock())
    progress.start(3)
    progress.update(3)
    progress.close()
    assert stream.getvalue() == ""
    progress.note("one line")
    assert stream.getvalue() == "data: one line\n"


def test_the_last_figures_are_shown_at_the_end() -> None:
    stream = io.StringIO()
    progress = Plain("base", stream, clock=Clock())
    progress.start(3, "steps")
    progress.update(3, loss=0.125)
    progress.close()
    assert stream.getvalue() == "base: 3/3 steps · loss 0.125\n"


def test_a_stream_that_is_no_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress("x")
    assert isinstance(progress, Plain)
    progress.note("hello")
    assert capsys.readouterr().err == "x: hello\n"
    silent = Silent()
    silent.start(1)
    silent.update(1)
    silent.note("no")
    silent.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_keeps_the_notes() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = make_progress("base", stream)
    progress.start(10, "steps")
    progress.update(5, loss=1.5)
    progress.note("a [note] with brackets")
    progress.start(None, "rows")
    progress.update(7)
    progress.close()
    progress.close()
    shown = stream.getvalue()
    assert "a [note] with brackets" in shown
    assert "loss 1.5" in shown


def test_figures_for_people() -> None:
    assert [show_number(v) for v in (12345, 1234.5, 0.123456, "text")] == ["12,345", "1,234", "0.1235", "text"]
    assert [show_seconds(v) for v in (0, 2.25, 42.4, 187, 3720)] == ["0 s", "2.2 s", "42 s", "3:07 min", "1:02 h"]
