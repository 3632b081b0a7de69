"""Competitors: other pruning libraries, which the arena compares with the methods of this package.

In: a trained network, a way to measure its latency, a target. Out: a smaller network, not fine-tuned yet.
A competitor is a function of a `Job`; it raises NotInstalled where its package is not installed, and
BudgetError where it cannot reach the target.
"""

from collections.abc import Callable

from torch import nn

from bcnet.bench import outside_fastnas, outside_torch_pruning
from bcnet.bench.outside_job import Job

Competitor = Callable[[Job], nn.Module]

COMPETITORS: dict[str, Competitor] = {
    "torch-pruning-l1": outside_torch_pruning.uniform_l1,
    "torch-pruning-norm": outside_torch_pruning.global_group_norm,
    "torch-pruning-taylor": outside_torch_pruning.global_taylor,
    "torch-pruning-isomorphic": outside_torch_pruning.isomorphic,
    "fastnas": outside_fastnas.fastnas,
}
