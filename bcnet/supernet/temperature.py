"""How good logits are whatever their scale: the cross entropy at the best temperature."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOST = 1_000_000  # logits that the temperature is found by: of many images and classes, not every image
STEPS = 30  # of Newton's method, at most; about five suffice
SETTLED = 1e-4  # relative change of the scale
FURTHEST = 16.0  # standard deviation of logits at their scale: where all answers are right, none is the best


def are_classes(targets: object) -> bool:
    """Whether these are the classes (N,) of images: then the outputs for cross entropy are logits (N, C)."""
    return isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()


def calibrated_loss(batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The mean cross entropy of logits (N, C) and classes (N,) at the temperature at which it is least.

    A supernet's classifier serves all widths. Fewer channels before it make logits smaller, more make them
    larger: a subnet's answers are not sure enough, or too sure. Its own training would mend that at once, so
    it tells nothing of the widths, though it is much of what losses differ by. Temperature scaling: Guo et
    al., "On calibration of modern neural networks", ICML 2017, section 4.2. One temperature for all batches;
    classes below 0 do not count. Logits that are not finite have the loss that they have.
    """
    losses = calibrated_losses(batches)
    return float(losses.mean()) if len(losses) else 0.0


def calibrated_losses(batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The same of each image that counts (N,), in order: to compare two networks image by image."""
    counted = [(logits[classes >= 0], classes[classes >= 0].long()) for logits, classes in batches]
    total = sum(len(classes) for _, classes in counted)
    if not total:
        return torch.zeros(0, dtype=torch.float64)
    every = max(1, sum(logits.numel() for logits, _ in counted) // MOST)
    some = [(logits[::every].double(), classes[::every]) for logits, classes in counted]
    scale = _best_scale(torch.cat([logits for logits, _ in some]), torch.cat([own for _, own in some]))
    losses = [
        nn.functional.cross_entropy(logits.double() * scale, classes, reduction="none")
        for logits, classes in counted
    ]
    return torch.cat(losses)


def _best_scale(logits: Tensor, classes: Tensor) -> float:
    """The factor, the temperature's inverse, at which the cross entropy is least: it is convex in it."""
    deviation = float((logits - logits.mean(1, keepdim=True)).square().mean().sqrt())
    if deviation == 0 or not math.isfinite(deviation):
        return 1.0
    logits = logits / deviation
    own, scale = float(logits.gather(1, classes[:, None]).mean()), min(deviation, FURTHEST)
    for _ in range(STEPS):
        probabilities = (logits * scale).softmax(1)
        means = (probabilities * logits).sum(1, keepdim=True)
        slope = float(means.mean()) - own
        curvature = float((probabilities * (logits - means) ** 2).sum(1).mean())
        # Far from the minimum a step may be far too long, or without end where answers are all but certain.
        step = slope / curvature if curvature > 0 else math.copysign(math.inf, slope) if slope else 0.0
        before, scale = scale, min(max(scale - step, scale / 2, 1e-6), scale * 2, FURTHEST)
        if abs(scale / before - 1) < SETTLED:
            break
    return scale / deviation
