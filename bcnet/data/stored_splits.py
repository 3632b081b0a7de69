"""The images of a source as parts of a dataset, limited in number and all of one size.

In: what a source lists, settings. Out: splits in memory, on disk or decoded each time, and what was found.
"""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.decoding import Streamed, decoded_in_memory, shorter_side_of
from bcnet.data.image_cache import GB, ImageCache
from bcnet.data.pixels import ImagesOnDisk
from bcnet.data.splits import Split
from bcnet.data.stored import LISTED, Found, Listed, Part, Unreadable, listed_briefly
from bcnet.errors import DataError
from bcnet.plain import counted
from bcnet.progress import say

LINES = 1000  # the most files that are listed, one a line, before a message
SIZED = 2000  # files whose sizes are examined
MEMORY = 2**30  # bytes of pixels that are kept in memory, if data.storage is "auto"
BLANK = 16  # images of a part whose pixels are not read
DEFAULT_SIDE = 224  # pixels; the largest side chosen for images of different sizes


def splits_of(listed: Listed, config: DataConfig, seed: int, *, pixels: bool = True) -> dict[str, Split]:
    """The parts "train", "test" and perhaps "val", limited, with images of one size. Raises DataError.

    Without `pixels`, only sizes are read, and each part holds a few blank images.
    """
    found = listed.found
    # Chosen before they are decoded, so that a part of a large folder costs only that part.
    limits = {"train": config.train_limit, "test": config.test_limit}
    if config.train_limit:
        limits["val"] = max(1, round(config.train_limit * config.val_fraction))
    parts = {name: own.divided(limits.get(name) or len(own), seed)[0] for name, own in listed.parts.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF data and large images
        _choose_side(parts["train"], config, found)
        if not pixels:
            return {name: _blank(own, found) for name, own in parts.items()}
        storage = _storage(sum(map(len, parts.values())), found.side, config)
        splits = {name: _images_of(own, storage, config, found) for name, own in parts.items()}
    found.unreadable.sort()
    if found.unreadable and not config.skip_broken:
        _list_all(found.unreadable)
        raise DataError(_unreadable_message(found.unreadable))
    for name, split in splits.items():
        if not len(split):
            raise DataError(f"{found.source}: no image in {name} can be read")
        lost = sorted({*parts[name].labels.tolist()} - {*split.labels.tolist()})
        if lost:
            raise DataError(
                f"{found.source}: no image of the class '{listed.classes[lost[0]]}' in {name} can be read: "
                "repair them, or remove the class"
            )
    if found.thin:
        say(_thin_message(found))
    return splits


def _choose_side(part: Part, config: DataConfig, found: Found) -> None:
    """The configured size in pixels, or one that suits the training images: `working_side`."""
    if config.image_size:
        found.side = config.image_size
        return

    positions = range(0, len(part), max(1, len(part) // SIZED))
    with ThreadPoolExecutor() as pool:
        sides = sorted(filter(None, pool.map(lambda position: shorter_side_of(part, position), positions)))
    found.side = working_side(sides)
    if sides and sides[0] != sides[-1]:
        median = sides[len(sides) // 2]
        found.notes.append(
            f"shorter sides are {sides[0]} to {sides[-1]} pixels, the median {median}: set data.image_size "
            "to choose another size"
        )


def working_side(sides: Sequence[int]) -> int:
    """The side in pixels for images with these shorter sides (sorted): that of at least half, or the tenth
    percentile.

    Nine in ten are then scaled down, not up; at most 224 pixels where the sizes differ.
    """
    if not sides:
        return DEFAULT_SIDE
    side, count = Counter(sides).most_common(1)[0]
    if 2 * count < len(sides):
        side = min(sides[len(sides) // 10], DEFAULT_SIDE)
    return max(side, 8)


def _storage(count: int, side: int, config: DataConfig) -> str:
    """Where that many images are kept: `data.storage`. Raises DataError if the memory is too small."""
    needed = count * 3 * side * side
    if config.storage != "memory":
        return ("memory" if needed <= MEMORY else "disk") if config.storage == "auto" else config.storage
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "memory"
    if needed > memory:
        raise DataError(
            f"{count:,} images of {side} x {side} pixels take {needed / 1e9:.0f} GB of memory, this machine "
            f"has {memory / 1e9:.0f} GB; set data.storage = 'disk', data.image_size or data.train_limit"
        )
    return "memory"


def _images_of(part: Part, storage: str, config: DataConfig, found: Found) -> Split:
    """Square images, classes and names of a part; unreadable ones go to `found`."""
    side = found.side
    images: Tensor | ImagesOnDisk
    if storage == "stream":
        rows = list(range(len(part)))
        images = ImagesOnDisk(Streamed(part, (3, side, side), part.digest()), torch.arange(len(part)))
    else:
        if storage == "memory":
            images, rows, outcome = decoded_in_memory(part, side)
        else:
            images, outcome = ImageCache(Path(config.cache), round(config.cache_gb * GB)).images(part, side)
            rows = images.rows.tolist()
        found.unreadable += [Unreadable(part.place(row), why) for row, why in outcome.unreadable.items()]
        found.converted.update(outcome.converted)
        found.thin += [(part.place(row), size) for row, size in outcome.thin.items()]
    kept = part.take(torch.tensor(rows, dtype=torch.int64))
    return Split(images, kept.labels, tuple(map(part.name, rows)), originals=kept)


def _blank(part: Part, found: Found) -> Split:
    labels = part.labels[:BLANK]
    return Split(torch.zeros((len(labels), 3, found.side, found.side), dtype=torch.uint8), labels)


def _unreadable_message(files: Sequence[Unreadable]) -> str:
    advice = "or set data.skip_broken = true"
    if len(files) == 1:
        return f"{files[0].place} cannot be read as an image ({files[0].reason}); remove it, {advice}"
    above = " (all are listed above)" if LISTED < len(files) <= LINES else ""
    shown = listed_briefly(files)
    return f"{len(files):,} files cannot be read as images: {shown}{above}; remove them, {advice}"


def _thin_message(found: Found) -> str:
    place, (width, height) = min(found.thin)
    one = counted(len(found.thin), "image is", "images are")
    return (
        f"{one} so narrow or so small that scaling to {found.side} x {found.side} pixels leaves little to "
        f"recognise, as {place} ({width} x {height} pixels): remove them, or crop them by hand"
    )


def _list_all(files: Sequence[Unreadable]) -> None:
    """List the files one a line, where there are more than the message names."""
    if len(files) > LISTED:
        for file in files[:LINES]:
            say(f"unreadable: {file}")
        if len(files) > LINES:
            say(f"unreadable: {len(files) - LINES:,} more")
