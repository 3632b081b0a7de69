"""What happened in a run. In: the events of its commands. Out: runs/NAME/log.jsonl, a line an event."""

import errno
import json
import time
from pathlib import Path
from typing import Any

from bcnet.events import Event
from bcnet.progress import say

LOG = "log.jsonl"
WAITING = 1000  # events that are kept until the first line is written
BEFORE_WORK = ("command started", "stage started", "message", "command failed", "command finished")


class RunLog:
    """Appends events to a run's log, of several commands at once, too.

    Each line has `at` (UTC), `command`, `event` and the event's values. Nothing is written before the command
    has done some work, as an epoch: one that is refused leaves no line. Where the log cannot be written, that
    is reported once, and the command goes on.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command
        self._waiting: list[str] = []
        self._works = self._stopped = False

    def __call__(self, event: Event) -> None:
        """Append a line."""
        if self._stopped:
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(event.at)) + f".{int(event.at % 1 * 1000):03}Z"
        line = {"at": at, "command": self._command, "event": event.name, **event.values}
        self._waiting = [*self._waiting, json.dumps(_finite(line), default=str) + "\n"][-WAITING:]
        self._works = self._works or event.name not in BEFORE_WORK
        if self._works and self._folder.is_dir():
            self._write()

    def _write(self) -> None:
        try:
            with open(self._folder / LOG, "a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as cause:
            self._stopped = True
            if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return  # a run that is only read, as by `bcnet verify`
            say(f"{self._folder / LOG} is not written any more: {cause.strerror}")
        self._waiting = []

    def close(self) -> None:
        """All is written already."""


def _finite(value: Any) -> Any:
    """The value without NaN and infinities, which JSON does not have: None in their place."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value
