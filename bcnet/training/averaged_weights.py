"""The exponential moving average of a training's weights. In: tensors after each step. Out: their average.

Weights fluctuate from step to step; their average is better than the last of them in long trainings.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

PREFIX = "average:"  # of the averages among the tensors of a snapshot


class AveragedWeights:
    """The average of all floating-point tensors that `current` gives by name.

    Of step n, from 0, the decay is `decay`, but at most (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage: the first steps would otherwise keep the initial weights.
    """

    def __init__(self, current: Callable[[], Mapping[str, Tensor]], decay: float) -> None:
        self._current, self._decay = current, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._floats().items()}

    def update(self, step: int) -> None:
        """Include the weights after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        include = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        include(tuple(self.tensors.values()), tuple(self._floats().values()), 0)

    def saved(self) -> dict[str, Tensor]:
        """The averages as they are in a snapshot."""
        return {PREFIX + name: tensor.cpu() for name, tensor in self.tensors.items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Continue from a snapshot."""
        for name, tensor in self.tensors.items():
            tensor.copy_(snapshot[PREFIX + name])

    def replace_weights(self) -> None:
        """Put the averages in the place of the weights."""
        with torch.no_grad():
            for name, tensor in self._floats().items():
                tensor.copy_(self.tensors[name])

    def _floats(self) -> dict[str, Tensor]:
        return {name: own.detach() for name, own in self._current().items() if own.is_floating_point()}
