"""End a command on signals. In: SIGINT (Ctrl-C), SIGTERM, SIGHUP. Out: an exception in the main thread.

Running work ends in the same way: locks are released, temporary files removed, and finished work is kept.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
AGAIN_SECONDS = 5.0


class Ended(KeyboardInterrupt):
    """A signal has ended the command; handled like Ctrl-C."""


@contextmanager
def as_interrupts() -> Iterator[list[signal.Signals]]:
    """During the block, signals that end programs raise Ended in the main thread.

    Yields the list of received signals. An exception may get lost if a library calls back into Python, so the
    first signal is sent again until the block has ended. A signal that is already ignored, e.g. SIGHUP under
    nohup, stays ignored.
    """
    received: list[signal.Signals] = []
    own, ended = os.getpid(), threading.Event()

    def insist() -> None:
        while not ended.wait(AGAIN_SECONDS):
            os.kill(own, received[0])

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a forked worker process keeps the default behaviour
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            received.append(signal.Signals(number))
            if len(received) == 1:
                threading.Thread(target=insist, daemon=True).start()
            raise Ended

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    caught = {number: handler for number, handler in before.items() if handler in DEFAULTS}
    try:
        for number in caught:
            signal.signal(number, end)
        yield received
    finally:
        ended.set()
        for number, handler in caught.items():
            signal.signal(number, handler)
