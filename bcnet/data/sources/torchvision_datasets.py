"""torchvision's datasets for classification, by the names of their classes, e.g. Flowers102.

In: NAME, or NAME:FOLDER for files that are there already; by default they are fetched into
.cache/torchvision/NAME. Out: the images of its parts, read when needed.
"""

import inspect
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from bcnet.config import DataConfig
from bcnet.data.stored import PARTS, Found, Listed, Part, file_list_digest, indexed, with_test_set
from bcnet.errors import FOREIGN, DataError, one_line
from bcnet.locks import locked_after_waiting
from bcnet.nearest import did_you_mean
from bcnet.progress import progress_bar, say

FETCHED = Path(".cache/torchvision")
TARGETS = ("targets", "labels", "_labels", "y")  # attributes with the class of each image
FILES = ("samples", "_samples", "_image_files", "_images")  # with its file, or (file, class)


@dataclass(frozen=True)
class _Images:
    """The images of a part."""

    dataset: Any
    source: str
    part: str

    def image(self, number: int) -> Image.Image:
        """The image as the dataset gives it."""
        image = self.dataset[number][0]
        if not isinstance(image, Image.Image):
            raise DataError(f"it is not an image, but of the type {type(image).__name__}")
        return image

    def name(self, number: int) -> str:
        """The part and the number."""
        return f"{self.part}/{number}"

    def place(self, number: int) -> str:
        """The same with the name of the dataset."""
        return f"{self.source} {self.part}/{number}"

    def digest(self, numbers: Sequence[int]) -> str:
        """A hash of the files' names, sizes and times: of these images, or all that are in the folder."""
        dataset, root = self.dataset, Path(self.dataset.root or ".")
        entries = _attribute(dataset, FILES)
        paths = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
        if paths and all(isinstance(path, str | Path) for path in paths):
            files = [Path(paths[number]) for number in numbers]
        else:  # few and large ones, or none if images are generated
            files = sorted(path for path in root.rglob("*") if path.is_file()) if dataset.root else []
        about = type(dataset).__name__, dataset.extra_repr(), numbers, file_list_digest(files, root)
        return sha256(repr(about).encode()).hexdigest()[:16]


def torchvision_dataset(argument: str, config: DataConfig) -> Listed:
    """The images of a dataset. Raises DataError: unknown, not there and not to be fetched, no classes."""
    import torchvision.datasets as known

    source = f"torchvision:{argument}"
    name, _, folder = argument.partition(":")
    made = getattr(known, name, None)
    if name not in known.__all__ or not (isinstance(made, type) and issubclass(made, known.VisionDataset)):
        hint = did_you_mean(name, known.__all__, "see torchvision.datasets")
        raise DataError(f"'{source}': torchvision has no dataset '{name}'; {hint}")
    found = Found(source)
    datasets = _datasets(made, Path(folder) if folder else FETCHED / name, source)
    labels = {part: _labels(dataset, source) for part, dataset in datasets.items()}
    indices, classes = indexed(labels, _classes(datasets["train"], labels), source)
    parts = {
        part: Part.all(_Images(dataset, source, part), indices[part]) for part, dataset in datasets.items()
    }
    return Listed(with_test_set(parts, {part: part for part in parts}, found), classes, found)


def _datasets(made: type[Any], root: Path, source: str) -> dict[str, Any]:
    """The dataset of each part that there is; as "train" the only one where it has no parts."""
    parameters = inspect.signature(made).parameters
    if "train" in parameters:
        return {part: _made(made, root, {"train": part == "train"}, source) for part in ("train", "test")}
    if "split" not in parameters:
        return {"train": _made(made, root, {}, source)}
    found: dict[str, Any] = {}
    for part, names in PARTS.items():
        for name in (*names, "trainval") if part == "train" else names:
            dataset = _made(made, root, {"split": name}, source)
            if dataset is not None:
                found[part] = dataset
                break
    if "train" not in found:
        raise DataError(f"'{source}' has no split called train: load it in a function of your own")
    return found


def _made(made: type[Any], root: Path, part: Mapping[str, Any], source: str) -> Any:
    """The dataset, fetched if it is not there; None where it has no such split."""
    parameters = inspect.signature(made).parameters
    given = {**part, **({"root": str(root)} if "root" in parameters else {})}
    try:
        return made(**given)
    except FOREIGN as cause:
        if isinstance(cause, ValueError) and "argument split" in str(cause):
            return None
        reason = cause
    if "download" in parameters and isinstance(reason, RuntimeError | OSError):
        say(f"fetching {source} into {root}")
        try:
            waiting = locked_after_waiting(root, lambda: say("another process fetches it: waiting"))
            with waiting, redirect_stdout(io.StringIO()):
                return made(**given, download=True)
        except FOREIGN as cause:
            reason = cause
    raise DataError(
        f"'{source}' is not in {root}, or cannot be fetched or read ({one_line(reason)}); give its folder as "
        "torchvision:NAME:FOLDER"
    ) from None


def _labels(dataset: Any, source: str) -> list[int]:
    """The class of each image; images are read only where the dataset does not list the classes."""
    count = len(dataset)
    own = _attribute(dataset, TARGETS)
    if len(own) == 0:
        own = [entry[1] for entry in _attribute(dataset, FILES) if isinstance(entry, tuple)]
    try:
        labels = [int(label) for label in own]
        if count and len(labels) == count and labels[-1] == int(dataset[count - 1][1]):
            return labels
        with progress_bar("reading classes", count) as advance:
            labels = []
            for number in range(count):
                labels.append(int(dataset[number][1]))
                advance("")
        return labels
    except FOREIGN as cause:
        raise DataError(f"'{source}' does not give images with class indices ({one_line(cause)})") from None


def _attribute(dataset: Any, names: tuple[str, ...]) -> Sequence[Any]:
    """The first of the attributes that there is, empty if there is none."""
    found = [getattr(dataset, name) for name in names if hasattr(dataset, name)]
    return found[0] if found and len(found[0]) == len(dataset) else ()


def _classes(train: Any, labels: Mapping[str, Sequence[int]]) -> list[str] | None:
    """The names of the classes; None where the dataset has none, or of something else."""
    names = [name[0] if isinstance(name, tuple) else str(name) for name in getattr(train, "classes", ())]
    return names if len(names) > max(max(own) for own in labels.values()) else None
