"""Seals of a latency table, which reveal rows that were edited by hand. In: rows as text. Out: checksums.

Each row ends with a checksum of its fields and its setting, each session with a digest of its values and its
rows' checksums, independent of their order, so that sessions of two branches can be merged.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from zlib import crc32

import numpy as np

from bcnet.latency_tables.rows import LayerSpec, Session, Setting
from bcnet.runs import bytes_digest

UNSEALED = len(b', "seal": "01234567"},\n')  # bytes at the end of a row's line that its checksum excludes


@dataclass(frozen=True)
class Edit:
    """A row, or a session's own values or set of rows, that does not match its seal."""

    what: str
    session: int
    sealed: str
    found: str
    is_row: bool = True

    def __str__(self) -> str:
        return f"{self.what}: its seal is {self.sealed or 'missing'}, but should be {self.found}"


def base_of(setting: Setting) -> int:
    """The checksum of a setting, from which the checksums of its rows continue."""
    return crc32(json.dumps(asdict(setting), sort_keys=True).encode())


def row_seal(text: bytes, base: int) -> str:
    """The checksum (CRC-32) of a row's text up to its seal, continued from that of its setting."""
    return f"{crc32(text, base):08x}"


def session_seal(session: Session, rows: Sequence[str]) -> str:
    """The digest of a session's values and its rows' checksums."""
    seals = np.sort(np.array([int(seal, 16) for seal in rows], dtype="<u4"))
    return bytes_digest(json.dumps(asdict(session), sort_keys=True).encode() + seals.tobytes())


def edited_row(layer: LayerSpec, setting: Setting, session: int, sealed: str, found: str) -> Edit:
    """The edit of one row."""
    return Edit(f"the row of {layer} at {setting} was edited", session, sealed, found)


def edited_session(session: Session, number: int, sealed: str, found: str) -> Edit:
    """The edit of a session whose rows all match their seals."""
    what = (
        f"session {session.id} of {session.date} was edited, or some of its rows were removed, added or "
        "sealed by hand"
    )
    return Edit(what, number, sealed, found, is_row=False)
