"""What all commands that work in a run share: choose the run, call the stage, print its result."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from bcnet import __version__
from bcnet.commands.options import Given
from bcnet.errors import CheckFailed, NotVerified
from bcnet.show import show_summary

if TYPE_CHECKING:
    from bcnet.config import Config
    from bcnet.pipeline.problem import Problem
    from bcnet.pipeline.results import ExportSummary, StageResult
    from bcnet.run_choice import Choice, Does
    from bcnet.runs import Run

Returned = TypeVar("Returned")
DOES: dict[str, "Does"] = {"build-lut": "begin", "run": "begin", "verify": "read"}


@dataclass(frozen=True)
class Command:
    """What the user typed: the command's name, its settings, and the options that every stage has.

    A command that `measures` needs the device from the beginning; one without `pixels` needs of images no
    more than their size.
    """

    name: str
    given: Given
    run: str | None
    as_json: bool
    replace: bool = False
    measures: bool = False
    pixels: bool = True


@contextmanager
def chosen_run(command: Command) -> Iterator[tuple["Run", "Config", "Callable[[], Problem]"]]:
    """The run that a command works in, protected from removal meanwhile; its configuration; what opens it.

    Where the command was started in several processes, they are connected meanwhile.
    """
    from bcnet.processes import these

    command = replace(command, measures=command.measures and these().first)
    with connected_processes(), _chosen_run(command) as chosen:
        yield chosen


@contextmanager
def connected_processes() -> Iterator[None]:
    """Connect the command's processes, if there are several, within the block. Only the first prints."""
    from bcnet.processes import these

    if these().size == 1:
        yield
        return
    # Where one process has ended, the others say so in one line, and PyTorch need not print a stack as well.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from bcnet.progress import stderr
    from bcnet.training.distributed import together

    stderr.quiet = not these().first
    with together(these()):
        yield


@contextmanager
def _chosen_run(command: Command) -> Iterator[tuple["Run", "Config", "Callable[[], Problem]"]]:
    from bcnet.built_in_example import require_configured
    from bcnet.run_choice import choose, require_table

    file, settings = command.given.file, command.given.config()
    does = DOES.get(command.name, "continue")
    choice = choose(settings, command.run, file, does, replace=command.replace)
    command.given.check_devices(choice.config)
    if command.name in ("search", "slice", "export"):
        require_table(choice, searched=command.name != "search")
    example = require_configured(command.name, file, choice.run, choice.config)
    if command.measures:
        _reach(choice.config)
    if command.name != "build-lut":
        _say_all(choice.notes)

    def opened() -> "Problem":
        from bcnet.pipeline.open_problem import open_problem  # torch with it, once the device is reached

        return example or open_problem(choice.config, pixels=command.pixels)

    with choice.run.in_use(), followed(command, choice.run, choice.config):
        yield choice.run, choice.config, opened
    if command.name == "build-lut":  # the run may still be refused
        _say_all(choice.notes)


@contextmanager
def existing_run(given: Given, name: str | None) -> Iterator["Choice"]:
    """The run that a command only reads, protected from removal meanwhile. Raises UsageError without one."""
    from bcnet.run_choice import choose
    from bcnet.run_list import require_run

    choice = choose(given.config(), name, given.file, "read")
    _say_all(choice.notes)
    require_run(choice.run)
    with choice.run.in_use():
        yield choice


@contextmanager
def followed(command: Command, run: "Run", config: "Config") -> Iterator[None]:
    """Observe the command during the block: its log, its lines on stderr, and `observers` of bcnet.toml."""
    from bcnet.config import values_by_name
    from bcnet.events import Observer, emit, observed
    from bcnet.observers import Followed, Guarded
    from bcnet.processes import these
    from bcnet.run_log import RunLog
    from bcnet.show.events import EventLines

    if not these().first:
        yield
        return
    about = Followed(command.name, run.folder, values_by_name(config))
    own: list[Observer] = [RunLog(run.folder, command.name), EventLines(verbose=command.given.verbose)]
    with observed([*own, *(Guarded(name, about) for name in config.observers)]):
        emit("command started", version=__version__, settings=about.settings)
        start = time.perf_counter()
        try:
            yield
        except BaseException as reason:
            text = str(reason) or type(reason).__name__
            emit("command failed", seconds=time.perf_counter() - start, reason=text)
            raise
        emit("command finished", seconds=time.perf_counter() - start)


def _say_all(notes: Sequence[str]) -> None:
    from bcnet.progress import say

    for note in notes:
        say(note)


def run_stage(command: Command, stage: "Callable[[Run, Problem], StageResult]") -> None:
    """Run one stage and print its summary. Of several processes the first one does, and the others help."""
    # What a user's own code prints is not a result.
    with chosen_run(command) as (run, _, opened), redirect_stdout(sys.stderr):
        problem = opened()
        summary = led(stage, run, problem)
        following = _following(command, run, problem) if summary is not None else ""
    if summary is not None:
        show(summary, command.as_json, following)


def _following(command: Command, run: "Run", problem: "Problem") -> str:
    """The command of the next stage, for people."""
    from bcnet.commands.next_stage import next_command  # torch with it

    return "" if command.as_json else next_command(run, problem)


def led(work: "Callable[[Run, Problem], Returned]", run: "Run", problem: "Problem") -> "Returned | None":
    """What `work` returns in the first process of a command; None in the others, which help it."""
    from bcnet.training.shared_work import lead  # torch with it

    return lead(work, run, problem)


def _reach(settings: "Config") -> None:
    """Reach the devices now, and not after all else is loaded, or trained. Raises DeviceError.

    A device without a host is this machine, which need not be one that has a table already.
    """
    from bcnet.hw_profiles.target import further_profiles, target_profile
    from bcnet.measure.network_latency import runtime_of
    from bcnet.progress import working
    from bcnet.run_choice import TABLES

    for profile in (target_profile(settings), *further_profiles(settings)):
        if profile.recording:
            continue
        if profile.host:
            with working(f"reaching {', '.join(profile.host)}"):
                runtime_of(profile).fingerprint()
        elif not (TABLES / f"{profile.name}.json").exists():
            runtime_of(profile)


def reuse_supernet_of_default(run: "Run", opened: "Callable[[], Problem]") -> None:
    """Let a run that has no supernet use that of the default run, if it is of the same network."""
    from bcnet.pipeline.kept import reuse_supernet
    from bcnet.run_choice import DEFAULT
    from bcnet.runs import Run

    if run.folder.name != DEFAULT:
        reuse_supernet(run, opened, Run.named(DEFAULT, run.config))


@contextmanager
def checking(as_json: bool) -> Iterator[None]:
    """For what may fail a check: with --json, what was measured is printed then, too."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except CheckFailed as failed:
        if as_json and failed.report is not None:
            print(json.dumps(failed.report))
        raise


def show(summary: "StageResult", as_json: bool, following: str = "") -> None:
    if as_json:
        print(json.dumps(summary.to_json()))
    else:
        show_summary(summary, following)


def refuse_unverified(export: "ExportSummary") -> None:
    """End with exit code 4 after an export that is complete, but whose latency was not checked."""
    if export.not_verified:
        raise NotVerified(
            f"{export.file} is not verified: {export.not_verified}; to verify it, {export.verify_with}"
        )
