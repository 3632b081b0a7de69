"""Datasets in the formats of Hugging Face, which the tests write: splits, columns, classes, refusals."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.pixels import ImagesOnDisk
from bcnet.data.splits import Split
from bcnet.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package keeps lies in the working folder, and it asks no server."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "kept")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(
    count: int, start: int = 0, label: Callable[[int], Any] = lambda number: number % 2
) -> dict[str, Any]:
    """Images whose value is their number; cats and dogs alternate."""
    numbers = range(start, start + count)
    images = [Image.fromarray(np.full((10, 14, 3), number, dtype=np.uint8)) for number in numbers]
    return {"image": images, "label": [label(number) for number in numbers]}


def saved(path: str, **splits: dict[str, Any]) -> None:
    """Splits with classes cat and dog, as `save_to_disk` writes them."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    made = {name: datasets.Dataset.from_dict(own, features=features) for name, own in splits.items()}
    datasets.DatasetDict(made).save_to_disk(path)


def load(name: str = "pets", **settings: Any) -> ImageData:
    return load_data(DataConfig(name=f"hf:{name}", **settings), 0)


def numbers(split: object) -> list[int]:
    assert isinstance(split, Split)
    return split.pixels[:, 0, 0, 0].tolist()


def test_splits_are_the_parts_and_rows_keep_their_classes() -> None:
    saved("pets", train=rows(8), validation=rows(4, 20), test=rows(4, 40))
    data = load(storage="disk")
    assert isinstance(data.train, Split)
    assert isinstance(data.train.images, ImagesOnDisk)
    assert (data.classes, data.colour, data.input_shape) == (("cat", "dog"), "RGB", (3, 10, 10))
    for part, expected in ((data.train, range(8)), (data.val, range(20, 24)), (data.test, range(40, 44))):
        assert numbers(part) == [*expected]
        assert isinstance(part, Split)
        assert part.labels.tolist() == [number % 2 for number in expected]
    assert data.test.names == ("test/0", "test/1", "test/2", "test/3")
    assert "candidates are scored on validation" in str(data)


@pytest.mark.parametrize("storage", ["memory", "disk", "stream"])
def test_where_images_are_changes_nothing_and_only_new_ones_change_the_digest(storage: str) -> None:
    saved("pets", train=rows(8), test=rows(4, 40))
    data, again = load(storage=storage), load(storage=storage)
    assert sorted(numbers(data.train) + numbers(data.val)) == [*range(8)]
    assert again.digest() == data.digest()
    saved("others", train=rows(8, 1), test=rows(4, 40))
    assert load("others", storage=storage).digest() != data.digest()


def test_a_single_split_is_divided_and_a_validation_split_is_the_test_set_where_there_is_no_other() -> None:
    saved("pets", full=rows(10))
    data = load()
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    assert "a fifth of the images is the test set" in str(data)
    saved("valued", train=rows(10), val=rows(4, 40))
    assert numbers(load("valued").test) == [40, 41, 42, 43]
    saved("kept", train=rows(10), val=rows(4, 40), test=rows(4, 60, lambda _: -1))
    data = load("kept")
    assert numbers(data.test) == [40, 41, 42, 43]
    assert "left out: test, which has no labels" in str(data)


def test_image_files_and_parquet_are_read_where_they_lie() -> None:
    for part, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            Path("photos", part, label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (10, 10), (number, number, number)).save(
                    f"photos/{part}/{label}/{number}.png"
                )
    data = load("photos")
    assert (data.classes, len(data.train) + len(data.val), numbers(data.test)) == (
        ("cat", "dog"),
        12,
        [0, 1] * 2,
    )
    Path("table").mkdir()
    own = datasets.Dataset.from_dict(
        {"picture": rows(8)["image"], "kind": ["dog", "cat"] * 4, "note": ["x"] * 8},
        features=datasets.Features(
            {"picture": datasets.Image(), "kind": datasets.Value("string"), "note": datasets.Value("string")}
        ),
    )
    own.to_parquet("table/train.parquet")
    with pytest.raises(
        DataError, match=r"^'hf:table': data\.label_column is not set; columns that fit: kind, note$"
    ):
        load("table")
    with pytest.raises(DataError, match=r"data\.label_column is 'what'; columns that fit: kind, note$"):
        load("table", label_column="what")
    data = load("table", label_column="kind")
    assert data.classes == ("cat", "dog")
    assert isinstance(data.test, Split)
    assert data.test.labels.tolist() == [1 - number % 2 for number in numbers(data.test)]


def test_a_row_without_an_image_is_named_and_left_out_if_that_is_set() -> None:
    broken = rows(8)
    broken["image"][3] = None
    broken["image"][4] = {"bytes": b"no image", "path": None}
    saved("pets", train=broken, test=rows(4, 40))
    with pytest.raises(
        DataError,
        match=r"^2 files cannot be read as images: hf:pets train/3 \(the row has no image\), hf:pets train/4 "
        r"\(UnidentifiedImageError: cannot identify image file\); remove them",
    ):
        load()
    data = load(skip_broken=True)
    assert sorted(numbers(data.train) + numbers(data.val)) == [0, 1, 2, 5, 6, 7]


def test_unknown_classes_splits_and_datasets_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    saved("pets", train=rows(4, label=lambda _: -1), test=rows(4))
    with pytest.raises(DataError, match=r"^'hf:pets': an image of train has the class -1; known are 0 to 1$"):
        load()
    saved("two", first=rows(4), second=rows(4))
    with pytest.raises(DataError, match=r"^hf:two has the splits first, second, but none is called train$"):
        load("two")
    saved("twice", train=rows(4), val=rows(4), valid=rows(4))
    with pytest.raises(DataError, match=r"^hf:twice has both val and valid: keep only one of them$"):
        load("twice")
    with pytest.raises(
        DataError, match=r"^'hf:someone/absent' cannot be loaded \(.*\); name a dataset of"
    ) as caught:
        load("someone/absent")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=re.escape("pip install 'bcnet[hf]'")):
        load()


def test_labels_of_other_types_are_refused() -> None:
    saved("pets", train=rows(8), test=rows(4))
    own = datasets.load_from_disk("pets")
    values = own.cast_column("label", datasets.Value("float32"))
    values.save_to_disk("measured")
    with pytest.raises(DataError, match=r"an image of train has the class 0\.0; known are those of train"):
        load("measured")
    assert torch.equal(load(test_limit=2).test.labels.sort().values, torch.tensor([0, 1]))  # type: ignore[union-attr]
