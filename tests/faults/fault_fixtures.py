"""Fixtures of all modules here, which name this one in `pytest_plugins`: one server is for all of them."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from steady_run import Commands, fork_server, new_folder
from trained_run import CONTINUED, TrainedRun, trained_folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run; it is complete once `commands` is set up."""
    return new_folder(tmp_path_factory.mktemp("whole") / "w")


@pytest.fixture(scope="session")
def commands(whole: Path) -> Iterator[Commands]:
    """`commands(folder, *arguments, kill=n, room=bytes)`: one command in a child; its code and output."""
    with fork_server(whole) as command:
        yield command


class Hung(BaseException):
    """A read did not end."""


@pytest.fixture
def time_limit() -> Iterator[Callable[[float], None]]:
    """`time_limit(seconds)`: raise Hung if the current step takes longer."""

    def hung(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None  # type: ignore[func-returns-value]
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def trained_run(
    commands: Commands, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainedRun]:
    """`trained_run(method, *command)`: that command in a folder of its own, once for all tests."""
    made: dict[tuple[str, ...], TrainedRun] = {}

    def run(method: str, *command: str) -> TrainedRun:
        if (method, *command) not in made:
            folder = trained_folder(tmp_path_factory.mktemp("trained") / "t", whole, method, classes=7)
            kept = tmp_path_factory.mktemp("kept")
            answer = commands(folder, *command, keep=CONTINUED, kept=str(kept))
            assert answer["code"] == 0, answer["said"]
            files = {path.name.replace(" ", "/").removeprefix("runs/"): path for path in kept.iterdir()}
            made[method, *command] = TrainedRun(folder, files)
        return made[method, *command]

    return run
