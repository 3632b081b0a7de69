"""Presets change training images alone, masks with them, by random numbers that belong to items."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bcnet.config import Config, DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.presets import Preset, preset
from bcnet.data.splits import Item, Split
from bcnet.data.training_batches import TrainingBatches
from bcnet.errors import DataError
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe, training_digest

STRONG = "imagenet-strong"


def images(augment: str, count: int = 32) -> ImageData:
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    part = Split(pixels.to(torch.uint8), torch.arange(count) % 4)
    return ImageData(part, part, part, tuple("abcd"), (0.5,) * 3, (0.5,) * 3, augment=augment, flip=True)


def epoch(data: ImageData, batch_size: int = 8, number: int = 0) -> list[Item]:
    return list(TrainingBatches(data, batch_size, 3, "cpu").epoch(number))


@pytest.mark.parametrize("augment", ["imagenet", STRONG])
def test_batches_do_not_depend_on_the_number_of_processes_nor_change_other_random_numbers(
    augment: str,
) -> None:
    before = torch.random.get_rng_state()
    expected = epoch(images(augment))
    assert [tuple(targets.shape) for _, targets in expected] == [(8, 4) if augment == STRONG else (8,)] * 4
    assert torch.equal(torch.random.get_rng_state(), before)
    for own, other in zip(epoch(replace(images(augment), workers=1)), expected, strict=True):
        assert torch.equal(own[0], other[0])
        assert torch.equal(own[1], other[1])
        assert own[0].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(epoch(images(augment), number=1)[0][0], expected[0][0])


def test_what_happens_to_an_image_does_not_depend_on_its_batch() -> None:
    small, large = (torch.cat([x for x, _ in epoch(images("imagenet"), size)]) for size in (4, 16))
    assert torch.equal(small, large)


@pytest.mark.parametrize("augment", ["none", "imagenet", STRONG])
def test_validation_and_test_images_stay_as_they_are(augment: str) -> None:
    data = images(augment)
    for part in (data.val, data.test):
        (inputs, targets), *_ = data.batches(part, 32)
        assert torch.equal(inputs, data.normalise(data.val.pixels))  # type: ignore[union-attr]
        assert torch.equal(targets, torch.arange(32) % 4)


def test_none_leaves_training_images_as_they_are_whatever_flip_and_shift_are() -> None:
    data = replace(images("none"), shift=3)
    ((inputs, _),) = epoch(data, 32)
    given = data.normalise(data.train.pixels)  # type: ignore[union-attr]
    assert sorted(inputs.sum((1, 2, 3)).tolist()) == sorted(given.sum((1, 2, 3)).tolist())


def test_masks_are_cropped_and_mirrored_with_their_images() -> None:
    pixels = torch.zeros(40, 3, 24, 16, dtype=torch.uint8)
    pixels[..., 8:] = 255
    masks = (pixels[:, 0] > 0).to(torch.uint8)
    change = preset("imagenet", (3, 24, 16), (0.5,) * 3, 2)
    assert change is not None
    changed = change.changed(Split(pixels, masks), torch.arange(40), (0, 0))
    assert changed.labels.dtype == torch.uint8
    agree = (changed.images[:, 0] > 127) == (changed.labels > 0)
    assert agree.float().mean((1, 2)).min() >= 15 / 16  # nearest and bilinear differ at the edge alone
    sizes = changed.labels.float().mean((1, 2))
    assert sizes.min() < 0.3 < 0.7 < sizes.max()
    mirrored = changed.labels[:, 0, 0] > changed.labels[:, 0, -1]
    straight = changed.labels[:, 0, 0] < changed.labels[:, 0, -1]
    assert min(mirrored.sum(), straight.sum()) >= 6


def test_one_image_in_ten_is_partly_erased_to_the_mean() -> None:
    change = preset(STRONG, (1, 16, 16), (0.2,), 4)
    assert change is not None
    *_, erasing = change.items.transforms  # type: ignore[attr-defined]
    pixels = torch.full((400, 1, 16, 16), 200, dtype=torch.uint8)
    changed = Preset(erasing).changed(Split(pixels, torch.zeros(400)), torch.arange(400), (0, 0)).images
    erased = (changed == 51).flatten(1).float().mean(1)
    assert set(changed.unique().tolist()) == {51, 200}
    assert 20 <= int((erased > 0).sum()) <= 60
    assert 0.01 < erased[erased > 0].min() < erased.max() < 0.36


def test_targets_are_mixed_as_their_images_are() -> None:
    change = preset(STRONG, (1, 8, 8), (0.5,), 4)
    assert change is not None
    labels = torch.arange(8) % 4
    values = labels.float()[:, None, None, None].expand(8, 1, 8, 8)
    kinds = set()
    for number in range(20):
        mixed, targets = change.mixed((values.clone(), labels), torch.tensor([number]), (0, 0))
        assert targets.shape == (8, 4)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(4.0))
        kinds.add(bool((mixed.flatten(1).std(1) > 1e-6).any()))
    assert kinds == {True, False}  # rectangles, and whole images


def test_networks_learn_from_mixed_targets() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    recipe = Recipe(epochs=2, learning_rate=0.001, batch_size=8, label_smoothing=0.1)
    curve = fit_network(model, images(STRONG), recipe, "training")
    assert len(curve) == 2
    assert all(0.5 < loss < 5 for loss in curve)


def test_digests_of_light_are_those_of_earlier_versions_and_other_presets_have_others() -> None:
    assert training_digest(Config()) == "736dad0bb86a63fc"

    def of(**data: object) -> str:
        return training_digest(Config(data=DataConfig(**data)))  # type: ignore[arg-type]

    assert of(augment="light") == training_digest(Config())
    assert of(augment="none", shift=1) == of(augment="none", shift=3)
    assert len({of(augment=name) for name in ("none", "light", "imagenet", STRONG)}) == 4


OWN = """
import torch
from torch.utils.data import TensorDataset

def parts(images, targets, classes):
    return (images, targets), (images, targets), classes

def boxes(): return parts(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, 4), [])
def five(): return parts(torch.zeros(8, 5, 8, 8, dtype=torch.uint8), torch.arange(8) % 2, ["a", "b"])
def unnamed(): return parts(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8) % 2, [])
def items():
    dataset = TensorDataset(torch.zeros(8, 3), torch.zeros(8))
    return dataset, dataset, []
"""


@pytest.mark.parametrize(
    ("name", "augment", "message"),
    [
        ("boxes", "imagenet", "set it to 'none', and change images and targets together in data.transforms$"),
        ("items", "imagenet", "'imagenet' changes images with class indices or masks, and nothing else"),
        ("five", STRONG, "changes colours of grey or RGB images, not of 5 channels: set it to 'imagenet'$"),
        ("unnamed", STRONG, "mixes images with class indices of named classes: set it to 'imagenet'$"),
    ],
)
def test_data_that_a_preset_cannot_change_are_refused(
    folder: Path, name: str, augment: str, message: str
) -> None:
    (folder / "preset_data.py").write_text(OWN, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name=f"preset_data:{name}", augment=augment), 0)  # type: ignore[arg-type]


def test_mixing_needs_cross_entropy_and_pytorchs_batches() -> None:
    with pytest.raises(ValueError, match=r"makes probabilities .* needs task\.loss = cross"):
        Config.model_validate({"data": {"augment": STRONG}, "task": {"loss": "own:loss"}})
    with pytest.raises(DataError, match=r"mixes whole batches, which data\.collate makes: "):
        load_data(DataConfig(augment=STRONG, collate="own:collate"), 0)


def test_images_in_memory_are_read_by_other_processes_where_each_is_changed(folder: Path) -> None:
    light, strong = (load_data(DataConfig(train_limit=50, augment=a), 0) for a in ("light", STRONG))  # type: ignore[arg-type]
    assert (light.needs_workers, strong.needs_workers) == (False, True)
    assert light.workers == 0
