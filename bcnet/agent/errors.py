"""The one error that crosses from a device: its kind and one line of text."""


class JobError(Exception):
    """A job that failed. `kind` is "network" (this network cannot be run here), or "device" (nothing can)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def one_line(cause: BaseException) -> str:
    """A foreign exception as one line: its type and the first line of its text."""
    text = str(cause).strip()
    return "%s: %s" % (type(cause).__name__, text.splitlines()[0]) if text else type(cause).__name__
