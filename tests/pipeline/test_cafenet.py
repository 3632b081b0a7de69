"""CafeNet through the stages: the assignment by which the winner was scored is what is cut out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.search_inputs import assigned_channels, scoring
from bcnet.runs import Run
from bcnet.space.subnet import Subnet, subnet_state
from bcnet.space.width_space import Widths

CAFENET = "train.method=cafenet", "train.free_random=0.5", "search.free_sets=3", "slice.epochs=0"
SET = [word for own in CAFENET for word in ("--set", own)]


def test_the_assignment_that_won_is_cut_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "search", "slice"):
        assert main([command, *SET]) == 0
    assigned = {"train": {"method": "cafenet", "free_random": 0.5}, "search": {"free_sets": 3}}
    problem = open_problem(load_config(None, {**assigned, "slice": {"epochs": 0}}))
    supernets = trained_supernets(Run.named("default"), problem)
    widths = Widths(json.loads(Path("runs/default/slice/result.json").read_text())["widths"])
    (subnet,) = assigned_channels(problem, supernets, widths).values()
    small = load_file("runs/default/slice/model.safetensors")
    wanted = subnet_state(supernets[0].state, problem.space, subnet)
    weights = [name for name, _ in problem.model.named_parameters()]
    assert all(torch.equal(small[name], wanted[name]) for name in weights)
    # What a search scores.
    best = json.loads(Path("runs/default/search/result.json").read_text())["best"]
    score = scoring(problem, supernets)(widths)
    assert best["accuracy"] == pytest.approx(score.accuracy, abs=1e-6)
    # Which network wins depends on latencies. In one, the first channels may win as well, but not in all.
    drawn = [problem.space.random(np.random.default_rng(seed)) for seed in range(6)]
    first = {own: Subnet.at(problem.space, own) for own in drawn}
    won = {own: next(iter(assigned_channels(problem, supernets, own).values())) for own in drawn}
    others = [
        own for own in drawn if list(map(list, won[own].channels)) != list(map(list, first[own].channels))
    ]
    assert others
    capsys.readouterr()
    # Other methods do not depend on its settings: nothing is trained again. With another number of
    # assignments, only the search is made again.
    assert main(["train", *SET, "--set", "search.free_sets=2"]) == 0
    assert "trained already" in capsys.readouterr().err
    assert main(["train", *SET, "--set", "train.free_offset=2"]) == 0
    assert "trained already" not in capsys.readouterr().err
