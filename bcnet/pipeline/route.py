"""Which way a run takes: widths scored in a supernet, or found on the trained network itself.

In: a problem. Out: the methods that find widths without a supernet, and whether one is trained at all.
"""

from bcnet.pipeline.problem import Problem
from bcnet.registry import AUTO, EVOLUTION, METHODS, Method, auto_methods

INHERITED_RATE = 0.02  # where slice.learning_rate is not given


def on_trained_network(problem: Problem) -> bool:
    """Whether widths are scored by the trained network's own weights: no supernet is trained then.

    `auto` needs `model.weights`: a function that sets a seed returns the same weights each time, too, and
    cannot be distinguished from one that loads trained ones.
    """
    method = problem.config.search.method
    return problem.config.model.weights is not None if method == AUTO else method != EVOLUTION


def fine_tuning_rate(problem: Problem) -> float:
    """The highest learning rate of fine-tuning: what is inherited from trained weights wants a lower one."""
    config = problem.config.slice
    if on_trained_network(problem) and "learning_rate" not in config.model_fields_set:
        return INHERITED_RATE
    return config.learning_rate


def allocations(problem: Problem) -> tuple[Method, ...]:
    """The methods whose networks are candidates; none: an evolution finds them.

    Where weights are given, `auto` takes all methods, unless a latency limits nothing.
    """
    search = problem.config.search
    if not on_trained_network(problem):
        return ()
    if search.method == AUTO:
        return () if search.beyond_a_budget else auto_methods()
    return (METHODS[search.method],)
