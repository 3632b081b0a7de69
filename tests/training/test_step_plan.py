"""Which steps draw widths, what a step costs, and which plans a method refuses."""

import pytest

from bcnet.config import TrainConfig
from bcnet.errors import ConfigError
from bcnet.training.step_plan import STEPS, StepPlan


@pytest.mark.parametrize(
    ("complementary", "draws", "drawing", "passes"),
    [
        (False, 1, [0, None, 1, None, 2, None], (2 + 1) / 2),
        (True, 1, [0, 1, None, 2, 3, None], (2 + 2 + 1) / 3),
        (True, 2, [0, None, 1, None, 2, None], (4 + 1) / 2),  # a width and its complement in one step
    ],
)
def test_an_interleaved_training_has_a_step_of_the_widest_after_each_width_and_its_complement(
    complementary: bool, draws: int, drawing: list[int | None], passes: float
) -> None:
    plan = StepPlan.of(TrainConfig(step="interleaved", complementary=complementary, draws=draws))
    assert [plan.drawing(number) for number in range(6)] == drawing
    assert plan.passes(sides=2) == pytest.approx(passes)


@pytest.mark.parametrize("step", [name for name in STEPS if name != "interleaved"])
def test_every_step_of_other_plans_draws_and_costs_its_paths(step: str) -> None:
    plan = StepPlan.of(TrainConfig.model_validate({"step": step, "draws": 3}))
    assert [plan.drawing(number) for number in range(4)] == [0, 1, 2, 3]
    assert plan.passes(sides=2) == plan.paths(sides=2)


def test_subnets_that_share_a_batch_cost_one_pass_however_many_they_are() -> None:
    config = TrainConfig(method="psenet", parallel=6, draws=3, step="sandwich")
    plan = StepPlan.of(config)
    assert (plan.parallel, plan.draws) == (True, 6)
    assert plan.paths(sides=1) == 8
    assert plan.passes(sides=1) == 1


@pytest.mark.parametrize("step", ["distilled", "us-nets"])
def test_subnets_that_share_a_batch_cannot_learn_from_the_widest_path(step: str) -> None:
    config = TrainConfig.model_validate({"method": "psenet", "step": step})
    with pytest.raises(ConfigError, match=f'train.step = "{step}" needs the outputs of the widest path'):
        StepPlan.of(config)


@pytest.mark.parametrize("method", ["unilateral", "cafenet", "psenet"])
def test_complements_are_refused_where_the_method_has_none(method: str) -> None:
    StepPlan.of(TrainConfig(method=method))
    refused = rf"which {method} does not have: leave it out, or set train\.method to bcnet or bcnetv2$"
    with pytest.raises(ConfigError, match=refused):
        StepPlan.of(TrainConfig(method=method, complementary=True))
    for having in ("bcnet", "bcnetv2"):
        assert StepPlan.of(TrainConfig(method=having, complementary=True)).complementary


def test_each_subnet_needs_two_images_of_a_batch() -> None:
    StepPlan.of(TrainConfig(method="psenet", parallel=8, batch_size=16))
    with pytest.raises(ConfigError, match="a batch of 15 images cannot be shared by 8 subnets, each of"):
        StepPlan.of(TrainConfig(method="psenet", parallel=8, batch_size=15))


@pytest.mark.parametrize(
    ("images", "processes", "refused"),
    [
        (1000, 1, None),
        (16, 1, None),
        (15, 1, r"^15 training images cannot be shared by 8 subnets, each of .*: lower train\.parallel$"),
        (1000, 4, None),
        (
            1000,
            8,
            "^a batch of 64 images cannot be shared by 8 subnets in each of 8 processes, each of",
        ),
        (40, 4, "^40 training images cannot be shared by 8 subnets in each of 4 processes, each of which"),
    ],
)
def test_a_batch_is_what_a_process_reads_of_the_images_there_are(
    images: int, processes: int, refused: str | None
) -> None:
    plan = StepPlan.of(TrainConfig(method="psenet", parallel=8, batch_size=64))
    if refused is None:
        plan.check_batch(64, 1, images, processes)
        return
    with pytest.raises(ConfigError, match=refused):
        plan.check_batch(64, 1, images, processes)


def test_paths_that_follow_each_other_need_no_images_of_their_own() -> None:
    STEPS["sandwich"].check_batch(2, 2, images=2)
