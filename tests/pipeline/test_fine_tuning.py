"""Fine-tuning that makes a network worse is tried at a lower rate, and discarded if that does not help."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CONFIG, measure_briefly
from result_examples import compared, comparison
from torch import nn

from bcnet.cli import main
from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.pipeline.fine_tuning import AS_ASKED, FineTuning, Outcome, at_lower_rate
from bcnet.show.comparison import show_comparison
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Objective, Recipe

RECIPE = Recipe(epochs=2, learning_rate=0.1, batch_size=32)
ONCE_MORE = "fine-tuning: once more from the same start, at a rate of 0.02\n"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(image_size=8, train_limit=120, test_limit=20), 0)


@pytest.fixture(scope="module")
def trained(data: ImageData) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit_network(network, data, replace(RECIPE, epochs=20, learning_rate=0.05), "training")
    return network


def tuning(data: ImageData, rate: float = RECIPE.learning_rate) -> FineTuning:
    return FineTuning(data, replace(RECIPE, learning_rate=rate), 64)


def weights(network: nn.Module) -> Mapping[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_rate_that_improves_the_network_is_kept(data: ImageData, trained: nn.Module) -> None:
    found = tuning(data, 0.02)(trained, "fine-tuning")
    assert found.outcome == AS_ASKED
    assert not equal(weights(found.network), weights(trained))


def test_a_rate_that_makes_it_worse_is_lowered_once_from_the_same_start(
    data: ImageData, trained: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tuning(data)(trained, "fine-tuning")
    err = capsys.readouterr().err
    assert found.outcome == Outcome(lower_rate=0.02)
    assert "fine-tuning at a rate of 0.1 made the network worse (validation loss 2.2" in err
    assert ONCE_MORE in err
    assert equal(weights(found.network), weights(tuning(data, 0.02)(trained, "fine-tuning").network))


def test_where_no_rate_helps_the_network_stays_as_it_was_and_a_lower_one_is_named(
    data: ImageData, trained: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(trained)
    found = tuning(data, 50.0)(trained, "fine-tuning the uniform network")
    assert found.outcome == Outcome(discarded=2)
    assert equal(weights(found.network), before)
    assert (
        "fine-tuning the uniform network: discarded, the network stays as it was; "
        "try slice.learning_rate = 2\n" in capsys.readouterr().err
    )


def test_parameters_of_the_objective_begin_again_too(data: ImageData, trained: nn.Module) -> None:
    own = nn.Parameter(torch.ones(3))
    objective = Objective(
        lambda model, inputs, targets, recipe: recipe.training_loss(model, inputs, targets)[0] + own.sum(),
        {"own": own},
    )
    replace(tuning(data), objective=objective)(trained, "fine-tuning")
    assert torch.equal(own, torch.ones(3))


def test_a_fine_tuning_that_was_killed_at_the_lower_rate_continues_there(
    data: ImageData,
    trained: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = weights(tuning(data)(trained, "fine-tuning").network)
    checkpoint = CheckpointFile(tmp_path / "checkpoint.safetensors", {"network": "small"})
    save = CheckpointFile.save

    def killed(own: CheckpointFile, snapshot: Snapshot) -> None:
        save(own, snapshot)
        if own.path == at_lower_rate(checkpoint.path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFile, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            tuning(data)(trained, "fine-tuning", checkpoint)
    capsys.readouterr()
    found = tuning(data)(trained, "fine-tuning", checkpoint)
    err = capsys.readouterr().err
    assert "continuing after epoch 2 of 2" in err.partition(ONCE_MORE)[0]
    assert "continuing after epoch 1 of 2" in err.partition(ONCE_MORE)[2]
    assert equal(weights(found.network), whole)


@pytest.mark.slow
def test_a_run_records_that_all_fine_tuning_was_discarded(
    trained_project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(shutil.copytree(trained_project, tmp_path / "folder"))
    measure_briefly(monkeypatch)
    rate = '[slice]\nlearning_rate = 100.0\nteacher = "none"'
    text = '[model]\nweights = "trained.pt"\n' + CONFIG.replace("[slice]", rate)
    text = text.replace("[search]", '[search]\nmethod = "uniform"')
    Path("bcnet.toml").write_text(text, encoding="utf-8")
    assert main(["run"]) == 0
    out = capfd.readouterr().out
    sliced = json.loads(Path("runs/default/slice/result.json").read_text(encoding="utf-8"))
    assert (sliced["epochs"], sliced["discarded_epochs"], "lower_rate" in sliced) == (0, 1, False)
    assert sliced["test_accuracy_before"] == sliced["test_accuracy_after"]
    compare = json.loads(Path("runs/default/compare/result.json").read_text(encoding="utf-8"))
    rows = {row["name"]: (row["passes"], row.get("discarded_passes")) for row in compare["networks"]}
    assert rows == {"original": (None, None), "uniform (inherited)": (0, 1), "found (inherited)": (0, 1)}
    assert compare["passes"] == 1
    for name in ("uniform (inherited)", "found (inherited)"):
        assert f"note: {name}: its fine-tuning was discarded, since it made it worse" in out
    assert not list(Path("runs/default").rglob("checkpoint*"))


def test_the_table_does_not_claim_passes_that_were_discarded(capsys: pytest.CaptureFixture[str]) -> None:
    name = "found (inherited)"
    networks = (
        compared("original", 0.672, None),
        compared("uniform (inherited)", 0.4, 2, lower_rate=0.004),
        compared(name, 0.4, 0, discarded_passes=2),
    )
    note = Outcome(discarded=2).note(name)
    show_comparison(comparison(*networks, passes=2, original="given", notes=(note,)))
    out = capsys.readouterr().out
    assert "trained for up to 2 passes over the training images (original: as it was given)\n" in out
    assert f"note: {name}: its fine-tuning was discarded, since it made it worse\n" in out
    assert Outcome(lower_rate=0.004).note("uniform (inherited)") == (
        "uniform (inherited): fine-tuned at a rate of 0.004, since a higher one made it worse"
    )
    assert AS_ASKED.note(name) is None
