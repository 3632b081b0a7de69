"""How exactly an accuracy is known. In: a problem, its accuracy on the test images. Out: a 95 % interval."""

import torch
from scipy.stats import binomtest

from bcnet.pipeline.problem import Problem


def accuracy_interval(problem: Problem, accuracy: float) -> tuple[float, float] | None:
    """Wilson's interval; None for a metric of another kind: only a share of independent trials has one."""
    test = problem.data.test
    target = test.take(torch.zeros(1, dtype=torch.int64)).items()[0][1]
    if problem.task.metric is not None or torch.as_tensor(target).ndim:
        return None  # a mean over pixels or boxes is none
    count = len(test)
    interval = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
    return round(float(interval.low), 6), round(float(interval.high), 6)
