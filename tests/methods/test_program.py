"""The program's optimum is that of trying every network; what it cannot solve it says."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from bcnet.errors import BudgetError
from bcnet.latency_tables.model import LatencyModel
from bcnet.methods.latency_greedy import narrowed_by
from bcnet.methods.limits import Limits
from bcnet.methods.program import Program, allocate_exactly
from bcnet.methods.rows import Columns, Sum
from bcnet.supernet.space import Widths
from tests.methods.tiny import Layer, falling, model_of, product_bound, space_of

CHOICES = [(2, 4, 6, 8), (1, 2, 3), (3, 6), (2, 4, 6, 8), (1, 5, 7)]
EXACT = Program(gap=0.0)


def random_layers(seed: int) -> list[Layer]:
    """Layers of one group, of pairs, and one behind a concatenation; narrower is not always faster."""
    rng = np.random.default_rng(seed)

    def random() -> dict[tuple[int, int], float]:
        return {(a, b): float(a * b * (0.5 + rng.random())) for a in range(20) for b in range(20)}

    tables = [random() for _ in range(6)]
    sides = [((), (0,)), ((0,), (1,)), ((1,), (2,)), ((0, 2), (3,)), ((3,), (4,)), ((4,), ())]
    return [(*side, lambda a, b, t=t: t[a, b]) for side, t in zip(sides, tables, strict=True)]


def every(limits: Limits, losses: list[np.ndarray]) -> list[tuple[float, Widths]]:
    """All networks within the limits with their losses, best first."""
    indices = np.array(list(itertools.product(*(range(len(own)) for own in losses))))
    fit = indices[limits.fit(indices)]
    return sorted(
        (float(sum(own[i] for own, i in zip(losses, index, strict=True))), limits.widths(index))
        for index in fit
    )


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_is_that_of_trying_every_network(seed: int, bounded: bool) -> None:
    space, model = space_of(CHOICES), model_of(CHOICES, random_layers(seed), offset=3.0)
    losses = falling(np.random.default_rng(seed), CHOICES)
    bounds = [product_bound(5, [(0, 3), (1, 4), (2, 2)], 70)] if bounded else []
    limits = Limits(space, model, (0.3 + 0.1 * (seed % 3)) * model(space.largest()), bounds)
    best = every(limits, losses)
    found = allocate_exactly(space, losses, model, limits.limit_ms, bounds, replace(EXACT, pool=6))
    assert [own.loss for own in found] == pytest.approx([loss for loss, _ in best[:6]])
    assert len({own.widths for own in found}) == 6
    assert found[0].widths == best[0][1]
    assert found[0].gap == pytest.approx(0.0, abs=1e-9)
    for own in found:
        assert own.predicted_ms == model(own.widths) <= limits.limit_ms


def test_a_latency_at_the_limit_is_within_it() -> None:
    model = model_of([(1, 2), (1, 2)], [((0,), (1,), lambda a, b: float(a * b))])
    space = space_of([(1, 2), (1, 2)])
    found = allocate_exactly(space, [np.array([1.0, 0.0]), np.array([2.0, 0.0])], model, 2.0)
    assert [(own.widths, own.predicted_ms, own.loss) for own in found] == [((1, 2), 2.0, 1.0)]
