"""Decoded images of large datasets, kept in files for all commands and processes.

In: stored images and a side in pixels. Out: the images on disk, and what was found while they were decoded.
A cache is named by the digest of its part; decoding continues where it was killed.
"""

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from bcnet.data.decoding import DECODING, Outcome, decode_all
from bcnet.data.pixels import DecodedFile, ImagesOnDisk
from bcnet.data.stored import Part
from bcnet.errors import DataError
from bcnet.locks import Locked, locked, locked_after_waiting
from bcnet.plain import counted
from bcnet.progress import progress_bar, say
from bcnet.sealed import SealedLines

PIXELS, LOG = "pixels.u8", "images.jsonl"
BLOCK = 1024  # images that are decoded again after a kill, at most
GB = 10**9


@dataclass(frozen=True)
class ImageCache:
    """The folder in which decoded images are kept, and the number of bytes that it may take."""

    root: Path
    room: int

    def images(self, part: Part, side: int) -> tuple[ImagesOnDisk, Outcome]:
        """The images that can be read, square, decoded now if they are not there yet.

        Raises DataError if they need more room than there is.
        """
        about = {"files": part.digest(), "side": side, "decoding": DECODING, "images": len(part)}
        own = self.root / sha256(json.dumps(about).encode()).hexdigest()[:16]
        with locked_after_waiting(
            own, lambda: say(f"another process is decoding images into {own}: waiting")
        ):
            log = SealedLines(own / LOG, about, _whole_blocks(own / PIXELS, len(part), side))
            if sum(value["count"] for value in log.values) < len(part):
                self._make_room(own, len(part) * 3 * side * side, len(part))
                _decode_rest(own / PIXELS, log, part, side)
            os.utime(own / LOG)  # when it was last used
        blocks = [_Block.from_json(value) for value in log.values]
        outcome = Outcome()
        for block in blocks:
            outcome.include(block.outcome)
        rows = torch.tensor([row for row in range(len(part)) if row not in outcome.unreadable])
        digest = sha256("".join(block.digest for block in blocks).encode()).hexdigest()[:16]
        return ImagesOnDisk(DecodedFile(own / PIXELS, (3, side, side), digest), rows), outcome

    def _make_room(self, own: Path, needed: int, count: int) -> None:
        """Remove the least recently used caches. Raises DataError if that is not enough."""
        say(f"decoding {counted(count, 'image')} into {own}: {needed / GB:.1f} GB; see data.storage")
        advice = "raise data.cache_gb, set data.image_size or data.train_limit, or data.storage = 'stream'"
        if needed > self.room:
            raise DataError(
                f"{count:,} decoded images take {needed / GB:.1f} GB, data.cache_gb allows "
                f"{self.room / GB:g}: {advice}"
            )
        others = sorted(
            (path for path in self.root.iterdir() if path != own and (path / LOG).exists()),
            key=lambda path: (path / LOG).stat().st_mtime,
        )
        taken = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
        for path in others:
            if sum(taken.values()) + needed <= self.room:
                break
            try:
                with locked(path):
                    shutil.rmtree(path)
            except Locked:
                continue
            say(f"removed {path}, the least recently used images ({taken.pop(path) / GB:.1f} GB)")
        free = shutil.disk_usage(self.root).free + _size(own / PIXELS)
        if needed > free:
            raise DataError(
                f"{count:,} decoded images take {needed / GB:.1f} GB, {self.root} has {free / GB:.1f} GB "
                f"left: set data.cache to a folder elsewhere, or {advice.split(', ', 1)[1]}"
            )


@dataclass(frozen=True)
class _Block:
    """Images that were decoded one after the other: how many, a hash of their pixels, what was found."""

    count: int
    digest: str
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        found = self.outcome
        return {
            "count": self.count,
            "digest": self.digest,
            "unreadable": list(found.unreadable.items()),
            "converted": dict(found.converted),
            "thin": list(found.thin.items()),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "_Block":
        outcome = Outcome(
            dict(value["unreadable"]),
            Counter(value["converted"]),
            {number: tuple(size) for number, size in value["thin"]},
        )
        return cls(value["count"], value["digest"], outcome)


def _decode_rest(file: Path, log: SealedLines, part: Part, side: int) -> None:
    """Decode the images that the log does not have yet. Pixels are on disk before their line is written."""
    done = sum(value["count"] for value in log.values)
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = "r+b" if done else "wb"
    with open(file, mode) as pixels, progress_bar("decoding images", len(part) - done) as advance:
        pixels.truncate(done * 3 * side * side)
        pixels.seek(0, os.SEEK_END)
        blank = bytes(3 * side * side)  # in place of one that cannot be read: rows are positions in the part
        for start in range(done, len(part), BLOCK):
            outcome, digest = Outcome(), sha256()
            some = part.take(slice(start, start + BLOCK))
            for number, found in enumerate(decode_all(some, side), start):
                outcome.add(number, found, side)
                content = blank if isinstance(found, str) else found.pixels.contiguous().numpy().data
                digest.update(content)
                pixels.write(content)
                advance("")
            pixels.flush()
            os.fsync(pixels.fileno())
            log.append(_Block(len(some), digest.hexdigest()[:16], outcome).to_json())


def _whole_blocks(file: Path, count: int, side: int) -> int | None:
    """The number of blocks that a file of pixels holds in full, None if all."""
    rows = _size(file) // (3 * side * side)
    return None if rows >= count else rows // BLOCK


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
