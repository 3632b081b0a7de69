"""Datasets of the Hugging Face Hub or in its formats on disk, by the package `datasets`, an extra.

In: NAME, NAME:CONFIGURATION, or a folder: written by `save_to_disk`, or of files that `load_dataset` reads.
Out: the rows of the splits train, validation and test, with one column of images and one of classes.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from bcnet.config import DataConfig
from bcnet.data.pictures import Stored
from bcnet.data.stored import Found, Listed, Part, indexed, part_of, with_test_set
from bcnet.errors import FOREIGN, DataError, one_line
from bcnet.progress import working

IMAGES, LABELS = ("image", "img"), ("label", "labels")  # the usual columns, where several would do
UNLABELLED = -1  # as the class of all rows: a test split whose classes are not published


@dataclass(frozen=True)
class _Rows:
    """The images of a split; `rows` has no other column, and gives them encoded."""

    rows: Any
    column: str
    source: str
    split: str

    def image(self, number: int) -> Stored:
        """The file, or its content."""
        value = self.rows[number][self.column]
        if value is None:
            raise DataError("the row has no image")
        return Path(value["path"]) if value["bytes"] is None else BytesIO(value["bytes"])

    def name(self, number: int) -> str:
        """The split and the number of the row."""
        return f"{self.split}/{number}"

    def place(self, number: int) -> str:
        """The same with the name of the dataset."""
        return f"{self.source} {self.split}/{number}"

    def digest(self, numbers: Sequence[int]) -> str:
        """The fingerprint of the dataset, with the rows."""
        return sha256(repr((self.rows._fingerprint, self.column, numbers)).encode()).hexdigest()[:16]


def hugging_face(argument: str, config: DataConfig) -> Listed:
    """The rows of a dataset. Raises DataError: not installed, not found, no network, no such columns."""
    source = f"hf:{argument}"
    found = Found(source)
    splits = _loaded(argument, source)
    names = _split_names(list(splits), found)
    features = splits[names["train"]].features
    image, label = _columns(features, config, source)
    labels = {part: splits[name].with_format(None)[label][:] for part, name in names.items()}
    for part in [part for part in labels if part != "train" and {*labels[part]} <= {UNLABELLED}]:
        found.notes.append(f"left out: {names[part]}, which has no labels")
        del labels[part], names[part]
    indices, classes = indexed(labels, getattr(features[label], "names", None), source)
    parts = {
        part: Part.all(_Rows(_only(image, splits[name]), image, source, name), indices[part])
        for part, name in names.items()
    }
    return Listed(with_test_set(parts, names, found), classes, found)


def _loaded(argument: str, source: str) -> Mapping[str, Any]:
    """The splits by their names."""
    try:
        import datasets
    except ImportError as cause:
        raise DataError(f"'{source}' needs datasets ({cause}): pip install 'bcnet[hf]'") from None
    folder = Path(argument)
    name, _, configuration = (argument, "", "") if folder.exists() else argument.partition(":")
    saved = any((folder / file).exists() for file in ("dataset_dict.json", "state.json"))  # by save_to_disk
    try:
        with _quiet(datasets), working(f"loading {source}"):
            given = (
                datasets.load_from_disk(name) if saved else datasets.load_dataset(name, configuration or None)
            )
    except FOREIGN as cause:
        raise DataError(
            f"'{source}' cannot be loaded ({one_line(cause)}); name a dataset of the Hugging Face Hub "
            "(hf:NAME, or hf:NAME:CONFIGURATION if it has several), which is fetched once, or a folder"
        ) from None
    return given if isinstance(given, dict) else {"train": given}


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without a warning for each attempt to reach the Hub, and without progress bars in a log."""
    log = logging.getLogger("huggingface_hub")
    level, shown = log.level, not datasets.are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def _split_names(there: list[str], found: Found) -> dict[str, str]:
    """Which of the splits is "train", "val" and "test"; a single one is "train"."""
    if len(there) == 1:
        return {"train": there[0]}
    names: dict[str, str] = {}
    for name in there:
        part = part_of(name)
        if part is None:
            found.notes.append(f"left out: the split {name}")
        elif part in names:
            raise DataError(f"{found.source} has both {names[part]} and {name}: keep only one of them")
        else:
            names[part] = name
    if "train" not in names:
        raise DataError(f"{found.source} has the splits {', '.join(there)}, but none is called train")
    return names


def _columns(features: Mapping[str, Any], config: DataConfig, source: str) -> tuple[str, str]:
    """The columns of images and of labels: the configured ones, the only ones of this type, or the usual."""
    from datasets import ClassLabel, Image, Value

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    values = [name for name, feature in features.items() if isinstance(feature, Value)]
    chosen = []
    for key, configured, typed, others, usual in (
        ("image_column", config.image_column, images, [], IMAGES),
        ("label_column", config.label_column, classes, values, LABELS),
    ):
        fitting = [*typed, *others]
        preferred = typed if len(typed) == 1 else [name for name in usual if name in fitting]
        if configured not in fitting and (configured or not preferred):
            now = f"is '{configured}'" if configured else "is not set"
            raise DataError(f"'{source}': data.{key} {now}; columns that fit: {', '.join(fitting) or 'none'}")
        chosen.append(configured or preferred[0])
    return chosen[0], chosen[1]


def _only(column: str, rows: Any) -> Any:
    """Rows of which only the images are left, encoded."""
    from datasets import Image

    return rows.with_format(None).select_columns([column]).cast_column(column, Image(decode=False))
