"""The methods that find widths of a trained network without training: each by its name in `search.method`.

In: a name. Out: an allocator. Another one is a file with a function of a `Problem`, a line here, and its name
among those of `search.method`.
"""

from bcnet.methods import adapruner, latency_greedy, network_adjustment, program, uniform
from bcnet.methods.problem import Allocator

UNIFORM = "uniform"  # what any other method has to beat
ALLOCATORS: dict[str, Allocator] = {
    UNIFORM: uniform.propose,
    "latency-greedy": latency_greedy.propose,
    "latency-milp": program.propose,
    "adapruner": adapruner.propose,
    "network-adjustment": network_adjustment.propose,
}
MANY_SCORES = ("network-adjustment",)  # not part of `auto`: two networks a group and round are scored for it
