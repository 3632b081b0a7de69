"""How a trained network and a supernet rank narrower networks of known accuracy, in the smallest form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from bcnet.bench.arena_search import supernet_config
from bcnet.config import load_config
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.train import run as train
from bcnet.runs import Run
from tests.bench.small_networks import CONFIG, run_benchmark

ORIGINAL = {"row": "original", "correct": "ff"}


def cell(row: str, source: str, widths: list[int], accuracy: float, budget: float = 0.5) -> dict[str, Any]:
    about = {"row": row, "source": source, "widths": widths, "accuracy": accuracy, "budget": budget}
    return {**about, "digest": f"{row} {accuracy}", "macs": sum(widths), "distilled": True}


CELLS = [
    *(cell("uniform", "l1", [2] * 7, own) for own in (0.5, 0.6)),
    cell("auto", "fisher", [2, 2, 3, 3, 3, 3, 4], 0.7),
    cell("latency-milp", "iterative-taylor", [1, 2, 3, 3, 3, 2, 4], 0.8),
    cell("torch-pruning-norm", "torch-pruning-norm", [1] * 7, 0.3),
    cell("group-fisher", "group-fisher's own weights", [4] * 7, 0.9),
    cell("uniform (from scratch)", "from scratch", [2] * 7, 0.1),
    cell("uniform", "l1", [3] * 7, 0.2, budget=0.75),  # no pair of its budget
]


def record(name: str, original: dict[str, Any]) -> str:
    Path(name).write_text(json.dumps({"cells": [original, *CELLS]}), encoding="utf-8")
    return name


def test_networks_of_one_budget_are_ranked_by_the_trained_network_and_a_supernet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = Path("bcnet.toml")
    toml.write_text(CONFIG.replace("[train]", "[train]\nepochs = 1"), encoding="utf-8")
    torch.save(open_problem(load_config(None)).model.state_dict(), "trained.pt")
    weights = 'weights = "trained.pt"\n[data]'
    toml.write_text(toml.read_text(encoding="utf-8").replace("[data]", weights), encoding="utf-8")
    config, _ = supernet_config(load_config(None), "unilateral", "50%")
    train(Run(Path("supernets/unilateral")), open_problem(config))
    arguments = ["--records", record("arena.json", ORIGINAL), "--supernets", "supernets"]
    capsys.readouterr()
    run_benchmark(monkeypatch, "inherited_ranking.py", *arguments)
    shown = json.loads(capsys.readouterr().out)
    found = json.loads(Path("inherited_ranking.json").read_text(encoding="utf-8"))
    assert found["figures"] == shown
    assert shown["own"]["networks"] == {"50%": 3, "75%": 1}
    assert shown["with libraries"]["networks"] == {"50%": 4, "75%": 1}
    # By MACs, 14, 20 and 18: the first accuracy is the mean of two.
    assert shown["own"]["ranking"]["multiply-accumulates"]["kendall"] == pytest.approx(1 / 3, abs=1e-4)
    keys = ["2-2-2-2-2-2-2", "2-2-3-3-3-3-4", "1-2-3-3-3-2-4", "1-1-1-1-1-1-1"]
    for name in ("trained network", "supernet, unilateral"):
        losses = np.array([found["losses"][name][key] for key in keys])
        tau = kendalltau(-losses, [0.55, 0.7, 0.8, 0.3]).statistic
        assert shown["with libraries"]["ranking"][name]["kendall"] == pytest.approx(tau, abs=1e-4)
    best = found["losses"]["trained network, best criterion for each"]
    assert all(best[key] <= found["losses"]["trained network"][key] for key in keys)
    run_benchmark(monkeypatch, "inherited_ranking.py", *arguments)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == shown
    assert "channels are ordered by" not in printed.err  # nothing is scored again


def test_records_of_several_originals_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = record("one.json", ORIGINAL), record("other.json", {**ORIGINAL, "correct": "f0"})
    with pytest.raises(SystemExit, match="of several originals"):
        run_benchmark(monkeypatch, "inherited_ranking.py", "--records", *records)
