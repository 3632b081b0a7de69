"""Folders of images, one folder per class. In: a path, settings. Out: parts, and what was found in them.

PATH/train/<class>/* with PATH/test/<class>/*, or with val/, valid/ or validation/ instead; where both exist,
candidates are scored on the latter's images. Or PATH/<class>/*, of which a fifth is the test set.
"""

import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.decoding import decoded_in_memory
from bcnet.data.image_cache import GB, ImageCache, file_list_digest
from bcnet.data.pictures import shorter_side
from bcnet.data.pixels import ImageFiles, ImagesOnDisk
from bcnet.data.splits import Split, stratified
from bcnet.errors import DataError
from bcnet.nearest import near_path
from bcnet.progress import say

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
NO_IMAGES = ("thumbs.db", "desktop.ini")  # written by file managers, beside hidden files
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
LISTED = 4  # the most files that a message names
LINES = 1000  # the most files that are listed, one a line, before it
SIZED = 2000  # files whose sizes are examined
MEMORY = 2**30  # bytes of pixels that are kept in memory, if data.storage is "auto"
BLANK = 16  # images of a part whose pixels are not read
DEFAULT_SIDE = 224  # pixels; the largest side chosen for images of different sizes


class _Sample(NamedTuple):
    path: Path
    label: int


class _Unreadable(NamedTuple):
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{_shown(self.path)} ({self.reason})"


@dataclass
class Found:
    """What a folder holds, and what was done with it."""

    path: Path
    side: int = 0  # of each image, in pixels
    notes: list[str] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    unreadable: list[_Unreadable] = field(default_factory=list)
    thin: list[tuple[Path, tuple[int, int]]] = field(default_factory=list)  # with width and height
    others: Counter[str] = field(default_factory=Counter)  # suffixes of files that are not images

    def __str__(self) -> str:
        """One line: sizes, conversions, files that were left out."""
        line = [f"images of {self.side} x {self.side} pixels", *self.notes]
        if self.converted:
            line.append("converted: " + ", ".join(f"{n:,} {what}" for what, n in self.converted.items()))
        if self.unreadable:
            line.append(f"skipped {len(self.unreadable):,} unreadable: {_listed(self.unreadable)}")
        if self.others:
            kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in self.others.most_common(LISTED))
            line.append(f"other files: {kinds}")
        return "; ".join(line)


@dataclass(frozen=True)
class FolderData:
    """The parts of a folder; `val` only where the folder has one."""

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    found: Found


def image_folder(path: Path, config: DataConfig, seed: int, *, pixels: bool = True) -> FolderData:
    """The images of a folder, limited in number, all of one size. Raises DataError.

    Without `pixels`, only sizes are read, and each part holds a few blank images.
    """
    if not path.is_dir():
        hint = near_path(path, "give the path of a folder, as seen from the working folder")
        raise DataError(f"imagefolder:{path}: there is no folder {path}; {hint}")
    found = Found(path)
    parts, classes = _samples(found)
    # Chosen before they are decoded, so that a part of a large folder costs only that part.
    limits = {"train": config.train_limit, "test": config.test_limit}
    if config.train_limit:
        limits["val"] = max(1, round(config.train_limit * config.val_fraction))
    parts = {name: _divided(own, limits.get(name) or len(own), seed)[0] for name, own in parts.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF data and large images
        _choose_side(parts["train"], config, found)
        if not pixels:
            blank = {name: _blank(own[:BLANK], found) for name, own in parts.items()}
            return FolderData(blank["train"], blank.get("val"), blank["test"], classes, found)
        storage = _storage(sum(map(len, parts.values())), found.side, config)
        splits = {name: _images_of(own, storage, config, found) for name, own in parts.items()}
    found.unreadable.sort()
    if found.unreadable and not config.skip_broken:
        _list_all(found.unreadable)
        raise DataError(_unreadable_message(found.unreadable))
    for name, split in splits.items():
        if not len(split):
            raise DataError(f"{path}: no image in {name} can be read")
        lost = sorted({sample.label for sample in parts[name]} - set(split.labels.tolist()))
        if lost:
            raise DataError(
                f"{path}: no image of the class '{classes[lost[0]]}' in {name} can be read: repair them, "
                "or remove the class"
            )
    if found.thin:
        say(_thin_message(found))
    return FolderData(splits["train"], splits.get("val"), splits["test"], classes, found)


def _samples(found: Found) -> tuple[dict[str, list[_Sample]], tuple[str, ...]]:
    """Files and classes of each part: "train", "test" and, if there is one, "val"."""
    path = found.path
    folders = _part_folders(path)
    if "train" not in folders:
        samples, classes = _listing(path, None, found)
        test, train = _divided(samples, max(1, round(len(samples) * 0.2)), seed=0)
        if not train:
            raise DataError(f"{path} holds only one image; there is nothing to train on")
        found.notes.append("a fifth of the images is the test set")
        return {"train": train, "test": test}, classes
    if "test" not in folders and "val" not in folders:
        raise DataError(
            f"{path} has train/ but no test/ (or val/, valid/, validation/); bcnet needs both, or classes "
            f"directly in {path}"
        )
    train, classes = _listing(folders["train"], None, found)
    if "test" not in folders:
        folders["test"] = folders.pop("val")
        found.notes.append(
            f"{folders['test'].name}/ is the test set, candidates are scored on a part of train/"
        )
    elif "val" in folders:
        found.notes.append(f"candidates are scored on {folders['val'].name}/")
    return {
        "train": train,
        **{name: _listing(folders[name], classes, found)[0] for name in ("val", "test") if name in folders},
    }, classes


def _part_folders(path: Path) -> dict[str, Path]:
    """The folders "train", "val" and "test" however they are spelled; empty where PATH holds classes."""
    there = _folders(path)
    found: dict[str, Path] = {}
    for part, names in PARTS.items():
        own = [folder for folder in there if folder.name.lower() in names]
        if len(own) > 1 and part != "train":
            both = " and ".join(f"{folder.name}/" for folder in own)
            raise DataError(f"{path} has both {both}: keep only one of them")
        if own:
            found[part] = own[0]
    if found and "train" not in found and len(found) == len(there):
        raise DataError(
            f"{path} has {there[0].name}/ but no train/; bcnet needs both, or classes directly in it"
        )
    return found


def _listing(
    folder: Path, classes: tuple[str, ...] | None, found: Found
) -> tuple[list[_Sample], tuple[str, ...]]:
    """Every image, by class, in the order of names; `classes` are given for every part but the first."""
    there = _folders(folder)
    outside = sum(_is_loose_image(entry) for entry in _entries(folder))
    if outside:
        found.notes.append(f"left out: {outside:,} images in {folder} itself, outside the folders of classes")
    names = tuple(own.name for own in there)
    if not names:
        raise DataError(f"no images in {folder}: it has no folders; it needs one folder of images per class")
    if classes is None:
        classes = names
    elif unknown := sorted({*names} - {*classes}):
        raise DataError(
            f"{found.path}/train and {folder} hold different classes: '{unknown[0]}' is not in train"
        )
    samples = []
    for own in there:
        files = sorted(_images(own, found, ()), key=lambda file: (str(file.parent), file.name))
        if not files and classes is names:
            raise DataError(
                f"no images in {own} ({', '.join(SUFFIXES)}); it needs one folder of images per class"
            )
        samples += [_Sample(file, classes.index(own.name)) for file in files]
    if not samples:
        raise DataError(f"no images in {folder}; it needs one folder of images per class")
    if lacking := sorted({*classes} - {*names}):
        found.notes.append(f"{folder.name}/ lacks the class '{lacking[0]}'")
    return samples, classes


def _folders(path: Path) -> list[Path]:
    """The folders in a folder, without hidden ones, by name."""
    return sorted(
        Path(entry.path)
        for entry in _entries(path)
        if not entry.name.startswith(".") and entry.name != "__MACOSX" and _is_folder(entry)
    )


def _is_loose_image(entry: os.DirEntry[str]) -> bool:
    hidden = entry.name.startswith(".")
    return not hidden and Path(entry.name).suffix.lower() in SUFFIXES and not _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as cause:
        raise DataError(f"{path} cannot be read: {cause.strerror}") from None


def _images(folder: Path, found: Found, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Every image file under a folder; `above` are the folders it lies in. DataError for link loops."""
    status = folder.stat()
    place = status.st_dev, status.st_ino
    if place in above:
        raise DataError(f"{folder} is a link to a folder that contains it: remove the link")
    for entry in _entries(folder):
        path = Path(entry.path)
        suffix = path.suffix.lower()
        if entry.name.startswith("._") or entry.name.lower() in NO_IMAGES:
            continue
        if _is_folder(entry):
            if not entry.name.startswith("."):
                yield from _images(path, found, (*above, place))
        elif suffix in SUFFIXES:
            _refuse_special(path)
            yield path
        elif not entry.name.startswith("."):
            found.others[suffix or "without suffix"] += 1


def _refuse_special(path: Path) -> None:
    """Refuse what would block or never end. What does not exist is read later, and reported then."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    kinds: dict[str, Callable[[int], bool]] = {
        "a FIFO": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
        "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    }
    for kind, is_one in kinds.items():
        if is_one(mode):
            raise DataError(f"{path} is {kind}, not an image file: remove it")


def _divided(samples: list[_Sample], count: int, seed: int) -> tuple[list[_Sample], list[_Sample]]:
    """Two parts, the first with at most `count` samples, both with the classes in proportion."""
    if count >= len(samples):
        return samples, []
    labels = torch.tensor([sample.label for sample in samples])
    parts = stratified(labels, count, seed)
    first, rest = ([samples[i] for i in part.tolist()] for part in parts)
    return first, rest


def _choose_side(samples: Sequence[_Sample], config: DataConfig, found: Found) -> None:
    """The configured size in pixels, or one that suits the training images: `working_side`."""
    if config.image_size:
        found.side = config.image_size
        return

    def read(sample: _Sample) -> int | None:
        try:
            return shorter_side(sample.path)
        except DataError:
            return None  # reported when the file is decoded

    step = max(1, len(samples) // SIZED)
    with ThreadPoolExecutor() as pool:
        sides = sorted(side for side in pool.map(read, samples[::step]) if side)
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


def _images_of(samples: Sequence[_Sample], storage: str, config: DataConfig, found: Found) -> Split:
    """Square images, classes and names of a part; unreadable files go to `found`."""
    paths, side = [sample.path for sample in samples], found.side
    images: Tensor | ImagesOnDisk
    if storage == "stream":
        files = ImageFiles(tuple(paths), (3, side, side), file_list_digest(paths, found.path))
        images, rows = ImagesOnDisk(files, torch.arange(len(paths))), list(range(len(paths)))
    else:
        if storage == "memory":
            images, rows, outcome = decoded_in_memory(paths, side)
        else:
            cache = ImageCache(Path(config.cache), round(config.cache_gb * GB))
            images, outcome = cache.images(paths, found.path, side)
            rows = images.rows.tolist()
        found.unreadable += [_Unreadable(paths[row], why) for row, why in outcome.unreadable.items()]
        found.converted.update(outcome.converted)
        found.thin += [(paths[row], size) for row, size in outcome.thin.items()]
    above = len(found.path.parts)  # not `relative_to`, which takes seconds for a large folder
    names = tuple("/".join(paths[row].parts[above:]) for row in rows)
    labels = torch.tensor([samples[row].label for row in rows], dtype=torch.int64)
    return Split(images, labels, names)


def _blank(samples: Sequence[_Sample], found: Found) -> Split:
    images = torch.zeros((len(samples), 3, found.side, found.side), dtype=torch.uint8)
    return Split(images, torch.tensor([sample.label for sample in samples], dtype=torch.int64))


def _unreadable_message(files: Sequence[_Unreadable]) -> str:
    advice = "or set data.skip_broken = true"
    if len(files) == 1:
        return f"{_shown(files[0].path)} cannot be read as an image ({files[0].reason}); remove it, {advice}"
    above = " (all are listed above)" if LISTED < len(files) <= LINES else ""
    return f"{len(files):,} files cannot be read as images: {_listed(files)}{above}; remove them, {advice}"


def _thin_message(found: Found) -> str:
    path, (width, height) = min(found.thin)
    count = len(found.thin)
    one = "1 image is" if count == 1 else f"{count:,} images are"
    return (
        f"{one} so narrow or so small that scaling to {found.side} x {found.side} pixels leaves little to "
        f"recognise, as {_shown(path)} ({width} x {height} pixels): remove them, or crop them by hand"
    )


def _list_all(files: Sequence[_Unreadable]) -> None:
    """List the files one a line, where there are more than the message names."""
    if len(files) > LISTED:
        for file in files[:LINES]:
            say(f"unreadable: {file}")
        if len(files) > LINES:
            say(f"unreadable: {len(files) - LINES:,} more")


def _shown(path: Path) -> str:
    """A file's name as one line, whatever bytes it consists of."""
    name = str(path)
    return name if name.isprintable() else repr(name)


def _listed(files: Sequence[_Unreadable]) -> str:
    shown = ", ".join(map(str, files[:LISTED]))
    return shown + (f" and {len(files) - LISTED:,} more" if len(files) > LISTED else "")
