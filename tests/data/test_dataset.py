"""Datasets by name: split, limited, and refused in one line where they cannot be used."""

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.kept_batches import KeptBatches
from bcnet.data.splits import Items, Split
from bcnet.errors import DataError
from bcnet.training.loop import batches
from bcnet.training.recipe import Recipe
from bcnet.user_code import import_function

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
    message = "unknown dataset 'digit'; known: digits, digit-scenes, cifar10, imagefolder:PATH, hf:NAME, "
    with pytest.raises(DataError, match=re.escape(message)):
        load_data(DataConfig(name="digit"), 0)


def test_two_images_are_too_few_for_training_and_validation() -> None:
    with pytest.raises(DataError, match="cannot be split into training and 0 validation images"):
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
    with pytest.raises(DataError, match=rf"imagefolder:{name}: there is no folder {name}; give the path"):
        load_data(DataConfig(name=f"imagefolder:{name}"), 0)


@pytest.mark.parametrize("layout", ["pets", "pets/cat", "pets/train", "pets/train/cat"])
def test_a_folder_without_images_says_what_it_needs(layout: str) -> None:
    Path(layout).mkdir(parents=True)
    if "train" in layout:
        Path("pets/test").mkdir()
    with pytest.raises(DataError, match=r"^no images in pets.*; it needs one folder of images per class$"):
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
    message = (
        r"^pets/cat/0\.png cannot be read as an image \([^/]+\); remove it, or set data\.skip_broken = true$"
    )
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
        ("numbered5:numberd", "has no function 'numberd'; did you mean 'numbered'?"),
        ("numbered5:other", "module 'numbered5' has no function 'other'; define it in numbered5, or"),
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


LAZY = """
import threading

import torch


def make():
    from neighbour8 import images  # when it is called, and not when this module is imported

    return (images(), torch.zeros(4, dtype=torch.int64)), (images(), torch.zeros(4, dtype=torch.int64)), "a"


def moved(image, label):
    found = []

    def work():
        from late8 import shift

        found.append(image + shift)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0], label
"""


def test_a_users_functions_import_their_neighbours_when_they_are_called_also_in_threads() -> None:
    module("lazy8", LAZY)
    module(
        "neighbour8", "import torch\n\ndef images():\n    return torch.zeros(4, 1, 8, 8, dtype=torch.uint8)"
    )
    module("late8", "shift = 3")
    data = load_data(DataConfig(name="lazy8:make"), 0)
    assert data.input_shape == (1, 8, 8)
    transform = import_function("lazy8:moved", DataError)
    assert transform(1, 0) == (4, 0)


# Masks, targets of other kinds, and Datasets: the image of each item tells its number.
OTHERS = """
import random

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

numbers = torch.arange(40, dtype=torch.uint8)
images = numbers[:, None, None, None].repeat(1, 3, 8, 8)

def parts(targets, classes, images=images):
    return (images[:30], targets[:30]), (images[30:], targets[30:]), classes

def masks():
    spotted = images.clone()
    spotted[:, :, 2, 5] = 200
    masks = torch.zeros(40, 8, 8, dtype=torch.uint8)
    masks[:, 2, 5] = 1
    masks[:, 0, 0] = 255
    return parts(masks, ["ground", "spot"], spotted)

def wrong_masks(): return parts(torch.full((40, 8, 8), 3), ["ground", "spot"])
def values(): return parts(torch.arange(40.0)[:, None], [])

class Items(Dataset):
    def __init__(self, low, high):
        self.numbers = range(low, high)
        self.bad = None
    def __len__(self):
        return len(self.numbers)
    def __getitem__(self, index):
        number = self.numbers[index]
        if number == self.bad:
            raise OSError("cut short")
        return torch.full((1, 4, 6), float(number)), {"value": torch.tensor([number])}

def items(): return Items(0, 20), Items(20, 28), ["thing"]
def mixed(): return Items(0, 20), parts(numbers.long(), range(40))[1], range(40)
def empty(): return Items(0, 20), Items(20, 20), []
def broken():
    train, test, classes = items()
    train.bad = 3
    return train, test, classes
class Single(Items):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]
def single(): return Single(0, 20), Single(20, 28), []
class Pairs(Items):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return (image, image[0, 0, :2]), (target["value"], target["value"] + 1)
def pairs(): return Pairs(0, 20), Pairs(20, 28), []
class Ragged(Items):
    def __getitem__(self, index):
        return torch.zeros(1, 4, index + 1), index
def ragged(): return Ragged(0, 20), Ragged(20, 28), []
class Arrays(Items):
    def __getitem__(self, index):
        return np.full((1, 4, 6), self.numbers[index], np.float32), self.numbers[index]
def arrays(): return Arrays(0, 20), Arrays(20, 28), ["thing"]
class Names(Items):
    def __getitem__(self, index):
        return str(index), index
def names(): return Names(0, 20), Names(20, 28), []
class Stream(IterableDataset):
    def __iter__(self): return iter([])
def stream(): return Stream(), Stream(), []

def noisy(image, target):
    draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    return image, {**target, "draws": torch.tensor(draws)}
def brighter(image, target): return image + 100, target
def nothing(image, target): return None
def failing(image, target): raise ValueError("no such corner")
def lists(items):
    inputs, targets = zip(*items)
    return list(inputs), list(targets)
"""


def others(name: str, **settings: object) -> ImageData:
    """A dataset of the module above, all whose functions are its own."""
    if not Path("others.py").exists():
        module("others", OTHERS)
    own = {key: f"others:{v}" if key in ("transforms", "collate") else v for key, v in settings.items()}
    return load_data(DataConfig(name=f"others:{name}", **own), 0)  # type: ignore[arg-type]


def test_masks_are_targets_and_move_with_their_images() -> None:
    data = others("masks", flip=True, shift=3)
    assert isinstance(data.train, Split)
    assert data.train.labels.shape == (24, 8, 8)
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=24)
    ((images, masks),) = batches(data, recipe, 0)
    spots, bright = masks == 1, images[:, 0] == images[:, 0].max()
    assert torch.equal(spots, bright)
    assert len({tuple(place) for place in spots.nonzero()[:, 1:].tolist()}) > 10
    assert (masks == 255).flatten(1).sum(1).max() > 8  # what a shift uncovers does not count


def test_masks_are_scaled_with_their_images_without_mixing_classes() -> None:
    data = others("masks", image_size=16)
    assert isinstance(data.test, Split)
    assert data.test.labels.shape == (10, 16, 16)
    assert set(data.test.labels.unique().tolist()) == {0, 1, 255}
    assert data.test.labels[0, 4:6, 10:12].tolist() == [[1, 1], [1, 1]]
    assert (data.test.labels == 1).flatten(1).sum(1).tolist() == [4] * 10


def test_masks_of_more_classes_than_names_are_refused() -> None:
    with pytest.raises(DataError, match="must return labels from 0 to 1, one a class name, not 3 to 3"):
        others("wrong_masks")


def test_targets_may_be_values_and_keep_to_their_images() -> None:
    data = others("values")
    assert isinstance(data.val, Split)
    assert data.classes == ()
    assert torch.equal(data.val.labels[:, 0], data.val.images[:, 0, 0, 0].float())
    (inputs, targets) = next(
        batches(replace(data, shift=2), Recipe(epochs=1, learning_rate=1, batch_size=8), 0)
    )
    order = inputs[:, 0, 4, 4].argsort()
    assert targets[order, 0].diff().min() > 0  # nothing is shifted: the image is the same everywhere
    assert float(inputs.std((1, 2, 3)).max()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "values",
            {"flip": True},
            "data.flip moves images in memory with class indices or masks, and nothing",
        ),
        ("items", {"shift": 2}, "set it to 0, and move images and targets together in data.transforms"),
        (
            "values",
            {"image_size": 16},
            "data.image_size scales images with class indices or masks, not other",
        ),
        ("items", {"image_size": 16}, "a Dataset gives its own size: remove it"),
    ],
)
def test_settings_that_would_leave_targets_behind_are_refused(
    name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        others(name, **settings)


def test_a_dataset_gives_final_inputs_and_is_split_like_images() -> None:
    data = others("items", train_limit=10, test_limit=4, val_fraction=0.3)
    assert [len(part) for part in (data.train, data.val, data.test)] == [7, 3, 4]
    assert (data.input_shape, data.mean, data.std) == ((1, 4, 6), (), ())
    found = [
        set(torch.cat([targets["value"] for _, targets in data.batches(part, 4)]).flatten().tolist())
        for part in (data.train, data.val, data.test)
    ]
    assert len(found[0] | found[1]) == 10
    assert found[0] | found[1] < set(range(20))
    assert found[2] < set(range(20, 28))
    inputs, targets = next(data.batches(data.train, 4))
    assert torch.equal(inputs[:, 0, 0, 0], targets["value"][:, 0].float())
    assert torch.equal(data.example(2), torch.zeros(2, 1, 4, 6))


def test_tuples_of_inputs_stay_tuples() -> None:
    inputs, targets = next(others("pairs").batches(others("pairs").test, 3))
    assert isinstance(inputs, tuple)
    assert [tuple(tensor.shape) for tensor in inputs] == [(3, 1, 4, 6), (3, 2)]
    assert isinstance(targets, tuple)


def test_a_collate_of_the_users_own_makes_every_batch() -> None:
    data = others("ragged", collate="lists")
    inputs, targets = next(data.batches(data.test, 3))
    assert isinstance(inputs, list)
    assert targets == [0, 1, 2]
    assert [tensor.shape[2] for tensor in inputs] == [1, 2, 3]
    data = others("masks", collate="lists")
    inputs, targets = next(data.batches(data.test, 3))
    assert [tensor.dtype for tensor in (*inputs, *targets)] == [torch.float32] * 3 + [torch.uint8] * 3


def test_transforms_are_for_training_items_alone_and_repeat_with_seed_and_epoch() -> None:
    data = others("items", transforms="noisy")
    assert "draws" not in next(data.batches(data.train, 4))[1]

    def draws(seed: int, epoch: int) -> list[list[float]]:
        recipe = Recipe(epochs=2, learning_rate=0.1, batch_size=4, seed=seed)
        return torch.cat([t["draws"] for _, t in batches(data, recipe, epoch)]).tolist()  # type: ignore[no-any-return]

    before = torch.random.get_rng_state()
    first = draws(0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert draws(0, 0) == first
    assert draws(0, 1) != first != draws(1, 0)
    assert len({number for row in first for number in row}) == 3 * len(first)


def test_transforms_change_images_in_memory_before_they_are_normalised() -> None:
    plain, changed = others("masks"), others("masks", transforms="brighter")
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=24)
    ((before, _),), ((after, _),) = batches(plain, recipe, 0), batches(changed, recipe, 0)
    background = (after - before)[:, :, 7, 7]
    expected = 100 / 255 / torch.tensor(plain.std)
    torch.testing.assert_close(background, expected.expand(24, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mixed", {}, "'others:mixed' must return both parts as tensors, or both as a Dataset"),
        ("empty", {}, "'others:empty' must return a Dataset that is not empty"),
        ("stream", {}, "or as a torch.utils.data.Dataset with a length"),
        ("broken", {}, "item 3 of 'others:broken' cannot be read: OSError: cut short"),
        ("single", {}, "'others:single' must give (input, target), not Tensor"),
        (
            "ragged",
            {},
            "items cannot be joined into a batch (RuntimeError: stack expects each tensor to be equal",
        ),
        ("items", {"transforms": "nothing"}, "data.transforms must give (input, target), not NoneType"),
        (
            "items",
            {"transforms": "failing"},
            "'others:failing' failed (ValueError: no such corner) in others.py, line ",
        ),
        ("items", {"collate": "masks_of"}, "module 'others' has no function 'masks_of'"),
    ],
)
def test_what_a_users_data_does_wrong_is_said_in_one_line(
    name: str, settings: dict[str, object], message: str
) -> None:
    def use() -> None:
        data = others(name, **settings)
        for _ in batches(data, Recipe(epochs=1, learning_rate=0.1, batch_size=16), 0):
            pass

    with pytest.raises(DataError, match=re.escape(message)):
        use()


def test_arrays_become_tensors_and_inputs_without_any_are_refused() -> None:
    inputs, targets = next(others("arrays").batches(others("arrays").test, 2))
    assert (inputs.dtype, inputs.shape) == (torch.float32, (2, 1, 4, 6))
    assert targets.tolist() == [20, 21]
    with pytest.raises(DataError, match="'others:names' gives inputs without a tensor"):
        others("names").input_shape  # noqa: B018


def test_the_shape_of_a_list_of_inputs_is_that_of_its_first() -> None:
    assert others("items", collate="lists").input_shape == (1, 4, 6)


@pytest.mark.parametrize("name", ["items", "arrays"])
def test_the_digest_of_a_dataset_follows_its_items(name: str) -> None:
    before = others(name).digest()
    assert others(name).digest() == before
    data = others(name)
    assert not isinstance(data.test, Split)
    data.test.dataset.numbers = range(21, 29)  # type: ignore[attr-defined]
    assert data.digest() != before


class Counting(Dataset[tuple[Tensor, int]]):
    """Items that know how often they were read."""

    def __init__(self, count: int) -> None:
        self.reads = [0] * count

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        return torch.full((1, 2, 2), float(index)), index


def counting(count: int) -> tuple[ImageData, Items, Counting]:
    dataset = Counting(count)
    part = Items(dataset, torch.arange(count), "counting")
    return ImageData(part, part, part, ()), part, dataset


def test_kept_batches_are_read_once_equal_in_size_and_in_order() -> None:
    data, part, dataset = counting(300)
    kept = KeptBatches(data, part)
    dataset.reads = [0] * 300
    first, again = list(kept), list(kept)
    assert [len(targets) for _, targets in first] == [150, 150]
    assert torch.cat([targets for _, targets in again]).tolist() == list(range(300))
    assert all(inputs is same for (inputs, _), (same, _) in zip(first, again, strict=True))
    assert dataset.reads == [1] * 300


def test_what_does_not_fit_into_memory_is_read_again() -> None:
    data, part, dataset = counting(300)
    kept = KeptBatches(data, part, room=150 * (4 * 4 + 8))  # one of the two batches
    dataset.reads = [0] * 300
    first, again = list(kept), list(kept)
    assert dataset.reads == [1] * 150 + [2] * 150
    assert torch.equal(first[1][0], again[1][0])


def test_a_batch_that_was_changed_in_place_is_read_again() -> None:
    data, part, dataset = counting(10)
    kept = KeptBatches(data, part)
    dataset.reads = [0] * 10
    for inputs, _ in kept:
        inputs.zero_()
    for _ in range(2):
        ((inputs, targets),) = kept
        assert torch.equal(inputs[:, 0, 0, 0], targets.float())
    assert dataset.reads == [2] * 10


def test_statistics_that_a_network_expects_are_used_without_calculating_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = DataConfig(image_size=16, train_limit=40, test_limit=20)
    with monkeypatch.context() as patched:
        patched.setattr("bcnet.data.dataset.statistics", lambda part: pytest.fail("they are calculated"))
        data = load_data(settings, 0, trained_with=((0.25,), (0.5,)))
    assert (data.mean, data.std, data.stated) == ((0.25,), (0.5,), True)
    own = load_data(settings, 0)
    other = load_data(settings, 0, trained_with=((0.25,) * 3, (0.5,) * 3))  # of images with three channels
    assert (other.mean, other.std, other.stated) == (own.mean, own.std, False)
