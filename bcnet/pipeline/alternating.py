"""Whole networks measured in alternating rounds: other work on the machine slows all of them.

In: networks, how one is measured. Out: the fastest latency of each. Rounds of a search are kept in a file, so
that one that was stopped does not measure them again.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bcnet.latency_tables.noise import QUIETER
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.repeated import Repeated
from bcnet.pipeline.search_state import lines_of_search
from bcnet.plain import counted
from bcnet.progress import say
from bcnet.space.width_space import Widths


def latencies_file(device: str = "") -> str:
    """The file of networks measured while searching; a further device has its own."""
    return f"latencies-{device}.jsonl" if device else "latencies.jsonl"


def preprocessing_file(device: str = "") -> str:
    """The file of pre-processing times measured while searching; a further device has its own."""
    return f"preprocessing-{device}.jsonl" if device else "preprocessing.jsonl"


MeasureOf = Callable[[Widths], LatencyStat]
ALTERNATIONS, MOST = 3, 9  # rounds
AGREE = 0.03  # the two fastest measurements of a network may differ by so much


class KeptLatencies:
    """Measures whole networks, and keeps each round of measurements in a file, one line a round.

    A round that a stopped search had completed is returned once, and not measured. One that it had not
    completed is measured as a whole, because its latencies are compared with each other.
    """

    def __init__(self, measure_of: MeasureOf, path: Path, inputs: Mapping[str, str]) -> None:
        """Reads what a stopped search with the same inputs left; reports what of it is not used.

        Raises ArtifactError where the file cannot be read.
        """
        self._measure_of, self._lines = measure_of, lines_of_search(path, inputs)
        self._known: dict[tuple[Widths, ...], deque[list[LatencyStat]]] = defaultdict(deque)
        for networks, stats in self._lines.values:
            self._known[tuple(map(Widths, networks))].append([LatencyStat(**own) for own in stats])
        if self._lines.values:
            say(f"continuing with {counted(len(self._lines.values), 'round')} of latencies of whole networks")
        if self._lines.dropped:
            say(f"{path}: {self._lines.dropped}; what was measured from there on is measured again")

    def __call__(self, widths: Widths) -> LatencyStat:
        """One measurement, which is not kept."""
        return self._measure_of(widths)

    def round(self, networks: Sequence[Widths]) -> list[LatencyStat]:
        """Each network measured once, in this order."""
        known = self._known[tuple(networks)]
        if known:
            return known.popleft()
        stats = [self._measure_of(widths) for widths in networks]
        self._lines.append([networks, [asdict(stat) for stat in stats]])
        return stats


def alternating(measure_of: MeasureOf, networks: Sequence[Widths]) -> dict[Widths, LatencyStat]:
    """The fastest of a few measurements of each network, alternating: other work on the machine only adds.

    They go on until the two fastest of every network agree, or for `MOST` rounds.
    """
    found: Mapping[Widths, list[LatencyStat]] = {widths: [] for widths in networks}
    for number in range(MOST):
        order = list(reversed(list(found)) if number % 2 else found)
        if isinstance(measure_of, KeptLatencies):
            stats = measure_of.round(order)
        else:
            stats = [measure_of(widths) for widths in order]
        for widths, stat in zip(order, stats, strict=True):
            found[widths].append(stat)
        if number + 1 >= ALTERNATIONS and all(map(_agree, found.values())):
            break
    else:
        say(
            f"the machine is busy: after {MOST} measurements, the two fastest of a network still differ by "
            f"more than {AGREE:.0%}; {QUIETER}"
        )
    return {widths: Repeated(tuple(stats)).fastest for widths, stats in found.items()}


def _agree(stats: Sequence[LatencyStat]) -> bool:
    first, second = sorted(stat.median_ms for stat in stats)[:2]
    return second <= first * (1 + AGREE)
