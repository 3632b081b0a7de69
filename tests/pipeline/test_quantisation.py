"""Networks as they are delivered at INT8: scores through their files, training through their integers."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bcnet.config import Config
from bcnet.errors import ModelError
from bcnet.models.reactnet import reactnet_small
from bcnet.pipeline import quantisation
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.quantisation import (
    QuantisationAware,
    aware_passes,
    delivered_score,
    quantised_network,
    through_integers,
)
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import Score, evaluate_network

DATA = {"image_size": 16, "train_limit": 120, "test_limit": 20}


def problem_at(precision: str) -> Problem:
    training = {"train": {"batch_size": 16}, "slice": {"learning_rate": 0.5, "quantization_aware": True}}
    return open_problem(Config.model_validate({"precision": precision, "data": DATA, **training}))


@pytest.fixture(scope="module")
def integers() -> Problem:
    """The digits network, trained a little, at INT8."""
    problem = problem_at("int8")
    fit_network(problem.model, problem.data, Recipe.of(problem.config, 3, 0.1), "training")
    return problem


def test_a_network_is_scored_through_the_file_that_would_be_delivered(integers: Problem) -> None:
    found = delivered_score(integers, integers.model)
    floats = evaluate_network(integers.model, integers.data, integers.data.val)
    assert found != floats
    assert found.loss == pytest.approx(floats.loss, abs=0.1)
    own = evaluate_network(quantised_network(integers, integers.model), integers.data, integers.data.val)
    assert found.loss == pytest.approx(own.loss, abs=0.01)
    assert found.accuracy == pytest.approx(own.accuracy, abs=0.05)
    full = replace(integers, profile=integers.profile.model_copy(update={"precision": "fp32"}))
    assert delivered_score(full, integers.model) == floats


def test_training_through_integers_is_kept_where_the_file_is_better(
    integers: Problem, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = copy.deepcopy(integers.model.state_dict())
    aware = QuantisationAware(integers)
    found = aware(integers.model, "fine-tuning", 1)
    assert (found.passes, found.discarded) == (1, 0)
    assert delivered_score(integers, found.network).loss < delivered_score(integers, integers.model).loss
    assert "fine-tuning: validation loss at int8 " in capfd.readouterr().err
    losses = iter((Score(0.5, -1.0), Score(0.5, -1.5)))  # of the file before and after
    monkeypatch.setattr(quantisation, "delivered_score", lambda *_: next(losses))
    worse = aware(integers.model, "fine-tuning", 1)
    assert (worse.network, worse.passes, worse.discarded) == (integers.model, 0, 1)
    assert (
        capfd.readouterr()
        .err.strip()
        .endswith("validation loss at int8 1.000 before, 1.500 after: discarded")
    )
    assert all(torch.equal(value, given[name]) for name, value in integers.model.state_dict().items())


def test_training_through_integers_is_left_out_by_default_if_int8_loses_nothing(
    integers: Problem, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own = integers.config.slice.model_copy(update={"quantization_aware": None})
    asked = replace(integers, config=integers.config.model_copy(update={"slice": own}))
    floats = evaluate_network(integers.model, integers.data, integers.data.val)
    for rise, tried in ((1.0, False), (1.019, False), (1.021, True), (float("nan"), True)):
        score = Score(floats.accuracy, -rise * floats.loss)
        monkeypatch.setattr(quantisation, "delivered_score", lambda *_, score=score: score)
        monkeypatch.setattr(quantisation, "quantised_network", refuse)
        found = QuantisationAware(asked)(integers.model, "fine-tuning", 1)
        assert (found.network, found.passes, found.discarded) == (integers.model, 0, 0)
        said = capfd.readouterr().err
        assert ("int8 loses next to nothing" in said) is not tried
        assert ("left out: refused" in said) is tried


def refuse(*_: object) -> None:
    raise ModelError("refused")


def test_a_network_that_cannot_be_trained_through_integers_stays_as_it_was(
    integers: Problem, capfd: pytest.CaptureFixture[str]
) -> None:
    class Summed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(integers.model(x), 1)

    network = Summed()
    found = QuantisationAware(integers)(network, "fine-tuning", 1)
    assert (found.network, found.passes) == (network, 0)
    assert "fine-tuning: left out: the INT8 network cannot" in capfd.readouterr().err


def test_a_quarter_of_the_passes_are_added_at_int8_alone(integers: Problem) -> None:
    assert [aware_passes(integers, epochs) for epochs in (0, 1, 8, 30)] == [0, 1, 2, 7]
    assert aware_passes(problem_at("fp32"), 8) == 0
    config = integers.config.model_copy(
        update={"slice": integers.config.slice.model_copy(update={"quantization_aware": False})}
    )
    assert aware_passes(replace(integers, config=config), 8) == 0


def test_a_network_with_binary_layers_is_not_trained_through_integers(integers: Problem) -> None:
    binary, real = (reactnet_small(1, 10, widths=(32,), depths=(1,), binary=own) for own in ("both", "none"))
    assert aware_passes(integers.of_model(binary), 8) == 0
    assert aware_passes(integers.of_model(real), 8) == 2


def test_the_checkpoint_of_training_through_integers_is_beside_that_of_fine_tuning() -> None:
    first = CheckpointFile(Path("slice/checkpoint.safetensors"), {"a": "b"})
    assert through_integers(first).path.name == "checkpoint-integers.safetensors"
