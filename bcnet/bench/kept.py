"""Keep a benchmark's values by setting in a sealed file, so that a stopped benchmark continues.

In: a file, what its values depend on, what a valid value is. Out: values by setting.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bcnet.errors import ArtifactError
from bcnet.progress import say
from bcnet.sealed import SealedLines


class Kept:
    """A file of one setting per line. `values` are those of a stopped benchmark with the same inputs.

    Values from a changed line on are dropped, which is reported: they are computed again.
    """

    def __init__(self, path: Path, inputs: str, valid: Callable[[Any], bool]) -> None:
        """Raises ArtifactError where the file cannot be read or holds something else."""
        remedy = f"run `rm {path}` to compute its values again"
        try:
            self._lines = SealedLines(path, {"inputs": inputs})
        except OSError as cause:
            raise ArtifactError(f"{path} cannot be read ({cause.strerror}); {remedy}") from None
        except ValueError as cause:
            raise ArtifactError(f"{path} cannot be read ({cause}); {remedy}") from None
        self.values: dict[str, Any] = {}
        for line in self._lines.values:
            match line:
                case [str(key), value] if valid(value):
                    self.values[key] = value
                case _:
                    raise ArtifactError(f"{path} holds other values than those of this benchmark; {remedy}")
        if self._lines.dropped:
            say(f"{path}: {self._lines.dropped}; what is missing is computed again")

    def add(self, key: str, value: Any) -> None:
        """Keep one more setting's value; it survives the process when this returns."""
        self._lines.append([key, value])
        self.values[key] = value


def finite(value: Any, least: float = 0.0, most: float = math.inf) -> bool:
    """Whether a value is a finite number between `least` and `most`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and least <= value <= most
