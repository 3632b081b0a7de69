"""A supernet whose paths learn from the original network, which stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcnet.config import Config, DataConfig, ModelConfig, SearchConfig, TrainConfig
from bcnet.data.image_data import ImageData
from bcnet.errors import ConfigError
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.supernet_start import first_state, order_is_measured
from bcnet.pipeline.teacher import supernet_objective, teaches_supernet
from bcnet.pipeline.train import stage_inputs
from bcnet.pipeline.train_supernet import train
from bcnet.runs import Run
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet, forward_path
from bcnet.space.width_space import WidthSpace
from bcnet.training.distill import Distillation, softened_divergence
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import STEPS
from bcnet.training.supernet_step import SlicedPaths, supernet_step

RECIPE = Recipe(epochs=2, learning_rate=0.01, batch_size=16, label_smoothing=0.1)


class Counted(nn.Module):
    """Two layers without batch norm; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(1, 8, 3, 2)
        self.head = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.head(self.body(x).relu().mean((2, 3)))
        return out


@pytest.fixture
def model() -> Counted:
    return Counted()


@pytest.fixture
def space(model: Counted) -> WidthSpace:
    return discover_space(model, torch.zeros(1, 1, 8, 8), bins=4, channel_multiple=2, method="unilateral")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, 8, 8, generator=generator), torch.arange(6) % 3


def test_every_path_learns_from_the_same_outputs_of_the_teacher_computed_once_a_batch(
    model: Counted, space: WidthSpace, batch: tuple[Tensor, Tensor]
) -> None:
    teacher = Counted()
    with torch.no_grad():
        teacher.head.weight.mul_(3)
    objective = Distillation(teacher, 2.0, 0.75).objective(model, RECIPE, batch[0])
    parameters = dict(model.named_parameters())
    paths = SlicedPaths(Supernet(model, space, parameters), RECIPE, objective)
    teacher.calls = 0
    wanted = Counted.forward(teacher, batch[0]).detach()
    drawn = [space.smallest(), space.largest()]
    losses = supernet_step(paths, drawn, *batch, plan=STEPS["sandwich"])
    assert teacher.calls == 2  # that of this test, and one for four paths
    expected, gradients = [], []
    for widths in (*drawn, space.largest(), space.smallest()):
        logits = Supernet(model, space, parameters).run(Subnet.at(space, widths), batch[0])
        labels = nn.functional.cross_entropy(logits, batch[1], label_smoothing=0.1)
        loss = 0.75 * softened_divergence(logits, wanted, 2.0) + 0.25 * labels
        expected.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss / 4, list(parameters.values())))
    assert [float(own) for own in losses] == pytest.approx(expected[:2])
    for parameter, *own in zip(parameters.values(), *gradients, strict=True):
        torch.testing.assert_close(parameter.grad, sum(own, torch.zeros_like(parameter)))


def test_a_widest_path_equal_to_the_teacher_has_nothing_to_learn_from_it(
    model: Counted, space: WidthSpace, batch: tuple[Tensor, Tensor]
) -> None:
    objective = Distillation(Counted(), 4.0, 1.0).objective(model, RECIPE, batch[0])
    parameters = dict(model.named_parameters())
    paths = SlicedPaths(Supernet(model, space, parameters), RECIPE, objective)
    (loss,) = supernet_step(paths, [space.largest()], *batch)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert all(float(p.grad.abs().max()) < 1e-6 for p in parameters.values() if p.grad is not None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a trained network."""
    config = Config(data=DataConfig(train_limit=120, test_limit=60, image_size=16))
    problem = open_problem(config)
    fit_network(problem.model, problem.data, Recipe.of(config, 8, 0.1), "training")
    path = tmp_path_factory.mktemp("weights") / "trained.pt"
    torch.save(problem.model.state_dict(), path)
    return path


@pytest.fixture
def problem_of(weights: Path) -> Callable[..., Problem]:
    def load(trained: bool = True, **train_settings: Any) -> Problem:
        return open_problem(
            Config(
                model=ModelConfig(weights=str(weights)) if trained else ModelConfig(),
                data=DataConfig(train_limit=120, test_limit=60, image_size=16),
                train=TrainConfig(batch_size=32, train_device="cpu", **train_settings),
                search=SearchConfig(method="evolution", recalibration_images=64),
            )
        )

    return load


def test_a_supernet_of_trained_weights_begins_as_the_network_in_the_order_of_the_best_criterion(
    problem_of: Callable[..., Problem], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = problem_of(method="unilateral")
    recipe = Recipe.of(problem.config, 1, 0.01)
    state = first_state(problem, problem.model, recipe)
    shown = capsys.readouterr().err
    assert "the best of 6 criteria at half of all widths" in shown
    x = torch.randn(4, *problem.data.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        widest = forward_path(problem.model, problem.space, problem.space.largest(), x, "left", state)
        torch.testing.assert_close(widest, problem.model.eval()(x), rtol=1e-3, atol=1e-4)
    own = tensors_of(problem.model)
    assert any(not torch.equal(state[name], own[name]) for name in own)


def test_the_original_stays_as_it_was_while_the_supernet_learns_from_it(
    problem_of: Callable[..., Problem],
) -> None:
    problem = problem_of(step="us-nets")
    recipe = Recipe.of(problem.config, 1, 0.01)
    objective = supernet_objective(problem, recipe)
    assert objective is not None
    data: ImageData = replace(problem.data, train=problem.data.train.take(torch.arange(32)))
    x = torch.randn(4, *problem.data.input_shape, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(4, dtype=torch.int64)
    probe = with_state(problem.model, problem.space.without_extra(), tensors_of(problem.model)).eval()
    before = float(objective.loss(probe, x, targets, recipe).detach())
    supernet = Supernet.with_extra(problem.model, problem.space)
    found = train(supernet, data, recipe, plan=STEPS["us-nets"], objective=objective)
    after = float(objective.loss(probe, x.clone(), targets, recipe).detach())
    assert after == pytest.approx(before, abs=1e-7)
    assert len(found.curve) == 1


@pytest.mark.parametrize(
    ("trained", "settings", "distilled", "ordered"),
    [
        (True, {}, True, True),
        (True, {"teacher": "none", "channel_order": "as-is"}, False, False),
        (True, {"channel_order": "l1"}, True, False),
        (False, {}, False, False),
    ],
)
def test_who_teaches_and_what_orders_follow_from_the_weights_and_the_settings(
    problem_of: Callable[..., Problem],
    trained: bool,
    settings: dict[str, Any],
    distilled: bool,
    ordered: bool,
) -> None:
    problem = problem_of(trained, **settings)
    assert teaches_supernet(problem) is distilled
    assert order_is_measured(problem) is ordered
    assert (supernet_objective(problem, RECIPE) is not None) is distilled
    recorded = stage_inputs(Run.named("none"), problem)
    assert (recorded.get("teacher") == "4.0 0.9") is distilled
    assert ("channel order" in recorded) is ordered


def test_a_teacher_that_is_not_trained_is_refused(problem_of: Callable[..., Problem]) -> None:
    with pytest.raises(ConfigError, match=r"train\.teacher: .* not trained: set model\.weights"):
        teaches_supernet(problem_of(False, teacher="original"))
