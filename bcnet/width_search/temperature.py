"""Calibrated losses: the cross entropy at the optimal temperature, independent of the scale of logits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOST = 1_000_000  # about the maximum number of logits for fitting; images are subsampled
STEPS = 30  # maximum number of Newton steps; about five suffice
SETTLED = 1e-4  # relative change of the scale at convergence
# Maximum standard deviation of scaled logits: if all answers are right, there is no optimal scale.
FURTHEST = 16.0


def are_classes(targets: object) -> bool:
    """Whether these are classes (N,) of images, so that the outputs for cross entropy are logits (N, C)."""
    return isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()


def calibrated_loss(batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The mean cross entropy of logits (N, C) and classes (N,) at the temperature that minimises it.

    All widths share a supernet's classifier. With fewer channels before it logits are smaller, with more they
    are larger, so a subnet is underconfident or overconfident. Training it alone would fix this at once;
    therefore it says nothing about the widths, although it causes much of the difference between losses.
    Temperature scaling: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2. One
    temperature is used for all batches; classes below 0 are ignored. Logits that are not finite are not
    scaled.
    """
    losses = calibrated_losses(batches)
    return float(losses.mean()) if len(losses) else 0.0


def calibrated_losses(batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The calibrated loss of each image (N,), without ignored ones, to compare networks image by image."""
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
    """The inverse temperature that minimises the cross entropy, which is convex in it, by Newton's method."""
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
        # Far from the minimum a step may be much too long, or infinite if the predictions are nearly certain.
        step = slope / curvature if curvature > 0 else math.copysign(math.inf, slope) if slope else 0.0
        before, scale = scale, min(max(scale - step, scale / 2, 1e-6), scale * 2, FURTHEST)
        if abs(scale / before - 1) < SETTLED:
            break
    return scale / deviation
