"""The subnets that are followed during training: one process and several find the same, each a share."""

from typing import Any

import torch
from several_processes import in_processes
from torch import nn

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import TrainingError
from bcnet.events import Event, observed
from bcnet.pipeline.subnet_probes import SubnetProbes
from bcnet.space.discover import discover_space
from bcnet.space.supernet import Supernet
from bcnet.space.widen import supernet_state
from bcnet.training.recipe import Recipe

NAMES = ["widest", "narrowest", "random 1", "random 2", "random 3"]


class Kept:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


class Failing(SubnetProbes):
    """Cannot evaluate the widest subnet."""

    def _reached(self, widths: Any, *images: Any) -> float:
        if widths == self._widths["widest"]:
            raise TrainingError("the metric failed")
        return super()._reached(widths, *images)


def probed(rank: int, kind: type[SubnetProbes] = SubnetProbes) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the subnets that this process evaluated, and the events that it reported after epochs."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=generator).to(torch.uint8)
    part = Split(pixels, torch.arange(48) % 4)
    data = ImageData(part, part, part, ("a", "b", "c", "d"), (0.5,) * 3, (0.3,) * 3, flip=True, shift=1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    space = discover_space(model, torch.zeros(1, 3, 8, 8), bins=4, channel_multiple=2)
    supernet = Supernet(model.train(), space, supernet_state(model, space))
    probes, kept = kind(supernet, data, Recipe(epochs=2, learning_rate=0.1, batch_size=16)), Kept()
    drawn = torch.get_rng_state()
    with observed([kept] if rank == 0 else []):  # only the first process of a command is observed
        for epoch in (1, 2):
            probes("training", epoch)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    return probes._share(), [dict(event.values) for event in kept.events]


def test_processes_share_the_followed_subnets_out_and_find_what_one_does() -> None:
    names, (alone, *_) = probed(0)
    assert sorted(names) == sorted(NAMES)
    first, second = in_processes(2, probed)
    assert "widest" in first[0]
    assert sorted([*first[0], *second[0]]) == sorted(NAMES)
    assert min(len(first[0]), len(second[0])) >= 1
    assert first[1][0] == alone
    assert second[1] == []
    assert [alone[key] for key in ("task", "step", "steps")] == ["training", 1, 2]
    assert all(0 <= alone[name] <= 1 for name in NAMES)


def test_a_metric_that_fails_in_one_process_ends_the_following_in_all() -> None:
    first, second = in_processes(2, probed, Failing)
    # What is said is an event, too.
    assert [event.get("text") for event in first[1]] == [
        "subnets are not followed during training: the metric failed"
    ]
    assert second[1] == []
