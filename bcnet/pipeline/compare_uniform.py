"""The uniformly narrowed network to compare with. In: the found widths, devices. Out: widths as fast."""

from collections.abc import Sequence

from bcnet.errors import BudgetError, NetworkError
from bcnet.measure.network_latency import measure_network
from bcnet.pipeline.problem import Problem
from bcnet.space.width_space import Widths

STEPS = 64  # uniform ratios that are tried: 1/64 to 64/64
SAME = 0.01  # latencies this close are equal: a measurement is no more exact
NEAR = 6  # wider ones beyond the bisection's answer that are tried too


def uniform_as_fast(devices: Sequence[Problem], widths: Widths) -> Widths:
    """The largest uniform narrowing whose measured latency is at most that of `widths`, measured beside it.

    It is as fast on every device; `devices` are the problems of one network. Bisection over the ratio finds
    the neighbourhood; there, every ratio is tried from the largest down, since latency does not rise with
    every step of the width. Raises BudgetError where even the narrowest is slower.
    """
    space, multiple = devices[0].space, devices[0].channel_multiple
    options = list(dict.fromkeys(space.uniform(step / STEPS, multiple) for step in range(1, STEPS + 1)))
    if widths in options:
        return widths  # it is uniform itself

    def fits_on(device: Problem, option: Widths, share: float) -> bool:
        graph, profile = device.graph, device.profile
        limit = measure_network(graph.variant(widths), profile, share, quiet=True).median_ms
        try:
            own = measure_network(graph.variant(option), profile, share, quiet=True)
            return own.median_ms <= limit * (1 + SAME)
        except NetworkError:
            return False  # it holds a layer that the runtime cannot run

    def fits(option: Widths, share: float) -> bool:
        return all(fits_on(device, option, share) for device in devices)

    low, high = -1, len(options)  # options[low] fits; options[high] does not, or is past the end
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(options[middle], share=0.1) else (low, middle)
    for option in reversed(options[: low + 1 + NEAR]):
        if fits(option, share=0.25):
            return option
    raise BudgetError("no uniformly narrowed network was measured to be as fast as the searched one")
