"""The comparison at the end of a run: which networks, and what it says of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from result_examples import compared
from safetensors.torch import save_file

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.models.digits import digits
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.compare import better_from_scratch, compare
from bcnet.pipeline.compare_networks import FULL, ORIGINAL, SCRATCH, SEARCHED, UNIFORM, Given
from bcnet.pipeline.export import original_accuracy
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import original_network
from bcnet.pipeline.repeated import FEWEST, MOST
from bcnet.pipeline.results import CompareSummary
from bcnet.pipeline.train import report_given
from bcnet.runs import Run
from bcnet.show import show_summary
from bcnet.space.supernet import cut
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import evaluate_network

RUN = Path("runs/default")


@pytest.mark.parametrize(
    ("low", "high", "better"), [(0.61, 0.7, True), (0.59, 0.7, False), (0.4, 0.5, False), (None, None, False)]
)
def test_widths_are_better_from_scratch_where_intervals_do_not_touch(
    low: float | None, high: float | None, better: bool
) -> None:
    searched = compared("found (inherited)", 1.0, accuracy_low=0.5, accuracy_high=0.6)
    scratch = compared(SCRATCH, 1.0, accuracy_low=low, accuracy_high=high)
    assert better_from_scratch((searched, scratch)) is better
    assert not better_from_scratch((searched,))


def test_where_they_are_the_table_ends_with_the_settings_that_hand_them_over(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = CompareSummary.read(Run.named("default").stage("compare"))
    show_summary(summary.model_copy(update={"better": None}))
    assert "from scratch: " not in capsys.readouterr().out
    show_summary(summary.model_copy(update={"better": {"from_scratch": True, "epochs": 3}}))
    assert capsys.readouterr().out.endswith(
        "its widths are better when trained from scratch: set from_scratch = true, epochs = 3 under [slice], "
        "and run again\n"
    )


@pytest.mark.slow
def test_with_those_settings_the_winner_is_the_network_that_was_compared(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((RUN / "compare/result.json").read_text(encoding="utf-8"))["networks"]
    text = Path("bcnet.toml").read_text(encoding="utf-8")
    scratch = text.replace("[slice]\nepochs = 1", "[slice]\nfrom_scratch = true\nepochs = 3")
    Path("bcnet.toml").write_text(scratch, encoding="utf-8")
    capsys.readouterr()
    assert main(["run", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [network["name"] for network in found["networks"]] == [
        "full (from scratch)",
        "uniform (from scratch)",
        "found (from scratch)",
    ]
    assert [network["passes"] for network in found["networks"]] == [3, 3, 3]
    assert found["networks"][2]["accuracy"] == before[3]["accuracy"]
    assert found["better"] is None


def test_where_a_head_is_fresh_the_accuracy_of_the_given_network_is_left_out(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_file(digits(num_classes=7).state_dict(), "own.safetensors")
    config = load_config(None, {"model": {"weights": "own.safetensors"}, "search": {"method": "evolution"}})
    own = open_problem(config)
    assert own.untrained_layers == ("'6' (7 outputs there, 10 here)",)
    capfd.readouterr()
    report_given(own, "cpu")
    assert capfd.readouterr().err == (
        "the network as it was given has untrained layers ('6' (7 outputs there, 10 here)): its accuracy is "
        "not comparable, and is left out\n"
    )
    assert original_accuracy(Run.named("default"), own) is None
    widths = own.space.uniform(0.5)
    proto = to_onnx(cut(own.fresh_model(), own.space, widths), own.data.example(1))
    found = compare(own, proto.SerializeToString(), widths, Recipe.of(config, 0, 0.1))
    assert [entry.name for entry in found.entries] == [FULL, UNIFORM, SEARCHED, SCRATCH]
    assert (
        "the network as it was given is left out: its layers '6' (7 outputs there, 10 here) are not trained"
        in found.notes
    )


def test_a_network_with_trained_weights_is_compared_as_it_was_given_and_the_others_start_fresh(
    project: Path,
) -> None:
    """Without any training, so that the accuracies show the initial weights of the rows."""
    torch.manual_seed(99)
    save_file(digits().state_dict(), "own.safetensors")
    config = load_config(None, {"model": {"weights": "own.safetensors"}, "search": {"method": "evolution"}})
    own = open_problem(config)
    widths = own.space.uniform(0.5)
    proto = to_onnx(cut(own.fresh_model(), own.space, widths), own.data.example(1))
    found = compare(
        own,
        proto.SerializeToString(),
        widths,
        Recipe.of(config, 0, 0.1),
        Given(original_network(Run.named("default"), own)),
    )
    rows = {entry.name: entry for entry in found.entries}
    assert list(rows) == [ORIGINAL, FULL, UNIFORM, SEARCHED, SCRATCH]
    given, fresh = (
        evaluate_network(network, own.data, own.data.test).accuracy
        for network in (own.model, own.fresh_model())
    )
    assert given != fresh
    assert rows[ORIGINAL].accuracy == pytest.approx(given, abs=1e-6)
    assert rows[FULL].accuracy == pytest.approx(fresh, abs=1e-6)
    assert rows[ORIGINAL].widths == rows[FULL].widths == own.space.original()
    assert rows[SCRATCH].accuracy == rows[SEARCHED].accuracy
    assert rows[ORIGINAL].passes is None
    for entry in found.entries:
        assert FEWEST <= len(entry.rounds_ms) <= MOST
        assert entry.latency.median_ms == min(entry.rounds_ms)
        assert entry.noise == pytest.approx(max(entry.rounds_ms) / min(entry.rounds_ms) - 1, abs=1e-4)
    assert original_accuracy(Run.named("default"), own) == pytest.approx(given, abs=1e-6)


UNRESETTABLE = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 64 * 64).reshape(64, 64, 1, 1))
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight)

def network():
    torch.manual_seed(0)  # trained, as far as anyone can tell
    return nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), Scale(), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
"""


def test_without_a_way_to_initialise_a_network_rows_from_scratch_are_left_out_with_the_reason(
    project: Path,
) -> None:
    Path("compare_networks.py").write_text(UNRESETTABLE, encoding="utf-8")
    config = load_config(None, {"model": {"name": "compare_networks:network"}})
    own = open_problem(config)
    widths = own.space.smallest()
    proto = to_onnx(cut(own.model, own.space, widths), own.data.example(1))
    given = Given(original_network(Run.named("default"), own))
    found = compare(own, proto.SerializeToString(), widths, Recipe.of(config, 0, 0.1), given)
    assert [entry.name for entry in found.entries] == [ORIGINAL, SEARCHED]
    assert found.notes[0].startswith("nothing was trained from scratch: '2.weight' (")
    assert found.notes[0].endswith("their modules have no reset_parameters()")


@pytest.mark.slow
def test_a_comparison_and_a_fine_tuning_that_were_killed_continue_and_leave_nothing_behind(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((RUN / "compare/result.json").read_text(encoding="utf-8"))["networks"]
    weights = (RUN / "slice/model.safetensors").read_bytes()
    shutil.rmtree(RUN / "slice")
    shutil.rmtree(RUN / "compare")
    save, saved = CheckpointFile.save, list[str]()

    def killed(self: CheckpointFile, snapshot: Snapshot) -> None:
        save(self, snapshot)
        saved.append(self.path.name)
        if len(saved) in (1, 3, 5):  # in the slice; in the full and in the uniform network's training
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointFile, "save", killed)
    assert main(["slice", "--json"]) == 130
    assert main(["run", "--json"]) == 130
    assert (RUN / "slice/model.safetensors").read_bytes() == weights
    assert not (RUN / "slice/checkpoint.safetensors").exists()
    uniform = json.loads((RUN / "compare/uniform.jsonl").read_bytes().splitlines()[1].split(b" ", 1)[1])
    assert main(["run", "--json"]) == 130
    capsys.readouterr()
    assert main(["run", "--json"]) == 0
    out, err = capsys.readouterr()
    for name in ("full (from scratch)", "uniform (from scratch)"):
        assert f"training: {name}: continuing after epoch" in err
    after = {entry["name"]: entry for entry in json.loads(out)["networks"]}
    assert after["uniform (from scratch)"]["widths"] == uniform
    for entry in before:
        if entry["name"] != "uniform (from scratch)":  # whose widths depend on how fast the machine is
            assert after[entry["name"]]["accuracy"] == entry["accuracy"]
    assert sorted(path.name for path in (RUN / "compare").iterdir()) == ["manifest.json", "result.json"]
