"""The comparison that ends `bcnet run`: is the searched network better than those made without a search?

In: the verified export. Out: one table of the network as it was given (where it came with trained weights),
the full network trained again, a uniformly narrowed one that is as fast, the searched one, and its widths
trained from scratch: what the search found, without what the supernet's training cost. All but the given one
get as many passes over the training images as went into the searched one's weights (each path of a
supernet's step counts), with the same settings, from fresh weights. All are exported and timed alternately.

`compare/`: result.json, and while training a checkpoint for each network, from which a killed run continues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bcnet.pipeline.accuracy import accuracy_difference, accuracy_interval, file_answers
from bcnet.pipeline.answers import Correct
from bcnet.pipeline.compare_further import (
    alternately,
    exported_further,
    file_at,
    not_timed_on,
    timed_further,
)
from bcnet.pipeline.compare_networks import (
    FULL,
    INHERITED,
    ORIGINAL,
    SCRATCH,
    SEARCHED,
    UNIFORM,
    Given,
    networks_of,
)
from bcnet.pipeline.compare_training import FromScratch, Kept
from bcnet.pipeline.fine_tuning import AS_ASKED, FineTuned, Outcome
from bcnet.pipeline.finished import as_searched, sliced
from bcnet.pipeline.original import original_network, state_of_original
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import disagreement, not_separable
from bcnet.pipeline.results import (
    AccuracyDifference,
    ComparedNetwork,
    CompareSummary,
    ExportSummary,
    SliceSummary,
)
from bcnet.pipeline.teacher import teacher_digest
from bcnet.pipeline.training_precision import kept_precision
from bcnet.pipeline.tuning import Tuning, inherits, passes_of
from bcnet.pipeline.verify import check_file
from bcnet.progress import working
from bcnet.runs import Run, alone_in, digest, json_bytes
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.distributed import connected
from bcnet.training.recipe import Recipe, fine_tuning_digest, metric_digest
from bcnet.training.shared_work import Shared, each
from bcnet.width_search.budget import Budget
from bcnet.width_search.latency_budget import LatencyBudget


@dataclass(frozen=True)
class Comparison:
    """The networks, which of them cannot be separated by latency, and what the reader should know.

    `difference` is that of the searched and the uniform network's accuracies.
    """

    entries: tuple[ComparedNetwork, ...]
    not_separable: tuple[tuple[str, str], ...]
    difference: AccuracyDifference | None
    notes: tuple[str, ...]


def compare(
    problem: Problem,
    searched: bytes,
    widths: Widths,
    recipe: Recipe,
    given: Given | None = None,
    kept: Kept | None = None,
) -> Comparison:
    """Train, export and time the other networks beside the searched one's ONNX file.

    Where small networks inherit from the original, a uniform one does so, too, and is trained alike.
    Elsewhere the others begin from scratch, also the found widths, unless the searched network did. With
    `kept`, a comparison that was killed continues.
    """
    space, given = problem.space, given or Given()
    found = SCRATCH if problem.config.slice.from_scratch else SEARCHED
    wanted, notes = networks_of(problem, widths, given, kept)
    others = {name: own for name, own in wanted.items() if name not in (found, ORIGINAL, INHERITED)}
    networks = _trained(others, FromScratch(problem, recipe, kept, given.integers))
    outcomes = {found: given.outcome}
    if given.original is not None:
        networks[ORIGINAL] = given.original
    if given.tune and INHERITED in wanted:
        uniform = given.tune(wanted[INHERITED], kept.checkpoint(INHERITED) if kept else None)
        networks[INHERITED], outcomes[INHERITED] = uniform.network, uniform.outcome
    notes += [note for name, own in outcomes.items() if (note := own.note(name))]
    own = given.own or problem
    at = {name: own if name in (ORIGINAL, FULL) else problem for name in wanted}
    in_own = ", ".join(name for name in wanted if at[name] is not problem)
    if in_own:
        notes.append(f"at {own.profile.precision}: {in_own}; all others at {problem.profile.precision}")
    files = dict.fromkeys(wanted, searched)  # in the order of the table
    for name, network in networks.items():
        with working(f"exporting to ONNX: {name}"):
            proto = file_at(at[name], network)
        check_file(proto)
        files[name] = proto.SerializeToString()
    timed = alternately(problem.profile, files, wanted)
    further = timed_further(wanted, at, networks, found, given.further)
    entries, answered = [], dict[str, Correct]()
    for name, content in files.items():
        accuracy, correct = file_answers(problem, content)
        if correct is not None:
            answered[name] = correct
        low, high = accuracy_interval(problem, accuracy, correct) or (None, None)
        outcome = outcomes.get(name, AS_ASKED)
        discarded = outcome.discarded + outcome.integers
        entries.append(
            ComparedNetwork(
                name=name,
                widths=wanted[name],
                accuracy=round(accuracy, 6),
                accuracy_low=low,
                accuracy_high=high,
                latency=timed[name].fastest,
                rounds_ms=tuple(timed[name].medians_ms),
                noise=round(timed[name].noise, 4),
                params=space.params(wanted[name]),
                macs=space.macs(wanted[name]),
                size_bytes=len(content),
                passes=None if name == ORIGINAL else recipe.epochs + given.integers - discarded,
                discarded_passes=discarded or None,
                lower_rate=outcome.lower_rate,
                precision=None if own is problem else at[name].profile.precision,
                further=further.timed[name] or None,
            )
        )
    apart = not_separable({name: own.medians_ms for name, own in timed.items()}, wanted)
    noisy = _noisy(entries)
    notes += further.notes
    other = INHERITED if INHERITED in wanted else UNIFORM
    difference = None
    if other in answered:
        difference = accuracy_difference(problem, (found, answered[found]), (other, answered[other]))
    return Comparison(tuple(entries), apart, difference, (*notes, noisy) if noisy else tuple(notes))


def from_scratch_of_run(run: Run, problem: Problem) -> FromScratch:
    """How the networks to compare with are trained in a run."""
    integers = integer_passes(SliceSummary.read(run.stage("slice")))
    won = as_searched(run, problem)
    return FromScratch(won, recipe_of(run, problem), kept_of_run(run, problem), integers)


def integer_passes(found: SliceSummary) -> int:
    """The number of passes through integers that the found network had, kept or discarded."""
    return (found.integer_epochs or 0) + (found.discarded_integer_epochs or 0)


def kept_of_run(run: Run, problem: Problem) -> Kept:
    """What a run's comparison keeps."""
    return Kept(run.stage("compare").folder, stage_inputs(run, problem))


def _trained(networks: Mapping[str, Widths], train: FromScratch) -> dict[str, nn.Module]:
    """The networks, trained; in several processes one to each, which leaves it in its checkpoint."""
    if not networks:
        return {}
    if train.kept and min(len(networks), connected().size) > 1:
        list(each(Shared(from_scratch_of_run, FromScratch.to_its_end, train), networks.items()))
    return {name: train(name, widths) for name, widths in networks.items()}


def _noisy(entries: Sequence[ComparedNetwork]) -> str | None:
    """A line where rounds of the same network disagree, whether it occurs in one row or in several."""
    same: dict[tuple[object, ...], list[ComparedNetwork]] = {}
    for entry in entries:
        same.setdefault((entry.precision, entry.widths), []).append(entry)
    return disagreement(
        {
            " and ".join(f"'{entry.name}'" for entry in own): [ms for entry in own for ms in entry.rounds_ms]
            for own in same.values()
        }
    )


def better_from_scratch(entries: Sequence[ComparedNetwork]) -> bool:
    """Whether the searched widths are clearly more accurate when all passes are theirs: intervals apart."""
    own = {entry.name: entry for entry in entries}
    if SCRATCH not in own or SEARCHED not in own:
        return False
    low, high = own[SCRATCH].accuracy_low, own[SEARCHED].accuracy_high
    return low is not None and high is not None and low > high


def stage_inputs(run: Run, problem: Problem) -> dict[str, str]:
    """What this stage's manifest records."""
    config = problem.config
    export = run.stage("export").require({"device": problem.device_key})
    return {
        "export": export,
        "training settings": digest(
            [config.slice.decisive(), fine_tuning_digest(config), teacher_digest(problem)]
        ),
        "metric": metric_digest(config),
        "networks": digest(
            [ORIGINAL, FULL, UNIFORM, INHERITED, SEARCHED, SCRATCH, config.slice.from_scratch]
        ),
    }


def recipe_of(run: Run, problem: Problem) -> Recipe:
    """How the networks to compare with are trained."""
    passes = passes_of(run) if inherits(problem) else problem.winner_passes
    recipe = Recipe.of(problem.config, passes, problem.config.train.learning_rate)
    return kept_precision(run, problem, recipe) or recipe


def _budget_beside(entries: Sequence[ComparedNetwork], verified: ExportSummary) -> LatencyBudget | None:
    """The budget; a share of the original's latency is one of that in the same table."""
    whole = next((entry for entry in entries if entry.name in (ORIGINAL, FULL)), None)
    return verified.budget if whole is None else Budget.of(verified.budget).stated_beside(whole.latency)


@alone_in("compare")
def run(run: Run, problem: Problem) -> CompareSummary:
    """Compare and save."""
    config = problem.config
    stage, inputs = run.stage("compare"), stage_inputs(run, problem)
    recipe, kept = recipe_of(run, problem), kept_of_run(run, problem)
    widths = sliced(run, problem).widths
    own = SliceSummary.read(run.stage("slice"))
    integers = integer_passes(own)
    export = run.stage("export")
    won = as_searched(run, problem)
    tuned = Tuning.of(run, won) if inherits(problem) else None

    def tune(widths: Widths, checkpoint: CheckpointFile | None) -> FineTuned:
        assert tuned is not None
        return tuned(widths, "fine-tuning the uniform network", recipe.epochs, checkpoint, integers)

    outcome = Outcome(own.discarded_epochs or 0, own.lower_rate, own.discarded_integer_epochs or 0)
    original = original_network(run, problem)
    files = exported_further(run, problem)
    given = Given(original, tune if tuned else None, outcome, integers, problem, files)
    found = compare(won, export.path("model.onnx").read_bytes(), widths, recipe, given, kept)
    verified = ExportSummary.read(export)
    notes = [*found.notes]
    if verified.measured:
        name = SCRATCH if config.slice.from_scratch else SEARCHED
        here = {entry.name: entry.latency.median_ms for entry in found.entries}[name]
        both = [verified.measured.median_ms, here]
        notes.append(disagreement({"the exported file, when it was verified and now,": both}) or "")
    notes += not_timed_on(problem)
    better = {"from_scratch": True, "epochs": recipe.epochs}
    summary = CompareSummary(
        device=problem.profile.name,
        budget=_budget_beside(found.entries, verified),
        predicted_ms=verified.predicted_ms,
        metric=config.task.metric,
        test_images=len(problem.data.test),
        passes=recipe.epochs + integers,
        original=None if given.original is None else state_of_original(problem),
        networks=found.entries,
        not_separable=found.not_separable,
        difference=found.difference,
        notes=tuple(note for note in notes if note),
        file=verified.file,
        better=better if better_from_scratch(found.entries) else None,
    )
    stage.finish(inputs, {summary.FILE: json_bytes(summary.to_json())}, kept.files)
    return summary
