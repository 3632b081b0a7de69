"""Several supernets in one run: trained one after the other, scored together, cut out of the best side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG
from safetensors.torch import load_file

from bcnet.cli import main
from bcnet.pipeline import train as stage

TRAINED = Path("runs/default/train")
TWO = CONFIG.replace("epochs = 1\nbatch_size", "epochs = 2\nsupernets = 2\nbatch_size")


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_run_of_two_supernets_scores_by_both_and_cuts_out_of_one(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = CONFIG.replace("epochs = 1\nbatch_size", "epochs = 2\nbatch_size")
    Path("bcnet.toml").write_text(one, encoding="utf-8")
    single = printed(capsys, "train")
    alone = load_file(TRAINED / "supernet.safetensors")
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    found = printed(capsys, "run")
    first, second = (load_file(TRAINED / f"supernet{end}.safetensors") for end in ("", "-2"))
    assert all(torch.equal(first[name], alone[name]) for name in alone)
    assert second.keys() == first.keys()
    assert not any(torch.equal(second[name], first[name]) for name in first if first[name].ndim == 4)
    assert (single["supernets"], single["epochs"]) == (1, 2)
    curve = (TRAINED / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert len(curve) == 3
    records = json.loads((TRAINED / "records.json").read_text(encoding="utf-8"))
    assert len(records) == 2 * 2 * (120 // 32)
    assert records[0][0] != records[1][0]  # each draws widths of its own
    result = json.loads(Path("runs/default/slice/result.json").read_text(encoding="utf-8"))
    assert result["supernet"] in (1, 2)
    networks = {network["name"]: network for network in found["networks"]}
    assert networks["searched"]["passes"] == 2 * 2 * 2 + 1  # supernets, epochs and sides; fine-tuning


def test_supernets_that_were_stopped_in_the_second_end_as_if_they_had_not_been(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    save, saved = stage._save_checkpoint, []

    def stopped(path: Path, *args: Any, **kwargs: Any) -> None:
        save(path, *args, **kwargs)
        saved.append(path.name)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_save_checkpoint", stopped)
    assert main(["train"]) == 130
    assert saved == ["checkpoint.safetensors"] * 2 + ["checkpoint-2.safetensors"]
    monkeypatch.setattr(stage, "_save_checkpoint", save)
    assert main(["train"]) == 0
    assert "continuing after epoch 3 of 4" in capsys.readouterr().err
    assert not list(TRAINED.glob("checkpoint*"))
    printed(capsys, "train", "--run", "whole")
    for file in ("supernet.safetensors", "supernet-2.safetensors"):
        whole, own = load_file(Path("runs/whole/train") / file), load_file(TRAINED / file)
        learned = [name for name in whole if name.endswith((".weight", ".bias"))]
        assert learned
        assert all(torch.equal(own[name], whole[name]) for name in learned)
    assert (TRAINED / "records.json").read_bytes() == Path("runs/whole/train/records.json").read_bytes()


def test_what_one_training_left_does_not_continue_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text(TWO, encoding="utf-8")
    TRAINED.mkdir(parents=True)
    printed(capsys, "train", "--run", "other", "--seed", "1")
    from bcnet.artifacts import Run
    from bcnet.config import load_config

    inputs = stage.stage_inputs(Run.named("other"), load_config(None, {"": {"seed": 1}}))
    kept = stage.Snapshot(2, {})
    stage._save_checkpoint(
        TRAINED / "checkpoint-2.safetensors", stage.Checkpoint(kept, (), ()), inputs=inputs
    )
    assert main(["train"]) == 0
    assert "beginning anew" not in capsys.readouterr().err
    assert not list(TRAINED.glob("checkpoint*"))
