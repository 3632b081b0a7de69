"""A network with trained weights: no supernet, inherited weights, distillation, and a budget that is used."""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CONFIG, measure_briefly
from torch import Tensor, nn

from bcnet.cli import main
from bcnet.config import Config, DataConfig, SearchConfig, SliceConfig, load_config
from bcnet.errors import ArtifactError, BudgetError, ConfigError
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline import search_ways
from bcnet.pipeline.alternating import KeptLatencies, MeasureOf, alternating
from bcnet.pipeline.fine_tuning import settled
from bcnet.pipeline.importance_file import IMPORTANCES_FILE, kept_importances
from bcnet.pipeline.inherit import check_inheritance, ranked_sources, weights_of
from bcnet.pipeline.measured import Measured
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import ORIGINAL_FILE, original_network, trained_state
from bcnet.pipeline.results import CompareSummary, SliceSummary
from bcnet.pipeline.route import allocations, on_trained_network
from bcnet.pipeline.search_trained import Proposals, best_measured, propose_front
from bcnet.pipeline.search_trials import finalists, tried
from bcnet.pipeline.teacher import distillation, objective_for
from bcnet.pipeline.trained_scores import TrainedScores, spread
from bcnet.pipeline.tuning import Tuning
from bcnet.registry import METHODS, auto_methods
from bcnet.runs import Run
from bcnet.sealed import SealedLines
from bcnet.show import show_summary
from bcnet.show.comparison import show_comparison
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.importance import CRITERIA
from bcnet.space.supernet import NarrowNetwork, cut
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace
from bcnet.training import gradient_importance
from bcnet.training.gradient_importance import measured_importances
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.traits import PRECISIONS
from bcnet.width_search.budget import Budget
from bcnet.width_search.evolution import Candidate
from bcnet.width_search.scorer import Score, Validation, evaluate_network
from tests.docs.shown import shape, shown

RUN = Path("runs/default")
AUTO = tuple(own.name for own in auto_methods())
WEIGHTS = '[model]\nweights = "trained.pt"\n'
DATA = DataConfig(image_size=16, train_limit=120, test_limit=60)
TEACHER = """
import torch
from torch import nn

class Third(nn.Module):
    def forward(self, images):
        answers = torch.zeros(len(images), 10)
        answers[:, 2] = 40.0
        return answers

def always_the_third():
    return Third()
"""


@pytest.fixture(scope="module")
def folder(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network and its configuration, whose whole run is finished."""
    path = shutil.copytree(trained_project, tmp_path_factory.mktemp("route") / "folder")
    with contextlib.chdir(path), pytest.MonkeyPatch.context() as patch:
        measure_briefly(patch)
        Path("bcnet.toml").write_text(WEIGHTS + CONFIG, encoding="utf-8")
        assert main(["run", "--json"]) == 0
    return path


@pytest.fixture
def problem_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The problem of the folder, with other settings."""
    monkeypatch.chdir(folder)
    return lambda **settings: open_problem(load_config(None, settings))


def result(stage: str, file: str = "result.json") -> Any:
    return json.loads((RUN / stage / file).read_text(encoding="utf-8"))


def test_no_supernet_is_trained_and_the_original_is_kept_as_it_was_given(
    problem_of: Callable[..., Any],
) -> None:
    problem = problem_of()
    assert not (RUN / "train/supernet.safetensors").exists()
    own = torch.load("trained.pt")
    kept = trained_state(Run.named("default"), problem)
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[name], own[name]) for name in own)


def test_the_delivered_network_is_a_verified_one_that_fits_the_measured_share(
    problem_of: Callable[..., Any],
) -> None:
    found, verified = result("search"), result("export", "verify.json")
    assert found["method"] in AUTO
    assert found["methods"] == list(AUTO)
    assert verified["verified"]
    assert found["budget"]["share"] == 0.75
    assert verified["budget"]["ms"] == pytest.approx(0.75 * verified["full"]["median_ms"])
    assert found["best"]["measured"]["median_ms"] <= found["budget"]["ms"]
    problem = problem_of()
    original = original_network(Run.named("default"), problem)
    assert original is not None
    given = evaluate_network(original, problem.data, problem.data.test).accuracy
    assert verified["original"]["accuracy"] == pytest.approx(given, abs=1e-6)


def test_the_losses_of_single_widths_are_kept_and_explain_what_was_found(
    problem_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    losses, space = result("search", "losses.json"), problem_of().space
    assert {group: sorted(map(int, own)) for group, own in losses.items()} == {
        group.name: sorted(group.choices) for group in space.groups
    }
    assert all(
        own[str(group.channels)] == 0 for own, group in zip(losses.values(), space.groups, strict=True)
    )
    capsys.readouterr()
    assert main(["inspect", "--run", "default", "--json"]) == 0
    reasons = json.loads(capsys.readouterr().out)["reasons"]
    assert [own["width"] for own in reasons] == result("slice")["widths"]
    for own in reasons:
        known = losses[own["group"]]
        if own["narrower"] is not None:
            assert own["loses"] == pytest.approx(known[str(own["narrower"])] - known[str(own["width"])])


def test_the_small_network_inherits_from_the_original_and_learns_from_it(
    problem_of: Callable[..., Any],
) -> None:
    sliced = result("slice")
    assert sliced["inherited"].startswith("the original's channels by ")
    assert sliced["distilled"]
    assert sliced["supernet"] is None


def test_a_slice_shows_the_original_and_the_points_lost(
    problem_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    problem, sliced = problem_of(), result("slice")
    original = original_network(Run.named("default"), problem)
    assert original is not None
    given = evaluate_network(original, problem.data, problem.data.test).accuracy
    assert sliced["original"] == {
        "accuracy": pytest.approx(given, abs=1e-6),
        "state": "given",
        "accuracy_lost": pytest.approx(given - sliced["test_accuracy_after"], abs=2e-6),
    }
    show_summary(SliceSummary.model_validate_json(json.dumps(sliced)))
    (line,) = (own for own in capsys.readouterr().out.splitlines() if own.startswith("original "))
    assert line.startswith(f"original   {given:.2%} as it was given: ")


@pytest.mark.parametrize("by_group", [False, True])
def test_a_criterion_for_each_group_is_tried_where_that_is_set(
    problem_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, by_group: bool
) -> None:
    problem = problem_of(slice={"inherit_by_group": by_group})
    _, trained = weights_of(Run.named("default"), problem)
    assert trained is not None
    losses, scored = trained.original.losses, list[NarrowNetwork]()

    def counted(network: NarrowNetwork) -> Tensor:
        scored.append(network)
        return losses(network)

    monkeypatch.setattr(trained.original, "losses", counted)
    by = Validation(problem.data, 64, problem.task)
    ranked_sources((), problem.space.uniform(0.6), trained, by)
    assert (len(scored) > len(problem.space.groups)) is by_group


def test_a_default_added_later_leaves_finished_networks_valid() -> None:
    assert "inherit_by_group" not in SliceConfig().decisive()
    assert SliceConfig(inherit_by_group=True).decisive("epochs")["inherit_by_group"] is True


def test_a_criterion_for_each_group_is_refused_beside_one_for_all() -> None:
    with pytest.raises(ValueError, match='it needs inherit = "auto"'):
        SliceConfig(inherit="l1", inherit_by_group=True)


def test_the_comparison_shows_the_original_and_a_uniform_network_that_inherits_as_well(
    problem_of: Callable[..., Any],
) -> None:
    rows = {row["name"]: row for row in result("compare")["networks"]}
    assert list(rows) == ["original", "uniform (inherited)", "found (inherited)"]
    assert rows["original"]["passes"] is None
    assert rows["found (inherited)"]["passes"] == rows["uniform (inherited)"]["passes"] == 1


def test_a_finished_run_is_done_already(
    problem_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run"]) == 0
    out, err = capsys.readouterr()
    assert err.count("already done") == 6
    assert [line for line in shape(out) if line.startswith("original ")] == ["original # # # # # #"]


def test_a_comparison_is_printed_as_the_quickstart_shows_it(
    problem_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"found": "found (inherited)", "uniform": "uniform (inherited)"}
    # What depends on this run's accuracies and latencies is as on the page: a clear difference, no notes.
    clear = {**names, "difference": 0.0111, "low": 0.0046, "high": 0.0177}
    changed = {"difference": clear, "not_separable": [], "notes": [], "passes": 3, "better": None}
    show_comparison(CompareSummary.model_validate_json(json.dumps({**result("compare"), **changed})))
    page = shown("docs/getting-started/quickstart.md", "network ")
    assert shape(capsys.readouterr().out) == shape(page)


@pytest.mark.parametrize(
    ("search", "trained", "methods"),
    [
        ({}, True, AUTO),
        ({"method": "evolution"}, False, ()),
        ({"method": "latency-greedy"}, True, ("latency-greedy",)),
        ({"pareto": True}, True, AUTO),
        ({"min_accuracy": 0.5, "latency": None}, True, ()),
    ],
)
def test_the_route_follows_from_the_weights_the_method_and_what_is_wanted(
    problem_of: Callable[..., Any], search: dict[str, Any], trained: bool, methods: tuple[str, ...]
) -> None:
    problem = problem_of(search=search)
    assert on_trained_network(problem) is trained
    assert tuple(own.name for own in allocations(problem)) == methods


def test_a_bound_without_a_latency_is_for_an_evolution() -> None:
    assert SearchConfig(max_macs=10**7).beyond_a_budget
    assert not SearchConfig(max_macs=10**7, latency_ms=1.0).beyond_a_budget
    assert not SearchConfig().beyond_a_budget
    with pytest.raises(ValueError, match="finds one network within a latency"):
        SearchConfig(method="latency-milp", pareto=True)


def test_without_weights_a_supernet_is_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = Config(data=DATA)
    assert not on_trained_network(open_problem(config))
    by_group = config.model_copy(update={"slice": SliceConfig(inherit_by_group=True)})
    with pytest.raises(ConfigError, match="inherit_by_group needs a trained network"):
        check_inheritance(open_problem(by_group))
    assert distillation(open_problem(config), None) is None


def test_what_is_not_there_is_refused_in_one_line(problem_of: Callable[..., Any]) -> None:
    run = Run.named("default")
    with pytest.raises(ConfigError, match='"supernet", but none is trained here'):
        weights_of(run, problem_of(slice={"inherit": "supernet"}))
    with pytest.raises(ConfigError, match=r"unknown slice\.teacher 'someone'"):
        distillation(problem_of(slice={"teacher": "someone"}), None)
    with pytest.raises(ConfigError, match="its weights are not trained: set"):
        distillation(problem_of(slice={"teacher": "original"}), None)
    with pytest.raises(ConfigError, match="but none is trained here"):
        check_inheritance(problem_of(slice={"inherit": "supernet"}))
    with pytest.raises(ConfigError, match=r"slice\.teacher: .*own:missing"):
        distillation(problem_of(slice={"teacher": "own:missing"}), None)
    with pytest.raises(ConfigError, match="must return a network"):
        distillation(problem_of(slice={"teacher": "builtins:dict"}), None)


def test_an_edited_original_is_refused(problem_of: Callable[..., Any]) -> None:
    path, problem = RUN / "train" / ORIGINAL_FILE, problem_of()
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-4] + b"\0\0\0\0")
        with pytest.raises(ArtifactError, match="run `bcnet train` again"):
            trained_state(Run.named("default"), problem)
    finally:
        path.write_bytes(content)


def test_scores_of_a_stopped_search_are_not_computed_again(
    problem_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, run = problem_of(), Run.named("default")
    tensors = trained_state(run, problem)
    first = TrainedScores(problem, tensors, tmp_path / "scores.jsonl", {})
    widths = problem.space.smallest()
    expected = first(widths)
    again = TrainedScores(problem, tensors, tmp_path / "scores.jsonl", {})
    monkeypatch.setattr(again, "_scorer", lambda *_: pytest.fail("scored again"))
    assert again(widths) == expected


def test_importances_are_measured_once_and_read_by_later_stages(
    problem_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_briefly(monkeypatch)  # as they were in the folder
    problem, run = problem_of(), Run.named("default")
    network = original_network(run, problem)
    assert network is not None
    recipe = Recipe.of(problem.config, 1, 1.0)
    expected = measured_importances(network, problem.space, problem.data, recipe, CRITERIA)
    monkeypatch.setattr(gradient_importance, "gate_importances", lambda *_: pytest.fail("measured again"))
    _, trained = weights_of(run, problem)
    assert trained is not None
    known = trained.importances, Tuning.of(run, problem).trained.importances  # type: ignore[union-attr]
    for by, own in expected.items():
        assert all(torch.equal(a, b) for found in known for a, b in zip(found[by], own, strict=True))


def test_importances_that_were_edited_or_are_of_other_settings_are_not_read(
    problem_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = Run.named("default"), RUN / "search" / IMPORTANCES_FILE
    assert kept_importances(run, problem_of()) is not None
    assert kept_importances(run, problem_of(train={"label_smoothing": 0.2})) is None
    assert "measured again" not in capsys.readouterr().err
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-4] + b"\0\0\0\0")
        assert kept_importances(run, problem_of()) is None
    finally:
        path.write_bytes(content)
    assert "importances are measured again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_point_of_the_front_of_a_trained_network_is_sliced(
    problem_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem_of()
    shutil.copytree(Path.cwd(), tmp_path / "copy")
    with contextlib.chdir(tmp_path / "copy"):
        assert main(["slice", "--latency", "75%"]) == 0
        assert result("slice")["inherited"].startswith("the original's channels by ")


@pytest.mark.slow
def test_the_front_of_a_trained_network_is_searched_without_a_supernet(
    problem_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem_of()
    shutil.copytree(Path.cwd(), tmp_path / "copy")
    with contextlib.chdir(tmp_path / "copy"):
        assert main(["search", "--pareto"]) == 0
        found, front = result("search"), result("search", "pareto.json")
        assert found["method"] in AUTO
        assert found["criterion"] in CRITERIA
        assert found["searched_to_ms"] is None
        assert found["best"]["measured"]["median_ms"] <= found["budget"]["ms"]
        latencies = [point["predicted_ms"] for point in front]
        assert latencies == sorted(latencies)
        space = problem_of().space
        scored = {tuple(own["widths"]) for own in result("search", "history.json")}
        assert {space.smallest(), space.largest()} <= scored
        assert front[0]["widths"] == list(space.smallest())
        budget = 3 * latencies[0]  # the machine may be busy when it is measured
        assert main(["slice", "--latency-ms", str(budget), "--epochs", "0"]) == 0
        assert result("slice")["predicted_ms"] <= budget


def test_network_adjustment_as_published_finds_a_network_within_the_budget(
    problem_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem_of()
    shutil.copytree(Path.cwd(), tmp_path / "copy")
    with contextlib.chdir(tmp_path / "copy"):
        own = '[search]\nmethod = "network-adjustment"\nadjust_by = "macs"\ntrials = 0'
        Path("bcnet.toml").write_text((WEIGHTS + CONFIG).replace("[search]", own), encoding="utf-8")
        assert main(["search"]) == 0
        found = result("search")
    assert found["method"] == "network-adjustment"
    assert found["best"]["measured"]["median_ms"] <= found["budget"]["ms"]


def test_latencies_of_an_interrupted_search_are_kept_and_those_of_one_that_found_no_winner_are_not(
    problem_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem_of()
    shutil.copytree(Path.cwd(), tmp_path / "copy")
    called, last = [], 5

    def equally_slow(widths: Widths) -> LatencyStat:
        if len(called) == last:
            raise KeyboardInterrupt
        called.append(widths)
        return stat(50.0)

    monkeypatch.setattr(search_ways, "measuring", lambda _: equally_slow)
    monkeypatch.chdir(tmp_path / "copy")
    own = '[search]\nmethod = "uniform"\ntrials = 0'
    Path("bcnet.toml").write_text((WEIGHTS + CONFIG).replace("[search]", own), encoding="utf-8")
    assert main(["search"]) == 130
    assert (RUN / "search/latencies.jsonl").exists()
    last = -1
    assert main(["search"]) == 1
    assert not (RUN / "search/latencies.jsonl").exists()
    assert (RUN / "search/scores.jsonl").exists()


def test_the_whole_trained_network_keeps_its_own_loss_when_it_is_scored(
    problem_of: Callable[..., Any], tmp_path: Path
) -> None:
    problem = problem_of()
    tensors = trained_state(Run.named("default"), problem)
    scores = TrainedScores(problem, tensors, tmp_path / "scores.jsonl", {})
    # Statistics of short trainings lag behind the weights: making them again can only help here.
    own = evaluate_network(problem.model, problem.data, problem.data.val)
    assert scores(problem.space.largest()).loss <= own.loss * 1.05


@pytest.mark.parametrize(("rate", "warned"), [("learning_rate = 2.0", True), ("", False)])
def test_a_supernet_that_loses_what_the_given_network_knew_is_reported(
    problem_of: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rate: str,
    warned: bool,
) -> None:
    """Without a rate of its own, a supernet of trained weights is trained at a low one."""
    problem_of()
    weights = Path("trained.pt").resolve()
    text = (WEIGHTS + CONFIG).replace("[search]", f'{rate}\n[search]\nmethod = "evolution"')
    with contextlib.chdir(tmp_path):
        Path("bcnet.toml").write_text(text, encoding="utf-8")
        shutil.copy(weights, "trained.pt")
        assert main(["train"]) == 0
    shown = capsys.readouterr().err
    assert ("loses what was learned; lower train.learning_rate" in shown) is warned


def test_lagging_statistics_of_batch_norm_are_made_again_where_that_is_better(
    problem_of: Callable[..., Any],
) -> None:
    problem = problem_of()
    model, space = problem.model, problem.space
    lagging = with_state(model, space, tensors_of(model))
    for module in lagging.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    recipe = Recipe.of(problem.config, 1, 0.1)
    better = settled(lagging, lagging, problem.data, 64, recipe)
    before, after = (evaluate_network(own, problem.data, problem.data.val) for own in (lagging, better))
    assert after.loss < before.loss
    kept = settled(better, better, problem.data, 64, recipe)
    assert evaluate_network(kept, problem.data, problem.data.val).loss <= after.loss


def test_of_many_choices_few_are_scored_with_the_first_and_the_last() -> None:
    assert spread((8, 16, 24), 5) == (8, 16, 24)
    assert spread(tuple(range(8, 72, 8)), 5) == (8, 24, 40, 48, 64)


class Proposing(Proposals):
    """Widths of one group, each at its own latency by the table; the narrower, the higher the loss."""

    def propose(self, limit_ms: float, number: int) -> list[Candidate]:
        fitting = [w for w in range(1, 11) if w <= limit_ms][-3:]
        if not fitting:
            raise BudgetError("none")
        self.origin |= {Widths((w,)): "latency-milp" for w in fitting[1:]}
        self.origin |= {Widths((w,)): "uniform" for w in fitting[:1]}
        return [Candidate(Widths((w,)), float(w), Score(0.5, -1.0 / w), number) for w in fitting]


@pytest.fixture
def proposals() -> Proposals:
    space = WidthSpace("unilateral", (WidthGroup("g", 10, tuple(range(1, 11)), ()),), {}, {}, (), (), (), ())
    problem = SimpleNamespace(config=Config())
    scores = SimpleNamespace(
        space=space, importances={}, problem=problem, kept=lambda keys, score: map(score, keys)
    )
    return Proposing((METHODS["uniform"],), scores, lambda widths: float(widths[0]), ())  # type: ignore[arg-type]


def beginning(losses: Mapping[Widths, float]) -> Any:
    """What networks begin with: weights of these losses on the validation images."""

    class Beginning:
        pruned = False
        problem = SimpleNamespace(profile=SimpleNamespace(number_format=PRECISIONS["fp32"]))

        def begins(self, widths: Widths) -> Any:
            return SimpleNamespace(score=Score(0.5, -losses[widths]))

    return Beginning()


def stat(ms: float) -> LatencyStat:
    return LatencyStat(ms, ms, 0.0, 1)


def test_a_front_is_of_networks_from_the_fastest_to_the_whole_one_by_methods_that_take_seconds(
    proposals: Proposals, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[str, ...], float]] = []

    def propose(own: Proposals, limit_ms: float, number: int) -> None:
        asked.append((tuple(method.name for method in own.methods), limit_ms))

    monkeypatch.setattr(Proposing, "propose", propose)
    propose_front(replace(proposals, methods=auto_methods()))
    assert {methods for methods, _ in asked} == {("uniform", "latency-greedy", "latency-milp")}
    assert [limit_ms for _, limit_ms in asked] == pytest.approx([10 ** (step / 7) for step in range(8)])
    assert asked[0][1] >= 1.0  # rounded, it must not exclude the fastest
    assert asked[-1][1] >= 10.0


@pytest.mark.parametrize(("factor", "best"), [(1.0, 5), (1.25, 5), (0.8, 5)])
def test_a_share_is_of_the_original_as_measured_however_slow_the_machine_is(
    proposals: Proposals, factor: float, best: int
) -> None:
    target = Budget(5.0, 0.5, 0.0)
    found = best_measured(proposals, target, Widths((10,)), lambda widths: stat(factor * widths[0]), 3)
    assert found.inside[0].candidate.widths == (best,)
    assert found.budget_ms == pytest.approx(5 * factor)


def test_a_winner_below_the_limit_is_followed_by_the_next_larger_candidates(proposals: Proposals) -> None:
    """By the table, 4 is the largest that fits, and takes what that says; the next larger one takes less."""
    times = {Widths((w,)): float(w) for w in range(1, 11)} | {Widths((5,)): 4.8}
    found = best_measured(proposals, Budget(4.9), Widths((10,)), lambda w: stat(times[w]), 1)
    assert found.inside[0].candidate.widths == (5,)
    assert found.inside[0].used == pytest.approx(4.8 / 4.9)


def test_a_search_that_is_stopped_while_it_measures_measures_no_complete_round_again(
    proposals: Proposals, tmp_path: Path
) -> None:
    """Two batches of networks are measured, since all take half the time that the table says."""
    path, called = tmp_path / "latencies.jsonl", []

    def half(widths: Widths, last: int | None = None) -> LatencyStat:
        if len(called) == last:
            raise KeyboardInterrupt
        called.append(widths)
        return stat(widths[0] / 2)

    def found(measure_of: MeasureOf) -> Measured:
        return best_measured(proposals, Budget(4.0), Widths((10,)), measure_of, 3)

    whole = found(half)
    total = len(called)
    called.clear()
    with pytest.raises(KeyboardInterrupt):
        found(KeptLatencies(lambda widths: half(widths, 15), path, {}))
    complete = sum(len(networks) for networks, _ in SealedLines(path, {}).values)
    assert complete == 12  # the rounds of the first batch
    assert found(KeptLatencies(half, path, {})) == whole
    assert len(called) == total + 15 - complete
    called.clear()
    assert found(KeptLatencies(half, path, {})) == whole
    assert called == []
    assert found(KeptLatencies(half, path, {"device": "other"})) == whole
    assert len(called) == total


def test_where_the_table_is_too_high_larger_networks_follow_until_the_budget_is_used(
    proposals: Proposals,
) -> None:
    """All networks take half the time that the table says, so that twice as wide ones fit."""
    target = Budget(4.0)
    found = best_measured(proposals, target, Widths((10,)), lambda widths: stat(widths[0] / 2), 3)
    assert found.inside[0].candidate.widths == (8,)
    assert found.inside[0].used == pytest.approx(1.0)
    assert len(found.timed) > 3
    assert "+100.0% off" in found.note


def test_the_uniform_network_is_measured_and_tried_whatever_its_loss_before_fine_tuning(
    proposals: Proposals,
) -> None:
    found = best_measured(proposals, Budget(5.0), Widths((10,)), lambda w: stat(w[0]), 1)
    assert {own.candidate.widths for own in found.timed} == {(5,), (3,)}
    begins = {Widths((5,)): 0.2, Widths((3,)): 0.3}
    assert [own.candidate.widths for own in finalists(proposals, found, 1, beginning(begins))] == [(5,), (3,)]


def test_candidates_are_tried_that_are_best_when_their_channels_are_removed_in_rounds(
    proposals: Proposals,
) -> None:
    """Cut at once, the widest network loses least."""
    found = best_measured(proposals, Budget(5.0), Widths((10,)), lambda w: stat(w[0]), 3)
    assert [own.candidate.widths for own in found.inside] == [(5,), (4,), (3,)]
    begins = {Widths((5,)): 0.3, Widths((4,)): 0.1, Widths((3,)): 0.2}
    assert [own.candidate.widths for own in finalists(proposals, found, 2, beginning(begins))] == [(4,), (3,)]


def test_the_lowest_loss_after_a_brief_fine_tuning_wins(
    proposals: Proposals, capfd: pytest.CaptureFixture[str]
) -> None:
    found = best_measured(proposals, Budget(5.0), Widths((10,)), lambda w: stat(w[0]), 3)
    losses = {Widths((5,)): 0.4, Widths((4,)): 0.2, Widths((3,)): 0.3}
    proposals.scores.kept = lambda keys, _: (Score(0.5, -losses[widths]) for *_, widths in keys)  # type: ignore
    assert tried(proposals, found, beginning({})).candidate.widths == (4,)
    assert (
        "validation loss after 1 epoch of fine-tuning: latency-milp (40.0% of the latency, 0 parameters) "
        "0.2000, uniform (30.0% of the latency, 0 parameters) 0.3000, latency-milp (50.0% of the latency, 0"
    ) in capfd.readouterr().err


@pytest.mark.parametrize("target", [Budget(20.0), Budget(10.0, 1.0, 0.05), Budget(15.0, 1.5, 0.05)])
def test_where_the_original_is_within_the_budget_nothing_is_removed(
    proposals: Proposals, target: Budget
) -> None:
    own = {"space": proposals.scores.space, "__call__": lambda _, widths: Score(0.9, -0.1)}
    proposals.scores = type("Scores", (), own)()
    found = best_measured(proposals, target, Widths((10,)), lambda widths: stat(widths[0]), 3)
    assert [own.candidate.widths for own in found.inside] == [(10,)]
    assert "nothing is removed" in found.note


def test_a_network_that_fine_tuning_made_worse_stays_as_it_was(
    problem_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = problem_of()
    begun = with_state(problem.model, problem.space, tensors_of(problem.model)).eval()
    ruined = with_state(problem.model, problem.space, {n: t * 0 for n, t in tensors_of(begun).items()})
    recipe = Recipe.of(problem.config, 1, 0.5)
    assert settled(ruined, begun, problem.data, 64, recipe) is begun
    assert "made the network worse" in capsys.readouterr().err
    assert settled(begun, ruined, problem.data, 64, recipe) is not ruined


def test_a_teacher_is_a_copy_so_that_the_network_itself_can_still_be_trained(
    problem_of: Callable[..., Any],
) -> None:
    problem = problem_of()
    network = with_state(problem.model, problem.space, tensors_of(problem.model)).train()
    small = cut(problem.model, problem.space, problem.space.smallest())
    assert objective_for(problem, network, small, Recipe.of(problem.config, 1, 0.1)) is not None
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_teacher_of_ones_own_decides_what_a_network_learns(problem_of: Callable[..., Any]) -> None:
    """The teacher sees the third class everywhere: so does its student, whatever the labels say."""
    Path("own_teacher.py").write_text(TEACHER, encoding="utf-8")
    problem = problem_of(slice={"teacher": "own_teacher:always_the_third", "teacher_weight": 1.0})
    student = cut(problem.fresh_model(), problem.space, problem.space.smallest())
    recipe = Recipe.of(problem.config, 8, 0.1)
    objective = objective_for(problem, None, student, recipe)
    assert objective is not None
    fit_network(student, problem.data, recipe, "training", objective=objective)
    student.eval()
    with torch.no_grad():
        answers = student(problem.data.normalise(problem.data.test.images)).argmax(1)
    assert answers.tolist() == [2] * 60


def test_networks_are_measured_until_the_two_fastest_of_each_agree(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The original seems four times as slow while the machine is busy with other work."""
    times = iter([8.0, 4.0, 2.02, 2.0, 1.0])
    found = alternating(lambda widths: stat(next(times)), [Widths((10,))])
    assert found[Widths((10,))].median_ms == 2.0
    never = iter(2.0**n for n in range(9, 0, -1))
    alternating(lambda widths: stat(next(never)), [Widths((10,))])
    assert "the machine is busy: after 9 measurements" in capsys.readouterr().err


def test_where_no_candidate_fits_the_closest_is_named(proposals: Proposals) -> None:
    with pytest.raises(BudgetError, match="the closest exceeds the limit by"):
        best_measured(proposals, Budget(3.0), Widths((10,)), lambda widths: stat(50.0), 3)
