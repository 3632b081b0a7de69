"""A wider original (`space.expand`): it is trained first, then made as fast as the given network."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG, measure_briefly

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import original_network, trained_network
from bcnet.runs import Run
from bcnet.width_search.budget import Budget
from bcnet.width_search.scorer import evaluate_network

RUN = Path("runs/default")
TOML = '[model]\nweights = "trained.pt"\n' + CONFIG.replace("[space]", "[space]\nexpand = 1.5").replace(
    "[search]", '[search]\nmethod = "latency-greedy"\ntrials = 0'
).replace('"75%"', '"100%"')


def result(stage: str) -> Any:
    return json.loads((RUN / stage / "result.json").read_text(encoding="utf-8"))


def test_networks_that_may_be_wider_than_the_original_keep_a_margin_to_its_whole_latency() -> None:
    assert Budget(0.0, 1.0, 0.05).limit_ms(10.0) == 10.0  # the original itself fits
    assert Budget(0.0, 1.0, 0.05, wider=True).limit_ms(10.0) == pytest.approx(10 / 1.05)


def test_a_wider_original_is_trained_and_narrowed_to_the_latency_of_the_given_network(
    trained_project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_briefly(monkeypatch)
    shutil.copy(trained_project / "trained.pt", folder)
    shutil.copytree(trained_project / "hw_profiles", folder / "hw_profiles")
    Path("bcnet.toml").write_text(TOML, encoding="utf-8")
    for stage in ("train", "build-lut", "search", "slice"):
        assert main([stage]) == 0
    assert "trained first, because it is wider than the given one" in capsys.readouterr().err
    found = result("search")
    assert found["method"] == "latency-greedy"
    assert found["best"]["measured"]["median_ms"] <= found["budget"]["ms"]
    wide = open_problem(load_config(None))
    given, teacher = original_network(Run.named("default"), wide), trained_network(Run.named("default"), wide)
    assert given is not None
    assert teacher is not None
    state = torch.load("trained.pt")
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.named_parameters())
    assert wide.narrow is not None
    assert [g.original for g in wide.space.groups] == [g.channels for g in wide.narrow.groups]
    assert sum(p.numel() for p in teacher.parameters()) > 2 * sum(p.numel() for p in given.parameters())
    # What is delivered comes from the wider network.
    assert result("slice")["inherited"].startswith("the original's channels by ")
    assert result("slice")["distilled"]
    assert evaluate_network(teacher, wide.data, wide.data.val).accuracy > 0.3
