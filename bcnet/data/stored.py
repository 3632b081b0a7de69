"""Images as their sources hold them: files, members of archives, rows of tables.

A source gives `Listed`: the images and classes of each part, of which nothing is decoded yet. `splits_of`
(`data/stored_splits.py`) makes images of one size of them, in memory, on disk or as a stream.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bcnet.data.pictures import Stored
from bcnet.data.splits import stratified
from bcnet.errors import DataError
from bcnet.plain import shown

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
LISTED = 4  # the most files that a message names
TEST_SHARE = 0.2  # of the images, where a source has no parts


class StoredImages(Protocol):
    """The images of a source, by number."""

    def image(self, number: int) -> Stored:
        """An image, not decoded where the source stores it encoded. Raises what prevents reading it."""

    def name(self, number: int) -> str:
        """Its name within the source."""

    def place(self, number: int) -> str:
        """Where it is, for messages."""

    def digest(self, numbers: Sequence[int]) -> str:
        """A hash that changes when one of these images may have changed; pixels are not read for it."""


@dataclass(frozen=True)
class Part:
    """Images of a source, by their numbers there, int64 (N,), with class indices, int64 (N,)."""

    images: StoredImages
    labels: Tensor
    numbers: Tensor

    @classmethod
    def all(cls, images: StoredImages, labels: Sequence[int]) -> "Part":
        """All images of a source, with their classes."""
        return cls(images, torch.tensor(labels, dtype=torch.int64), torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> "Part":
        """The images at `index`."""
        return replace(self, labels=self.labels[index], numbers=self.numbers[index])

    def divided(self, count: int, seed: int) -> tuple["Part", "Part"]:
        """Two parts, the first with at most `count` images, both with the classes in proportion."""
        if count >= len(self):
            return self, self.take(slice(0))
        first, rest = stratified(self.labels, count, seed)
        return self.take(first), self.take(rest)

    def image(self, position: int) -> Stored:
        """One image. Raises what prevents reading it."""
        return self.images.image(int(self.numbers[position]))

    def name(self, position: int) -> str:
        """The name of one image within the source."""
        return self.images.name(int(self.numbers[position]))

    def place(self, position: int) -> str:
        """Where an image is, as one printable line, whatever bytes its name consists of."""
        place = self.images.place(int(self.numbers[position]))
        return place if place.isprintable() else repr(place)

    def digest(self) -> str:
        """A hash that changes when one of the images may have changed."""
        return self.images.digest(self.numbers.tolist())


@dataclass(frozen=True, order=True)
class Unreadable:
    """An image that cannot be read."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place} ({self.reason})"


@dataclass
class Found:
    """What a source holds, and what was done with it. `kind` is "folder" for image files in a folder."""

    source: str
    kind: str = "source"
    side: int = 0  # of each image, in pixels
    notes: list[str] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    unreadable: list[Unreadable] = field(default_factory=list)
    thin: list[tuple[str, tuple[int, int]]] = field(default_factory=list)  # places, with width and height
    others: Counter[str] = field(default_factory=Counter)  # suffixes of files that are not images

    def __str__(self) -> str:
        """One line: sizes, conversions, files that were left out."""
        line = [f"images of {self.side} x {self.side} pixels", *self.notes]
        if self.converted:
            line.append("converted: " + ", ".join(f"{n:,} {what}" for what, n in self.converted.items()))
        if self.unreadable:
            line.append(f"skipped {len(self.unreadable):,} unreadable: {listed_briefly(self.unreadable)}")
        if self.others:
            kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in self.others.most_common(LISTED))
            line.append(f"other files: {kinds}")
        return "; ".join(line)


@dataclass(frozen=True)
class Listed:
    """What a source holds: "train", "test" and, if candidates are scored on images of their own, "val"."""

    parts: dict[str, Part]
    classes: tuple[str, ...]
    found: Found


def part_of(name: str) -> str | None:
    """Which of "train", "val" and "test" a name means, in whatever spelling; None for another name."""
    return next((part for part, names in PARTS.items() if name.lower() in names), None)


def with_test_set(parts: dict[str, Part], names: dict[str, str], found: Found) -> dict[str, Part]:
    """The parts as they are used: the test set is "val" if there is no other, or a fifth of "train".

    `names` are those of the parts in the source, for notes. Raises DataError if nothing is left to train on.
    """
    train = parts["train"]
    if set(parts) == {"train"}:
        test, train = train.divided(max(1, round(len(train) * TEST_SHARE)), seed=0)
        if not len(train):
            raise DataError(f"{found.source} holds only one image; there is nothing to train on")
        found.notes.append("a fifth of the images is the test set")
        return {"train": train, "test": test}
    if "test" not in parts:
        found.notes.append(
            f"{names['val']} is the test set, candidates are scored on a part of {names['train']}"
        )
        return {"train": train, "test": parts["val"]}
    if "val" in parts:
        found.notes.append(f"candidates are scored on {names['val']}")
    return parts


def indexed(
    labels: Mapping[str, Sequence[Any]], classes: Sequence[str] | None, source: str
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Class indices of each part, and the classes' names. Raises DataError for a class that is not known.

    Without `classes`, these are the values in "train": numbers in numerical order, names in alphabetical.
    """
    known = (
        range(len(classes)) if classes else sorted({*labels["train"]}, key=lambda v: (isinstance(v, str), v))
    )
    index = {value: number for number, value in enumerate(known)}
    for part, own in labels.items():
        for value in own:
            if value not in index or not isinstance(value, int | str):
                others = f"0 to {len(classes) - 1}" if classes else "those of train, as numbers or names"
                raise DataError(
                    f"'{source}': an image of {part} has the class {shown(value)}; known are {others}"
                )
    return (
        {part: [index[value] for value in own] for part, own in labels.items()},
        tuple(classes or map(str, known)),
    )


def file_list_digest(paths: Sequence[Path], folder: Path) -> str:
    """A hash of the files' names below `folder`, their sizes and times of change."""
    found, above = sha256(), len(folder.parts)
    for path in paths:
        try:
            status = path.stat()
            state = status.st_size, status.st_mtime_ns
        except OSError:
            state = (-1, -1)  # reported when it is decoded
        found.update(json.dumps([os.fsencode("/".join(path.parts[above:])).hex(), *state]).encode())
    return found.hexdigest()[:16]


def listed_briefly(values: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(map(str, values[:LISTED]))
    return shown + (f" and {len(values) - LISTED:,} more" if len(values) > LISTED else "")
