"""Fine-tune the best candidates briefly before one of them wins. In: measured candidates. Out: the winner.

Losses of networks whose channels were cut at once order them only roughly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from bcnet.pipeline.beside_original import Timed
from bcnet.pipeline.measured import Measured
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_trained import UNIFORM, Proposals, with_every_method
from bcnet.pipeline.trained_scores import Key, TrainedScores
from bcnet.pipeline.tuning import Tuning
from bcnet.plain import counted, loss_text
from bcnet.progress import say
from bcnet.runs import Run
from bcnet.space.width_space import Widths
from bcnet.training.shared_work import Shared, part_of_shared
from bcnet.traits import PrecisionName
from bcnet.width_search.scorer import Score, best_first, loss_of

TUNED = "fine-tuned"  # begins the names of scores after fine-tuning


@dataclass(frozen=True)
class Trials:
    """Scores of small networks that inherit weights, as they begin and after a brief fine-tuning.

    Processes share them out, one network to each at a time.
    """

    tuning: Tuning
    networks: Sequence[Widths] = ()  # that are tried: for messages

    def begin(self, networks: Sequence[Widths], scores: TrainedScores) -> dict[Widths, Score]:
        """The scores before; those that `scores` keeps are not computed again."""
        keys = [("inherited", 0, widths) for widths in networks]
        return dict(zip(networks, scores.kept(keys, self._shared(Trials.beginning)), strict=True))

    def end(self, networks: Sequence[Widths], epochs: int, scores: TrainedScores) -> dict[Widths, Score]:
        """The scores after so many epochs."""
        by, own = self.tuning.problem.profile.number_format, replace(self, networks=networks)
        name = TUNED if by.full else f"{TUNED} at {by.name}"
        keys = [(name, epochs, widths) for widths in networks]
        return dict(zip(networks, scores.kept(keys, own._shared(Trials.tuned)), strict=True))

    def beginning(self, key: Key) -> Score:
        """The score of a network as it begins."""
        return self.tuning.begins(key[2]).score

    def tuned(self, key: Key) -> Score:
        """A network's score after fine-tuning, in the precision that the key names."""
        name, epochs, widths = key
        what, precision = "trying a candidate", name.removeprefix(TUNED).removeprefix(" at ")
        number, count = 0, 1
        if widths in self.networks:
            number, count = self.networks.index(widths), len(self.networks)
            what = f"trying candidate {number + 1} of {count}"
        tuning = self.tuning.at(cast(PrecisionName, precision or "fp32"))
        with part_of_shared(number, count):
            return tuning.scored(tuning(widths, what, epochs).network)

    def _shared(self, method: Callable[["Trials", Key], Score]) -> Callable[[Key], Score]:
        """Networks with weights of their own are not shared out: only this process has those."""
        return partial(method, self) if self.tuning.pruned else Shared(trials_of_run, method, self)


def trials_of_run(run: Run, problem: Problem) -> Trials:
    """Those of a run's search, which keeps its importances."""
    return Trials(Tuning.of(run, problem, pruned={}))


def finalists(proposals: Proposals, measured: Measured, count: int, tuning: Tuning) -> list[Timed]:
    """The candidates that are fine-tuned briefly: `count` that begin best, and the best uniform one.

    What each begins with, its channels removed in rounds, too, is scored for the best ones of every method.
    """

    def method_of(own: Timed) -> str:
        return proposals.origin[own.candidate.widths]

    likely = with_every_method(measured.inside, count, method_of)
    begins = Trials(tuning).begin([own.candidate.widths for own in likely], proposals.scores)
    ranked = sorted(likely, key=lambda own: best_first(begins[own.candidate.widths]))
    uniform = [own for own in ranked[count:] if method_of(own) == UNIFORM]
    return [*ranked[:count], *uniform[:1]]


def tried(proposals: Proposals, measured: Measured, tuning: Tuning) -> Timed:
    """The finalist of the lowest validation loss after `search.trial_epochs` of fine-tuning."""
    scores, search = proposals.scores, proposals.scores.problem.config.search
    epochs = search.trial_epochs
    if len(measured.inside) < 2:
        return measured.inside[0]
    entries = finalists(proposals, measured, search.trials, tuning)
    if len(entries) < 2:
        return entries[0]
    found = Trials(tuning).end([own.candidate.widths for own in entries], epochs, scores)
    ordered = sorted(entries, key=lambda own: best_first(found[own.candidate.widths]))
    shown = ", ".join(
        f"{_described(proposals, own)} {loss_text(loss_of(found[own.candidate.widths]))}" for own in ordered
    )
    say(f"validation loss after {counted(epochs, 'epoch')} of fine-tuning: {shown}")
    return ordered[0]


def _described(proposals: Proposals, own: Timed) -> str:
    """What distinguishes a candidate from others of its method: its predicted latency and its size."""
    space, latency = proposals.scores.space, proposals.latency
    share = own.candidate.predicted_ms / float(latency(space.original()))
    size = f"{space.params(own.candidate.widths):,} parameters"
    return f"{proposals.origin[own.candidate.widths]} ({share:.1%} of the latency, {size})"
