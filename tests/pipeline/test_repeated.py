"""Repeated measurements: when they stop, what they show about the noise, which networks they separate."""

from collections.abc import Iterator

import numpy as np
import pytest

from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.repeated import (
    FEWEST,
    MOST,
    Repeated,
    disagreement,
    measured_alternately,
    not_separable,
)

KINDS = {"full": "wide", "uniform": "narrow", "searched": "other"}


def stat(ms: float) -> LatencyStat:
    return LatencyStat.of(np.array([ms]))


def test_a_stable_order_ends_the_rounds_and_every_second_one_is_reversed() -> None:
    measured: list[str] = []

    def measure(name: str) -> LatencyStat:
        measured.append(name)
        return stat({"full": 3.0, "uniform": 1.0, "searched": 2.0}[name])

    found = measured_alternately(measure, KINDS)
    assert measured == [*KINDS, *reversed(KINDS)] * 2 + [*KINDS]
    assert found["searched"].medians_ms == [2.0] * FEWEST
    assert not_separable({name: own.medians_ms for name, own in found.items()}, KINDS) == ()


def test_an_order_that_changes_is_measured_to_the_end_and_called_not_separable() -> None:
    uniform: Iterator[float] = iter([1.9, 2.1] * MOST)

    def measure(name: str) -> LatencyStat:
        return stat({"full": 3.0, "searched": 2.0}.get(name) or next(uniform))

    found = measured_alternately(measure, KINDS)
    medians = {name: own.medians_ms for name, own in found.items()}
    assert len(found["full"].stats) == MOST
    assert not_separable(medians, KINDS) == (("uniform", "searched"),)
    assert not_separable(medians, {**KINDS, "uniform": "other"}) == ()  # the same network twice


@pytest.mark.parametrize(("slower", "separable"), [(9, True), (8, True), (7, False), (0, True)])
def test_networks_are_separated_when_chance_would_order_them_so_in_one_of_twenty(
    slower: int, separable: bool
) -> None:
    medians = {"a": [1.0] * 9, "b": [1.1] * slower + [0.9] * (9 - slower)}
    assert (not_separable(medians, {"a": 1, "b": 2}) == ()) is separable


def test_the_fastest_round_counts_and_the_noise_is_that_of_the_slowest() -> None:
    found = Repeated((stat(0.877), stat(0.693), stat(0.7)))
    assert found.fastest == stat(0.693)
    assert found.noise == pytest.approx(0.877 / 0.693 - 1)
    note = disagreement({"'full'": [1.0, 1.06], "'searched'": found.medians_ms})
    assert note is not None
    assert note.startswith(
        "the machine is noisy: measurements of 'searched' disagree by 27%, 0.693 to 0.877 ms, of which"
    )
    assert disagreement({"'searched'": [0.693, 0.72]}) is None
