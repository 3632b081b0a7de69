"""torchvision's datasets by name, in their formats on disk, which the tests write."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.pixels import ImagesOnDisk
from bcnet.data.splits import Split
from bcnet.errors import DataError

pytestmark = pytest.mark.usefixtures("folder")


def load(name: str, **settings: Any) -> ImageData:
    return load_data(DataConfig(name=f"torchvision:{name}", **settings), 0)


def values(split: object) -> list[int]:
    assert isinstance(split, Split)
    return split.pixels[:, 0, 0, 0].tolist()


def mnist(path: str) -> None:
    """MNIST's four files: 20 training and 4 test images, whose value is their number."""
    raw = Path(path, "MNIST", "raw")
    raw.mkdir(parents=True)
    for part, first, count in (("train", 0, 20), ("t10k", 40, 4)):
        numbers = np.arange(first, first + count, dtype=np.uint8)
        pixels = np.broadcast_to(numbers[:, None, None], (count, 28, 28)).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels)
        labels = (numbers % 10).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels)


def food(path: str) -> None:
    """Food-101's folders: cakes and soups, 6 for training and 2 for testing each."""
    root = Path(path, "food-101")
    (root / "meta").mkdir(parents=True)
    for part, first, count in (("train", 0, 6), ("test", 10, 2)):
        listed: dict[str, list[str]] = {}
        for label, name in enumerate(("cake", "soup")):
            (root / "images" / name).mkdir(parents=True, exist_ok=True)
            for number in range(first + 100 * label, first + 100 * label + count):
                Image.new("RGB", (12, 10), (number, 0, 0)).save(
                    root / f"images/{name}/{number}.jpg", quality=100
                )
                listed.setdefault(name, []).append(f"{name}/{number}")
        (root / "meta" / f"{part}.json").write_text(json.dumps(listed))


def test_a_dataset_with_training_and_test_images_is_read_with_its_classes() -> None:
    mnist(".cache/torchvision/MNIST")
    data = load("MNIST")
    assert data.classes[:2] == ("0 - zero", "1 - one")
    assert (data.input_shape, data.colour) == ((3, 28, 28), "RGB")
    assert sorted(values(data.train) + values(data.val)) == [*range(20)]
    assert values(data.test) == [40, 41, 42, 43]
    assert isinstance(data.test, Split)
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.test.names == ("test/0", "test/1", "test/2", "test/3")


@pytest.mark.parametrize("storage", ["disk", "stream"])
def test_images_in_files_are_decoded_when_needed_and_known_by_their_files(storage: str) -> None:
    food("photos")
    data = load("Food101:photos", storage=storage)
    assert isinstance(data.train, Split)
    assert isinstance(data.train.images, ImagesOnDisk)
    assert (data.classes, data.input_shape) == (("cake", "soup"), (3, 10, 10))
    assert [round(value, -1) for value in values(data.test)] == [10, 10, 110, 110]
    assert load("Food101:photos", storage=storage).digest() == data.digest()
    Image.new("RGB", (12, 10), "red").save("photos/food-101/images/cake/0.jpg")
    assert load("Food101:photos", storage=storage).digest() != data.digest()


def test_a_file_that_cannot_be_read_is_named() -> None:
    food("photos")
    Path("photos/food-101/images/soup/100.jpg").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"^torchvision:Food101:photos train/6 cannot be read as an image \(Unidentif"
    ):
        load("Food101:photos")


def test_a_dataset_without_parts_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    small = (40, (3, 16, 16), 3, None, None, 0)
    monkeypatch.setattr("torchvision.datasets.FakeData.__init__.__defaults__", small)
    data = load("FakeData", test_limit=5, train_limit=20)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 5]
    assert data.classes == ("0", "1", "2")
    assert "a fifth of the images is the test set" in str(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MNITS", r"^'torchvision:MNITS': torchvision has no dataset 'MNITS'; did you mean 'MNIST'\?$"),
        ("utils", r"^'torchvision:utils': torchvision has no dataset 'utils'; "),
        (
            "ImageNet:absent",
            r"^'torchvision:ImageNet:absent' is not in absent, or cannot be fetched or read \(",
        ),
        ("ImageFolder:photos", r"is not in photos, or cannot be fetched or read \(FileNotFoundError"),
        (
            "EMNIST:x",
            r"^'torchvision:EMNIST:x' has no split called train: load it in a function of your own$",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(
        DataError, match=r"^'torchvision:MNIST' is not in \.cache/torchvision/MNIST, or cannot be"
    ):
        load("MNIST")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "fetching torchvision:MNIST into .cache/torchvision/MNIST\n")
