"""Several supernets in one run: trained one after the other, scored together, cut out of the best side."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG, contents
from safetensors.torch import load_file
from torch import nn

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.pipeline import train as stage
from bcnet.pipeline.finished import trained_supernets, training_records
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.search_inputs import scoring
from bcnet.pipeline.slice import slice
from bcnet.pipeline.train_supernet import train
from bcnet.pipeline.training_file import Checkpoint, CheckpointFiles, Record
from bcnet.runs import Run
from bcnet.space.discover import discover_space
from bcnet.space.supernet import Supernet
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import Scorer

TRAINED = Path("runs/default/train")
TWO = CONFIG.replace("epochs = 1\nbatch_size", "epochs = 2\nsupernets = 2\nbatch_size")


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_two_supernets_are_scored_together_and_the_winner_is_cut_out_of_one(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = CONFIG.replace("epochs = 1\nbatch_size", "epochs = 2\nbatch_size")
    Path("bcnet.toml").write_text(one, encoding="utf-8")
    single = printed(capsys, "train")
    alone = load_file(TRAINED / "supernet.safetensors")
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    for command in ("train", "search", "slice"):
        printed(capsys, command)
    first, second = (load_file(TRAINED / f"supernet{end}.safetensors") for end in ("", "-2"))
    assert all(torch.equal(first[name], alone[name]) for name in alone)
    assert second.keys() == first.keys()
    assert not any(torch.equal(second[name], first[name]) for name in first if first[name].ndim == 4)
    assert (single["supernets"], single["epochs"]) == (1, 2)
    curve = (TRAINED / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert len(curve) == 3
    records = training_records(Run.named("default"))
    assert len(records) == 2 * 2 * (120 // 32)
    assert records[0][0] != records[1][0]  # each draws widths of its own
    result = json.loads(Path("runs/default/slice/result.json").read_text(encoding="utf-8"))
    assert result["supernet"] in (1, 2)
    # Those of supernets, epochs and sides; fine-tuning.
    assert open_problem(load_config(None)).winner_passes == 2 * 2 * 2 + 1


def interrupted(monkeypatch: pytest.MonkeyPatch, epochs: int, *flags: str) -> None:
    """`bcnet train`, stopped after so many epochs of all supernets."""
    save, saved = CheckpointFiles.save, []

    def stopped(files: CheckpointFiles, checkpoint: Checkpoint, records: Sequence[Record]) -> None:
        save(files, checkpoint, records)
        saved.append(files.path.name)
        if len(saved) == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFiles, "save", stopped)
        assert main(["train", *flags]) == 130


def test_supernets_that_were_stopped_in_the_second_end_as_if_they_had_not_been(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    interrupted(monkeypatch, 3)
    kept = {path.name for path in TRAINED.iterdir()}
    assert kept == {f"checkpoint{end}.{kind}" for end in ("", "-2") for kind in ("safetensors", "jsonl")}
    assert main(["train"]) == 0
    assert "continuing after epoch 3 of 4" in capsys.readouterr().err
    assert not list(TRAINED.glob("checkpoint*"))
    printed(capsys, "train", "--run", "whole")
    for file in ("supernet.safetensors", "supernet-2.safetensors"):
        whole, own = load_file(Path("runs/whole/train") / file), load_file(TRAINED / file)
        assert all(torch.equal(own[name], whole[name]) for name in whole)
        lines = file.replace("safetensors", "jsonl")
        assert (TRAINED / lines).read_bytes() == (Path("runs/whole/train") / lines).read_bytes()


def test_a_wrong_setting_loses_nothing_of_a_stopped_training(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    interrupted(monkeypatch, 3)
    before = contents(TRAINED)
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(stage, "train", lambda *_, **__: main_is_stopped())
        assert main(["train", "--seed", "1"]) == 130
    assert "a stopped training had other settings: it is not continued" in capsys.readouterr().err
    assert contents(TRAINED) == before


@pytest.mark.slow
def test_another_number_of_supernets_trains_only_those_that_are_not_there_and_loses_none(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    printed(capsys, "train", "--supernets", "1")
    first = contents(TRAINED)
    assert first.keys() == {
        "supernet.safetensors",
        "supernet.jsonl",
        "space.json",
        "curve.csv",
        "manifest.json",
    }
    interrupted(monkeypatch, 3, "--supernets", "3")
    assert "continuing after epoch 2 of 6" in capsys.readouterr().err
    stopped = contents(TRAINED)
    with monkeypatch.context() as patched:
        patched.setattr(stage, "train", lambda *_, **__: main_is_stopped())  # nothing is to be trained
        assert main(["train", "--supernets", "1"]) == 0
    assert "trained already" in capsys.readouterr().err
    assert contents(TRAINED) == stopped
    assert main(["train", "--supernets", "3"]) == 0
    assert "continuing after epoch 5 of 6" in capsys.readouterr().err
    three = contents(TRAINED)
    printed(capsys, "train", "--supernets", "3", "--run", "whole")
    assert contents(Path("runs/whole/train")) == three
    assert (TRAINED / "curve.csv").read_bytes().startswith(b"epoch,loss,supernet 1,supernet 2,supernet 3\n1,")
    with monkeypatch.context() as patched:
        patched.setattr(stage, "train", lambda *_, **__: main_is_stopped())
        assert printed(capsys, "train", "--supernets", "1")["supernets"] == 1
        assert contents(TRAINED) == {
            **three,
            **first,
        }  # the manifest is as it was: nothing downstream is stale
        config = load_config(Path("bcnet.toml"), {"train": {"supernets": 1}})
        assert len(trained_supernets(Run.named("default"), open_problem(config))) == 1
        assert main(["train", "--supernets", "3"]) == 0
    assert contents(TRAINED) == three


def test_of_finished_supernets_only_those_with_the_same_settings_and_whole_files_are_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    printed(capsys, "train")
    assert main(["train", "--seed", "1"]) == 0
    assert "continuing" not in capsys.readouterr().err
    whole = contents(TRAINED)
    good = whole["supernet.safetensors"]
    assert good is not None
    lines = whole["supernet.jsonl"]
    assert lines is not None
    for file, bad in (
        ("supernet.safetensors", good[:-4]),
        ("supernet.safetensors", good[:-1] + bytes([good[-1] ^ 1])),
        ("supernet.jsonl", lines[:-40]),
        ("supernet.jsonl", lines.replace(b"]", b"1]", 1)),
    ):
        (TRAINED / file).write_bytes(bad)
        assert main(["train", "--seed", "1"]) == 0
        assert "continuing after epoch 2 of 4" in capsys.readouterr().err
        assert contents(TRAINED) == whole
    (TRAINED / "manifest.json").write_text("[]", encoding="utf-8")
    (TRAINED / "curve.csv").unlink()
    assert main(["train", "--seed", "1"]) == 0
    assert contents(TRAINED) == whole
    printed(capsys, "train", "--supernets", "1")  # of the seed in the file: what the other one left goes
    assert len(list(TRAINED.glob("*.safetensors"))) == 1


def main_is_stopped() -> None:
    raise KeyboardInterrupt


def test_the_highest_seed_is_one_of_several_supernets_too() -> None:
    seeds = [stage.seed_of(number, seed) for seed in (0, 1, 2**32 - 1) for number in range(3)]
    assert seeds[::3] == [0, 1, 2**32 - 1]
    assert len(set(seeds)) == 9
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_widths_are_cut_out_of_the_side_and_supernet_that_score_best() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    images = torch.zeros(40, 1, 5, 5, dtype=torch.uint8)
    images[::2] = 200
    split = Split(images, (torch.arange(40) + 1) % 2)
    data = ImageData(split, split, split, ("dark", "bright"), (0.5,), (0.3,))
    space = discover_space(model, torch.zeros(1, 1, 5, 5), bins=4, channel_multiple=2)
    recipe = Recipe(epochs=20, learning_rate=0.05, batch_size=20)
    good = train(Supernet.with_extra(model, space), data, recipe).supernet
    wrong = {name: -tensor if name.startswith("4.") else tensor for name, tensor in good.state.items()}
    bad = replace(good, state=wrong)
    small = slice([bad, good, bad], space.smallest(), data, replace(recipe, epochs=0))
    assert (small.supernet, small.accuracy_after) == (1, 1.0)
    assert slice([good, bad], space.smallest(), data, replace(recipe, epochs=0)).supernet == 0
    scored = [Scorer([supernet], data, 40)(space.smallest()).accuracy for supernet in (good, bad)]
    assert scored == [1.0, 0.0]
    assert Scorer([good, bad], data, 40)(space.smallest()).accuracy == 0.5


def test_a_search_scores_by_every_supernet_of_its_run(folder: Path) -> None:
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    assert main(["train"]) == 0
    project = open_problem(load_config(None))
    supernets = trained_supernets(Run.named("default"), project)
    scorer = scoring(project, supernets)
    assert isinstance(scorer, Scorer)
    assert [side.name for side in scorer.sides] == ["left", "right", "left", "right"]
    assert len({side.supernet.state["0.0.weight"].sum().item() for side in scorer.sides}) == 2
