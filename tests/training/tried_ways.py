"""What ways of training subnets are tried with: a recipe, batches, a small network, times that are given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from bcnet.space.discover import discover_space
from bcnet.space.width_space import WidthSpace
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths

RECIPE = Recipe(epochs=1, learning_rate=0.1, batch_size=12)


class Between(nn.Module):
    """A searchable convolution, then something between it and the head."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.between = nn.Conv2d(1, 8, 3), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.between(self.conv(x)).mean((2, 3)))
        return z


def with_space(model: nn.Module, method: str) -> tuple[nn.Module, WidthSpace]:
    """A network in training mode, and its space on images of 6 pixels."""
    model.train()
    return model, discover_space(model, torch.zeros(1, 1, 6, 6), bins=4, channel_multiple=1, method=method)


def batch(seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    """Random images of 6 pixels in three classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % 3


def given_speeds(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, faster: type, faster_s: float, sliced_s: float
) -> None:
    """What the ways take, those of class `faster` and those on slices, in place of this machine's times."""
    monkeypatch.setattr(module, "_seconds", lambda way, *_: faster_s if isinstance(way, faster) else sliced_s)


@contextmanager
def left_as_it_was(sliced: SlicedPaths) -> Iterator[None]:
    """After the block parameters and buffers are what they were before, and gradients are zero."""
    before = {name: own.clone() for name, own in [*sliced.parameters.items(), *sliced.buffers.items()]}
    yield
    for name, own in [*sliced.parameters.items(), *sliced.buffers.items()]:
        assert torch.equal(own, before[name])
    assert all(float(own.grad.abs().sum()) == 0 for own in sliced.parameters.values() if own.grad is not None)
