"""Sizes that modules keep in their attributes follow the widths, or freeze no more than they must."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.space.supernet import cut
from bcnet.space.width_space import WidthSpace
from tests.space.test_hard_layers import IMAGES, Between, space_of
from tests.space.witnesses import assert_agree, drawn, scattered


class Kernels(nn.Module):
    """Splits its input by sizes in a list: a kernel for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = [10, 6]
        self.a = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.b = nn.Conv2d(6, 6, 5, padding=2, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, self.splits, 1)
        return torch.cat([self.a(first), self.b(second)], 1)


class Halves(nn.Module):
    """Widens its input, and splits the result by half of a stored number."""

    def __init__(self) -> None:
        super().__init__()
        self.wide_channels = 24
        self.a, self.b = nn.Conv2d(16, 24, 1), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x).split(self.wide_channels // 2, 1)
        return torch.cat([first, self.b(second)], 1)


class Grown(nn.Module):
    """Has more channels than its input, which it adds to the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 16
        self.a = nn.Conv2d(16, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cat([y[:, : self.taken] + x, y[:, self.taken :]], 1)


class Viewed(nn.Module):
    """Views its input with a stored number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.features, -1).view(len(x), self.features, 8, 8).relu()


class Filtered(nn.Module):
    """Passes a stored number as `groups` to a functional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = 16
        self.kernel = nn.Parameter(torch.rand(16, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, groups=self.features)


class Scaled(nn.Module):
    """Views a scale of each channel by a shape that it stores."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))
        self.shape = (16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape)


FOLLOWED: dict[str, tuple[Callable[[], nn.Module], int, set[tuple[str, int]]]] = {
    "a list of sizes": (Kernels, 16, {("stem", 10), ("stem#2", 6)}),
    "half of a number": (Halves, 24, {("stem", 16), ("a.a", 12), ("a.b", 12)}),
    "where a slice ends": (Grown, 24, {("stem", 16), ("a.a", 8)}),
    "a number of channels in a view": (Viewed, 16, {("stem", 16)}),
    "the shape of a view": (Scaled, 16, {("stem", 16)}),
    "a number of groups": (Filtered, 16, {("stem", 16)}),
}


def searched(build: Callable[[], nn.Module], out: int) -> tuple[nn.Module, WidthSpace]:
    torch.manual_seed(0)
    model = scattered(Between(lambda self, x: self.a(x), out=out, a=build()))
    return model, space_of(model)


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_size_in_an_attribute_follows_the_widths(name: str) -> None:
    build, out, groups = FOLLOWED[name]
    model, space = searched(build, out)
    assert {(group.name, group.channels) for group in space.groups} == {*groups, ("head", 8)}
    assert not any(group.mixed for group in space.groups)
    before = copy.deepcopy(vars(model.a))
    for seed in range(2):
        assert_agree(model, space, IMAGES, drawn(space, seed))
    after = vars(model.a)
    assert all(after[key] == value for key, value in before.items() if isinstance(value, int | list))


class Equal(Viewed):
    """Has other attributes of the same value: a temperature, and the number of steps of a loop."""

    def __init__(self) -> None:
        super().__init__()
        features = self.__dict__.pop("features")
        self.temperature = self.steps = 16
        self.features = features
        self.last = 16

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) / self.temperature
        for _ in range(self.steps):
            y = y.tanh() * self.last
        return y


def test_of_attributes_with_one_value_only_that_follows_which_has_to() -> None:
    model, space = searched(Equal, 16)
    assert {(group.name, group.mixed) for group in space.groups} == {("stem", False), ("head", False)}
    assert [(sized.attribute, sized.module) for sized in space.sized if sized.follows] == [("features", "a")]
    small = cut(model, space, space.smallest())
    assert (small.a.temperature, small.a.steps, small.a.last) == (16, 16, 16)
    assert small.a.features == space.smallest()[0] < 16


class Square(nn.Module):
    """Views its input with a side that is equal to the number of channels, and is kept before it."""

    def __init__(self) -> None:
        super().__init__()
        self.side = self.width = 8
        self.a = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).flatten(2).view(len(x), self.width, self.side, self.side)


def test_a_side_that_is_equal_to_the_number_of_channels_stays() -> None:
    model, space = searched(Square, 8)
    assert {group.name for group in space.groups} == {"stem", "a.a", "head"}
    small = cut(model, space, space.smallest())
    assert (small.a.side, small.a.width) == (
        8,
        dict(zip([g.name for g in space.groups], space.smallest(), strict=True))["a.a"],
    )
    assert_agree(model, space, IMAGES, space.smallest())


def test_the_attributes_of_a_cut_network_are_its_own() -> None:
    model, space = searched(Kernels, 16)
    widths = {"stem": 5, "stem#2": 3, "head": 4}
    small = cut(model, space, space.check([widths[group.name] for group in space.groups]))
    assert (small.a.splits, model.a.splits) == ([5, 3], [10, 6])


def test_a_space_with_kept_sizes_is_read_again_as_it_was_written() -> None:
    _, space = searched(Kernels, 16)
    assert {(sized.attribute, sized.item) for sized in space.sized if sized.follows} == {
        ("splits", 0),
        ("splits", 1),
    }
    assert WidthSpace.from_json(space.to_json()) == space
