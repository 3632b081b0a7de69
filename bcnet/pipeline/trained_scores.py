"""Scores of widths on the trained network itself: no supernet is trained for them.

In: a trained network and its data. Out: for each criterion the importance of its channels; a score of any
widths: the most important channels, with batch-norm statistics of their own, on the validation images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bcnet.allocation.loss_tables import loss_tables
from bcnet.allocation.utilisation import ChannelDropout, utilisation
from bcnet.data.splits import Items, Split
from bcnet.pipeline.importance_file import kept_importances
from bcnet.pipeline.original import trained_state
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_state import lines_of_search
from bcnet.plain import loss_text
from bcnet.progress import say
from bcnet.runs import Run
from bcnet.space.extract import with_state
from bcnet.space.importance import CRITERIA, Criterion, Importances, channel_order, reordered
from bcnet.space.inputs import to_device
from bcnet.space.subnet import State, Subnet
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.gradient_importance import measured_importances
from bcnet.training.iterative import IterativeImportance
from bcnet.training.recipe import Recipe
from bcnet.training.shared_work import Shared, each
from bcnet.width_search.scorer import Score, Scorer, Validation, best_first, loss_name, loss_of

Key = tuple[str, int, Widths]  # of a score: by what, a number (of images, of epochs), the network's widths
KEPT = ("by", "number", "widths", "accuracy", "loss")  # of each score in the file
TABLE_IMAGES = 384  # validation images for the losses of single widths, each compared on the same ones
TABLE_CHOICES = 5  # of a group that are scored for its losses, at most: those between are interpolated


def single_sided(space: WidthSpace) -> WidthSpace:
    """The space of a trained network's own channels, ordered by importance: every width is the first ones."""
    return replace(space.without_extra(), method="unilateral")


class TrainedScores:
    """How good widths are in the trained network.

    Scores are kept in a file, so that a stopped search continues; processes share lists of them out. Channels
    are those that are most important by `criterion`: set it, or let `choose_criterion` do that.
    """

    def __init__(
        self,
        problem: Problem,
        tensors: Mapping[str, Tensor],
        path: Path | None = None,
        inputs: Mapping[str, str] | None = None,
        importances: Importances | None = None,
    ) -> None:
        """Reads what was scored before from the file, where one is given for these inputs.

        `importances` are measured on first use unless given.
        """
        config = problem.config
        self.problem, self.tensors = problem, dict(tensors)
        self.space = single_sided(problem.space)
        self.recipe = Recipe.of(config, epochs=1, learning_rate=1.0)
        self.criterion: Criterion = "l1"
        if importances is not None:
            self.importances = importances
        self._scorers: dict[tuple[str, int], Scorer] = {}
        self._known: dict[Key, Score] = {}
        self._computed = Shared(scores_of_run, TrainedScores.computed, self)
        self.loss_of = Losses(self)
        self._lines = lines_of_search(path, inputs or {}) if path else None
        for line in self._lines.values if self._lines else ():
            by, number, widths, accuracy, loss = (line[key] for key in KEPT)
            self._known[by, number, Widths(widths)] = Score(accuracy, -loss)
        if self._lines and self._lines.dropped:
            say(f"{path}: {self._lines.dropped}; what was scored from there on is scored again")

    @cached_property
    def importances(self) -> Importances:
        """By each criterion, for each group (channels,): one pass over a few batches."""
        model = with_state(self.problem.model, self.space, self.tensors)
        return measured_importances(model, self.space, self.problem.data, self.recipe, CRITERIA)

    @cached_property
    def importance_of(self) -> IterativeImportance:
        """The importance of channels when others have been removed."""
        whole = Supernet(self.problem.model, self.space, self.tensors)
        return IterativeImportance(whole, self.problem.data, self.recipe)

    def __call__(self, widths: Widths) -> Score:
        """The score of one network, on all validation images."""
        (found,) = self.each([widths])
        return found

    def each(self, networks: Iterable[Widths]) -> Iterator[Score]:
        """The score of each network, on all validation images."""
        return self.scores(networks, len(self.problem.data.val))

    def scores(self, networks: Iterable[Widths], images: int) -> Iterator[Score]:
        """Scores on so many of the validation images, evenly spaced: the same ones for every network."""
        return self.kept([(self.criterion, images, widths) for widths in networks], self._computed)

    def kept(self, keys: Iterable[Key], score_of: Callable[[Key], Score]) -> Iterator[Score]:
        """Each score as it was computed before, else computed now, and kept."""
        keys = list(keys)
        new = each(score_of, [key for key in dict.fromkeys(keys) if key not in self._known])
        for key in keys:
            if key not in self._known:
                self._known[key] = found = next(new)
                if self._lines:
                    by, number, widths = key
                    values = by, number, list(widths), found.accuracy, found.loss
                    self._lines.append(dict(zip(KEPT, values, strict=True)))
            yield self._known[key]

    def computed(self, key: Key) -> Score:
        """A network's score by a criterion, on a number of images."""
        by, images, widths = key
        return self._scorer(by, images)(widths)

    @property
    def scorer(self) -> Scorer:
        """The scorer of networks on all validation images."""
        return self._scorer(self.criterion, len(self.problem.data.val))

    def _scorer(self, criterion: str, images: int) -> Scorer:
        key = criterion, images
        if key not in self._scorers:
            problem, device = self.problem, self.recipe.device
            self._scorers[key] = Scorer(
                [Supernet(problem.model, self.space, to_device(self._ordered(criterion), device))],
                replace(problem.data, val=self._some(images)),
                problem.config.search.recalibration_images,
                problem.task,
                amp=self.recipe.bfloat16,
            )
        return self._scorers[key]

    def _ordered(self, criterion: str) -> State:
        """The network's tensors with the most important channels first, by a criterion."""
        own = next(own for own in CRITERIA if own == criterion)
        return reordered(self.tensors, self.space, channel_order(self.space, self.importances[own]))

    def _some(self, images: int) -> Split | Items:
        """So many of the validation images, evenly spaced."""
        val = self.problem.data.val
        return val.take(torch.linspace(0, len(val) - 1, min(images, len(val))).long())

    def dropped(self, widths: Widths, rates: np.ndarray) -> np.ndarray:
        """The rise of that loss (groups,) with channels of each group alone dropped at its rate (groups,)."""
        problem, model, space = self.problem, self.problem.model, self.space
        dropout, images = ChannelDropout(model, space, widths), problem.config.search.recalibration_images
        by = Validation(replace(problem.data, val=self._some(self.few)), images, problem.task)

        @cache
        def network() -> NarrowNetwork:
            placed = to_device(self._ordered(self.criterion), self.recipe.device)
            return by.recalibrated(Supernet(model, space, placed), Subnet.at(space, widths))

        def loss(group: int | None, rate: float, number: int) -> float:
            def score(_: Key) -> Score:
                recalibrated = network()
                with nullcontext() if group is None else dropout.dropping(group, rate, number):
                    return by.score(recalibrated)

            dropped = "nothing" if group is None else f"{space.groups[group].name} at {rate:.4g}"
            name = f"{self.criterion}, {dropped} dropped, {self.few} images"
            (found,) = self.kept([(name, number, widths)], score)
            return loss_of(found)

        return utilisation(rates, loss)

    @property
    def few(self) -> int:
        """How many validation images give the losses of single widths."""
        return min(TABLE_IMAGES, len(self.problem.data.val))

    def choose_criterion(self, widths: Widths) -> None:
        """Order channels by the criterion that keeps these widths' loss lowest."""
        keys = [(criterion, len(self.problem.data.val), widths) for criterion in CRITERIA]
        scores = dict(zip(CRITERIA, self.kept(keys, self._computed), strict=True))
        self.criterion = min(CRITERIA, key=lambda own: best_first(scores[own]))
        say(
            f"channels are ordered by {self.criterion}, the best of {len(CRITERIA)} criteria at {widths} by "
            f"{loss_name(self.problem.task)}: "
            + ", ".join(f"{own} {loss_text(loss_of(score))}" for own, score in scores.items())
        )

    @cached_property
    def tables(self) -> tuple[np.ndarray, ...]:
        """For each group the loss of each choice with only that group narrowed, less the whole network's."""
        coarse = replace(
            self.space,
            groups=tuple(replace(g, choices=spread(g.choices, TABLE_CHOICES)) for g in self.space.groups),
        )
        found = loss_tables(coarse, self.loss_of)
        return tuple(
            np.interp(group.choices, few.choices, losses)
            for group, few, losses in zip(self.space.groups, coarse.groups, found.losses, strict=True)
        )

    @property
    def measured_losses(self) -> dict[str, dict[str, float]]:
        """The `tables` by group and choice, for a file; empty where no method asked for them."""
        if "tables" not in vars(self):
            return {}
        return {
            group.name: dict(zip(map(str, group.choices), own.round(6).tolist(), strict=True))
            for group, own in zip(self.space.groups, self.tables, strict=True)
        }


@dataclass(frozen=True)
class Losses:
    """Losses of networks on some of the validation images, the same ones as of `TrainedScores.tables`."""

    scores: TrainedScores

    def __call__(self, widths: Widths) -> float:
        """That of one network."""
        (found,) = self.each([widths])
        return found

    def each(self, networks: Iterable[Widths]) -> Iterator[float]:
        """Those of all."""
        return map(loss_of, self.scores.scores(networks, self.scores.few))


def scores_of_run(run: Run, problem: Problem) -> TrainedScores:
    """Those of a run's trained network, by the importances that its search keeps."""
    return TrainedScores(problem, trained_state(run, problem), importances=kept_importances(run, problem))


def spread(choices: tuple[int, ...], count: int) -> tuple[int, ...]:
    """At most so many of the choices, evenly spaced, with the first and the last."""
    if len(choices) <= count:
        return choices
    places = np.linspace(0, len(choices) - 1, count).round().astype(int)
    return tuple(choices[place] for place in places)
