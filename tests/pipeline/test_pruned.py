"""search.method = "group-fisher": channels removed while training, the weights go on, nothing is lost."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG, measure_briefly

from bcnet.allocation.limits import Limits
from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import ArtifactError
from bcnet.methods import group_fisher
from bcnet.pipeline.inherit import Source, ranked_sources, trained_for
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import trained_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.pruned import PrunedNetworks, pruned_by_search
from bcnet.pipeline.results import SearchSummary
from bcnet.pipeline.trained_scores import single_sided
from bcnet.pipeline.tuning import passes_of
from bcnet.registry import METHODS
from bcnet.runs import Run
from bcnet.sealed import unseal_tensors
from bcnet.show.stages import show_summary
from bcnet.space.extract import tensors_of
from bcnet.space.importance import CRITERIA, importances
from bcnet.space.width_space import Widths
from bcnet.width_search.scorer import Score, Validation

RUN = Path("runs/default")
OWN_WEIGHTS = "group-fisher's own weights"
TOML = '[model]\nweights = "trained.pt"\n' + CONFIG.replace("[search]", '[search]\nmethod = "group-fisher"')


@pytest.fixture(scope="module")
def folder(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network and the small one that this method made of it."""
    path = shutil.copytree(trained_project, tmp_path_factory.mktemp("pruned") / "folder")
    with contextlib.chdir(path), pytest.MonkeyPatch.context() as patch:
        measure_briefly(patch)
        Path("bcnet.toml").write_text(TOML, encoding="utf-8")
        for stage in ("train", "build-lut", "search", "slice"):
            assert main([stage]) == 0
    return path


@pytest.fixture
def problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Problem:
    """The finished run's problem, in its folder."""
    monkeypatch.chdir(folder)
    return open_problem(load_config(None, {}))


def result(stage: str, file: str = "result.json") -> Any:
    return json.loads((RUN / stage / file).read_text(encoding="utf-8"))


def test_the_search_delivers_a_network_within_the_budget_and_counts_its_passes(
    problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    found, sliced = result("search"), result("slice")
    assert (found["method"], found["methods"]) == ("group-fisher", ["group-fisher"])
    assert found["best"]["measured"]["median_ms"] <= found["budget"]["ms"]
    assert found["pruning_passes"] == 2
    assert found["criterion"] is None
    show_summary(SearchSummary.read(Run.named("default").stage("search")))
    assert "group-fisher, channels removed over 2 epochs\n" in capsys.readouterr().out
    assert found["pruning_passes_of_all_rounds"] in (2, 4, 6, 8)
    assert sliced["widths"] == found["best"]["widths"]
    # Of six criteria one may be better by chance on so few images.
    assert sliced["pruning_passes"] == (2 if sliced["inherited"] == OWN_WEIGHTS else 0)
    assert passes_of(Run.named("default")) == 1 + sliced["pruning_passes"]


def test_the_small_network_begins_with_the_weights_that_were_trained_while_channels_went(
    problem: Problem,
) -> None:
    """Where they are better than the original's, and only at their own widths."""
    run = Run.named("default")
    found = pruned_by_search(run, problem)
    ((widths, own),) = found.items()
    own = replace(own, score=Score(1.0, 0.0))
    network = trained_network(run, problem)
    assert network is not None
    by_weights = importances(network, problem.space.without_extra(), tensors_of(network), "l1")
    trained = trained_for(problem, network, dict.fromkeys(CRITERIA, by_weights), {widths: own})

    def source(widths: Widths) -> Source:
        return ranked_sources((), widths, trained, Validation(problem.data, 64, problem.task))[0]

    assert (source(widths).name, source(widths).passes) == (OWN_WEIGHTS, 2)
    assert all(torch.equal(tensor, own.state[name]) for name, tensor in source(widths).state.items())
    other = source(problem.space.largest())
    assert other.passes == 0
    assert other.name.startswith("the original's channels by")


def test_the_searchs_file_holds_the_winners_network_and_an_edited_one_is_refused(problem: Problem) -> None:
    run, path = Run.named("default"), RUN / "search" / "group-fisher.safetensors"
    ((widths, own),) = pruned_by_search(run, problem).items()
    assert list(widths) == result("search")["best"]["widths"]
    assert problem.space.widths_of({name: t.shape for name, t in own.state.items()}) == list(widths)
    assert own.score.loss == pytest.approx(result("search")["best"]["loss"])
    assert not list((RUN / "search").glob("pruned-*"))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-4] + b"\0\0\0\0")
        with pytest.raises(ArtifactError, match="run `bcnet search` again"):
            pruned_by_search(run, problem)
    finally:
        path.write_bytes(content)


def test_what_a_killed_search_had_pruned_is_not_pruned_again(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = trained_network(Run.named("default"), problem)
    assert network is not None
    latency = problem.table.latency_model()
    full = float(latency(problem.space.original()))

    def limits(share: float) -> Limits:
        return Limits(single_sided(problem.space), latency, share * full)

    def networks(table: str) -> PrunedNetworks:
        method = METHODS["group-fisher"]
        return PrunedNetworks(method, problem, network, tmp_path, {"table": table})

    first = networks("a").within(limits(0.7))
    assert float(latency(first.widths)) <= 0.7 * full
    assert not networks("b").found
    with monkeypatch.context() as patch:
        patch.setattr(group_fisher, "prune_by_group_fisher", lambda *_: pytest.fail("pruned again"))
        again = networks("a")
        for share in (0.7, 0.71):
            known = again.within(limits(share))
            assert known.score == first.score
            assert all(torch.equal(tensor, known.state[name]) for name, tensor in first.state.items())
        with pytest.raises(pytest.fail.Exception, match="pruned again"):
            again.within(limits(0.4))
        assert again.passes == 2
        # Another limit leads to the same widths, with other weights: those whose score is known stay.
        other = {name: tensor * 2 for name, tensor in first.state.items()}
        same = group_fisher.Pruned(first.widths, other, 2, (), ())
        patch.setattr(group_fisher, "prune_by_group_fisher", lambda *_: same)
        again.within(limits(0.9))
        for reader in (again, networks("a")):
            known = reader.found[first.widths]
            assert (known.score, reader.passes) == (first.score, 4)
            assert known.limit_ms == pytest.approx(0.9 * full)
    file, second = sorted(tmp_path.glob("pruned-*"))
    second.unlink()
    assert unseal_tensors(file)[1]["limit_ms"] == pytest.approx(0.7 * full)
    file.write_bytes(file.read_bytes()[:-1])
    assert not networks("a").found
    assert "that network is pruned again" in capsys.readouterr().err
