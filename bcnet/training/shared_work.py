"""Work that the processes of a command share. In: a function that each of them can make, items. Out: results.

The first process runs the command as if it were alone. The others wait in `lead` for what it asks of them:
items of a list, whose results it gets in the list's order (`Shared`), or the same call in all (`in_all`), as
for training on shares of every batch. They wait asleep, for as long as it takes: one measures meanwhile.
"""

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from itertools import count
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, runtime_checkable

from bcnet.errors import FOREIGN, BcnetError, ProcessEnded, TrainingError, one_line, raised_by_user
from bcnet.progress import part_of
from bcnet.runs import Run
from bcnet.training.distributed import ENDED, Board, connected, sharing_batches, wait_for_all, world

T = TypeVar("T")
R = TypeVar("R")
Made = TypeVar("Made")
P = ParamSpec("P")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

POLL, LONGEST = 0.02, 0.5  # seconds between two looks at what others have done: at first, and in a long wait
BEAT, SILENT = 1.0, 60.0  # seconds between signs of life, and without any until a process counts as ended
PATIENCE = 5.0  # seconds in which a process may notice by itself that the first one has ended
FAREWELL = 5.0  # seconds that the first process waits for the others to leave


@runtime_checkable
class OverLists(Protocol[T_contra, R_co]):
    """A function that answers for a list in a way of its own."""

    def __call__(self, item: T_contra, /) -> R_co:
        """The result for one item."""

    def each(self, items: Iterable[T_contra], /) -> Iterator[R_co]:
        """Those for all items, in order, each as soon as it and those before it are known."""


def each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map`, or `function.each`, where it has that."""
    return function.each(items) if isinstance(function, OverLists) else map(function, items)


def part_of_shared(number: int, steps: int) -> AbstractContextManager[None]:
    """`part_of` for steps that connected processes share out, unless they do each together."""
    at_once = connected().size // world().size
    return part_of(number // at_once, -(-steps // at_once))


@dataclass(frozen=True)
class Shared(Generic[Made, T, R]):
    """A function of items whose list the processes share out: `method(own, item)`.

    The others make an object equivalent to `own` by `make(run, problem)`, once for consecutive lists. `make`
    and `method` are functions of modules or classes, or `partial` of these.
    """

    make: Callable[[Run, Any], Made]
    method: Callable[[Made, T], R]
    own: Made

    def __call__(self, item: T) -> R:
        """The result for one item, computed here."""
        return self.method(self.own, item)

    def each(self, items: Iterable[T]) -> Iterator[R]:
        """All results in order. Raises what an item's raises, in whichever process."""
        items = list(items)
        return map(self, items) if _leader is None or len(items) < 2 else _leader.each(self, items)


def in_all(function: Callable[Concatenate[Run, Any, P], R]) -> Callable[Concatenate[Run, Any, P], R]:
    """Decorate a module's function of a run and a problem that all processes call at the same time.

    They train together in it. The others work on copies of the run, and further arguments are sent to them.
    """

    @wraps(function)
    def called(run: Run, problem: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if _leader is not None:
            _leader.ask(_Call(called, args, kwargs))
            with sharing_batches(True):
                wait_for_all()  # nothing is written before it was copied
                return function(run, problem, *args, **kwargs)
        return function(run, problem, *args, **kwargs)

    return called


def lead(work: Callable[[Run, Any], R], run: Run, problem: Any) -> R | None:
    """`work(run, problem)` in the first process, helped by the others until it is done; None in those.

    Raises ProcessEnded where another process has ended.
    """
    global _leader
    if connected().size == 1:
        return work(run, problem)
    with sharing_batches(False):
        wait_for_all()  # the run is as all of them have found it
        if not connected().first:
            with _signs_of_life():
                _Follower(run, problem).follow()
            return None
        _leader = _Leader()
        try:
            return work(run, problem)
        finally:
            _leader.dismiss()
            _leader = None


@contextmanager
def by_itself() -> Iterator[None]:
    """Work of the first process that the others take no part in, as on a run and a problem of its own."""
    global _leader
    leader, _leader = _leader, None
    try:
        yield
    finally:
        _leader = leader


@dataclass(frozen=True)
class _List:
    """A list that is shared out."""

    make: Callable[[Run, Any], Any]
    method: Callable[[Any, Any], Any]
    items: Sequence[Any]


@dataclass(frozen=True)
class _Call:
    """A call in all processes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Leader:
    """The first process: asks the others for one thing after another."""

    def __init__(self) -> None:
        self.board, self.asked = Board(), 0
        self.signs = dict.fromkeys(range(1, connected().size), (-1, 0.0))
        self.looked = 0.0

    def ask(self, what: _List | _Call | None) -> str:
        """Put something to do for all others; returns its key."""
        self.board.put(key := _key(self.asked), pickle.dumps(what))
        self.asked += 1
        return key

    def each(self, function: Shared[Any, T, R], items: Sequence[T]) -> Iterator[R]:
        """Results in order. Each process, this one too, takes the next item when it is done with its last."""
        key = self.ask(_List(function.make, function.method, items))
        own: dict[int, R] = {}
        try:
            for place in range(len(items)):
                while place not in own and not self.board.has(f"{key}/{place}"):
                    mine = _next(self.board, key)
                    if mine < len(items):
                        own[mine] = function(items[mine])
                    else:
                        self._wait()
                yield own.pop(place) if place in own else self._received(f"{key}/{place}")
        finally:
            with suppress(TrainingError):
                self.board.add(f"{key}/next", len(items))  # items that nobody has begun are left out

    def dismiss(self) -> None:
        """Let the others leave. This process may host what they read that from, so it waits for them."""
        with suppress(TrainingError):  # one of them has ended, which is reported, or does not matter any more
            self.ask(None)
            end = time.monotonic() + FAREWELL
            while self.board.add("left", 0) < len(self.signs) and time.monotonic() < end:
                time.sleep(POLL)

    def _received(self, key: str) -> Any:
        succeeded, value = pickle.loads(self.board.take(key))
        if not succeeded:
            raise value
        return value

    def _wait(self) -> None:
        """Sleep a little. Raises ProcessEnded if another process has ended."""
        time.sleep(POLL)
        now = time.monotonic()
        if now < self.looked + BEAT:
            return
        self.looked = now
        for rank, (seen, since) in list(self.signs.items()):
            beats = self.board.add(f"alive/{rank}", 0)
            if beats != seen:
                self.signs[rank] = beats, now
            elif now - since > SILENT:
                del self.signs[rank]
                raise ProcessEnded(ENDED)


_leader: _Leader | None = None  # in the first process, while it leads


class _Follower:
    """One of the other processes: does what it is asked until it is dismissed."""

    def __init__(self, run: Run, problem: Any) -> None:
        self.run, self.problem, self.board = run, problem, Board()
        self.made: dict[Callable[..., Any], Any] = {}

    def follow(self) -> None:
        """Do one thing after another."""
        for number in count():
            key, pause = _key(number), POLL
            while not self.board.has(key):
                time.sleep(pause)
                pause = min(1.2 * pause, LONGEST)
            what = pickle.loads(self.board.read(key))
            if what is None:
                self.board.add("left", 1)
                return
            if isinstance(what, _Call):
                self.made.clear()  # its files may be others afterwards
                with connected().own_run(self.run) as own, sharing_batches(True):
                    wait_for_all()
                    what.function(own, self.problem, *what.args, **what.kwargs)
                continue
            while (place := _next(self.board, key)) < len(what.items):
                self.board.put(f"{key}/{place}", self._outcome(what, what.items[place]))

    def _outcome(self, what: _List, item: Any) -> bytes:
        """Whether there is a result, and that, or what was raised instead."""
        try:
            if what.make not in self.made:
                self.made[what.make] = what.make(self.run, self.problem)
            return pickle.dumps((True, what.method(self.made[what.make], item)))
        except (BcnetError, OSError) as error:
            return pickle.dumps((False, error))
        except FOREIGN as error:
            failed = f"{raised_by_user(error) or connected()} failed ({one_line(error)})"
            return pickle.dumps((False, TrainingError(failed)))


def _key(number: int) -> str:
    return f"asked/{number}"


def _next(board: Board, key: str) -> int:
    """The place of the next item of a list, which is this process's now."""
    return board.add(f"{key}/next", 1) - 1


@contextmanager
def _signs_of_life() -> Iterator[None]:
    """Count on the board while the block runs. Soon after the first process has ended, this one does.

    However long the work of the block is: nobody would want it, and the same command may have been started
    again.
    """
    done, board, who = threading.Event(), Board(), connected()

    def beat() -> None:
        try:
            while not done.wait(BEAT):
                board.add(f"alive/{who.rank}", 1)
        except TrainingError as error:
            if not done.wait(PATIENCE):  # the block has not noticed it, and an interruption might get lost
                print(f"bcnet, {who}: {error}", file=sys.stderr, flush=True)
                os._exit(error.exit_code)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
