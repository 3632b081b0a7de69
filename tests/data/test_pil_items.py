"""A Dataset of PIL images works in training, validation and test; `eval_transforms` change the latter two."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.pictures import pixels_of
from bcnet.data.splits import Items
from bcnet.data.stored import Found
from bcnet.errors import DataError
from bcnet.pipeline.deployment import beside_onnx
from bcnet.training.loop import batches
from bcnet.training.recipe import Recipe
from bcnet.training.task import Task

PICTURES = """
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

class Pictures(Dataset):
    def __init__(self, count, mode="RGB", size=(6, 4), mask=False, varied=False):
        self.count, self.mode, self.size, self.mask, self.varied = count, mode, size, mask, varied
        self.shade = 10
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        size = (self.size[0] + index % 3, self.size[1]) if self.varied else self.size
        value = self.shade + index
        image = Image.new("RGB", size, (value, 2 * value, 3 * value)) if self.mode == "RGB" else (
            Image.new("L", size, value))
        if self.mode == "mixed" and index % 2:
            image = image.convert("RGB")
        if self.mask:
            mask = Image.new("P", size, index % 2)
            return image, mask
        return image, index % 2

def parts(**how): return Pictures(30, **how), Pictures(10, **how), ["a", "b"]
def plain(): return parts()
def varied(): return parts(varied=True)
def grey(): return parts(mode="mixed")
def masks(): return parts(mask=True)

cropping = v2.Compose([v2.RandomResizedCrop((4, 4)), v2.RandomHorizontalFlip()])
def crop(image, target): return cropping(image), target
def centre(image, target): return v2.functional.center_crop(image, [4, 4]), target
def pixels(image, target): return v2.functional.pil_to_tensor(image), target
def final(image, target): return v2.functional.pil_to_tensor(image) / 255 * 7, target
def halved(image, target): return image // 2, target
def broken(image, target): return image
def lists(items):
    images, targets = zip(*items)
    return torch.stack([final(image, 0)[0] for image in images]), torch.tensor(targets)
def memory():
    images = torch.full((20, 1, 4, 4), 100, dtype=torch.uint8)
    return (images, torch.arange(20) % 2), (images, torch.arange(20) % 2), ["a", "b"]
"""

pytestmark = pytest.mark.usefixtures("folder")


def pictures(name: str, **settings: object) -> ImageData:
    Path("pictures.py").write_text(PICTURES, encoding="utf-8")
    functions = ("transforms", "eval_transforms", "collate")
    own = {key: f"pictures:{value}" if key in functions else value for key, value in settings.items()}
    return load_data(DataConfig.model_validate({"name": f"pictures:{name}", **own}), 0)


def first_test(data: ImageData) -> tuple[Tensor, Tensor]:
    inputs, targets = next(data.batches(data.test, 10))
    return inputs, targets


def test_pil_images_are_normalised_by_the_training_images_statistics() -> None:
    data = pictures("plain")
    assert (data.colour, data.input_shape, data.stated) == ("RGB", (3, 4, 6), False)
    assert isinstance(data.train, Items)
    values = 10 + data.train.index.double()
    scale = torch.tensor([1, 2, 3]) / 255
    assert data.mean == pytest.approx((values.mean() * scale).tolist())
    assert data.std == pytest.approx((values.std(correction=0) * scale).tolist())
    inputs, targets = first_test(data)
    assert inputs.shape == (10, 3, 4, 6)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    expected = (10 + torch.arange(10) - values.mean()) / values.std(correction=0)
    torch.testing.assert_close(inputs[:, 1, 2, 2], expected.float(), rtol=1e-4, atol=1e-5)
    assert targets.tolist() == [0, 1] * 5
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=8)
    (trained, _), *_ = batches(data, recipe, 0)
    shades = trained[:, 1, 2, 2].double() * values.std(correction=0) + values.mean()
    assert set(shades.round().tolist()) < set(values.tolist())


def test_given_statistics_are_used_for_pil_images() -> None:
    inputs, _ = first_test(pictures("plain", mean=[0.0] * 3, std=[1 / 255] * 3))
    torch.testing.assert_close(inputs[:, 2, 0, 0], 3.0 * (10 + torch.arange(10)))


def test_images_of_different_sizes_are_cropped_by_transforms_of_training_and_of_evaluation() -> None:
    data = pictures("varied", transforms="crop", eval_transforms="centre")
    assert first_test(data)[0].shape == (10, 3, 4, 4)
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=8)
    assert [tuple(inputs.shape) for inputs, _ in batches(data, recipe, 0)] == [(8, 3, 4, 4)] * 3


def test_uint8_tensors_made_of_pil_images_are_normalised_alike() -> None:
    one, other = pictures("plain"), pictures("plain", transforms="pixels", eval_transforms="pixels")
    assert one.mean == other.mean
    assert torch.equal(first_test(one)[0], first_test(other)[0])


def test_images_that_transforms_make_final_are_not_normalised() -> None:
    data = pictures("plain", transforms="final", eval_transforms="final")
    assert data.mean == ()
    torch.testing.assert_close(first_test(data)[0][:, 0, 0, 0], (10 + torch.arange(10)) / 255 * 7)


def test_grey_and_colour_images_of_one_dataset_get_the_channels_of_the_first() -> None:
    data = pictures("grey")
    channels = 1 if data.colour == "grey" else 3
    inputs, _ = first_test(data)
    assert inputs.shape == (10, channels, 4, 6)
    assert len(set(inputs[:, 0, 0, 0].tolist())) == 10


def test_pil_images_as_targets_are_masks() -> None:
    _, masks = first_test(pictures("masks"))
    assert masks.shape == (10, 4, 6)
    assert masks[:, 0, 0].tolist() == [0, 1] * 5


def test_collate_gets_pil_images_as_they_are() -> None:
    inputs, _ = first_test(pictures("plain", collate="lists"))
    torch.testing.assert_close(inputs[:, 0, 0, 0], (10 + torch.arange(10)) / 255 * 7)


def test_eval_transforms_change_images_in_memory_that_are_not_for_training() -> None:
    given = {"mean": [0.0], "std": [1 / 255], "shift": 0}
    data = pictures("memory", eval_transforms="halved", **given)
    assert set(first_test(data)[0].flatten().tolist()) == {50}
    ((trained, _),) = batches(data, Recipe(epochs=1, learning_rate=0.1, batch_size=16), 0)
    assert set(trained.flatten().tolist()) == {100}
    assert data.digest() != pictures("memory", **given).digest()


def test_the_digest_follows_the_pixels_of_pil_images() -> None:
    data = pictures("plain")
    before = data.digest()
    assert pictures("plain").digest() == before
    assert isinstance(data.test, Items)
    data.test.dataset.shade = 11  # type: ignore[attr-defined]
    assert data.digest() != before


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "varied",
            {},
            "'pictures:varied' gives images of different sizes (6 x 4, 8 x 4 pixels): scale and crop them to "
            "one size in data.eval_transforms, and for training in data.transforms",
        ),
        (
            "varied",
            {"transforms": "pixels", "eval_transforms": "centre"},
            "give tensors of one shape in data.transforms and data.eval_transforms, or set data.collate",
        ),
        (
            "plain",
            {"transforms": "final"},
            "data.transforms turns a PIL image into a final input, but data.eval_transforms returns an image",
        ),
        (
            "plain",
            {"eval_transforms": "final"},
            "data.eval_transforms turns a PIL image into a final input, but data.transforms returns an image",
        ),
        ("plain", {"eval_transforms": "broken"}, "data.eval_transforms must give (input, target), not Image"),
        (
            "plain",
            {"transforms": "final", "eval_transforms": "final", "mean": [0.5] * 3, "std": [0.5] * 3},
            "data.mean normalises images; a Dataset's inputs are final, except PIL images without data",
        ),
    ],
)
def test_images_that_cannot_be_used_are_refused_in_one_line(
    name: str, settings: dict[str, object], message: str
) -> None:
    def use() -> None:
        data = pictures(name, **settings)
        for _ in batches(data, Recipe(epochs=1, learning_rate=0.1, batch_size=24), 0):
            pass

    with pytest.raises(DataError, match=re.escape(message)):
        use()


def test_an_image_of_an_unknown_range_is_refused() -> None:
    image = Image.fromarray(np.full((4, 4), 7.5, np.float32))
    with pytest.raises(
        DataError, match=r"^a PIL image cannot be used: its values of 7\.5 to 7\.5 are not in 0"
    ):
        pixels_of(image, grey=True)


def test_the_program_that_classifies_files_is_left_out_where_it_cannot_do_the_evaluations_transforms() -> (
    None
):
    data = replace(pictures("memory"), stored=Found("photos", "folder"))
    assert set(beside_onnx(data, Task())) == {"test_files.json", "predict.py"}
    changed = replace(pictures("memory", eval_transforms="halved"), stored=Found("photos", "folder"))
    assert set(beside_onnx(changed, Task())) == {"test_files.json"}
