"""Accept intended edits of a table by hand. In: a table's file. Out: the file with new seals."""

import datetime
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from bcnet.latency_tables.file import read_with_edits
from bcnet.latency_tables.journal import alone
from bcnet.latency_tables.table import LatencyTable


def accept_edits(path: Path) -> dict[str, Any]:
    """Seal a table's rows as they are now; record the number of edited rows in the sessions' provenance.

    Returns a summary. A table without edits is left unchanged. Raises TableError if a row is not valid.
    """
    with alone(path):
        content, edits = read_with_edits(path)
        rows = Counter(edit.session for edit in edits if edit.is_row)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        for number in sorted({edit.session for edit in edits}):
            session = content.sessions[number]
            count = rows[number]
            what = f"{count} row{'s' if count > 1 else ''}" if count else "its values, or which rows it has,"
            before = session.provenance.get("edited")
            note = f"{f'{before}; ' if before else ''}{what} by hand, accepted {today}"
            content.sessions[number] = replace(session, provenance={**session.provenance, "edited": note})
        if edits:
            LatencyTable(**vars(content)).save(path)
    return {
        "table": str(path),
        "device": content.device,
        "rows_edited": sum(rows.values()),
        "sessions_edited": len({edit.session for edit in edits}),
        "edits": [edit.what for edit in edits],
        "next": f"bcnet build-lut --device {content.device}" if edits else None,
    }
