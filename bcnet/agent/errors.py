"""The error that a device reports: its kind and one line of text."""


class JobError(Exception):
    """A failed job. `kind`: "network" if the device cannot run this network, "device" if it can run none."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def one_line(cause: BaseException) -> str:
    """An exception of another library as one line: its type and the first line of its message."""
    text = str(cause).strip()
    return "%s: %s" % (type(cause).__name__, text.splitlines()[0]) if text else type(cause).__name__
