"""Merged look-ups give what the arrays that they were made from give, one network at a time or many."""

import numpy as np
import pytest

from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.rows import Calibration
from bcnet.latency_tables.sums import ENTRIES, NETWORKS, Sums
from tests.latency_tables.test_table import SETTING, pair, table_of

# Neighbours, shortcuts over several groups, a group of one choice, a layer that follows none.
GROUPS = [(), (0,), (0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (2, 5), (4, 5), (5, 6), (6,), (0, 6)]
CHOICES = [tuple(range(8, 8 + 8 * count, 8)) for count in (8, 5, 8, 1, 8, 7, 8)]


def terms() -> list[tuple[tuple[int, ...], np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(groups, rng.random([*(len(CHOICES[group]) for group in groups), 3])) for groups in GROUPS]


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers([len(own) for own in CHOICES], size=(count, len(CHOICES)))


def test_many_networks_get_the_sums_of_all_their_terms() -> None:
    indices = drawn(NETWORKS + 10)
    by_hand = sum(array[tuple(indices[:, group] for group in groups)] for groups, array in terms())
    sums = Sums(terms(), CHOICES)
    np.testing.assert_allclose(sums.many(indices, 3).T, by_hand, rtol=1e-12)
    assert np.array_equal(sums.many(indices, 1), sums.many(indices, 3)[:1])


def test_a_single_network_gets_the_same_sums_to_the_last_bit() -> None:
    indices = drawn(50)
    sums = Sums(terms(), CHOICES)
    for index, many in zip(indices.tolist(), sums.many(indices, 3).T.tolist(), strict=True):
        widths = tuple(own[i] for own, i in zip(CHOICES, index, strict=True))
        assert sums.one(widths) == tuple(many)


def test_a_width_between_the_choices_has_no_sum() -> None:
    assert Sums(terms(), CHOICES).one((9, 8, 8, 8, 8, 8, 8)) is None


@pytest.mark.parametrize("wrong", [-1, 8])
def test_an_index_outside_the_choices_is_refused(wrong: int) -> None:
    indices = drawn(3)
    indices[1, 2] = wrong
    with pytest.raises(IndexError, match="outside its group's choices"):
        Sums(terms(), CHOICES).many(indices, 1)


def test_layers_that_follow_too_many_groups_for_an_array_are_priced_alike() -> None:
    choices = [tuple(range(8, 72, 8))] * 5
    slots = [
        LayerSlot("joined", pair(320, 64), tuple((g, 1) for g in range(5)), ((0, 1),), None, ("joined",)),
        LayerSlot("after", pair(64, 64), ((0, 1),), ((1, 1),), None, ("after",)),
    ]
    assert ENTRIES < 8**5
    channels = [*range(8, 72, 8), *range(80, 328, 8)]
    table = table_of({pair(a, b): 1e-3 * a * b + 0.1 for a in channels for b in range(8, 72, 8)})
    calibration = Calibration("m", SETTING, "r", 0.5, 2.0, 12, 12, 0.0, 1.0, 1.0, 1.0, 0.0)
    model = LatencyModel(table, SETTING, slots, choices, calibration)
    indices = np.random.default_rng(2).integers(8, size=(40, 5))
    networks = 8 * (indices + 1)
    first, second = networks[:, 0], networks[:, 1]
    by_hand = 0.5 + 2 * (1e-3 * networks.sum(1) * first + 1e-3 * first * second + 0.2)
    assert model.price_many(indices).tolist() == pytest.approx(by_hand.tolist())
    assert [model(tuple(widths)) for widths in networks.tolist()] == model.price_many(indices).tolist()


def test_indices_are_those_of_the_widths_and_other_widths_are_refused() -> None:
    model = LatencyModel(table_of({}), SETTING, [], [(8, 16), (4, 6, 10)], None)
    assert model.indices([(16, 4), (8, 10)]).tolist() == [[1, 0], [0, 2]]
    assert model.indices([]).shape == (0, 2)
    with pytest.raises(ValueError, match=r"a width of group 1 is not among its choices \[4, 6, 10\]"):
        model.indices([(16, 5)])
