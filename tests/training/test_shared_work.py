"""Lists that processes share out give what one process does; one that ends stops the others."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import in_processes

from bcnet.errors import BcnetError, BudgetError, TrainingError
from bcnet.runs import Run
from bcnet.training import shared_work
from bcnet.training.distributed import average, connected, world
from bcnet.training.shared_work import Shared, by_itself, each, in_all, lead


class Counter:
    """Answers with items, and with the process that computed them."""

    def __init__(self, first: int) -> None:
        self.first = first

    def answer(self, item: int) -> tuple[int, int]:
        """The item after the first one, and the rank."""
        time.sleep(0.02 if connected().rank else 0.1)
        if item == 13:
            raise BudgetError(f"no {item}")
        if item == 14 and connected().rank:
            raise ZeroDivisionError("of the user's")
        return self.first + item, connected().rank

    def kill(self, item: int) -> int:
        """Ends every process but the first."""
        if connected().rank:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return item

    def wait(self, item: int) -> None:
        """Ends the first process when the other has begun; that would be busy for a minute."""
        if connected().rank:
            time.sleep(60)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    def training_together(self, item: int) -> int:
        """With how many processes this one would train."""
        return world().size


def made(run: Run, problem: Any) -> Counter:
    return Counter(problem["first"])


def led(rank: int, work: Callable[[Run, Any], Any], folder: Path) -> Any:
    shared_work.BEAT, shared_work.SILENT, shared_work.PATIENCE = 0.1, 1.0, 1.0
    return lead(work, Run(folder), {"first": 100})


def shared(method: Callable[[Counter, int], Any], items: list[int]) -> Iterator[Any]:
    return each(Shared(made, method, Counter(100)), items)


def two_lists(run: Run, problem: Any) -> Any:
    first = list(shared(Counter.answer, list(range(9))))
    begun = next(shared(Counter.answer, list(range(4))))  # the rest is not wanted
    return first, begun, list(shared(Counter.answer, [5])), list(shared(Counter.training_together, [1, 2]))


def test_results_are_in_order_whoever_computed_them(tmp_path: Path) -> None:
    alone = two_lists(Run(tmp_path), {})
    found, *others = in_processes(3, led, two_lists, tmp_path)
    assert others == [None, None]
    assert [item for item, _ in found[0]] == [item for item, _ in alone[0]] == list(range(100, 109))
    assert {rank for _, rank in found[0]} == {0, 1, 2}
    assert found[1][0] == 100
    assert found[2] == [(105, 0)]  # a single one is computed by the first
    assert found[3] == [1, 1]  # nobody shares batches meanwhile


def fails_as_asked(run: Run, problem: Any) -> Any:
    return list(shared(Counter.answer, [1, 13, 2]))


def fails_unexpectedly(run: Run, problem: Any) -> Any:
    return list(shared(Counter.answer, [14, 14, 14]))


@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [
        (fails_as_asked, BudgetError, "no 13"),
        (fails_unexpectedly, TrainingError, "of the user's"),
    ],
)
def test_what_an_item_raises_ends_the_first_process_with_it_and_the_others_quietly(
    tmp_path: Path, work: Callable[[Run, Any], Any], kind: type[BcnetError], message: str
) -> None:
    error, other = in_processes(2, led, work, tmp_path)
    assert type(error) is kind
    assert message in str(error)
    assert other is None


def killed(run: Run, problem: Any) -> Any:
    return list(shared(Counter.kill, [1, 2, 3, 4]))


def ended(run: Run, problem: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def ended_soon(run: Run, problem: Any) -> Any:
    return list(shared(Counter.wait, [1, 2]))


def test_where_the_first_process_is_killed_others_leave_what_they_are_at(tmp_path: Path) -> None:
    start = time.monotonic()
    assert in_processes(2, led, ended_soon, tmp_path) == [None, None]
    assert time.monotonic() - start < 30


def test_where_a_process_is_killed_the_others_end_with_one_line(tmp_path: Path) -> None:
    for work, place in ((killed, 1), (ended, 0)):
        found = in_processes(2, led, work, tmp_path)
        assert found[place] is None
        error = found[1 - place]
        assert isinstance(error, TrainingError)
        assert str(error) == "another process of this command ended; run the same command again to continue"


@in_all
def averaged(run: Run, problem: Any, own: str) -> tuple[str, float, int]:
    value = torch.tensor([float(connected().rank)])
    average([value])
    (run.folder / own).write_text(own)
    return run.folder.name, float(value), world().size


def without_the_others(run: Run, problem: Any) -> Any:
    with by_itself():
        trained = averaged(run, problem, own="alone")
        ranks = {rank for _, rank in shared(Counter.answer, list(range(6)))}
    return trained[1:], ranks, averaged(run, problem, own="together")[2]


def test_the_first_process_can_work_by_itself_for_a_while(tmp_path: Path) -> None:
    found, other = in_processes(2, led, without_the_others, tmp_path)
    assert other is None
    assert found == ((0.0, 1), {0}, 2)


def called_in_all(run: Run, problem: Any) -> Any:
    (run.folder / "before").write_text("before")
    return averaged(run, problem, own="mine"), averaged(run, problem, own="again"), world().size


def test_a_call_in_all_processes_trains_together_and_the_others_work_on_copies(tmp_path: Path) -> None:
    found, other = in_processes(2, led, called_in_all, tmp_path)
    assert found == ((tmp_path.name, 0.5, 2), (tmp_path.name, 0.5, 2), 1)
    assert other is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "before", "mine"]


def idle(run: Run, problem: Any) -> Any:
    time.sleep(0.5)
    return list(shared(Counter.answer, [1, 2, 3]))


def idle_led(rank: int, folder: Path) -> float:
    if rank == 0:
        time.sleep(0.5)  # the other waits for it
    before = time.process_time()
    lead(idle, Run(folder), {"first": 100})
    return time.process_time() - before


def test_the_others_wait_asleep(tmp_path: Path) -> None:
    _, other = in_processes(2, idle_led, tmp_path)
    assert other < 0.1  # of more than a second
