"""Padding, expanded views, constants of any width, channels moved to spatial axes: all are followed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.space.test_hard_layers import IMAGES, Between, space_of
from tests.space.witnesses import assert_agree, drawn, scattered


def padded(*pad: int, **keywords: Any) -> Callable[[], nn.Module]:
    return lambda: Between(
        lambda self, x: self.a(F.pad(x, pad, **keywords).relu()), out=12, a=nn.Conv2d(16, 12, 2)
    )


def on_canvas(self: Any, x: Tensor) -> Tensor:
    whole = x.new_zeros(len(x), x.shape[1], x.shape[2] + 2, x.shape[3] + 2)
    whole[:, :, 1:-1, 1:-1] = x
    return whole


def beside(self: Any, x: Tensor) -> Tensor:
    """Two branches that write into adjacent parts of one tensor."""
    y = self.a(x)
    whole = torch.empty(len(x), x.shape[1] + y.shape[1], *x.shape[2:])
    whole[:, : x.shape[1]] = x
    whole[:, x.shape[1] :] = y
    return whole


def causal(self: Any, x: Tensor) -> Tensor:
    y = self.a(F.pad(x.flatten(2), (2, 0)))
    return y.reshape(len(x), -1, 8, 8)


def volume(self: Any, x: Tensor) -> Tensor:
    y = self.a(F.pad(x[:, :, None], (1, 1, 0, 1, 1, 0)))
    return y.flatten(2)[..., None]


def blurred(self: Any, x: Tensor) -> Tensor:
    weight = self.kernel.expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=x.shape[1])


class Blur(nn.Module):
    """A fixed filter, repeated for each of a number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", torch.full((channels, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=2, groups=self.channels)


def decoded(self: Any, x: Tensor) -> Tensor:
    y = self.linear(x.mean((2, 3)))
    return self.up(y.view(len(y), -1, 4, 4))


EXACT: dict[str, tuple[Callable[[], nn.Module], set[tuple[str, int]]]] = {
    "padding of two sides": (padded(0, 1, 0, 1), {("stem", 16), ("a", 12)}),
    "padding of the width": (padded(2, 1), {("stem", 16), ("a", 12)}),
    "padding with a value": (padded(1, 1, 1, 1, value=3.0), {("stem", 16), ("a", 12)}),
    "negative padding": (padded(-1, 0, -2, 1), {("stem", 16), ("a", 12)}),
    "circular padding": (padded(1, 1, 2, 2, mode="circular"), {("stem", 16), ("a", 12)}),
    "reflected padding": (padded(1, 0, 1, 0, mode="reflect"), {("stem", 16), ("a", 12)}),
    "replicated padding": (padded(1, 0, 1, 0, mode="replicate"), {("stem", 16), ("a", 12)}),
    "padding and pooling": (
        lambda: Between(lambda self, x: F.max_pool2d(nn.ZeroPad2d((0, 1, 0, 1))(x), 3, 2)),
        {("stem", 16)},
    ),
    "causal padding of a signal": (
        lambda: Between(causal, out=12, a=nn.Conv1d(16, 12, 3)),
        {("stem", 16), ("a", 12)},
    ),
    "padding of a volume": (
        lambda: Between(volume, out=12, a=nn.Conv3d(16, 12, 2)),
        {("stem", 16), ("a", 12)},
    ),
    "a canvas of zeros": (lambda: Between(on_canvas), {("stem", 16)}),
    "branches written side by side": (
        lambda: Between(beside, out=28, a=nn.Conv2d(16, 12, 1)),
        {("stem", 16), ("a", 12)},
    ),
    "expand_as": (
        lambda: Between(lambda self, x: x * self.a(x).sigmoid().expand_as(x), a=nn.Conv2d(16, 1, 1)),
        {("stem", 16)},
    ),
    "expand and a pointwise operator": (
        lambda: Between(lambda self, x: x * (x.mean(1, keepdim=True).expand_as(x) + 1)),
        {("stem", 16)},
    ),
    "repeat": (
        lambda: Between(lambda self, x: x + x.amax(1, keepdim=True).repeat(1, x.shape[1], 1, 1)),
        {("stem", 16)},
    ),
    "ones of the width": (
        lambda: Between(lambda self, x: x * torch.ones(1, x.size(1), 1, 1).mul(2)),
        {("stem", 16)},
    ),
    "a filter expanded to the width": (
        lambda: Between(blurred, kernel=torch.rand(1, 1, 3, 3)),
        {("stem", 16)},
    ),
    "a filter of each channel": (lambda: Between(lambda self, x: self.a(x), a=Blur(16)), {("stem", 16)}),
    "pixel shuffle before a convolution": (
        lambda: Between(
            lambda self, x: self.a(F.pixel_shuffle(self.wide(x), 2).relu()),
            out=6,
            wide=nn.Conv2d(16, 48, 1),
            a=nn.Conv2d(12, 6, 3),
        ),
        {("stem", 16), ("wide", 12), ("a", 6)},
    ),
    "pixel shuffle before a pool": (
        lambda: Between(
            lambda self, x: F.avg_pool2d(F.pixel_shuffle(self.wide(x), 2), 2),
            out=12,
            wide=nn.Conv2d(16, 48, 1),
        ),
        {("stem", 16), ("wide", 12)},
    ),
    "a linear layer before a transposed convolution": (
        lambda: Between(decoded, out=6, linear=nn.Linear(16, 12 * 16), up=nn.ConvTranspose2d(12, 6, 2, 2)),
        {("stem", 16), ("linear", 12), ("up", 6)},
    ),
    "channels as images": (
        lambda: Between(
            lambda self, x: self.a(x.reshape(-1, 1, 8, 8)).reshape(len(x), -1, 6, 6), a=nn.Conv2d(1, 1, 3)
        ),
        {("stem", 16)},
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_channels_are_followed_exactly(name: str) -> None:
    torch.manual_seed(0)
    build, groups = EXACT[name]
    model = scattered(build())
    space = space_of(model)
    assert {(group.name, group.channels) for group in space.groups} == {*groups, ("head", 8)}
    by_width = name in ("expand and a pointwise operator", "repeat")  # a mean or a maximum over all channels
    assert any(group.mixed for group in space.groups) == by_width
    assert_agree(model, space, IMAGES, drawn(space), training=True)
    assert_agree(model, space, IMAGES, space.smallest(), training=False)


def attended(self: Any, x: Tensor) -> Tensor:
    """Efficient channel attention: a convolution along the channels."""
    y = self.a(x.mean((2, 3))[:, None])
    return x * y.sigmoid().transpose(1, 2)[..., None].expand_as(x)


MIXED: dict[str, tuple[Callable[[], nn.Module], tuple[str, int, int]]] = {
    "channel attention by a convolution": (
        lambda: Between(attended, a=nn.Conv1d(1, 1, 3, padding=1, bias=False)),
        ("stem", 16, 1),
    ),
    "normalize": (lambda: Between(lambda self, x: F.normalize(x, dim=1)), ("stem", 16, 1)),
    "a ramp of the width": (
        lambda: Between(lambda self, x: x * torch.linspace(0, 1, x.size(1))[:, None, None]),
        ("stem", 16, 1),
    ),
    "group norm with a number of groups in the code": (
        lambda: Between(
            lambda self, x: F.group_norm(x, 4, self.scale, self.shift),
            scale=torch.rand(16),
            shift=torch.rand(16),
        ),
        ("stem", 4, 4),
    ),
    "group norm without parameters": (
        lambda: Between(lambda self, x: self.a(x), a=nn.GroupNorm(4, 16, affine=False)),
        ("stem", 4, 4),
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_channels_is_searched_and_says_so(name: str) -> None:
    torch.manual_seed(0)
    build, expected = MIXED[name]
    model = scattered(build())
    space = space_of(model)
    found = {(group.name, group.channels, group.repeat): group.mixed for group in space.groups}
    assert found == {expected: True, ("head", 8, 1): False}
    assert_agree(model, space, IMAGES, drawn(space))


def test_channels_along_which_a_layer_runs_count_in_its_positions() -> None:
    space = space_of(MIXED["channel attention by a convolution"][0]())
    (narrow,) = [layer for layer in space.layers if layer.weight == "a.weight"]
    assert (narrow.positions, [(each.group, each.size) for each in narrow.each]) == (1, [(0, 1)])
    assert space.macs(space.check([5, 8])) == 64 * 27 * 5 + 3 * 5 + 64 * 5 * 8 + 8 * 3


def test_a_tensor_of_a_size_in_the_code_is_named_as_the_reason() -> None:
    space = space_of(Between(lambda self, x: x + torch.zeros(16, 1, 1)))
    reasons = {entry.name: entry.reason for entry in space.frozen}
    assert reasons["stem"] == "it is combined with a tensor of fixed size in the network's forward"
