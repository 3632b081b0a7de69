"""The ways of a search: in supernets, by an evolution on the trained network, or by what methods propose.

In: what is asked for. Out: the result, and how it was found.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from bcnet.errors import BudgetError
from bcnet.latency_tables.model import LatencyModel
from bcnet.methods.uniform import allocate_uniformly
from bcnet.pipeline.alternating import KeptLatencies, MeasureOf, latencies_file, preprocessing_file
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.importance_file import importances_of
from bcnet.pipeline.original import trained_network, trained_state
from bcnet.pipeline.preprocessed import preprocessing_ms
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.pruned import PrunedNetwork, PrunedNetworks
from bcnet.pipeline.results import LOSSES
from bcnet.pipeline.route import allocations, on_trained_network
from bcnet.pipeline.search_evolved import NOT_MEASURED, SearchResult, result_of, search
from bcnet.pipeline.search_inputs import (
    budget_of,
    measured_bounds,
    measuring,
    priors_of,
    scoring,
    settings_of,
    with_margins,
)
from bcnet.pipeline.search_measured import Winner
from bcnet.pipeline.search_state import STATE, SearchState, lines_of_search
from bcnet.pipeline.search_trained import (
    Proposals,
    best_measured,
    propose_front,
    report_losses,
    report_winner,
)
from bcnet.pipeline.search_trials import tried
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.pipeline.tuning import Tuning
from bcnet.progress import announce
from bcnet.registry import Method
from bcnet.runs import Run, Stage, json_bytes
from bcnet.space.extract import with_state
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.shared_work import Shared
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import Bound
from bcnet.width_search.device_limit import device_limits, in_ms, with_added, with_budgets
from bcnet.width_search.evolution import Candidate, Evolution, SearchSettings
from bcnet.width_search.scorer import Score, Scorer, best_first

SCORES = "scores.jsonl"  # of networks that were scored on the trained network, while searching
Scores = Scorer | TrainedScores  # of widths, in floating point


@dataclass(frozen=True)
class Asked:
    """The request to a search; `inputs` are everything that its result depends on.

    Widths are scored in `supernets`, or in the trained network as the only one. `further` is the budget for a
    precision that is not the devices' own: in ms on each of them, since shares refer to the original's
    latency in its device's own precision.
    """

    run: Run
    problem: Problem
    inputs: Mapping[str, str]
    supernets: Sequence[Supernet]
    further: Budget | None = None

    @cached_property
    def settings(self) -> SearchSettings:
        """The configured settings, for the network alone: the time of pre-processing is subtracted.

        If nothing is measured, a share refers to the predicted latency.
        """
        found = settings_of(self.problem)
        if self.further is not None:
            own = budget_of(self.problem, self.further.target_ms, None)
            held = {one.device: one.budget for one in device_limits(self.further.bounds)}
            bounds = with_margins(self.problem, with_budgets(own.bounds, held))
            bounds = bounds if self.not_measured else self._measured(bounds)
            return replace(found, budget=replace(self.further, margin=own.margin, bounds=bounds))
        budget = found.budget
        if self.not_measured:
            return replace(found, budget=replace(budget, share=None, bounds=in_ms(budget.bounds)))
        devices = {own.profile.name: own for own in self.problem.further}
        bounds = with_added(self._measured(budget.bounds), lambda name: self._added_ms(devices[name]))
        budget = replace(budget, bounds=bounds)
        return replace(found, budget=budget.with_added(self._added_ms(self.problem)))

    def _measured(self, bounds: Sequence[Bound]) -> tuple[Bound, ...]:
        """The bounds, with functions that measure networks on further devices and save the results."""

        def kept(device: str, measure_of: MeasureOf) -> MeasureOf:
            return KeptLatencies(measure_of, self.path(latencies_file(device)), self.inputs)

        return measured_bounds(self.problem, bounds, kept)

    def _added_ms(self, problem: Problem) -> float:
        """The time that the file's pre-processing takes on a device; measured once per search."""
        if problem.preprocessing is None:
            return 0.0
        name = "" if problem is self.problem else problem.profile.name
        kept = lines_of_search(self.stage.path(preprocessing_file(name)), self.inputs)
        if not kept.values:
            kept.append(preprocessing_ms(problem))
        return float(kept.values[-1])

    @property
    def unfinished(self) -> list[Path]:
        """The files of measurements on all devices, from which a stopped search continues."""
        names = ["", *(own.profile.name for own in self.problem.further)]
        return [self.path(file(name)) for name in names for file in (latencies_file, preprocessing_file)]

    @property
    def budget(self) -> Budget:
        """What the network has to keep."""
        return self.settings.budget

    @cached_property
    def latency(self) -> LatencyModel:
        """The table's predictions."""
        return self.problem.table.latency_model()

    @cached_property
    def not_measured(self) -> str:
        """Why no network is measured on the device; empty where they are."""
        return self.problem.table.not_measured(self.latency) or ""

    @cached_property
    def measure_of(self) -> MeasureOf | None:
        """How whole networks are measured, where they are; rounds are kept until the search is finished."""
        if self.not_measured:
            return None
        return KeptLatencies(measuring(self.problem), self.path(latencies_file()), self.inputs)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that propose networks; none: an evolution finds them."""
        return allocations(self.problem)

    @property
    def trains(self) -> Method | None:
        """The one among them that trains, which is then the only one."""
        return next((own for own in self.methods if own.trains), None)

    def path(self, file: str) -> Path:
        """A file in the search's folder, whose name has the precision if that is not the device's own."""
        path = self.stage.path(file)
        return path.with_stem(f"{path.stem}-{self.problem.profile.precision}") if self.further else path

    @property
    def stage(self) -> Stage:
        """The search's."""
        return self.run.stage("search")


@dataclass(frozen=True)
class Found:
    """A result, and how it was found.

    `method` proposed the winner; channels are ordered by `criterion`, unless the winner has weights of its
    own: these are in `files` and took `passes`, or `passes_of_all` with the networks of all rounds. `pruned`
    are all networks with weights of their own. `obsolete` files are those of an unfinished search.
    """

    result: SearchResult
    obsolete: tuple[Path, ...]
    method: str | None = None
    criterion: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    passes: int = 0
    passes_of_all: int = 0
    pruned: Mapping[Widths, PrunedNetwork] = field(default_factory=dict)


def supernets_for(run: Run, problem: Problem) -> Sequence[Supernet]:
    """What widths are scored in. Raises ArtifactError where tensors are missing or were changed."""
    if on_trained_network(problem):
        return (Supernet(problem.model, problem.space.without_extra(), trained_state(run, problem)),)
    return trained_supernets(run, problem)


def scorer_of_run(run: Run, problem: Problem) -> Scorer:
    """How widths are scored in a run's supernets."""
    return scoring(problem, trained_supernets(run, problem))


def scores_for(asked: Asked) -> Scores:
    """How widths are scored, which is the same for all precisions."""
    if not on_trained_network(asked.problem):
        return scoring(asked.problem, asked.supernets)
    whole = asked.supernets[0]
    network = with_state(whole.model, whole.space, whole.state)
    importances = importances_of(asked.run, asked.problem, network)
    scores = TrainedScores(asked.problem, whole.state, asked.path(SCORES), asked.inputs, importances)
    if asked.trains is None:  # which scores its own weights
        scores.choose_criterion(_typical(asked, scores))
    return scores


def find(asked: Asked, scores: Scores) -> Found:
    """The best widths, by the kind of search that suits the problem. Continues a stopped search."""
    if isinstance(scores, Scorer):
        result, files = _evolved(asked, Shared(scorer_of_run, Scorer.__call__, scores), priors=True)
        return Found(result, files)
    if asked.methods:
        return _proposed(asked, scores)
    result, files = _evolved(asked, scores, priors=False)
    return Found(result, (asked.stage.path(SCORES), *files), criterion=scores.criterion)


def _evolved(
    asked: Asked, score_of: Callable[[Widths], Score], *, priors: bool
) -> tuple[SearchResult, tuple[Path, ...]]:
    """The evolution's result, and the files of its state; priors are of supernets."""
    problem, settings = asked.problem, asked.settings
    state = SearchState(asked.stage, asked.inputs, problem.space, asked.path(STATE))
    announce("searching", _seconds(problem, score_of, settings))
    result = search(
        problem.space,
        asked.latency,
        score_of,
        settings,
        priors=priors_of(problem, asked.run, settings) if priors else (),
        measure_of=asked.measure_of,
        resume=state.candidates,
        on_generation=state.keep,
    )
    return result, tuple(state.files)


def _seconds(problem: Problem, score_of: Callable[[Widths], Score], settings: SearchSettings) -> float:
    start = time.perf_counter()
    score_of(problem.space.uniform(0.6))
    return (time.perf_counter() - start) * settings.population * (settings.generations + 1)


def _typical(asked: Asked, scores: TrainedScores) -> Widths:
    """Widths as those that are looked for: uniform ones of the budget, or each group's middle choice."""
    try:
        if asked.budget.target_ms is not None:
            given = asked.latency, asked.budget.target_ms, asked.budget.bounds
            return allocate_uniformly(scores.space, (), *given)
    except BudgetError:
        pass  # no uniform network fits
    return Widths(group.choices[len(group.choices) // 2] for group in scores.space.groups)


def _proposed(asked: Asked, scores: TrainedScores) -> Found:
    """The best of the networks that the configured methods propose, measured beside the original.

    The best few are fine-tuned briefly before one wins: losses of cut networks order them only roughly.
    Where a front is wanted, networks of all latencies are scored, too.
    """
    settings, problem, search = asked.settings, asked.problem, asked.problem.config.search
    target_ms = asked.budget.target_ms
    assert target_ms is not None
    pruned, further_ms = None, tuple[float, ...]()
    if asked.trains and (network := trained_network(asked.run, problem)) is not None:
        # The same limit in ms allows other networks in another precision.
        precision = {"precision": problem.profile.precision} if asked.further else {}
        inputs = {**asked.inputs, **precision}
        pruned = PrunedNetworks(asked.trains, problem, network, asked.stage.folder, inputs)
    proposals = Proposals(asked.methods, scores, asked.latency, asked.budget.bounds, pruned)
    if asked.measure_of is None:
        found = proposals.propose(target_ms, 0)
        best, budget, note = min(found, key=lambda c: best_first(c.score)), target_ms, NOT_MEASURED
        top: tuple[Candidate, ...] = (best,)
    else:
        original = scores.space.original()
        measured = best_measured(proposals, asked.budget, original, asked.measure_of, settings.measured)
        winner = measured.inside[0]
        report_losses(proposals)
        if search.trials and not problem.config.slice.from_scratch:
            own = proposals.pruned.found if proposals.pruned else {}
            tuning = Tuning.of(asked.run, problem, scores.importances, own)
            winner = tried(proposals, measured, tuning)
        report_winner(proposals, winner)
        top = tuple(own.candidate for own in measured.timed)
        best, budget, note = winner.candidate, measured.budget_ms, measured.note
        further_ms = tuple(own.ms for own in measured.budgets[1:])
    if settings.pareto:
        propose_front(proposals)
    candidates = tuple(proposals.found.values())
    evolution = Evolution(scores.space, asked.latency, scores, replace(settings, smooth=False))
    result = result_of(settings, Winner(best, top, candidates, budget, note, further_ms))
    result = replace(result, pareto=evolution.front(candidates))
    method, files = proposals.origin[best.widths], (asked.stage.path(SCORES),)
    losses = scores.measured_losses
    kept = {LOSSES: json_bytes(losses)} if losses else {}
    if pruned is None:
        return Found(result, files, method, scores.criterion, kept)
    own_weights = pruned.found[best.widths]
    kept |= {f"{method}.safetensors": own_weights.sealed(pruned.inputs)}
    passes = own_weights.passes, pruned.passes
    return Found(result, files, method, None, kept, *passes, dict(pruned.found))
