"""Why a training fails, in one line. In: a step, its batch, its loss; trained tensors. Out: TrainingError."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bcnet.errors import FOREIGN, BcnetError, TrainingError, explaining, one_line, text_of
from bcnet.models.finite import not_finite

# (inputs, targets, number of the step) -> losses, one or several, that a GPU may not have computed yet; adds
# the batch's gradients to the parameters' `.grad`. In several processes, the means over all replace them.
Step = Callable[[Any, Any, int], Tensor]


def check_trained(tensors: Mapping[str, Tensor], when: str, trained: Collection[str] | None = None) -> None:
    """Raises TrainingError if a tensor is not finite (see `not_finite`)."""
    broken = not_finite(tensors, trained)
    if broken is not None:
        raise TrainingError(
            f"training diverged {when}: '{broken}' has values that are not finite; lower the "
            "learning rate, or raise train.warmup_epochs"
        )


# PyTorch's messages about tensors of incompatible sizes.
_SIZES = re.compile(r"\b(shapes?|sizes?|dimensions?) |more than 1 value per channel", re.IGNORECASE)


def explained(step: Step, inputs: Any, targets: Any, number: int) -> Tensor:
    """The step's loss. Raises TrainingError if the step raises anything."""
    try:
        return step(inputs, targets, number)
    except BcnetError:
        raise
    except FOREIGN as cause:
        if "backward through the graph a second time" in text_of(cause):
            raise TrainingError(
                f"training step {number} failed: its loss was already used for a backward pass; a train_step "
                "returns its loss and leaves the backward pass to bcnet"
            ) from cause
        shapes = [str(tuple(leaf.shape)) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        remedy = ""
        if "bfloat16" in str(cause).lower():
            remedy = "; set train.amp = false: it does not support bfloat16"
        elif "'Half'" in str(cause):
            remedy = "; set train.amp = false: it does not support float16"
        elif isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate" in str(cause):
            remedy = "; lower train.batch_size"
        elif _SIZES.search(str(cause)):
            remedy = "; try another train.batch_size"
        raise TrainingError(
            f"training step {number} on a batch of shape {', '.join(shapes[:3])} failed "
            f"({one_line(cause)}){remedy}"
        ) from cause


def _finished(loss: Tensor, number: int) -> float:
    """The loss as a number, after waiting for the GPU. Raises TrainingError if the step failed."""
    with explaining(TrainingError, f"training step {number} failed"):
        return float(loss.mean())


def finite_loss(loss: Tensor, number: int, batch: Any) -> float:
    """The loss as a number. Raises TrainingError, with the likely cause, if it is not finite."""
    value = _finished(loss, number)
    if not math.isfinite(value):
        values = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        if any(leaf.is_floating_point() and not bool(leaf.isfinite().all()) for leaf in values):
            raise TrainingError(
                f"the loss of step {number} is {value}: the batch has values that are not finite; check "
                "the data, and data.transforms and data.collate if they are set"
            )
        raise TrainingError(
            f"training diverged: the loss of step {number} is {value}; lower the learning rate, "
            "or raise train.warmup_epochs"
        )
    return value
