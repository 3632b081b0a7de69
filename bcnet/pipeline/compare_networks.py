"""Which networks a comparison has. In: the found widths, what is given. Out: widths by name, and notes."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from bcnet.errors import BudgetError
from bcnet.models.fresh import Fresh
from bcnet.models.weights import listed
from bcnet.pipeline.compare_training import Kept
from bcnet.pipeline.compare_uniform import uniform_as_fast
from bcnet.pipeline.fine_tuning import AS_ASKED, FineTuned, Outcome
from bcnet.pipeline.problem import Problem
from bcnet.progress import working
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile

ORIGINAL, FULL = "original", "full (from scratch)"
UNIFORM, INHERITED = "uniform (from scratch)", "uniform (inherited)"
SEARCHED, SCRATCH = "found (inherited)", "found (from scratch)"


@dataclass(frozen=True)
class Given:
    """The original network, if its weights are trained, and how small networks inherit from it.

    `tune` trains a network of given widths in the same way as the found one, whose `outcome` this is. At
    INT8, the found one was trained through integers for `integers` further passes. `own` is the problem in
    the device's own precision, in which the original and the full network run even if the found one has
    another. `further` are the found one's files for further devices on which networks are timed.
    """

    original: nn.Module | None = None
    tune: Callable[[Widths, CheckpointFile | None], FineTuned] | None = None
    outcome: Outcome = AS_ASKED
    integers: int = 0
    own: Problem | None = None
    further: Mapping[str, bytes] = field(default_factory=dict)


def networks_of(
    problem: Problem, widths: Widths, given: Given, kept: Kept | None
) -> tuple[dict[str, Widths], list[str]]:
    """The widths of all networks in the order of the table, and notes on those that are left out."""
    space, fresh, scratch = problem.space, problem.fresh, problem.config.slice.from_scratch
    tuned, from_scratch = given.tune is not None, given.tune is None and fresh.from_scratch
    wanted = {ORIGINAL: space.original()} if given.original is not None else {}
    notes = [] if tuned else [note for note in (_not_fresh(fresh), fresh.assumed) if note]
    if given.original is None and problem.untrained_layers:
        layers = listed(list(problem.untrained_layers))
        notes.append(f"the network as it was given is left out: its layers {layers} are not trained")
    if from_scratch:
        wanted[FULL] = space.original()
    if tuned or from_scratch:
        try:
            uniform = _uniform(problem, widths, kept, given.further)
            wanted[INHERITED if tuned else UNIFORM] = uniform
        except BudgetError as reason:
            notes.append(f"{reason}: the uniform network is left out")
    wanted[SCRATCH if scratch else SEARCHED] = widths
    if from_scratch and not scratch:
        wanted[SCRATCH] = widths
    return wanted, notes


def _uniform(problem: Problem, widths: Widths, kept: Kept | None, further: Collection[str]) -> Widths:
    known = kept.uniform(problem) if kept else None
    if known is not None:
        return known
    with working("searching for the uniform network that is as fast"):
        also = [own for own in problem.further if own.profile.name in further]
        found = uniform_as_fast((problem, *also), widths)
    if kept:
        kept.keep_uniform(found)
    return found


def _not_fresh(fresh: Fresh) -> str:
    """What was not trained from scratch although its row says so; empty where all of it was."""
    if not fresh.from_scratch:
        return f"nothing was trained from scratch: {fresh.note}"
    return f"in the rows that were trained from scratch, {fresh.note}" if fresh.note else ""
