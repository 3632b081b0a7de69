"""How exactly accuracies and their differences are known, also where images are made from the same source."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bcnet.config import Config, DataConfig, TaskConfig
from bcnet.data.splits import Split
from bcnet.pipeline.accuracy import accuracy_difference, accuracy_interval, standard_error
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem

IMAGES = 60
CORRECT = np.arange(IMAGES) < 54  # 90 %


@pytest.fixture(scope="module")
def problem() -> Problem:
    return open_problem(Config(data=DataConfig(image_size=16, train_limit=120, test_limit=IMAGES)))


def in_groups(problem: Problem, size: int) -> Problem:
    """The same problem; each `size` test images are made from one source."""
    test = problem.data.test
    assert isinstance(test, Split)
    return replace(
        problem, data=replace(problem.data, test=replace(test, sources=torch.arange(IMAGES) // size))
    )


def test_an_accuracy_is_known_as_exactly_as_its_images_tell(problem: Problem) -> None:
    assert accuracy_interval(problem, 6 / 60) == (0.046643, 0.201495)
    assert accuracy_interval(problem, 1.0) == (0.939828, 1.0)
    masks = replace(problem, config=Config(task=TaskConfig(metric="mean-iou")))
    assert accuracy_interval(masks, 0.1) is None


def test_images_of_one_source_that_always_agree_count_as_one_image(problem: Problem) -> None:
    # Ten sources, of which one is wrong on all its images: the variance of 9 independent images.
    assert accuracy_interval(in_groups(problem, 6), 0.9, CORRECT) == (0.577263, 0.983421)
    assert accuracy_interval(in_groups(problem, 1), 0.9, CORRECT) == pytest.approx((0.7985, 0.9534), abs=2e-3)
    assert accuracy_interval(in_groups(problem, 6), 1.0, np.ones(IMAGES, bool)) == (0.722467, 1.0)


def test_the_error_of_a_mean_is_that_of_its_sources() -> None:
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    alone, independent = standard_error(values, None)
    assert (alone, independent) == (pytest.approx(values.std(ddof=1) / 6**0.5), 6)
    error, sources = standard_error(values, np.array([7, 7, 7, 3, 3, 3]))
    assert (error, sources) == (pytest.approx(0.5), 2)  # as of the two values 1 and 0


def test_a_difference_is_paired_by_image(problem: Problem) -> None:
    uniform = CORRECT & (np.arange(IMAGES) >= 6)  # right where the found network is, but for six images
    found = accuracy_difference(problem, ("found", CORRECT), ("uniform", uniform))
    assert (found.difference, found.low, found.high) == (0.1, 0.021848, 0.178152)
    assert found.separated
    # All six have one source: one of ten differs.
    grouped = accuracy_difference(in_groups(problem, 6), ("found", CORRECT), ("uniform", uniform))
    assert (grouped.difference, grouped.low, grouped.high) == (0.1, -0.126216, 0.326216)
    assert not grouped.separated
    same = accuracy_difference(problem, ("found", CORRECT), ("uniform", CORRECT))
    assert (same.low, same.high, same.separated) == (0.0, 0.0, False)
