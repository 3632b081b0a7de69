"""Work that several devices share. In: functions, a number of workers. Out: a step for each that is done."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence


def at_once(workers: int, visits: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Make all visits, `workers` at a time; yields after each of them. Raises what a visit raises."""
    if workers == 1:
        for visit in visits:
            yield visit()
        return
    waiting, done = queue.SimpleQueue[Callable[[], None]](), queue.SimpleQueue[BaseException | None]()
    for visit in visits:
        waiting.put(visit)

    def work() -> None:
        while not waiting.empty():
            with contextlib.suppress(queue.Empty):
                visit = waiting.get_nowait()
                try:
                    done.put(visit())
                except BaseException as error:
                    done.put(error)

    # Daemons: after an error or Ctrl-C, nobody waits for what still runs on a device.
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in visits:
            if (error := done.get()) is not None:
                raise error
            yield
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
