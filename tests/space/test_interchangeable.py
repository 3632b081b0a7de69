"""Channels that are not alike: code that depends on their positions or number never narrows silently."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.errors import SpaceError
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.importance import channel_order, importances, reordered
from bcnet.space.width_space import WidthSpace
from tests.space.witnesses import assert_agree, distance

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Operator(nn.Module):
    """The operator under test, as a module with a name."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x)


class Around(nn.Module):
    """Two convolutions, one on each side of an operator without weights."""

    def __init__(self, operator: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(32)
        self.operator = Operator(operator)
        self.after = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.operator(self.norm(self.before(x))))
        return self.head(F.relu(x).mean((2, 3)))


def temporal_shift(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    fold, frames = c // 8, x.view(n // 4, 4, c, h, w)
    out = torch.zeros_like(frames)
    out[:, :-1, :fold] = frames[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    return out.view(n, c, h, w)


def partial_activation(x: Tensor) -> Tensor:
    part = x.shape[1] // 4
    return torch.cat([F.relu(x[:, :part]), x[:, part:]], 1)


def fixed_places(x: Tensor) -> Tensor:
    return torch.cat([x[:, :-4], x[:, -4:].tanh()], 1)


def by_width(x: Tensor) -> Tensor:
    return x.relu() if x.shape[1] >= 24 else x.tanh()


def scaled_by_width(x: Tensor) -> Tensor:
    return x.relu() / x.shape[1] ** 0.5


def by_a_middle_width(x: Tensor) -> Tensor:
    return x.tanh() if x.shape[1] == 16 else x.relu()


def scaled_at_a_middle_width(x: Tensor) -> Tensor:
    return x.relu() * (2.0 if x.shape[1] == 24 else 3.0)


def failing_at_a_middle_width(x: Tensor) -> Tensor:
    if x.shape[1] == 16:
        raise ValueError("sixteen are not supported")
    return x.relu()


def summed_along(x: Tensor) -> Tensor:
    return x.cumsum(1).tanh()


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def by_numbers(x: Tensor) -> Tensor:
    table = torch.arange(8.0)[torch.tensor([1, 0])]
    return partial_activation(x) * table.sum()


def space_of(model: nn.Module) -> WidthSpace:
    return discover_space(model.eval(), IMAGES, channel_multiple=1)


def reasons(space: WidthSpace) -> dict[str, str]:
    return {entry.name: entry.reason for entry in space.frozen}


def output_moves(model: nn.Module, space: WidthSpace) -> float:
    """How much the whole network's output changes when channels are sorted by importance."""
    own = tensors_of(model)
    order = channel_order(space, importances(model, space, own, "l1"))
    with torch.no_grad():
        return distance(with_state(model, space, reordered(own, space, order)).eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize("operator", [temporal_shift, partial_activation, fixed_places])
def test_a_part_of_the_channels_at_fixed_places_freezes_with_the_operator_and_its_module(
    operator: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model = Around(operator)
    space = space_of(model)
    assert [(group.name, group.mixed, group.ordered) for group in space.groups] == [("after", False, False)]
    assert (
        "not interchangeable: 'slice' in 'operator' depends on the positions of some of them"
        in reasons(space)["before"]
    )
    assert_agree(model, space, IMAGES, space.smallest())
    assert output_moves(model, space) < 1e-5


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(32), nn.GroupNorm(1, 32)])
def test_a_branch_on_the_width_freezes_with_both_operators(norm: nn.Module) -> None:
    space = space_of(Around(by_width, norm))
    assert [group.name for group in space.groups] == ["after"]
    assert reasons(space)["before"] == (
        "the network behaves differently when it is narrow: 'operator' runs 'tanh' instead of 'relu', "
        "depending on the number of channels"
    )


def test_a_branch_between_two_groups_freezes_one_of_them() -> None:
    class Compared(Around):
        def forward(self, x: Tensor) -> Tensor:
            first = self.before(x).relu()
            second = self.after(first)
            second = second.relu() if second.shape[1] >= first.shape[1] else second.tanh()
            return self.head(second.mean((2, 3)))

    space = space_of(Compared(nn.Identity()))
    assert [group.name for group in space.groups] == ["before"]
    assert "runs 'tanh' instead of 'relu', depending on the number" in reasons(space)["after"]


def test_a_branch_at_a_width_between_the_narrowest_and_the_widest_freezes() -> None:
    space = space_of(Around(by_a_middle_width))
    assert [group.name for group in space.groups] == ["after"]
    assert "'operator' runs 'tanh' instead of 'relu'" in reasons(space)["before"]


def test_a_factor_that_differs_at_one_width_is_marked() -> None:
    space = space_of(Around(scaled_at_a_middle_width))
    assert [(g.name, g.mixed) for g in space.groups] == [("before", True), ("after", False)]


def test_a_width_at_which_the_forward_fails_freezes_with_its_message() -> None:
    space = space_of(Around(failing_at_a_middle_width))
    assert [group.name for group in space.groups] == ["after"]
    assert reasons(space)["before"] == (
        "narrowing it to 16 of 32 channels breaks the network in 'operator': ValueError: sixteen are not "
        "supported"
    )


HIDING: dict[str, Callable[[Tensor], object]] = {
    "class indices": lambda y: y.argmax(1),
    "masked logits": lambda y: y.masked_fill(torch.arange(10) == 9, float("-inf")),
    "not a number": lambda y: y * float("nan"),
    "a varying shape": lambda y: (y, y[y > 0]),
    "dropout": lambda y: F.dropout(y, 0.1, training=True),
    "noise": lambda y: y + torch.randn_like(y),
    "saturation": lambda y: (y * 1e4).sigmoid(),
}


@pytest.mark.parametrize("name", HIDING)
def test_what_outputs_hide_is_found(name: str) -> None:
    class Hiding(Around):
        def forward(self, x: Tensor) -> object:  # type: ignore[override]
            return HIDING[name](super().forward(x))

    space = space_of(Hiding(partial_activation))
    assert [(group.name, group.mixed) for group in space.groups] == [("after", False)]
    assert "'slice' in 'operator'" in reasons(space)["before"]


def test_class_indices_keep_the_classes() -> None:
    class Deciding(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    reason = reasons(space_of(Deciding(torch.relu)))["head"]
    assert "'argmax' in the network's forward depends on the positions" in reason


def test_a_network_that_fails_after_a_number_of_runs_is_refused_with_its_message() -> None:
    runs: list[int] = []

    def failing_later(x: Tensor) -> Tensor:
        runs.append(x.shape[1])
        if runs.count(32) > 8:
            raise RuntimeError("no more runs")
        return x.relu()

    with pytest.raises(SpaceError, match=r"can be searched .*no more runs"):
        space_of(Around(failing_later))


def test_what_hides_behind_weights_of_zero_is_found() -> None:
    model = Around(partial_activation)
    nn.init.zeros_(model.after.weight)
    nn.init.zeros_(model.norm.weight)
    assert "'slice' in 'operator'" in reasons(space_of(model))["before"]


def test_a_scale_by_the_number_of_channels_is_searched_and_marked() -> None:
    model = Around(scaled_by_width)
    space = space_of(model)
    assert [(g.name, g.mixed) for g in space.groups] == [("before", True), ("after", False)]
    assert_agree(model, space, IMAGES, space.smallest())


def test_channels_that_a_known_layer_works_along_are_searched_and_keep_their_order() -> None:
    torch.manual_seed(0)
    model = Around(summed_along)
    space = space_of(model)
    assert [(g.name, g.mixed, g.ordered) for g in space.groups] == [
        ("before", True, True),
        ("after", False, False),
    ]
    first, second = channel_order(space, importances(model, space, tensors_of(model), "l1"))
    assert first.tolist() == list(range(32)) != second.tolist()
    assert output_moves(model, space) < 1e-5


def test_noise_is_searched() -> None:
    space = space_of(Around(noisy))
    assert [(g.name, g.mixed) for g in space.groups] == [("before", False), ("after", False)]


def test_a_table_that_is_read_by_numbers_does_not_keep_outputs_from_being_compared() -> None:
    assert "'slice' in 'operator'" in reasons(space_of(Around(by_numbers)))["before"]


def test_a_backbone_in_inference_mode_is_followed() -> None:
    class Backbone(Around):
        inference = False

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode(self.inference):
                x = self.norm(self.after(F.relu(self.before(x))))
            return self.head(x.clone().mean((2, 3)))

    model = Backbone(torch.relu, nn.GroupNorm(4, 32))
    plain = space_of(model)
    model.inference = True
    assert space_of(model) == plain
    assert [group.name for group in plain.groups] == ["before", "after"]
