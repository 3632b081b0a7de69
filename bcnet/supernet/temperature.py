"""How good logits are whatever their scale: the cross entropy at the best temperature."""

from torch import Tensor, nn

MOST = 1_000_000  # logits that the temperature is found by: of many classes, not every image
STEPS = 20  # of Newton's method, at most; about five suffice
SETTLED = 1e-4  # relative change of the scale
FURTHEST = 16.0  # times larger or smaller: where all answers are right, no scale is the best


def is_classification(outputs: object, targets: object) -> bool:
    """Whether these are logits (N, C) and the classes (N,) of as many images."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and (outputs.ndim, targets.ndim) == (2, 1)
        and not targets.is_floating_point()
    )


def calibrated_loss(logits: Tensor, classes: Tensor) -> float:
    """The mean cross entropy of logits (N, C) and classes (N,), at the temperature at which it is least.

    A supernet's classifier serves all widths. Fewer channels before it make logits smaller, more make them
    larger: a subnet's answers are not sure enough, or too sure. Its own training would mend that at once, so
    it tells nothing of the widths, though it is much of what losses differ by. Temperature scaling: Guo et
    al., "On calibration of modern neural networks", ICML 2017, section 4.2. Classes outside 0 to C - 1 do
    not count.
    """
    counts = (classes >= 0) & (classes < logits.shape[1])
    if not counts.any():
        return 0.0
    logits, classes = logits[counts].double(), classes[counts].long()
    some = slice(None, None, max(1, logits.numel() // MOST))
    return float(nn.functional.cross_entropy(logits * _best_scale(logits[some], classes[some]), classes))


def _best_scale(logits: Tensor, classes: Tensor) -> float:
    """The factor, the temperature's inverse, at which the cross entropy is least: it is convex in it."""
    own, scale = float(logits.gather(1, classes[:, None]).mean()), 1.0
    for _ in range(STEPS):
        probabilities = (logits * scale).softmax(1)
        means = (probabilities * logits).sum(1)
        slope = float(means.mean()) - own
        curvature = float(((probabilities * logits**2).sum(1) - means**2).mean())
        # Far from the minimum a step may be far too long.
        step = slope / curvature if curvature > 0 else 0.0
        before, scale = scale, min(max(scale - step, scale / 2, 1 / FURTHEST), scale * 2, FURTHEST)
        if abs(scale / before - 1) < SETTLED:
            break
    return scale
