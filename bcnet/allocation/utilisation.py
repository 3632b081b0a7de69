"""How well groups use their multiply-accumulates: the FLOPs utilisation ratio of Network Adjustment.

In: a small network's tensors, a drop rate for each group, images. Out: how much the loss rises when a group's
channels are dropped at random at that rate. Chen et al. (CVPR 2020, section 3): at rates that save the same
multiply-accumulates everywhere (`drop_rates`), the rise is a group's ratio.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.space.inputs import entries
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.gradient_importance import Read, readers

PASSES = 5  # over the images, each with channels of its own: as published


def utilisation(
    rates: np.ndarray, loss_of: Callable[[int | None, float, int], float], passes: int = PASSES
) -> np.ndarray:
    """The rise of the loss (groups,) with each group's channels alone dropped at its rate (groups,).

    `loss_of(group, rate, number)` is the loss with that group's channels dropped in pass `number`, at None
    without. The mean over the passes.
    """
    base = loss_of(None, 0.0, 0)
    rises = [
        np.mean([loss_of(group, rate, number) for number in range(passes)]) - base
        for group, rate in enumerate(rates.tolist())
    ]
    return np.array(rises)


class ChannelDropout:
    """Drops channels of one group at a time in a small network that runs by `run_with`."""

    def __init__(self, model: nn.Module, space: WidthSpace, widths: Widths) -> None:
        """The small network has the first channels of each group, as many as the widths say."""
        self.model, self.space, self.widths = model, space, widths
        self._modules = dict(model.named_modules())
        self._reads = {name: _narrowed(read, widths) for name, read in readers(model, space).items()}

    @contextmanager
    def dropping(self, group: int, rate: float, seed: int) -> Iterator[None]:
        """In the block, whole units of the group are zero, others in each image; kept ones are scaled.

        By 1 / (1 - rate), at the input of every layer that reads the group, the same ones in all of them.
        """
        generator = torch.Generator().manual_seed(seed)
        unit = self.space.groups[group].unit
        now: dict[str, Any] = {}

        def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            count = entries(args if len(args) > 1 else args[0] if args else dict(kwargs))
            kept = torch.rand(count, self.widths[group] // unit, generator=generator) >= rate
            now["factors"] = kept.repeat_interleave(unit, 1).float() / (1 - rate)

        def drop(read: Read, module: nn.Module, args: tuple[Any, ...]) -> Any:
            x, factors = args[0] if args else None, now["factors"]
            at_end = isinstance(module, nn.Linear)
            groups, channels = read
            if not isinstance(x, Tensor) or x.shape[-1 if at_end else 1] != len(groups):
                return None
            if len(x) % len(factors):
                return None  # its rows are not those of images
            own = torch.ones(len(factors), len(groups))
            own[:, groups == group] = factors[:, channels[groups == group]]
            own = own.repeat_interleave(len(x) // len(factors), 0).to(x)
            shape = (len(x), *[1] * (x.ndim - 2), -1) if at_end else (len(x), -1, *[1] * (x.ndim - 2))
            return (x * own.reshape(shape), *args[1:])

        hooks = [self.model.register_forward_pre_hook(begin, with_kwargs=True)]
        for name, read in self._reads.items():
            if bool((read[0] == group).any()):
                hooks.append(self._modules[name].register_forward_pre_hook(partial(drop, read)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _narrowed(read: Read, widths: Widths) -> Read:
    """What a layer of the small network reads of what the whole one's does."""
    groups, channels = read
    taken = torch.tensor([*widths, torch.iinfo(torch.int64).max])[groups]  # of no group (-1): all
    return groups[channels < taken], channels[channels < taken]
