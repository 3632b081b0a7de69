"""Parts of a dataset: what is divided and shared out is all there once, with its classes in proportion."""

import pytest
import torch

from bcnet.data.splits import Items, Split, shared_out


def split(labels: torch.Tensor) -> Split:
    """Images that are numbered by their pixels."""
    numbers = torch.arange(len(labels)).to(torch.uint8)
    return Split(numbers[:, None, None, None].expand(-1, 1, 2, 2), labels)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_image_is_in_one_of_the_parts_and_their_sizes_differ_by_one_at_most(count: int) -> None:
    parts = shared_out(split(torch.arange(100) % 10), count)
    numbers = [part.images[:, 0, 0, 0].tolist() for part in parts if isinstance(part, Split)]
    assert len(numbers) == count
    assert sorted(number for own in numbers for number in own) == list(range(100))
    sizes = [len(own) for own in numbers]
    assert max(sizes) - min(sizes) <= 1


def test_classes_that_come_in_turn_or_are_rare_are_in_proportion_in_all_parts() -> None:
    labels = torch.cat([torch.arange(4).repeat(20), torch.full((10,), 4)])
    for part in shared_out(split(labels), 5):
        assert isinstance(part, Split)
        assert part.labels.bincount(minlength=5).tolist() == [4, 4, 4, 4, 2]


def test_masks_and_items_of_a_dataset_are_shared_out_at_random_and_the_same_each_time() -> None:
    masks = split(torch.zeros((12, 2, 2), dtype=torch.int64))
    items = Items([], torch.arange(12), "users:data")  # type: ignore[arg-type]
    for part, numbers in ((masks, lambda own: own.images[:, 0, 0, 0]), (items, lambda own: own.index)):
        first, second = (numbers(own).tolist() for own in shared_out(part, 2))
        assert sorted(first + second) == list(range(12))
        assert first not in (list(range(6)), list(range(0, 12, 2)))
        assert [numbers(own).tolist() for own in shared_out(part, 2)] == [first, second]
