"""Batches are the same whichever process reads them, and random numbers belong to items."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from bcnet.data.augment import item_draws
from bcnet.data.image_data import ImageData
from bcnet.data.loader import Loader
from bcnet.data.splits import Item, Items, Split
from bcnet.data.training_batches import TrainingBatches
from bcnet.errors import DataError
from bcnet.training.loop import batches
from bcnet.training.recipe import Recipe


class Numbers(Dataset[Item]):
    """Random items: each reads its number, and three draws."""

    def __getitem__(self, index: int) -> Item:
        if index == 99:
            raise OSError("cut short")
        return torch.rand(2), torch.tensor([float(index)])

    def __len__(self) -> int:
        return 100


def noisy(image: torch.Tensor, target: Any) -> Item:
    return image + torch.rand(1), target


def items(count: int = 40) -> ImageData:
    part = Items(Numbers(), torch.arange(count), "own:numbers")
    return ImageData(part, part, part, (), transforms=noisy)


def images() -> ImageData:
    pixels = torch.arange(40 * 3 * 6 * 6).view(40, 3, 6, 6).to(torch.uint8)
    part = Split(pixels, torch.arange(40) % 4)
    return ImageData(part, part, part, ("a",) * 4, (0.5,) * 3, (0.5,) * 3, flip=True, shift=2)


def epochs(data: ImageData, batch_size: int = 8) -> list[Item]:
    with TrainingBatches(data, batch_size, 3, "cpu") as batches:
        return [batch for epoch in (0, 1) for batch in batches.epoch(epoch)]


@pytest.mark.parametrize("make", [images, items])
def test_batches_do_not_depend_on_the_number_of_processes(make: Any) -> None:
    before = torch.random.get_rng_state()
    expected = epochs(make())
    assert len(expected) == 10
    for workers in (1, 2):
        for own, other in zip(epochs(replace(make(), workers=workers)), expected, strict=True):
            assert torch.equal(own[0], other[0])
            assert torch.equal(own[1], other[1])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_drawn_for_an_item_does_not_depend_on_its_batch() -> None:
    def by_number(batch_size: int) -> dict[float, list[float]]:
        found: dict[float, list[float]] = {}
        for inputs, targets in TrainingBatches(items(), batch_size, 3, "cpu").epoch(0):
            found |= dict(zip(targets[:, 0].tolist(), inputs.tolist(), strict=True))
        return found

    small, large = by_number(4), by_number(20)
    assert small == large
    assert len(small) == 40


def test_each_epoch_shuffles_and_augments_anew() -> None:
    first, second = epochs(images())[:5], epochs(images())[5:]
    assert not torch.equal(first[0][0], second[0][0])
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == sorted([0, 1, 2, 3] * 10)


def test_evaluation_batches_do_not_depend_on_the_number_of_processes() -> None:
    data = items()
    one, two = (list(replace(data, workers=workers).batches(data.val, 16)) for workers in (0, 2))
    assert [targets.flatten().tolist() for _, targets in two] == [
        list(map(float, range(start, min(start + 16, 40)))) for start in (0, 16, 32)
    ]
    assert all(torch.equal(own[0], other[0]) for own, other in zip(one, two, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_fails_in_a_process_is_named_in_one_line(workers: int) -> None:
    with pytest.raises(DataError, match=r"^item 99 of 'own:numbers' cannot be read: OSError: cut short$"):
        epochs(replace(items(100), workers=workers))


def killed(key: int) -> Iterator[int]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_process_that_ends_is_reported() -> None:
    message = r"^a process that reads data ended; .* lower data\.workers$"
    with Loader(killed, 1) as loader, pytest.raises(DataError, match=message):
        list(loader([0, 1]))


def test_processes_stay_for_all_epochs() -> None:
    with Loader[int, int](lambda key: os.getpid(), 1) as loader:
        (first,), (second,) = set(loader(range(3))), set(loader(range(3)))
    assert first == second != os.getpid()


def collected(key: int) -> int:
    gc.collect()
    return os.getpid()


def test_processes_end_with_their_block_and_leave_nothing_to_the_next_ones(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Collected in another loader's process, an unfinished loader would complain there."""
    with Loader[int, int](collected, 1) as loader:
        first = next(loader(range(9)))
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    with Loader[int, int](collected, 1) as loader:
        assert len(set(loader(range(3)))) == 1
    assert capfd.readouterr().err == ""


def test_a_pass_that_is_broken_off_ends_its_processes() -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    with closing(batches(replace(items(), workers=1), Recipe(1, 0.1, batch_size=4), 0)) as some:
        next(some)
        assert len(multiprocessing.active_children()) > len(before)
    assert {child.pid for child in multiprocessing.active_children()} == before


def test_draws_are_uniform_and_depend_on_seed_epoch_and_item() -> None:
    draws = item_draws(0, 0, torch.arange(20_000), 3)
    assert draws.shape == (20_000, 3)
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    assert draws.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.01)
    assert torch.corrcoef(torch.cat([draws[:-1], draws[1:]], 1).T).triu(1).abs().max() < 0.03
    some = torch.tensor([7, 5])
    assert torch.equal(item_draws(0, 0, some, 3), draws[some])
    for seed, epoch in ((1, 0), (0, 1)):
        assert not torch.isin(item_draws(seed, epoch, torch.arange(2_000), 3), draws).any()
