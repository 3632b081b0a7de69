"""The program's optimum is that of trying every network; what it cannot solve it says."""

import ctypes
import itertools
from dataclasses import replace

import numpy as np
import pytest

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import total
from bcnet.allocation.rows import Sum
from bcnet.allocation.silent import silent
from bcnet.errors import BudgetError, SpaceError
from bcnet.latency_tables.failed import FAILED_MS
from bcnet.latency_tables.model import LatencyModel
from bcnet.methods.latency_greedy import narrowed_by
from bcnet.methods.latency_milp import SolverSettings, allocate_exactly
from bcnet.plain import milliseconds
from bcnet.space.width_space import Widths
from tests.methods.tiny import Layer, falling, model_of, product_bound, space_of

CHOICES = [(2, 4, 6, 8), (1, 2, 3), (3, 6), (2, 4, 6, 8), (1, 5, 7)]
EXACT = SolverSettings(gap=0.0)


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
@pytest.mark.parametrize("seed", range(4))
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


def test_a_small_array_over_four_groups_is_exact() -> None:
    """As of a layer whose latency depends on two widths and two precisions."""
    choices = [(1, 2, 3), (10, 20), (100, 200), (1, 2, 4)]
    rng = np.random.default_rng(0)
    ms = {(a, b): float(rng.random()) for a in range(500) for b in range(500)}
    space, model = space_of(choices), model_of(choices, [((0, 1), (2, 3), lambda a, b: ms[a, b])])
    losses = falling(rng, choices)
    limits = Limits(space, model, 0.2)
    (found,) = allocate_exactly(space, losses, model, 0.2, settings=EXACT)
    assert (found.loss, found.widths) == every(limits, losses)[0]
    assert found.gap == pytest.approx(0.0, abs=1e-9)


def test_layers_behind_many_concatenated_groups_are_approximated_and_confirmed() -> None:
    choices = [tuple(range(8, 72, 8))] * 5
    rng = np.random.default_rng(0)
    factors = 0.5 + rng.random(5)
    layers: list[Layer] = [
        ((0, 1, 2, 3, 4), (0,), lambda a, b: 1e-3 * (a + 8 * (a // 100)) * b),
        *(((g,), ((g + 1) % 5,), lambda a, b, f=f: 5e-3 * f * a * b) for g, f in enumerate(factors)),
    ]
    model, space, losses = model_of(choices, layers), space_of(choices), falling(rng, choices)
    assert model._others
    limits = Limits(space, model, 0.5 * model(space.largest()))
    best = every(limits, losses)[0][0]
    found = allocate_exactly(space, losses, model, limits.limit_ms, settings=replace(EXACT, pool=4))
    assert len({own.widths for own in found}) == 4
    assert all(own.predicted_ms == model(own.widths) <= limits.limit_ms for own in found)
    assert found[0].loss <= 1.01 * best
    assert found[0].loss <= total(losses, limits.index(narrowed_by(space, losses, limits)))


def test_weights_that_come_from_memory_count() -> None:
    model = model_of(CHOICES, random_layers(0))
    assert model.calibration is not None
    model.table.sessions[0].provenance["cache_mb"] = "0.002"
    model.table.rows = {key: replace(row, cache_use=0.0) for key, row in model.table.rows.items()}
    model = LatencyModel(
        model.table,
        model.setting,
        model.slots,
        model.choices,
        replace(model.calibration, memory_ms_per_mb=1e4, cache_mb=0.002),
    )
    space, losses = space_of(CHOICES), falling(np.random.default_rng(0), CHOICES)
    offset, arrays = model.pairwise()
    known = Sum(offset, arrays, 0.0).at(model.indices([space.largest()]))[0]
    assert known < 0.95 * model(space.largest())
    limits = Limits(space, model, 0.4 * model(space.largest()))
    found = allocate_exactly(space, losses, model, limits.limit_ms, settings=EXACT)
    assert found[0].predicted_ms == model(found[0].widths) <= limits.limit_ms
    assert found[0].loss <= 1.01 * every(limits, losses)[0][0]


def test_what_no_network_meets_is_refused_with_the_lowest_latency() -> None:
    space, model = space_of(CHOICES), model_of(CHOICES, random_layers(1))
    losses = falling(np.random.default_rng(1), CHOICES)
    indices = np.array(list(itertools.product(*(range(len(own)) for own in CHOICES))))
    lowest = float(model.price_many(indices).min())
    with pytest.raises(
        BudgetError, match=rf"no network meets 1.000 ms: the fastest takes {milliseconds(lowest)} ms \("
    ):
        allocate_exactly(space, losses, model, 1.0)
    assert len(allocate_exactly(space, losses, model, lowest)) == 1
    bound = product_bound(5, [(0, 3)], 3)
    with pytest.raises(BudgetError, match="no network has at most 3 parameters: the narrowest has 4"):
        allocate_exactly(space, losses, model, 1e3, [bound])


def test_the_fastest_network_is_found_where_no_single_group_leads_to_it() -> None:
    # Group by group, the narrowest network is the fastest; only both groups at once are faster.
    ms = {(1, 1): 5.0, (1, 2): 9.0, (2, 1): 9.0, (2, 2): 3.0}
    choices = [(1, 2), (1, 2), (1, 2)]
    model = model_of(choices, [((0,), (1,), lambda a, b: ms[a, b]), ((2,), (), lambda a, _: float(a))])
    space, losses = space_of(choices), [np.array([1.0, 0.0])] * 3
    assert allocate_exactly(space, losses, model, 4.0)[0].widths == (2, 2, 1)
    with pytest.raises(BudgetError, match=r"no network meets 3.500 ms: the fastest takes 4.000 ms"):
        allocate_exactly(space, losses, model, 3.5)


def test_layers_that_the_runtime_cannot_run_are_avoided() -> None:
    ms = {(1, 1): 1.0, (1, 2): FAILED_MS, (2, 1): 3.0, (2, 2): 8.0}
    choices = [(1, 2), (1, 2)]
    model = model_of(choices, [((0,), (1,), lambda a, b: ms[a, b])])
    losses = [np.array([1.0, 0.0]), np.array([3.0, 0.0])]
    assert [own.widths for own in allocate_exactly(space_of(choices), losses, model, 7.0, (), EXACT)] == [
        (2, 1)
    ]


def test_fewer_networks_than_wanted_are_all_of_them() -> None:
    choices = [(1, 2), (1, 2)]
    model = model_of(choices, [((0,), (1,), lambda a, b: float(a * b))])
    losses = [np.array([1.0, 0.0]), np.array([2.0, 0.0])]
    found = allocate_exactly(space_of(choices), losses, model, 3.0, (), replace(EXACT, pool=9))
    assert [own.widths for own in found] == [(1, 2), (2, 1), (1, 1)]


def test_tables_around_other_widths_may_be_below_zero() -> None:
    choices = [(1, 2, 3), (1, 2, 3)]
    model = model_of(choices, [((0,), (1,), lambda a, b: float(a * b))])
    losses = [np.array([0.5, 0.0, -0.3]), np.array([0.1, 0.0, -0.1])]
    found = allocate_exactly(space_of(choices), losses, model, 4.0, (), EXACT)
    assert (found[0].widths, found[0].loss) == ((3, 1), pytest.approx(-0.2))
    assert found[0].gap == pytest.approx(0.0, abs=1e-9)


def test_at_the_time_limit_the_best_so_far_is_returned_with_its_gap(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    choices = [tuple(range(8, 136, 8))] * 30
    factors = rng.lognormal(size=(29,))
    model = model_of(choices, [((g,), (g + 1,), lambda a, b, f=f: f * a * b) for g, f in enumerate(factors)])
    space, losses = space_of(choices), falling(rng, choices)
    limit = 0.5 * model(space.largest())
    found = allocate_exactly(space, losses, model, limit, (), SolverSettings(pool=3, seconds=0.0))
    assert len(found) == 1
    assert model(found[0].widths) <= limit
    assert 1e-3 < found[0].gap <= 1
    out, said = capfd.readouterr()
    assert out == ""
    assert " ".join(said.split()).startswith(
        "the allocation stopped at its limit of 0 s with 1 of 3 networks: "
    )


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([np.array([1.0, 0.0])], "tables of 1 group given, the space has 2"),
        ([np.array([1.0, 0.0]), np.zeros(3)], "the table of group 'g1' needs 2 finite losses, one a choice"),
        ([np.array([np.nan, 0.0]), np.zeros(2)], "the table of group 'g0' needs 2 finite losses"),
    ],
)
def test_tables_that_do_not_fit_are_refused(losses: list[np.ndarray], message: str) -> None:
    choices = [(1, 2), (1, 2)]
    model = model_of(choices, [((0,), (1,), lambda a, b: float(a * b))])
    with pytest.raises(SpaceError, match=message):
        allocate_exactly(space_of(choices), losses, model, 3.0)
    with pytest.raises(SpaceError, match=message):
        narrowed_by(space_of(choices), losses, Limits(space_of(choices), model, 3.0))


def test_what_compiled_code_prints_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    with silent():
        libc.puts(b"from a solver")
    print("from Python")
    libc.puts(b"from C")
    libc.fflush(None)
    assert capfd.readouterr().out == "from Python\nfrom C\n"
