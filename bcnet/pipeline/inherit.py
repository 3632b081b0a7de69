"""The weights that a small network begins with. In: supernets, a trained network, widths. Out: the best.

Candidates are every side of every supernet, the trained network's most important channels by each criterion
(AdaPruner, arXiv 2109.06397, abstract), and what a search trained while it removed channels. All are compared
after batch-norm recalibration, on the validation images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from bcnet.errors import ConfigError
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.importance_file import kept_importances
from bcnet.pipeline.original import trained_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.pruned import PrunedNetwork, pruned_by_search
from bcnet.pipeline.route import on_trained_network
from bcnet.plain import loss_text
from bcnet.progress import say, working
from bcnet.runs import Run
from bcnet.space.channel_rules import Side
from bcnet.space.importance import CRITERIA, Importances
from bcnet.space.subnet import State, Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.recipe import Recipe
from bcnet.training.task import Task
from bcnet.width_search.inherit import ITERATIVE, Inherited, Original, inherited
from bcnet.width_search.scorer import Score, Validation, best_first, loss_name, loss_of


@dataclass(frozen=True)
class Trained:
    """A trained network, by each criterion the importance of its channels, and networks pruned from it.

    `iterative`: channels are removed in rounds with their importance calculated again, too; `by_group`: each
    group also takes the criterion that it gains by.
    """

    original: Original
    importances: Importances
    iterative: bool = False
    by_group: bool = False
    pruned: Mapping[Widths, PrunedNetwork] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Weights that a small network can begin with, recalibrated, and their score.

    `supernet` (from 0) and `side` are None where they come from the trained network. `passes` over the
    training images went into them since they left it.
    """

    name: str
    short: str
    state: State
    score: Score
    supernet: int | None = None
    side: Side | None = None
    passes: int = 0


Place = tuple[int, Side]  # (index of a supernet, one of its sides)


def weights_of(run: Run, problem: Problem) -> tuple[tuple[Supernet, ...], Trained | None]:
    """The run's supernets, and its trained network, as `slice.inherit` asks for them.

    Raises ConfigError where what it asks for is not there.
    """
    wanted = problem.config.slice.inherit
    supernets: tuple[Supernet, ...] = ()
    if not on_trained_network(problem):
        supernets = trained_supernets(run, problem)
    check_inheritance(problem)
    network = None if wanted == "supernet" else trained_network(run, problem)
    if wanted not in ("auto", "supernet") and network is None:
        raise ConfigError(
            f'slice.inherit is "{wanted}", but the network has no trained weights: set model.weights, or use '
            '"supernet"'
        )
    if network is None or problem.config.slice.from_scratch:
        return supernets, None
    pruned = pruned_by_search(run, problem)
    known = kept_importances(run, problem) if on_trained_network(problem) else None
    return supernets if wanted == "auto" else (), trained_for(problem, network, known, pruned)


def check_inheritance(problem: Problem) -> None:
    """Raise ConfigError where weights are to come from a supernet or an original that is not trained."""
    weightless = not problem.trained or bool(problem.untrained_layers)
    if problem.config.slice.inherit_by_group and weightless and not on_trained_network(problem):
        raise ConfigError(
            "slice.inherit_by_group needs a trained network: set model.weights, or leave it at false"
        )
    if problem.config.slice.inherit == "supernet" and on_trained_network(problem):
        raise ConfigError(
            'slice.inherit is "supernet", but none is trained here: set search.method = "evolution", or use '
            "another criterion"
        )


def trained_for(
    problem: Problem,
    network: nn.Module | None,
    importances: Importances | None = None,
    pruned: Mapping[Widths, PrunedNetwork] | None = None,
) -> Trained | None:
    """A trained network with the importance of its channels by the criteria of `slice.inherit`.

    `importances` that are known are not measured again.
    Networks that were `pruned` from it count where that is `auto`.
    """
    wanted = problem.config.slice.inherit
    if network is None:
        return None
    by = [own for own in CRITERIA if wanted in ("auto", own)]
    recipe = Recipe.of(problem.config, epochs=1, learning_rate=1.0)
    images = problem.config.search.recalibration_images
    original = Original(network, problem.space, problem.data, recipe, images)
    known = original.importances(by) if importances is None else {own: importances[own] for own in by}
    return Trained(
        original,
        known,
        iterative=wanted in ("auto", ITERATIVE),
        by_group=problem.config.slice.inherit_by_group,
        pruned=(pruned or {}) if wanted == "auto" else {},
    )


def ranked_sources(
    supernets: Sequence[Supernet],
    widths: Widths,
    trained: Trained | None,
    by: Validation,
    assigned: Mapping[Place, Subnet] | None = None,
) -> list[Source]:
    """The weights that the small network can start from, the lowest validation loss first.

    `assigned` are the channels that the widths take from supernets, if these are not simply those of the
    side.
    """
    with working("scoring the weights that the small network can begin with"):
        sources = list(_of_supernets(supernets, widths, by, assigned or {}))
    if trained is not None:
        how = {"iterative": trained.iterative, "by_group": trained.by_group}
        found = inherited(trained.original, widths, trained.importances, **how)
        sources += [_of_original(own) for own in found]
        own = trained.pruned.get(widths)
        if own is not None:
            sources.append(Source(own.source, own.method, own.state, own.score, passes=own.passes))
    return sorted(sources, key=lambda source: best_first(source.score))


def say_best(sources: Sequence[Source], task: Task) -> None:
    """Report where the weights come from, and the losses of all that were compared."""
    losses = ", ".join(f"{source.short} {loss_text(loss_of(source.score))}" for source in sources)
    say(f"the small network begins with {sources[0].name}; {loss_name(task)}: {losses}")


def _of_supernets(
    supernets: Sequence[Supernet], widths: Widths, by: Validation, assigned: Mapping[Place, Subnet]
) -> Iterator[Source]:
    for number, supernet in enumerate(supernets):
        for side in supernet.space.rule.sides:
            subnet = assigned.get((number, side)) or Subnet.at(supernet.space, widths, side)
            network = by.recalibrated(supernet, subnet)
            name, short = f"the {side} side of supernet {number + 1}", f"supernet {number + 1}, {side}"
            yield Source(name, short, dict(network.state), by.score(network), number, side)


def _of_original(own: Inherited) -> Source:
    return Source(f"the original's channels by {own.source}", own.source, own.state, own.score)
