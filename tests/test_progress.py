"""What a log shows while nothing else is printed: a plain line at most every 30 seconds."""

import pytest

from bcnet import progress
from bcnet.progress import Silence, part_of, progress_bar, say, working


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(progress, "silence", Silence(own))
    return own


def test_a_long_step_prints_a_line_every_30_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training the supernet", 400) as advance:
        for _ in range(400):
            clock.now += 0.25
            advance("loss 1.23")
    assert capsys.readouterr().err.splitlines() == [
        "training the supernet: 120 of 400, loss 1.23, about 70 s left",
        "training the supernet: 240 of 400, loss 1.23, about 40 s left",
        "training the supernet: 360 of 400, loss 1.23, about 10 s left",
    ]


def test_minutes_that_are_left_are_rounded(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("measuring", 10) as advance:
        clock.now += 31
        advance("")
    assert capsys.readouterr().err == "measuring: 1 of 10, about 5 min left\n"


def test_bars_of_steps_that_follow_each_other_also_say_what_all_of_them_take(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        with part_of(number, 3):
            clock.now += 10  # before the bar
            with progress_bar(f"candidate {number + 1} of 3", 4) as advance:
                for _ in range(4):
                    clock.now += 20
                    advance("")
    assert capsys.readouterr().err.splitlines() == [
        "candidate 1 of 3: 1 of 4, about 60 s left, 4 min for all",
        "candidate 1 of 3: 3 of 4, about 20 s left, 3 min for all",
        "candidate 2 of 3: 1 of 4, about 60 s left, 2 min for all",
        "candidate 2 of 3: 3 of 4, about 20 s left, 110 s for all",
        "candidate 3 of 3: 1 of 4, about 60 s left",
        "candidate 3 of 3: 3 of 4, about 20 s left",
    ]


def test_short_steps_that_follow_each_other_are_not_silent_either(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 5):
        with progress_bar(f"trying candidate {number}", 2) as advance:
            for _ in range(2):
                clock.now += 8
                advance("")
    with working("scoring 3 networks"):
        clock.now += 40
    with working("exporting"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "trying candidate 3: 1 of 2, about 8 s left",
        "exporting",
    ]


def test_other_lines_count(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("measuring", 3) as advance:
        clock.now += 29
        say("a message")
        clock.now += 29
        advance("")
    assert capsys.readouterr().err == "a message\n"


def test_nothing_is_drawn_into_a_pipe_whose_colours_are_forced(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Notebooks set FORCE_COLOR for the commands of their cells, whose output is a pipe."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("measuring", 10) as advance, working("exporting"):
        advance("")
    say("done")
    assert capsys.readouterr().err == "done\n"
