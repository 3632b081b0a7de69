"""Batch-norm recalibration: statistics of a network's own, the plain mean over batches of images.

In: a network, or a way to run it, and batches. Out: its running means and variances. Statistics of a supernet
mix those of all its subnets and fit none of them (US-Nets, ICCV 2019, section 3.4).
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from bcnet.errors import ModelError, explaining
from bcnet.space.inputs import arguments, entries, to_device

Batch = tuple[Any, Any]  # inputs and targets
BatchNorm = nn.modules.batchnorm._BatchNorm


def tracking_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """The network's batch norms that keep statistics, by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.track_running_stats
    }


def recalibrate(
    norms: Collection[BatchNorm],
    run: Callable[[Any], Any],
    batches: Iterable[Batch],
    device: torch.device,
) -> None:
    """Run a network, in eval mode except for these batch norms, on the inputs of all batches.

    The statistics, which were reset before, become the mean over the batches; batches of one entry, which
    have no variance, are left out. Raises ModelError where the network fails.
    """
    with _plain_means(norms):
        for inputs, _ in batches:
            if entries(inputs) > 1:
                with evaluating():
                    run(to_device(inputs, device))


@contextmanager
def _plain_means(norms: Collection[BatchNorm]) -> Iterator[None]:
    """Let these layers take the plain mean of their statistics over all batches that run in the block."""
    momenta = [module.momentum for module in norms]
    try:
        for module in norms:
            module.train()
            module.momentum = None
        with torch.no_grad():
            yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
            module.eval()


def recalibrated(network: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """A copy of a plain network, in eval mode, with batch-norm statistics that are the mean over batches."""
    fresh = copy.deepcopy(network).eval()
    norms = tracking_norms(fresh).values()
    for module in norms:
        module.reset_running_stats()

    def run(inputs: Any) -> None:
        args, kwargs = arguments(inputs)
        fresh(*args, **kwargs)

    recalibrate(norms, run, batches, next(iter(fresh.state_dict().values())).device)
    return fresh


def evaluating() -> AbstractContextManager[None]:
    """Within the block, whatever the network raises is a ModelError that says where."""
    return explaining(ModelError, "the network fails on a batch of the data in eval mode")
