"""Signals that end a command as Ctrl-C does. In: SIGTERM, SIGHUP. Out: an exception in the main thread.

What is at work is left in the same way: locks are released, temporary files removed, what was complete stays.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """A signal has ended the command; handled wherever Ctrl-C is."""


@contextmanager
def as_interrupts() -> Iterator[list[signal.Signals]]:
    """For the length of the block, the first signal that ends programs raises Ended; later ones do nothing.

    The value gets the signal that has. A signal that is ignored already stays so, as SIGHUP under nohup.
    """
    received: list[signal.Signals] = []
    own = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a worker process that was forked dies as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not received:
            received.append(signal.Signals(number))
            raise Ended

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    caught = {number: handler for number, handler in before.items() if handler == signal.SIG_DFL}
    try:
        for number in caught:
            signal.signal(number, end)
        yield received
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
