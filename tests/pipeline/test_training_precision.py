"""The precision of trainings: which is faster is timed once for a run, where that is worth it, and kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bcnet.config import Config, DataConfig
from bcnet.errors import ArtifactError
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.training_precision import FILE, announced, kept_precision
from bcnet.runs import Run
from bcnet.training.recipe import Recipe, training_digest

RECIPE = Recipe(epochs=1, learning_rate=0.1, amp=True)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return open_problem(Config(data=DataConfig(image_size=16, train_limit=60, test_limit=40)))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def with_amp(problem: Problem, amp: bool) -> Problem:
    train = problem.config.train.model_copy(update={"amp": amp})
    return replace(problem, config=problem.config.model_copy(update={"train": train}))


def timed(bfloat16: list[float], float32: list[float]) -> Callable[[Recipe], float]:
    """Estimates of a training in seconds, as they come."""
    return lambda recipe: (bfloat16 if recipe.amp else float32).pop(0)


def never(recipe: Recipe) -> float:
    raise AssertionError("nothing is timed")


def test_the_faster_of_alternating_estimates_is_taken_reported_and_kept(
    run: Run, problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = timed([267.0, 400.0], [900.0, 167.0])  # each once disturbed
    assert announced(run, problem, "training", RECIPE, slow) == replace(RECIPE, amp=False)
    assert capsys.readouterr().err == (
        "training in float32: here float32 takes 63% of bfloat16's time (train.amp sets one of them)\n"
        "training: about 3 min\n"
    )
    # The next training takes the same, however long, and so does one that continues.
    assert announced(run, problem, "training", RECIPE, lambda _: 1.0) == replace(RECIPE, amp=False)
    assert announced(run, problem, "training", RECIPE, lambda _: 99.0, begun=True).amp is False
    assert kept_precision(run, problem, RECIPE) == replace(RECIPE, amp=False)


@pytest.mark.parametrize(("float32", "share"), [(96.0, "96%"), (140.0, "140%")])
def test_bfloat16_is_taken_unless_float32_is_clearly_faster(
    run: Run, problem: Problem, float32: float, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = timed([100.0, 101.0], [float32, float32])
    assert announced(run, problem, "training", RECIPE, own) == RECIPE
    assert f"training in bfloat16: here float32 takes {share} of" in capsys.readouterr().err
    assert kept_precision(run, problem, RECIPE) == RECIPE


def test_on_a_gpu_only_float16_is_timed_and_its_choice_is_of_no_other_precision(
    run: Run, problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = replace(RECIPE, device="cuda")
    assert announced(run, problem, "training", gpu, timed([267.0], [])) == gpu
    old = replace(gpu, half=torch.float16)
    assert announced(run, problem, "training", old, timed([267.0, 400.0], [900.0, 167.0])).amp is False
    assert "training in float32: here float32 takes 63% of float16's time" in capsys.readouterr().err
    assert kept_precision(run, problem, old) == replace(old, amp=False)
    assert kept_precision(run, problem, RECIPE) is None  # on a CPU


def test_short_and_begun_trainings_stay_in_bfloat16_and_decide_nothing(run: Run, problem: Problem) -> None:
    assert announced(run, problem, "training", RECIPE, timed([60.0], [])) == RECIPE
    assert announced(run, problem, "training", RECIPE, timed([600.0], []), begun=True) == RECIPE
    assert not (run.folder / FILE).exists()


def test_a_setting_takes_precedence_over_what_was_timed(run: Run, problem: Problem) -> None:
    announced(run, problem, "training", RECIPE, timed([100.0, 100.0], [50.0, 50.0]))
    fixed = with_amp(problem, True)
    assert announced(run, fixed, "training", RECIPE, timed([600.0], [])) == RECIPE
    assert kept_precision(run, fixed, RECIPE) is None
    assert Recipe.of(with_amp(problem, False).config, 1, 0.1).amp is False
    single = replace(RECIPE, amp=False)  # of a processor without bfloat16
    assert announced(run, fixed, "training", single, timed([], [600.0])) == single


def test_another_network_or_batch_size_is_timed_again(run: Run, problem: Problem) -> None:
    announced(run, problem, "training", RECIPE, timed([100.0, 100.0], [50.0, 50.0]))
    train = problem.config.train.model_copy(update={"batch_size": 16})
    other = replace(problem, config=problem.config.model_copy(update={"train": train}))
    assert kept_precision(run, other, RECIPE) is None
    assert announced(run, other, "training", RECIPE, timed([100.0, 100.0], [150.0, 150.0])) == RECIPE


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x00"])
def test_a_damaged_file_is_refused_with_what_to_do(run: Run, problem: Problem, content: str) -> None:
    (run.folder / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"precision\.json cannot be read .*: set train\.amp, or delete"):
        announced(run, problem, "training", RECIPE, never)


def test_what_was_trained_by_the_former_default_still_fits(problem: Problem) -> None:
    assert training_digest(problem.config) == training_digest(with_amp(problem, True).config)
    assert training_digest(problem.config) != training_digest(with_amp(problem, False).config)
