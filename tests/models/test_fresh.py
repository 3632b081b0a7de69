"""Fresh networks hold no trained weights, wherever the trained weights came from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bcnet.config import Config, DataConfig, ModelConfig
from bcnet.models.digits import digits
from bcnet.models.fresh import fresh_network
from bcnet.pipeline.open_problem import open_problem

SMALL = DataConfig(image_size=16, train_limit=40, test_limit=40)


class Tokens(nn.Module):
    """A network one of whose parameters no module can initialise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.token = nn.Parameter(torch.zeros(2))
        self.head = nn.Linear(4, 3)


def trained_tokens(seed: int) -> nn.Module:
    """Trained except for the head, which depends on the seed, as when a network gets another classifier."""
    torch.manual_seed(17)
    network = Tokens()
    with torch.no_grad():
        network.token.copy_(torch.tensor([0.5, -0.5]))
        network.norm.running_mean.copy_(torch.arange(4.0))
        network.norm.num_batches_tracked.fill_(7)
    torch.manual_seed(seed)
    network.head.reset_parameters()
    return network


def untrained_with_identity(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    nn.init.dirac_(network[2].weight)
    return network


def test_trained_weights_inside_a_function_are_recognised_and_initialised_under_the_seed() -> None:
    before, fresh = trained_tokens(3), fresh_network(trained_tokens, 3)
    assert fresh.trained
    assert fresh.drawn == ("head",)
    assert not torch.equal(fresh.model.conv.weight, before.conv.weight)
    assert torch.equal(fresh.model.head.weight, before.head.weight)  # its initialisation is its function's
    assert fresh.model.norm.running_mean.tolist() == [0.0] * 4
    assert fresh.model.norm.num_batches_tracked == 0
    again, other = fresh_network(trained_tokens, 3).model, fresh_network(trained_tokens, 4).model
    assert torch.equal(again.conv.weight, fresh.model.conv.weight)
    assert not torch.equal(other.conv.weight, fresh.model.conv.weight)


def trained_encoder(seed: int) -> nn.Module:
    """A trained encoder of few layers under a decoder of more, one of which is an identity."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
        nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(6))),
        nn.Conv2d(4, 4, 3),
    )
    nn.init.dirac_(network[2].weight)
    torch.manual_seed(17)
    for layer in network[0]:
        layer.weight.data.normal_()
    return network


def test_a_trained_part_of_a_network_is_recognised_by_module_and_only_it_is_initialised() -> None:
    before, fresh = trained_encoder(3), fresh_network(trained_encoder, 3)
    assert (fresh.trained, fresh.reset, fresh.kept, fresh.from_scratch) == (
        True,
        ("0.0", "0.1", "0.2"),
        (),
        True,
    )
    changed = [
        name
        for name, tensor in fresh.model.state_dict().items()
        if not torch.equal(tensor, before.state_dict()[name])
    ]
    assert changed == ["0.0.weight", "0.0.bias", "0.1.weight", "0.2.weight", "0.2.bias"]
    assert fresh.assumed == (
        "the weights of '0.0', '0.1', '0.2' are the same for every seed: they are assumed to be trained (or "
        "their function sets its own seed), and were initialised by reset_parameters()"
    )


def test_a_function_that_sets_its_own_seed_is_reported_with_what_was_assumed() -> None:
    fresh = fresh_network(lambda seed: seeded(digits, 0), 3)
    assert fresh.trained
    assert "are the same for every seed" in fresh.assumed
    assert fresh.note == ""


class Sines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(200.0).reshape(20, 10).sin())
        self.layers = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))


def test_what_cannot_be_initialised_is_named_with_its_share() -> None:
    fresh = fresh_network(trained_tokens, 3)
    count = sum(parameter.numel() for parameter in fresh.model.parameters())
    assert fresh.kept == ("token",)
    assert fresh.kept_share == 2 / count
    assert fresh.note == (
        f"'token' ({2 / count:.1%} of the parameters) keep trained values: their modules have no "
        "reset_parameters()"
    )
    assert not fresh.from_scratch  # more than one parameter in a hundred


@pytest.mark.parametrize(
    "build",
    [
        untrained_with_identity,
        lambda seed: seeded(digits, seed),
        lambda seed: seeded(Sines, seed),
    ],
)
def test_a_network_that_is_drawn_from_its_seed_stays_as_it_is(build: Callable[[int], nn.Module]) -> None:
    fresh, drawn = fresh_network(build, 5), build(5)
    assert not fresh.trained
    assert (fresh.kept, fresh.assumed) == ((), "")
    for name, tensor in drawn.state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], tensor)


def seeded(function: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return function()


def test_configured_weights_are_in_the_given_network_and_not_in_the_fresh_one(folder: Path) -> None:
    torch.manual_seed(99)
    save_file(digits().state_dict(), "own.safetensors")
    untrained = open_problem(Config(data=SMALL))
    assert not untrained.trained
    problem = open_problem(Config(data=SMALL, model=ModelConfig(weights="own.safetensors")))
    assert problem.trained
    name = next(name for name, parameter in problem.model.named_parameters() if parameter.ndim == 4)
    given = problem.model.state_dict()[name]
    fresh, other = problem.fresh_model().state_dict()[name], problem.given_model(8).state_dict()[name]
    assert torch.equal(given, other)  # of every supernet
    assert torch.equal(fresh, untrained.model.state_dict()[name])
