"""Which paths a step trains, and who teaches them."""

import pytest
import torch
from torch import Tensor, nn

from bcnet.space.channel_rules import Side
from bcnet.space.discover import discover_space
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.widen import supernet_state
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import STEPS
from bcnet.training.supernet_step import SlicedPaths, supernet_step

DRAWN = [Widths((4,)), Widths((6,))]
Paths = list[tuple[Widths, Side]]


def setup(method: str) -> tuple[nn.Module, WidthSpace, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    space = discover_space(model, torch.zeros(1, 1, 5, 5), bins=4, channel_multiple=2, method=method)
    state = supernet_state(model, space)
    return model, space, {name: nn.Parameter(tensor) for name, tensor in state.items()}


def expected(
    model: nn.Module,
    space: WidthSpace,
    parameters: dict[str, nn.Parameter],
    paths: Paths,
    batch: tuple[Tensor, Tensor],
    distilled: bool,
) -> dict[str, Tensor]:
    """Gradients of the mean loss over all paths; the first one's outputs may be the others' targets."""
    own = {name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    inputs, labels = batch
    outputs = [
        Supernet(model, space, own).run(Subnet.at(space, widths, side), inputs) for widths, side in paths
    ]
    losses = [nn.functional.cross_entropy(out, labels) for out in outputs]
    if distilled:
        soft = outputs[0].detach().softmax(1)
        losses[1:] = [-(soft * out.log_softmax(1)).sum(1).mean() for out in outputs[1:]]
    (sum(losses, torch.zeros(())) / len(losses)).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in own.items() if p.grad is not None}


def of(sides: tuple[Side, ...]) -> Paths:
    return [(widths, side) for widths in DRAWN for side in sides]


@pytest.mark.parametrize("method", ["unilateral", "bcnet", "bcnetv2", "cafenet", "psenet"])
@pytest.mark.parametrize("name", list(STEPS))
@pytest.mark.parametrize("number", [0, 1])
def test_a_step_trains_the_paths_of_its_plan_at_equal_weight(method: str, name: str, number: int) -> None:
    model, space, parameters = setup(method)
    batch = torch.randn(6, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    plan = STEPS[name]
    sliced = SlicedPaths(Supernet(model, space, parameters), Recipe(epochs=1, learning_rate=0.1))
    losses = supernet_step(sliced, DRAWN, *batch, plan=plan, number=number)
    turn = space.rule.sides[number % len(space.rule.sides)]
    sides = (turn,) if plan.alternating else space.rule.sides
    paths = of(sides)
    paths = [(space.largest(), turn), *paths] if plan.widest else paths
    paths = [*paths, (space.smallest(), turn)] if plan.narrowest else paths
    for key, gradient in expected(model, space, parameters, paths, batch, plan.distilled).items():
        torch.testing.assert_close(parameters[key].grad, gradient, rtol=1e-4, atol=1e-6)
    assert len(losses) == len(DRAWN)
    assert all(loss > 0 for loss in losses)


def test_extra_channels_of_bcnetv2_are_reached_by_the_widest_path_every_other_step() -> None:
    model, space, parameters = setup("bcnetv2")
    batch = torch.randn(6, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    paths = SlicedPaths(Supernet(model, space, parameters), Recipe(epochs=1, learning_rate=0.1))
    reached = []
    for number in (0, 1):
        for parameter in parameters.values():
            parameter.grad = None
        supernet_step(paths, [], *batch, plan=STEPS["distilled"], number=number)
        gradient = parameters["0.weight"].grad
        assert gradient is not None
        reached.append((gradient.flatten(1).abs().sum(1) > 0).nonzero().flatten().tolist())
    extra = space.groups[0].extra
    assert max(reached[0]) < 8
    assert max(reached[1]) >= 8
    assert min(reached[1]) >= extra
