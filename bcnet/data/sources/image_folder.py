"""Folders of images, one folder per class. In: a path. Out: their files by part and class.

PATH/train/<class>/* with PATH/test/<class>/*, or with val/, valid/ or validation/ instead; where both exist,
candidates are scored on the latter's images. Or PATH/<class>/*, of which a fifth is the test set.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcnet.config import DataConfig
from bcnet.data.stored import PARTS, Found, Listed, Part, file_list_digest, with_test_set
from bcnet.errors import DataError
from bcnet.nearest import near_path
from bcnet.plain import counted

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
NO_IMAGES = ("thumbs.db", "desktop.ini")  # written by file managers, beside hidden files


@dataclass(frozen=True)
class _Files:
    """Image files somewhere in a folder."""

    paths: tuple[Path, ...]
    folder: Path

    def image(self, number: int) -> Path:
        """The file."""
        return self.paths[number]

    def name(self, number: int) -> str:
        """The name below the folder."""
        # Not `relative_to`, which takes seconds for a large folder.
        return "/".join(self.paths[number].parts[len(self.folder.parts) :])

    def place(self, number: int) -> str:
        """The path."""
        return str(self.paths[number])

    def digest(self, numbers: Sequence[int]) -> str:
        """A hash of the files' names, sizes and times."""
        return file_list_digest([self.paths[number] for number in numbers], self.folder)


def image_folder(argument: str, config: DataConfig) -> Listed:
    """The image files of a folder. Raises DataError."""
    path = Path(argument)
    if not path.is_dir():
        hint = near_path(path, "give the path of a folder, as seen from the working folder")
        raise DataError(f"imagefolder:{path}: there is no folder {path}; {hint}")
    found = Found(str(path), "folder")
    folders = _part_folders(path)
    if "train" not in folders:
        train, classes = _listing(path, path, None, found)
        return Listed(with_test_set({"train": train}, {}, found), classes, found)
    if "test" not in folders and "val" not in folders:
        raise DataError(
            f"{path} has train/ but no test/ (or val/, valid/, validation/); bcnet needs both, or classes "
            f"directly in {path}"
        )
    train, classes = _listing(path, folders["train"], None, found)
    parts = {"train": train}
    for name in ("val", "test"):
        if name in folders:
            parts[name] = _listing(path, folders[name], classes, found)[0]
    names = {"train": "train/"} | {name: f"{folders[name].name}/" for name in parts if name != "train"}
    return Listed(with_test_set(parts, names, found), classes, found)


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
    path: Path, folder: Path, classes: tuple[str, ...] | None, found: Found
) -> tuple[Part, tuple[str, ...]]:
    """Every image, by class, in the order of names; `classes` are given for every part but the first."""
    there = _folders(folder)
    outside = sum(_is_loose_image(entry) for entry in _entries(folder))
    if outside:
        images = counted(outside, "image")
        found.notes.append(f"left out: {images} in {folder} itself, outside the folders of classes")
    names = tuple(own.name for own in there)
    if not names:
        raise DataError(f"no images in {folder}: it has no folders; it needs one folder of images per class")
    if classes is None:
        classes = names
    elif unknown := sorted({*names} - {*classes}):
        raise DataError(f"{path}/train and {folder} hold different classes: '{unknown[0]}' is not in train")
    paths: list[Path] = []
    labels: list[int] = []
    for own in there:
        files = sorted(_images(own, found, ()), key=lambda file: (str(file.parent), file.name))
        if not files and classes is names:
            raise DataError(
                f"no images in {own} ({', '.join(SUFFIXES)}); it needs one folder of images per class"
            )
        paths += files
        labels += [classes.index(own.name)] * len(files)
    if not paths:
        raise DataError(f"no images in {folder}; it needs one folder of images per class")
    if lacking := sorted({*classes} - {*names}):
        found.notes.append(f"{folder.name}/ lacks the class '{lacking[0]}'")
    return Part.all(_Files(tuple(paths), path), labels), classes


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
