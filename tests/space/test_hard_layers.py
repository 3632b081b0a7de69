"""Layers that are hard to narrow: each is searched exactly, or stays with a reason that names it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.errors import SpaceError
from bcnet.space.discover import discover_space
from bcnet.space.width_space import WidthSpace
from tests.space.witnesses import assert_agree, drawn, scattered

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """stem, what is tested, head; `body` gets the module itself and the stem's output."""

    def __init__(
        self,
        body: Callable[[Any, Tensor], Tensor],
        channels: int = 16,
        out: int | None = None,
        **layers: nn.Module | Tensor,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)
        self.body = body
        self.head = nn.Conv2d(out or channels, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.body(self, self.stem(x))).mean((2, 3)))


def space_of(model: nn.Module, inputs: Any = IMAGES, **keywords: Any) -> WidthSpace:
    return discover_space(model, inputs, **{"bins": 4, "channel_multiple": 1, **keywords})


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def glu(self: Any, x: Tensor) -> Tensor:
    first, second = self.wide(x).chunk(2, 1)
    return first * second.sigmoid()


def flattened(self: Any, x: Tensor) -> Tensor:
    return self.linear(x.flatten(1))[:, :, None, None]


def tokens(self: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    y = self.norm(x.flatten(2).transpose(1, 2))
    return self.linear(y).transpose(1, 2).reshape(n, -1, h, w)


SEARCHED: dict[str, Callable[[], nn.Module]] = {
    "concatenation": lambda: Between(
        lambda self, x: torch.cat([x, self.a(x), x], 1), out=44, a=nn.Conv2d(16, 12, 1)
    ),
    "concatenation of a concatenation": lambda: Between(
        lambda self, x: torch.cat([self.b(torch.cat([x, self.a(x)], 1)), x], 1),
        out=26,
        a=nn.Conv2d(16, 12, 1),
        b=nn.Conv2d(28, 10, 1),
    ),
    "squeeze and excitation": lambda: Between(
        lambda self, x: x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
        down=nn.Conv2d(16, 8, 1),
        up=nn.Conv2d(8, 16, 1),
    ),
    "depthwise": lambda: Between(lambda self, x: self.a(x), a=nn.Conv2d(16, 16, 3, groups=16)),
    "depthwise with a multiplier": lambda: Between(
        lambda self, x: self.a(x), out=32, a=nn.Conv2d(16, 32, 3, groups=16)
    ),
    "grouped": lambda: Between(lambda self, x: self.a(x), a=nn.Conv2d(16, 16, 3, groups=8)),
    "grouped, more out than in": lambda: Between(
        lambda self, x: self.a(x), out=48, a=nn.Conv2d(16, 48, 3, groups=8)
    ),
    "two groups": lambda: Between(lambda self, x: self.a(x), out=24, a=nn.Conv2d(16, 24, 3, groups=2)),
    "flatten before a linear layer": lambda: Between(flattened, out=12, linear=nn.Linear(16 * 64, 12)),
    "shared": lambda: Between(lambda self, x: self.a(self.a(x).relu()), a=nn.Conv2d(16, 16, 1)),
    "summed branches": lambda: Between(
        lambda self, x: self.a(x) + self.b(x), out=12, a=nn.Conv2d(16, 12, 1), b=nn.Conv2d(16, 12, 1)
    ),
    "group norm": lambda: Between(lambda self, x: self.a(x), a=nn.GroupNorm(8, 16)),
    "group norm of one group": lambda: Between(lambda self, x: self.a(x), a=nn.GroupNorm(1, 16)),
    "instance norm": lambda: Between(lambda self, x: self.a(x), a=nn.InstanceNorm2d(16, affine=True)),
    "layer norm over channels": lambda: Between(
        tokens, out=12, norm=nn.LayerNorm(16), linear=nn.Linear(16, 12)
    ),
    "rms norm over channels": lambda: Between(tokens, out=12, norm=nn.RMSNorm(16), linear=nn.Linear(16, 12)),
    "prelu": lambda: Between(lambda self, x: self.a(x), a=nn.PReLU(16)),
    "prelu of one parameter": lambda: Between(lambda self, x: self.a(x), a=nn.PReLU()),
    "layer scale": lambda: Between(
        lambda self, x: x + self.scale * self.a(x), a=nn.Conv2d(16, 16, 1), scale=torch.rand(16, 1, 1)
    ),
    "transposed": lambda: Between(
        lambda self, x: self.a(x), out=12, a=nn.ConvTranspose2d(16, 12, 2, stride=2)
    ),
    "transposed depthwise": lambda: Between(
        lambda self, x: self.a(x), a=nn.ConvTranspose2d(16, 16, 2, stride=2, groups=16)
    ),
    "gated halves": lambda: Between(glu, wide=nn.Conv2d(16, 32, 1)),
    "glu": lambda: Between(lambda self, x: F.glu(self.wide(x), 1), wide=nn.Conv2d(16, 32, 1)),
    "pixel shuffle": lambda: Between(
        lambda self, x: F.pixel_shuffle(self.wide(x), 2), out=12, wide=nn.Conv2d(16, 48, 1)
    ),
    "padded shortcut": lambda: Between(
        lambda self, x: F.pad(x, (0, 0, 0, 0, 4, 4)) + self.a(x), out=24, a=nn.Conv2d(16, 24, 1)
    ),
    "a product of two paths": lambda: Between(
        lambda self, x: self.a(x) * self.b(x).sigmoid(),
        out=12,
        a=nn.Conv2d(16, 12, 1),
        b=nn.Conv2d(16, 12, 1),
    ),
}


@pytest.mark.parametrize("name", SEARCHED)
def test_a_hard_layer_is_searched_exactly(name: str) -> None:
    torch.manual_seed(0)
    model = scattered(SEARCHED[name]())
    space = space_of(model)
    assert {"stem", "head"} <= {layer for group in space.groups for layer in group.layers}
    assert space.searchable_macs() == 1.0
    for seed in range(3):
        assert_agree(model, space, IMAGES, drawn(space, seed))


@pytest.mark.parametrize(
    ("name", "unit", "channels"),
    [("grouped", 2, 16), ("grouped, more out than in", 2, 16), ("group norm", 2, 16), ("depthwise", 1, 16)],
)
def test_grouped_channels_are_cut_in_whole_groups(name: str, unit: int, channels: int) -> None:
    space = space_of(SEARCHED[name]())
    (group,) = [group for group in space.groups if "stem" in group.layers]
    assert (group.unit, group.channels) == (unit, channels)
    assert all(width % unit == 0 for width in group.choices)
    with pytest.raises(SpaceError, match="not a multiple of 2") if unit == 2 else _nothing():
        space.check([3 if g is group else g.channels for g in space.groups])


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


class Auxiliary(nn.Module):
    """Gives more than its output while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.aux = nn.Conv2d(16, 3, 1)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        y = self.head(x).mean((2, 3))
        return (y, self.aux(x).mean((2, 3))) if self.training else y


class Signal(nn.Module):
    """One axis of space, and a flow that depends on a number that goes with each signal."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(3, 16, 3), nn.BatchNorm1d(16)
        self.age = nn.Linear(1, 16)
        self.fc = nn.Linear(16, 3)

    def forward(self, signal: Tensor, age: Tensor) -> Tensor:
        y: Tensor = self.fc((self.norm(self.stem(signal)) * self.age(age)[:, :, None]).amax(-1))
        return y


@pytest.mark.parametrize("images", [1, 2])
def test_inputs_of_any_number_of_axes_are_counted_an_image(images: int) -> None:
    model = scattered(Signal())
    inputs = (torch.randn(images, 3, 9), torch.randn(images, 1))
    space = space_of(model, inputs)
    assert [group.layers for group in space.groups] == [("stem", "age")]
    assert space.macs(space.largest()) == 16 * 3 * 3 * 7 + 16 + 16 * 3
    assert_agree(model, space, inputs, space.check([5]), training=images > 1)


class Neck(nn.Module):
    """Returns its features, or only their sizes, along with the outputs of a head."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.neck, self.head, self.whole = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 5, 1), whole

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.neck(x).relu()
        return self.head(features), features if self.whole else x.new_zeros(1, 1, *features.shape[2:])


def test_features_that_a_network_returns_beside_its_predictions_stay_with_the_remedy() -> None:
    with pytest.raises(SpaceError, match="neck: the network returns it, and other layers use it; to "):
        discover_space(Neck(whole=True).eval(), torch.rand(1, 3, 8, 8))
    space = discover_space(Neck(whole=False).eval(), torch.rand(1, 3, 8, 8))
    assert [group.layers for group in space.groups] == [("neck",)]
    assert [(entry.name, entry.reason) for entry in space.frozen] == [("head", "it is the network's output")]


def test_an_auxiliary_head_follows_the_trunk_and_keeps_its_own_width() -> None:
    model = Auxiliary()
    space = space_of(model)
    assert [group.name for group in space.groups] == ["stem"]
    assert space.shape("aux.weight", space.check([4])) == (3, 4, 1, 1)
    reasons = {entry.name: entry.reason for entry in space.frozen}
    assert reasons["aux"] == "it runs only in training mode, so its width does not affect the latency"
    assert_agree(model.eval(), space, IMAGES, space.check([4]))


class Named(nn.Module):
    """Two inputs, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 16, 3)
        self.right = nn.Conv2d(1, 16, 3)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        features = self.left(image) + self.right(depth)
        return {"out": self.head(features), "features": features.mean((1, 2, 3))}


@pytest.mark.parametrize("by_name", [False, True])
def test_several_inputs_and_named_outputs_are_followed(by_name: bool) -> None:
    model, depth = Named().eval(), torch.randn(2, 1, 8, 8)
    inputs = {"image": IMAGES, "depth": depth} if by_name else (IMAGES, depth)
    space = space_of(model, inputs)
    assert [(group.name, group.layers) for group in space.groups] == [("left", ("left", "right"))]
    assert_agree(model, space, inputs, space.check([5]), training=False)


class Constant(nn.Module):
    """Has its width written in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 16, -1).reshape(len(x), 16, 8, 8)


FROZEN: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "channel shuffle": (
        lambda: Between(lambda self, x: shuffled(x) + self.a(x), a=nn.Conv2d(16, 16, 1)),
        "stem",
        "interleaved",
    ),
    "a weight that is normalised": (
        lambda: Between(
            lambda self, x: self.a(x),
            a=nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1)),
        ),
        "stem",
        "computed at every call (WeightNorm, in 'a.parametrizations.weight.0')",
    ),
    "a weight that is spectrally normalised": (
        lambda: Between(
            lambda self, x: self.a(x),
            a=nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 16, 1)),
        ),
        "stem",
        "computed at every call (SpectralNorm, in 'a.parametrizations.weight.0')",
    ),
    "a layer of one channel": (
        lambda: Between(lambda self, x: x * self.a(x).sigmoid(), a=nn.Conv2d(16, 1, 1)),
        "a",
        "it has only one channel",
    ),
    "a sort": (
        lambda: Between(lambda self, x: x.sort(1).values),
        "stem",
        "it is an input of 'sort' in the network's forward",
    ),
    "a constant of the width": (
        lambda: Between(lambda self, x: x * torch.ones(16, 1, 1)),
        "stem",
        "it is combined with a tensor of fixed size in the network's forward",
    ),
    "a width written in the code": (
        lambda: Between(lambda self, x: self.a(x), a=Constant()),
        "stem",
        "narrowing it breaks the network, in 'a': RuntimeError: shape '[2, 16, 8, 8]' is invalid",
    ),
    "a detour that is not seen": (
        lambda: Between(lambda self, x: torch.from_numpy(x.detach().numpy()) + 0),
        "stem",
        "narrowing it breaks the network",
    ),
    "a layer that never runs": (
        lambda: Between(lambda self, x: x, unused=nn.Conv2d(16, 5, 1)),
        "unused",
        "it does not run",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_be_searched_stays_with_a_reason_that_names_the_place(name: str) -> None:
    build, layer, reason = FROZEN[name]
    model = scattered(build())
    space = space_of(model)
    found = {entry.name: entry.reason for entry in space.frozen}
    assert reason in found[layer]
    assert "head" in {group.name for group in space.groups}
    assert_agree(model, space, IMAGES, drawn(space), training="spectrally" not in name)


def test_a_forward_that_depends_on_its_inputs_values_is_refused_with_the_place() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x.tanh() * 2

    model = Between(body)
    with pytest.raises(SpaceError, match=r"branches on the values of its inputs.*torch\.where"):
        space_of(model, torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("wrap", [torch.jit.script, torch.compile, nn.DataParallel])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_wrapped_network_is_refused_with_the_remedy(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(SpaceError, match=r"wraps a network .*; pass the nn\.Module itself"):
        space_of(wrap(two_of_a_size()))


def test_an_example_of_the_wrong_shape_is_refused_with_its_shape() -> None:
    with pytest.raises(SpaceError, match=r"does not run on an input of shape \(1, 1, 8, 8\)"):
        space_of(SEARCHED["depthwise"](), torch.zeros(1, 1, 8, 8))


def test_outputs_that_are_not_tensors_are_refused() -> None:
    class Texts(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "seven"

    with pytest.raises(SpaceError, match="returns str; its forward must return a tensor"):
        space_of(Texts())


def test_old_weight_normalisation_is_refused_with_the_remedy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])
    with pytest.raises(SpaceError, match="remove_weight_norm"):
        space_of(model)


def test_patterns_freeze_groups() -> None:
    model = SEARCHED["squeeze and excitation"]()
    space = space_of(model, freeze=("d*", "head"))
    assert [group.name for group in space.groups] == ["stem"]
    reasons = {entry.name: entry.reason for entry in space.frozen}
    assert (reasons["down"], reasons["head"]) == ("frozen by 'd*'", "frozen by 'head'")
    assert_agree(model, space, IMAGES, space.check([7]))


def test_a_pattern_that_fits_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(SpaceError, match="no group matches the pattern 'sten' of freeze; there are: stem"):
        space_of(SEARCHED["depthwise"](), freeze=("sten",))


def two_of_a_size() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


def test_tied_groups_have_one_width() -> None:
    model = two_of_a_size().eval()
    space = space_of(model, tie=(("0", "1"),))
    assert [group.layers for group in space.groups] == [("0", "1"), ("2",)]
    assert_agree(model, space, IMAGES, space.check([5, 3]))


def test_groups_of_different_sizes_cannot_be_tied() -> None:
    with pytest.raises(SpaceError, match="'0' and '2' cannot be tied: they have 16 and 8 channels"):
        space_of(two_of_a_size(), tie=(("0", "2"),))


def test_an_unknown_group_cannot_be_tied() -> None:
    with pytest.raises(SpaceError, match="there is no group '7' to tie"):
        space_of(two_of_a_size(), tie=(("0", "7"),))
