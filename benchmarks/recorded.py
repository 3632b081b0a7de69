"""How a record was made. In: the running command. Out: it with all of its options, and the date."""

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path


def how_made() -> dict[str, str]:
    """The command that repeats this run, from the repository's root, and today's date (UTC)."""
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return {"command": shlex.join(command), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
