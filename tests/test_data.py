"""Datasets by name: split, limited, and refused in one line where they cannot be used."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bcnet.config import DataConfig
from bcnet.data import ImageData, Split, load_data
from bcnet.errors import DataError

pytestmark = pytest.mark.usefixtures("folder")

# Every image of this dataset holds its own number, so that splits can be compared image by image.
NUMBERED = """
import torch

def numbered(count=100, classes=4):
    number = torch.arange(count)
    images = torch.stack([number // 256, number % 256], 1).to(torch.uint8)
    return images[:, :, None, None].repeat(1, 1, 8, 8), number % classes

def make():
    images, labels = numbered()
    return (images[:80], labels[:80]), (images[80:], labels[80:]), ["a", "b", "c", "d"]
"""


def module(name: str, text: str) -> None:
    """A user's module in the working folder; names differ between tests, since Python keeps modules."""
    Path(f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")


def numbers(split: Split) -> set[int]:
    """Which images a split holds."""
    pixels = split.images[:, :, 0, 0].long()
    return set((pixels[:, 0] * 256 + pixels[:, 1]).tolist())


def picture(path: str, value: int, size: tuple[int, int] = (10, 10)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 2 * value, 3)).save(path)


def plain_folder(count: int = 20) -> None:
    for number in range(count):
        for label in ("cat", "dog"):
            picture(f"pets/{label}/{number}.png", number + (50 if label == "dog" else 0))


def reds(split: Split) -> set[int]:
    return set(split.images[:, 0, 0, 0].tolist())


def test_digits_are_split_into_training_validation_and_test() -> None:
    data = load_data(DataConfig(), 0)
    assert [len(part) for part in (data.train, data.val, data.test)] == [1150, 288, 359]
    assert data.input_shape == (1, 32, 32)
    assert data.classes == tuple("0123456789")
    assert data.train.images.dtype == torch.uint8


def test_digits_come_at_the_size_that_is_asked_for() -> None:
    assert load_data(DataConfig(image_size=16, train_limit=50), 0).input_shape == (1, 16, 16)


def test_every_split_holds_the_classes_in_proportion() -> None:
    data = load_data(DataConfig(train_limit=400, test_limit=100), 0)
    for part, count in ((data.train, 320), (data.val, 80), (data.test, 100)):
        share = torch.bincount(part.labels, minlength=10) / count
        assert len(part) == count
        assert share.min() >= 0.08
        assert share.max() <= 0.12


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    module("numbered1", NUMBERED)
    config = DataConfig(name="numbered1:make")
    first, again, other = load_data(config, 3), load_data(config, 3), load_data(config, 4)
    assert torch.equal(first.val.images, again.val.images)
    assert torch.equal(first.train.labels, again.train.labels)
    assert (first.mean, first.std) == (again.mean, again.std)
    assert numbers(first.val) != numbers(other.val)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_share_no_image_and_lose_none(seed: int) -> None:
    module("numbered2", NUMBERED)
    data = load_data(DataConfig(name="numbered2:make"), seed)
    train, val, test = numbers(data.train), numbers(data.val), numbers(data.test)
    assert not train & val
    assert train | val == set(range(80))
    assert test == set(range(80, 100))


def test_validation_images_come_from_the_limited_training_images_never_from_the_test_images() -> None:
    module("numbered3", NUMBERED)
    data = load_data(DataConfig(name="numbered3:make", train_limit=40, test_limit=8, val_fraction=0.25), 5)
    assert [len(part) for part in (data.train, data.val, data.test)] == [30, 10, 8]
    assert numbers(data.train) | numbers(data.val) < set(range(80))
    assert numbers(data.test) < set(range(80, 100))


def test_the_digits_test_set_is_the_same_for_every_seed_and_limit() -> None:
    first = load_data(DataConfig(), 0).test
    other = load_data(DataConfig(train_limit=100), 1).test
    assert torch.equal(first.images, other.images)


def test_normalised_training_images_have_zero_mean_and_unit_deviation() -> None:
    data = load_data(DataConfig(), 0)
    pixels = data.normalise(data.train.images)
    assert pixels.dtype == torch.float32
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-4)
    assert float(pixels.std()) == pytest.approx(1, abs=1e-3)


def test_batches_go_through_a_split_in_order_and_keep_the_rest() -> None:
    data = load_data(DataConfig(train_limit=50, test_limit=10), 0)
    labels = [part for _, part in data.batches(data.test, 4)]
    assert [len(part) for part in labels] == [4, 4, 2]
    assert torch.equal(torch.cat(labels), data.test.labels)


def test_an_unknown_dataset_is_answered_with_what_there_is() -> None:
    message = "unknown dataset 'digit'; there is: digits, cifar10, imagefolder:PATH, package.module:function"
    with pytest.raises(DataError, match=re.escape(message)):
        load_data(DataConfig(name="digit"), 0)


def test_two_images_are_too_few_for_training_and_validation() -> None:
    with pytest.raises(DataError, match="2 training images cannot be split into training and validation"):
        load_data(DataConfig(train_limit=2), 0)


def test_a_folder_with_train_and_test_keeps_them_apart() -> None:
    for number in range(10):
        for label in ("cat", "dog"):
            picture(f"pets/train/{label}/{number}.png", number)
            picture(f"pets/test/{label}/{number}.png", 100 + number)
    data = load_data(DataConfig(name="imagefolder:pets"), 0)
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 20]
    assert reds(data.train) | reds(data.val) == set(range(10))
    assert reds(data.test) == set(range(100, 110))
    assert data.input_shape == (3, 10, 10)


def test_a_plain_folder_gives_a_fifth_to_the_test_set() -> None:
    plain_folder()
    data = load_data(DataConfig(name="imagefolder:pets"), 0)
    assert [len(part) for part in (data.train, data.val, data.test)] == [26, 6, 8]
    parts = [reds(part) for part in (data.train, data.val, data.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 40
    assert torch.bincount(data.test.labels).tolist() == [4, 4]
    assert reds(load_data(DataConfig(name="imagefolder:pets"), 1).test) == parts[2]


def test_a_limit_on_training_images_leaves_a_plain_folders_test_images_alone() -> None:
    plain_folder()
    whole = load_data(DataConfig(name="imagefolder:pets"), 0)
    limited = load_data(DataConfig(name="imagefolder:pets", train_limit=10), 1)
    assert reds(limited.test) == reds(whole.test)
    assert len(limited.train) + len(limited.val) == 10


def test_limits_choose_images_of_all_classes() -> None:
    for part, count in (("train", 20), ("test", 10)):
        for label in ("cat", "dog"):
            for number in range(count):
                picture(f"pets/{part}/{label}/{number}.png", number)
    data = load_data(DataConfig(name="imagefolder:pets", train_limit=10, test_limit=4), 0)
    assert len(data.train) + len(data.val) == 10
    assert torch.bincount(torch.cat([data.train.labels, data.val.labels])).tolist() == [5, 5]
    assert torch.bincount(data.test.labels).tolist() == [2, 2]


def test_images_are_scaled_by_their_shorter_side_and_cropped() -> None:
    for number in range(5):
        picture(f"pets/train/cat/{number}.png", number, (20, 30))
        picture(f"pets/test/cat/{number}.png", number, (40, 16))
    assert load_data(DataConfig(name="imagefolder:pets", image_size=8), 0).input_shape == (3, 8, 8)
    data = load_data(DataConfig(name="imagefolder:pets"), 0)
    assert data.input_shape == (3, 20, 20)
    assert data.test.images.shape == (5, 3, 20, 20)


@pytest.mark.parametrize("name", ["gone", "file.txt"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    Path("file.txt").write_text("no folder", encoding="utf-8")
    with pytest.raises(DataError, match=rf"imagefolder:{name}: there is no folder {name}"):
        load_data(DataConfig(name=f"imagefolder:{name}"), 0)


@pytest.mark.parametrize("layout", ["pets", "pets/cat", "pets/train", "pets/train/cat"])
def test_a_folder_without_images_says_what_it_needs(layout: str) -> None:
    Path(layout).mkdir(parents=True)
    if "train" in layout:
        Path("pets/test").mkdir()
    with pytest.raises(DataError, match=r"^no images in pets.*; it needs one folder of images a class$"):
        load_data(DataConfig(name="imagefolder:pets"), 0)


def test_a_train_folder_without_a_test_folder_is_refused() -> None:
    picture("pets/train/cat/1.png", 1)
    with pytest.raises(DataError, match=re.escape("pets has train/ but no test/")):
        load_data(DataConfig(name="imagefolder:pets"), 0)


def test_train_and_test_of_different_classes_are_refused() -> None:
    picture("pets/train/cat/1.png", 1)
    picture("pets/test/dog/1.png", 1)
    with pytest.raises(DataError, match="pets/train and pets/test hold different classes"):
        load_data(DataConfig(name="imagefolder:pets"), 0)


def noise() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("noise.png")
    return Path("noise.png").read_bytes()


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize("damage", ["text", "empty", "cut short", "broken chunk"])
def test_an_unreadable_image_is_named(damage: str, image_size: int | None) -> None:
    plain_folder(4)
    whole = noise()
    last_chunk = whole.rindex(b"IDAT")
    content = {
        "text": b"not a picture",
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "broken chunk": whole[:last_chunk] + b"\xd8\xa6rw" + whole[last_chunk + 4 :],
    }[damage]
    Path("pets/cat/0.png").write_bytes(content)
    message = r"^pets/cat/0\.png cannot be read as an image \(.+\); remove it$"
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name="imagefolder:pets", image_size=image_size), 0)


def test_a_users_function_gives_the_images() -> None:
    module("numbered4", NUMBERED)
    data = load_data(DataConfig(name="numbered4:make"), 0)
    assert isinstance(data, ImageData)
    assert data.classes == ("a", "b", "c", "d")
    assert data.input_shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere_to_be_found:make",
            "No module named 'nowhere_to_be_found'; install it, or run bcnet in its",
        ),
        ("numbered5:maker", "module 'numbered5' has no function 'maker'"),
        ("numbered5:__name__", "module 'numbered5' has no function '__name__'"),
        (":make", "':make' is not of the form package.module:function"),
    ],
)
def test_a_function_that_is_not_there_is_named(name: str, message: str) -> None:
    module("numbered5", NUMBERED)
    with pytest.raises(DataError, match=re.escape(message)):
        load_data(DataConfig(name=name), 0)


WRONG = """
from numbered6 import numbered

def nothing(): return None
def two(): return numbered(), numbered()
def triples(): return (1, 2, 3), (1, 2, 3), "ab"
def floats():
    images, labels = numbered()
    return (images.float(), labels), (images, labels), "abcd"
def flat():
    images, labels = numbered()
    return (images[:, 0], labels), (images, labels), "abcd"
def empty():
    images, labels = numbered()
    return (images, labels), (images[:0], labels[:0]), "abcd"
def short_labels():
    images, labels = numbered()
    return (images, labels[:5]), (images, labels), "abcd"
def int_labels():
    images, labels = numbered()
    return (images, labels.int()), (images, labels), "abcd"
def too_few_classes():
    images, labels = numbered()
    return (images, labels), (images, labels), "ab"
def negative_labels():
    images, labels = numbered()
    return (images, labels - 1), (images, labels), "abcd"
def other_size():
    images, labels = numbered()
    return (images, labels), (images[:, :, 1:, 1:], labels), "abcd"
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "must return (train, test, class names), train and test as (images, labels)"),
        ("two", "must return (train, test, class names), train and test as (images, labels)"),
        ("triples", "must return (train, test, class names), train and test as (images, labels)"),
        ("floats", "must return images as a uint8 tensor (N, C, H, W), not empty"),
        ("flat", "must return images as a uint8 tensor (N, C, H, W), not empty"),
        ("empty", "must return images as a uint8 tensor (N, C, H, W), not empty"),
        ("short_labels", "must return labels as an int64 tensor (N,)"),
        ("int_labels", "must return labels as an int64 tensor (N,)"),
        ("too_few_classes", "label"),
        ("negative_labels", "label"),
        ("other_size", "same"),
    ],
)
def test_a_function_that_returns_something_else_is_told_what_it_must_return(
    function: str, message: str
) -> None:
    module("numbered6", NUMBERED)
    module("wrong6", WRONG)
    with pytest.raises(DataError, match=f"'wrong6:{function}' .*{re.escape(message)}"):
        load_data(DataConfig(name=f"wrong6:{function}"), 0)


def test_the_working_folder_does_not_stay_on_the_import_path() -> None:
    import sys

    module("numbered7", NUMBERED)
    before = list(sys.path)
    load_data(DataConfig(name="numbered7:make"), 0)
    assert sys.path == before
