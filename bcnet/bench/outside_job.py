"""What a competitor is given: a trained network, a way to measure latency, a target, data.

In: the network, data and recipe that all rows of the arena have. Out: `Job`.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bcnet.data.image_data import ImageData
from bcnet.errors import BcnetError, BudgetError
from bcnet.training.recipe import Recipe

NEAR = 1.05  # times the target: from here on, networks are measured thoroughly


class NotInstalled(BcnetError):
    """A competitor's package is not installed."""


class Failed(BcnetError):
    """A competitor does not run on this network, or returns a network that is not supported."""


@dataclass(frozen=True)
class Job:
    """A network to make smaller; it is a copy, and may be changed in place.

    `share_of(network, thorough)` is its measured latency, relative to that of the original, with which it
    alternates; `target` is the largest allowed share. Channels are rounded to `multiple`; `recipe` gives the
    loss and batches, `example` inputs of one item, as the network takes them.
    """

    model: nn.Module
    example: Any
    share_of: Callable[[nn.Module, bool], float]
    target: float
    data: ImageData
    recipe: Recipe
    multiple: int

    def reached(self, model: nn.Module) -> tuple[bool, float]:
        """Whether a network meets the target, and its share of the original's latency."""
        share = self.share_of(model, False)
        if share <= self.target * NEAR:
            share = self.share_of(model, True)
        return share <= self.target, share

    def out_of_reach(self, lowest: float) -> BudgetError:
        """The error for a target that the competitor cannot reach."""
        return BudgetError(
            f"cannot reach {self.target:.1%} of the original's latency: its fastest network has {lowest:.1%}"
        )


def package(name: str, distribution: str) -> Any:
    """The module of a competitor's package. Raises NotInstalled, with the remedy."""
    with quiet():
        try:
            return importlib.import_module(name)
        except ImportError as cause:
            missing = f" ({cause})" if cause.name and cause.name != name.split(".")[0] else ""
            raise NotInstalled(f"not installed: pip install {distribution}{missing}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of other people's packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def output_layers(model: nn.Module, example: Any) -> list[nn.Module]:
    """The layer that makes the network's output: the last one that runs and has as many outputs."""
    import torch

    from bcnet.space.inputs import arguments

    ran: list[tuple[nn.Module, int]] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, out: ran.append((layer, out.shape[1])) if isinstance(out, Tensor) else None
        )
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    args, kwargs = arguments(example)
    try:
        with torch.no_grad():
            model.eval()(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return [ran[-1][0]] if ran else []
