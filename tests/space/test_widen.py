"""Wider networks, and supernets that keep what trained weights know."""

import pytest
import torch
from torch import Tensor, nn

from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of
from bcnet.space.importance import channel_order, importances, reordered
from bcnet.space.supernet import cut, forward_path
from bcnet.space.widen import grown, supernet_state, widened
from bcnet.space.width_space import Widths, WidthSpace
from tests.space.witnesses import assert_agree, distance, drawn, scattered

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """A residual block, a grouped convolution, a concatenation and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=8)
        self.side = nn.Conv2d(16, 8, 1)
        self.mix = nn.Conv2d(24, 12, 1)
        self.fc = nn.Linear(12 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.grouped(x)
        y: Tensor = self.fc(self.mix(torch.cat([x, self.side(x).relu()], 1)).relu().flatten(1))
        return y


def setup(method: str = "unilateral") -> tuple[nn.Module, WidthSpace]:
    torch.manual_seed(0)
    model = scattered(Small())
    return model, discover_space(model, X, bins=4, channel_multiple=1, method=method)


@pytest.mark.parametrize("copies", [False, True])
def test_a_widened_network_contains_the_given_one_and_is_searched_exactly(copies: bool) -> None:
    model, space = setup()
    wide = widened(model, space, 1.5, channel_multiple=1, copies=copies)
    wider = discover_space(wide, X, bins=4, channel_multiple=1, method="unilateral")
    assert [group.channels for group in wider.groups] == [24, 12, 18]
    with torch.no_grad():
        assert torch.equal(forward_path(wide, wider, Widths((16, 8, 12)), X), model(X))
        assert not torch.equal(wide(X), model(X))
    assert_agree(wide, wider, X, drawn(wider))


def test_a_widened_network_keeps_channel_multiples() -> None:
    model, space = setup()
    wide = widened(model, space, 1.3, channel_multiple=4)
    assert (wide.stem.out_channels, wide.side.out_channels, wide.mix.out_channels) == (20, 12, 16)
    assert wide.grouped.groups == 10


def test_copied_channels_are_near_to_what_they_copy() -> None:
    model, space = setup()
    state = grown(tensors_of(model), space, [24, 12, 18], copies=True)
    assert torch.allclose(state["stem.weight"][16:], model.stem.weight[:8], rtol=0.08)
    assert not torch.equal(state["stem.weight"][16:], model.stem.weight[:8])
    assert (state["norm.running_var"] > 0).all()


def test_any_stretch_of_a_bcnetv2_supernet_of_copies_is_nearly_the_network() -> None:
    model, space = setup("bcnetv2")
    state = supernet_state(model, space, copies=True)
    drawn_at_random = supernet_state(model, space)
    with torch.no_grad():
        right = forward_path(model, space, space.largest(), X, "right", state)
        assert distance(right, model(X)) < 0.05
        assert (
            distance(forward_path(model, space, space.largest(), X, "right", drawn_at_random), model(X)) > 0.1
        )


@pytest.mark.parametrize("by", ["l1", "l2", "bn-scale", "fpgm"])
@pytest.mark.parametrize("method", ["unilateral", "bcnet"])
def test_reordering_leaves_the_full_networks_output_unchanged(by: str, method: str) -> None:
    model, space = setup(method)
    order = channel_order(space, importances(model, space, tensors_of(model), by))
    assert any(not torch.equal(o, torch.arange(len(o))) for o in order)
    state = reordered(tensors_of(model), space, order)
    with torch.no_grad():
        assert distance(forward_path(model, space, space.largest(), X, "left", state), model(X)) < 1e-5


def test_l1_importance_is_the_sum_of_a_channels_weights_in_all_layers_that_make_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(128, 2)).eval()
    space = discover_space(model, X, bins=2, channel_multiple=1)
    found = importances(model, space, tensors_of(model), "l1")
    assert torch.allclose(found[0], model[0].weight.detach().abs().sum((1, 2, 3)))


def test_units_are_ordered_as_a_whole() -> None:
    model, space = setup()
    (group,) = [group for group in space.groups if group.unit == 2]
    order = channel_order(space, importances(model, space, tensors_of(model), "l1"))[0]
    assert group.name == "stem"
    assert torch.equal(order[1::2], order[0::2] + 1)
    assert (order[0::2] % 2 == 0).all()


@pytest.mark.parametrize(
    ("method", "order"), [("unilateral", [3, 1, 0, 2]), ("bcnet", [3, 0, 2, 1]), ("bcnetv2", [3, 0, 2, 1])]
)
def test_the_strongest_channels_come_where_paths_begin(method: str, order: list[int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    space = discover_space(model, X, bins=4, channel_multiple=1, method=method)
    assert channel_order(space, (torch.tensor([2.0, 3.0, 1.0, 4.0]),))[0].tolist() == order


def test_the_strongest_half_alone_keeps_more_of_the_output() -> None:
    model, space = setup()
    with torch.no_grad():
        model.stem.weight[:8] *= 0.01  # the left half hardly counts
        model.stem.bias[:8] = 0
        model.norm.weight[:8] *= 0.01
        model.norm.bias[:8] = 0
        model.norm.running_mean[:8] = 0
    order = channel_order(space, importances(model, space, tensors_of(model), "bn-scale"))
    state = reordered(tensors_of(model), space, order)
    half = Widths((8, 8, 12))
    with torch.no_grad():
        before = distance(forward_path(model, space, half, X), model(X))
        after = distance(forward_path(model, space, half, X, "left", state), model(X))
    assert after < 0.6 * before
    assert cut(model, space, half, "left", state).stem.out_channels == 8
