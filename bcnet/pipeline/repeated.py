"""Repeated measurements of alternating networks. In: files and a device. Out: latencies, their noise, and
which of them cannot be separated.

A single measurement says nothing about the noise; the order of two networks is known only if it is stable.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy.stats import binomtest

from bcnet.latency_tables.noise import QUIETER
from bcnet.latency_tables.rows import LatencyStat
from bcnet.plain import milliseconds
from bcnet.progress import progress_bar

NOISY = 0.05  # a larger relative difference between measurements of one network is reported
FEWEST, MOST = 5, 9  # rounds
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Repeated:
    """All measurements of one network, in ms, one per round."""

    stats: tuple[LatencyStat, ...]

    @property
    def fastest(self) -> LatencyStat:
        """The measurement that counts: other work on the machine only adds time."""
        return min(self.stats, key=lambda stat: stat.median_ms)

    @property
    def medians_ms(self) -> list[float]:
        """The median of each round."""
        return [stat.median_ms for stat in self.stats]

    @property
    def noise(self) -> float:
        """The relative difference between the slowest measurement and the fastest."""
        return noise_of(self.medians_ms)


def noise_of(medians_ms: Sequence[float]) -> float:
    """The relative difference between the slowest of these and the fastest; 0 for a single one."""
    return max(medians_ms) / min(medians_ms) - 1 if min(medians_ms) > 0 else 0.0


def disagreement(medians_ms: Mapping[str, Sequence[float]]) -> str | None:
    """One line where measurements of one network differ by more than `NOISY`; None where they do not.

    `medians_ms` holds those of several networks, by name; the noisiest is reported.
    """
    what, worst = max(medians_ms.items(), key=lambda entry: noise_of(entry[1]))
    noise = noise_of(worst)
    if noise <= NOISY:
        return None
    return (
        f"the machine is noisy: measurements of {what} disagree by {noise:.0%}, "
        f"{milliseconds(min(worst))} to {milliseconds(max(worst))} ms, of which the fastest counts; {QUIETER}"
    )


def measured_alternately(
    measure: Callable[[str], LatencyStat], kinds: Mapping[str, Hashable]
) -> dict[str, Repeated]:
    """Measure networks by name in rounds, every second one in reverse, until their order is stable.

    It stops after `MOST` rounds in any case. `kinds` has the names in order, and says which are the same
    network: the order of those means nothing.
    """
    found: dict[str, list[LatencyStat]] = {name: [] for name in kinds}
    with progress_bar("timing all networks", MOST * len(found)) as advance:
        for number in range(MOST):
            for name in reversed(found) if number % 2 else found:
                found[name].append(measure(name))
                advance("")
            medians = {name: [stat.median_ms for stat in stats] for name, stats in found.items()}
            if number + 1 >= FEWEST and not not_separable(medians, kinds):
                break
    return {name: Repeated(tuple(stats)) for name, stats in found.items()}


def not_separable(
    medians_ms: Mapping[str, Sequence[float]], kinds: Mapping[str, Hashable]
) -> tuple[tuple[str, str], ...]:
    """Pairs of different networks neither of which was faster in significantly more rounds (sign test)."""
    return tuple(
        (first, second)
        for first, second in combinations(medians_ms, 2)
        if kinds[first] != kinds[second] and not _ordered(medians_ms[first], medians_ms[second])
    )


def _ordered(first: Sequence[float], second: Sequence[float]) -> bool:
    less = sum(a < b for a, b in zip(first, second, strict=True))
    more = sum(a > b for a, b in zip(first, second, strict=True))
    return float(binomtest(max(less, more), len(first), alternative="greater").pvalue) <= SIGNIFICANT
