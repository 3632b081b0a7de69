"""Every method by its name: the networks that it proposes keep the latency and the bounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bcnet.allocation.problem import AllocationProblem
from bcnet.errors import BudgetError
from bcnet.methods.network_adjustment import AdjustmentSettings
from bcnet.registry import METHODS, auto_methods
from bcnet.space.importance import CRITERIA
from bcnet.space.width_space import Widths
from tests.methods.tiny import ONES, model_of, product_bound, space_of

CHOICES = [ONES, ONES]
SLOPES = 1.0, 3.0  # of the loss by each group's channels


def loss_of(widths: Widths) -> float:
    return sum(slope * (4 - width) for slope, width in zip(SLOPES, widths, strict=True))


@pytest.fixture
def problem() -> AllocationProblem:
    """Two groups in a row; 8 ms, and 10 parameters, where the whole network takes 24 ms and has 16."""
    layers = [((), (0,), lambda a, b: float(b)), ((0,), (1,), lambda a, b: float(a * b))]
    model = model_of(CHOICES, [*layers, ((1,), (), lambda a, b: float(a))])
    tables = [slope * (4.0 - np.array(ONES)) for slope in SLOPES]
    importances = {by: tuple(torch.full((4,), slope) for slope in SLOPES) for by in CRITERIA}
    bounds = [product_bound(2, [(0, 1)], 10)]
    return AllocationProblem(
        space_of(CHOICES),
        model,
        8.0,
        bounds,
        importances,
        lambda: tables,
        loss_of,
        lambda *_: np.array(SLOPES),
        lambda left, _: [
            torch.zeros(4).index_fill(0, torch.tensor(own), slope)
            for own, slope in zip(left.channels, SLOPES, strict=True)
        ],
        AdjustmentSettings(),
    )


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("uniform", (2, 2)),
        ("latency-greedy", (1, 3)),
        ("latency-milp", (1, 3)),
        ("adapruner", (1, 3)),
        ("network-adjustment", (1, 3)),
        ("iterative-taylor", (1, 3)),
    ],
)
def test_a_method_proposes_networks_within_the_limits(
    problem: AllocationProblem, name: str, widths: tuple[int, ...]
) -> None:
    found = METHODS[name].function(problem)
    assert found[0] == widths
    assert all(problem.latency(own) <= 8 and problem.bounds[0].holds(own) for own in found)


def test_network_adjustment_as_published_follows_the_ratios_and_returns_its_best_first(
    problem: AllocationProblem,
) -> None:
    """Of the ratios the second is larger: channels move there, and all widths scale back to the limits."""
    found = METHODS["network-adjustment"].function(
        replace(problem, settings=AdjustmentSettings(adjust_by="macs"))
    )
    assert found[0] == (1, 3)
    assert (2, 2) in found
    assert [loss_of(own) for own in found] == sorted(loss_of(own) for own in found)
    assert all(problem.latency(own) <= 8 and problem.bounds[0].holds(own) for own in found)


@pytest.mark.parametrize("name", [name for name in METHODS.own() if not METHODS[name].trains])
def test_a_limit_that_no_network_meets_is_refused_with_the_lowest(
    problem: AllocationProblem, name: str
) -> None:
    impossible = replace(problem, limit_ms=2.5)
    with pytest.raises(
        BudgetError, match=r"meets 2\.500 ms: the fastest takes 3\.000 ms within the other bounds"
    ):
        METHODS[name].function(impossible)


def test_auto_compares_the_methods_that_need_no_training_and_few_scores() -> None:
    assert [own.name for own in auto_methods()] == [
        "uniform",
        "latency-greedy",
        "latency-milp",
        "adapruner",
        "iterative-taylor",
    ]
