"""Times of layers by OpenVINO's performance counters. In: a compiled model. Out: ms of each layer."""

from typing import Any, Callable, Dict, List, Sequence

from .openvino_graph import executed, row_names

WARMUP_RUNS = 3  # before a profile, because the first runs allocate memory


def profiled(
    compiled: Any, request: Any, run: Callable[[], Any], averaged: bool, runs: int
) -> Dict[str, Any]:
    """ "names" of layers in order of execution, and their "ms" in each part of the runs, [parts][layers].

    `run` makes one inference of the request. On a processor, counters are `averaged`: the mean of all
    inferences so far, in whole microseconds, from which single runs cannot be read, so a part is several
    runs (see `readings_at`). On other devices they are of the last run, and a part is one run. Layers whose
    counter stays at 0 are left out: most are of weights, and done when the file is loaded.
    """
    layers = executed(compiled)
    names = row_names(layers)
    last = WARMUP_RUNS + runs
    ends = readings_at(runs) if averaged else list(range(WARMUP_RUNS, last + 1))
    readings: List[List[int]] = []
    for number in range(1, last + 1):
        run()
        if number in ends:
            counted = _counters(request)
            readings.append([counted.get(layer.name, 0) for layer in layers])
    if averaged:
        ms = means_ms(ends, readings)
    else:
        ms = [[us / 1000.0 for us in reading] for reading in readings[1:]]
    places = [place for place in range(len(layers)) if any(reading[place] for reading in readings)]
    places = places or list(range(len(layers)))
    return {
        "names": [names[place] for place in places],
        "ms": [[part[place] for place in places] for part in ms],
    }


def readings_at(runs: int) -> List[int]:
    """After how many inferences the counters are read: after the warm-up, then at the end of each part.

    A part is at least as long as all inferences before it, because a mean in whole microseconds over all of
    them says little about a few. With several parts, a part that other work disturbed is recognisable.
    """
    ends, last = [WARMUP_RUNS], WARMUP_RUNS + runs
    while 4 * ends[-1] <= last:
        ends.append(2 * ends[-1])
    return ends + [last]


def means_ms(ends: Sequence[int], readings: Sequence[Sequence[int]]) -> List[List[float]]:
    """Mean milliseconds of each layer in each part, from the counters [reading][layer] at the parts' ends.

    OpenVINO counts whole microseconds of each run, and rounds their mean down again; either loses half a
    microsecond on average.
    """
    found = []
    for start, end, before, after in zip(ends, ends[1:], readings, readings[1:]):
        means = []
        for earlier, later in zip(before, after):
            mean = (_sum_us(end, later) - _sum_us(start, earlier)) / (end - start)
            means.append(max(mean + 0.5, 0.0) / 1000.0 if later else 0.0)
        found.append(means)
    return found


def _sum_us(count: int, mean_us: int) -> float:
    """The expected sum of `count` runs whose mean was rounded down; a mean of 0 is below what is counted."""
    return count * mean_us + (count - 1) / 2 if mean_us else 0.0


def _counters(request: Any) -> Dict[str, int]:
    """Microseconds of each layer by its name."""
    found: Dict[str, int] = {}
    for entry in request.get_profiling_info():
        us = round(entry.real_time.total_seconds() * 1e6)
        found[entry.node_name] = max(us, found.get(entry.node_name, 0))
    return found
