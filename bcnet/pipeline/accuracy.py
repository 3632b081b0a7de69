"""How exactly accuracies are known. In: a problem, answers of networks to its test images. Out: intervals.

All are 95 % intervals over test images. Images that are made from the same source, as several views of one
scan, are not independent: their deviations are summed before they are squared (cluster-robust variance; Liang
and Zeger, Biometrika 1986).
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from bcnet.pipeline.answers import Answered, Correct, sources_of
from bcnet.pipeline.file_outputs import file_outputs
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import AccuracyDifference

LEVEL = 0.95


def file_answers(problem: Problem, content: bytes) -> tuple[float, Correct | None]:
    """An ONNX file's metric on the test images, and which of these it classifies correctly.

    The latter is None where the metric is not accuracy, or targets are not classes.
    """
    answered = Answered(problem.task, problem.data)
    outputs = file_outputs(content, problem.model, problem.tested, problem.profile)
    return problem.task.measure(answered.seen(outputs)), answered.correct


def accuracy_interval(
    problem: Problem, accuracy: float, correct: Correct | None = None
) -> tuple[float, float] | None:
    """Wilson's interval; None for a metric of another kind: only a share of trials has one.

    With `correct`, for as many independent images as have the same variance, where images share sources.
    """
    test = problem.data.test
    target = test.take(torch.zeros(1, dtype=torch.int64)).item(0)[1]
    if problem.task.metric is not None or torch.as_tensor(target).ndim:
        return None  # a mean over pixels or boxes is none
    count, sources = float(len(test)), sources_of(problem.data)
    if correct is not None and sources is not None:
        error, independent = standard_error(correct, sources)
        count = min(count, accuracy * (1 - accuracy) / error**2) if error else float(independent)
    z = float(norm.ppf((1 + LEVEL) / 2))
    middle = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(accuracy * (1 - accuracy) / count + (z / (2 * count)) ** 2)
    return round(max(0.0, middle - half), 6), round(min(1.0, middle + half), 6)


def accuracy_difference(
    problem: Problem, found: tuple[str, Correct], uniform: tuple[str, Correct]
) -> AccuracyDifference:
    """How much more accurate a found network is than a uniform one, paired by test image (Student's t)."""
    mean, low, high = paired_difference(found[1], uniform[1], sources_of(problem.data))
    return AccuracyDifference(
        found=found[0],
        uniform=uniform[0],
        difference=round(mean, 6),
        low=round(low, 6),
        high=round(high, 6),
    )


def paired_difference(
    first: Correct, second: Correct, sources: NDArray[np.int64] | None
) -> tuple[float, float, float]:
    """How much more often the first answers (N,) are right, and the ends of the interval (Student's t)."""
    difference = first.astype(float) - second.astype(float)
    mean = float(difference.mean())
    error, independent = standard_error(difference, sources)
    half = error * float(student.ppf((1 + LEVEL) / 2, max(1, independent - 1)))
    return mean, mean - half, mean + half


def standard_error(
    values: NDArray[np.bool_ | np.floating[Any]], sources: NDArray[np.int64] | None
) -> tuple[float, int]:
    """Of the mean of `values` (N,), and the number of independent images: that of the sources, if given."""
    own = np.arange(len(values)) if sources is None else np.unique(sources, return_inverse=True)[1]
    sums = np.bincount(own, weights=values - values.mean())
    independent = len(sums)
    variance = float((sums**2).sum()) / len(values) ** 2
    return math.sqrt(variance * independent / max(1, independent - 1)), independent
