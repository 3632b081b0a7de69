"""Channels are removed while training goes on, those of the least Fisher information per millisecond first.

In: a trained network, limits, training images. Out: widths within the limits, the channels that are kept, and
the small network's tensors as far as they were trained. Liu et al., "Group Fisher pruning" (ICML 2021,
sections 3.1 to 3.3, algorithm 2), with the latency that a removal saves at the current widths as its cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.allocation.limits import Limits
from bcnet.allocation.problem import PruningProblem, TrainedNetwork
from bcnet.config import Section
from bcnet.data.image_data import ImageData
from bcnet.latency_tables.failed import runs
from bcnet.methods.latency_greedy import cheapest_step, steps
from bcnet.registry import method
from bcnet.space.importance import channels_of, made_along, places_of
from bcnet.space.inputs import entries
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import WidthGroup, WidthSpace
from bcnet.training.gradient_importance import Fisher, Taylor, coupled_importance
from bcnet.training.loop import Trainee, fit, plain_step, steps_an_epoch, trainable_parameters
from bcnet.training.recipe import Objective, Recipe
from bcnet.training.step_errors import check_trained
from bcnet.width_search.constraints import Cost, multiply_accumulates

NormalisedBy = Literal["latency", "macs", "memory"]
ROUNDS = 16  # of removals at least, where the training has as many steps


@dataclass(frozen=True)
class FisherSettings:
    """How often channels are removed, in training steps, and what a removal's information is divided by.

    `latency` is what it saves by the latency that the limits have (and of other limits that are exceeded);
    as published, `macs` are multiply-accumulates and `memory` activations.
    """

    interval: int = 25
    normalised_by: NormalisedBy = "latency"


@dataclass(frozen=True)
class SteadyRecipe(Recipe):
    """A recipe whose learning rate stays as it is after the warm-up, as published."""

    def rate(self, progress: float) -> float:
        """The learning rate after `progress` epochs."""
        warmup = min(self.warmup_epochs, self.epochs / 2)
        return self.highest_rate * min(1.0, (progress + 1e-3) / max(warmup, 1e-3))


@dataclass(frozen=True)
class Removal:
    """Channels of one group that were removed after so many training steps."""

    step: int
    group: str
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Pruned(TrainedNetwork):
    """A small network with, for each group, the kept channels (width,), and what was removed when."""

    kept: tuple[Tensor, ...]
    removals: tuple[Removal, ...]


class PruningSettings(Section):
    """What information is divided by; see `search.prune_by`."""

    prune_by: NormalisedBy = "latency"


@method(
    "group-fisher",
    "removes channels while it trains (`search.prune_epochs`), those of the least Fisher information per "
    "millisecond saved first",
    paper="Group Fisher (ICML 2021)",
    trains=True,
    settings=PruningSettings,
)
def prune(problem: PruningProblem) -> Pruned:
    """The network that is left, with removals spread evenly over the training."""
    settings: PruningSettings = problem.settings
    own = {one.name: getattr(problem.recipe, one.name) for one in fields(problem.recipe)}
    recipe = SteadyRecipe(**own)
    steps = recipe.epochs * steps_an_epoch(problem.data, recipe)
    interval = max(1, min(FisherSettings().interval, steps // ROUNDS))
    return prune_by_group_fisher(
        problem.model,
        problem.limits,
        problem.data,
        recipe,
        FisherSettings(interval, settings.prune_by),
        problem.objective,
    )


def prune_by_group_fisher(
    model: nn.Module,
    limits: Limits,
    data: ImageData,
    recipe: Recipe,
    settings: FisherSettings | None = None,
    objective: Objective | None = None,
) -> Pruned:
    """Train `model` in place, in the recipe's epochs remove channels until the limits hold, and cut it.

    Every `interval` steps channels go, a group's least important ones down to its next choices, so many that
    latency falls evenly from that of the whole network to the limit, over all epochs. The removed ones are
    held at zero, in the layers that make and that read them, so that the cut network gives the outputs that
    `model` gives in the end; not where a layer normalises across channels. On a CPU the same seed gives the
    same network. A network that keeps the limits is not trained. With an `objective`, that is the loss.

    Raises BudgetError at once, with the lowest possible latency, where the limits cannot be met, and
    TrainingError where the training diverges.
    """
    settings = settings or FisherSettings()
    floor = limits.index(limits.fastest())
    pruning = _Pruning(model, limits, floor, settings, recipe.epochs * steps_an_epoch(data, recipe))
    passes = 0
    if not pruning.done:
        passes = recipe.epochs
        # Products of small gradients are squared; an average would be of networks of different widths.
        recipe = replace(recipe, amp=False, ema=None)
        model.to(recipe.device).train()
        trained = plain_step(model, recipe, objective)

        def step(inputs: Any, targets: Any, number: int) -> Tensor:
            pruning.hold()
            with pruning.fisher.watching(model, entries(inputs)):
                loss = trained(inputs, targets, number)
            pruning.add(number + 1)
            return loss

        trainable = trainable_parameters(model, objective)
        fit(Trainee(trainable, step), data, recipe, "removing channels")
        pruning.hold()
        check_trained(model.state_dict(), "at its end", trainable)
    original = Supernet.of(model.cpu().eval(), limits.space)
    state = original.narrow(Subnet.keeping(original.space, pruning.kept)).state
    tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
    widths, kept, removals = limits.widths(pruning.index), tuple(pruning.kept), tuple(pruning.removals)
    return Pruned(widths, tensors, passes, kept, removals)


class _Pruning:
    """Which channels are left, and what is known of them since the last removal."""

    def __init__(
        self, model: nn.Module, limits: Limits, floor: np.ndarray, settings: FisherSettings, total: int
    ) -> None:
        """`floor` are choice indices that keep the limits, which no group goes below; `total` the steps."""
        self.model, self.limits, self.floor, self.by = model, limits, floor, settings.normalised_by
        self.space = limits.space.without_extra()
        self.interval = min(settings.interval, total)
        self.rounds = total // self.interval
        self.fisher, self.taylor = Fisher(model, self.space), Taylor(model, self.space)
        self.index = limits.index(self.space.largest())
        whole = limits.costs(self.index[None])
        self.over = limits.excess(whole)[:, 0]
        if not runs(whole[0, 0]):  # soon one does
            self.over[0] = limits.limit_ms
        self.units = [torch.arange(group.channels // group.unit) for group in self.space.groups]
        self.removals: list[Removal] = []
        self._cost = _cost(model, self.space, self.by)
        self._zeros: list[tuple[nn.Parameter, int, Tensor]] = []

    @property
    def done(self) -> bool:
        """Whether all limits are kept."""
        return bool(self.limits.fit(self.index[None])[0])

    @property
    def kept(self) -> list[Tensor]:
        """For each group the channels that are left, in their order."""
        return [channels_of(group, units) for group, units in zip(self.space.groups, self.units, strict=True)]

    def hold(self) -> None:
        """Set all that belongs to removed channels to zero."""
        with torch.no_grad():
            for parameter, axis, entries_ in self._zeros:
                parameter.index_fill_(axis, entries_, 0.0)

    def add(self, step: int) -> None:
        """Count the gradients of a step, the first is 1, and remove what is due after it."""
        if self.fisher.unseen:
            self.taylor.add(dict(self.model.named_parameters()))
        if step % self.interval or self.done:
            return
        left = 1 - step // self.interval / self.rounds
        before = len(self.removals)
        importance = coupled_importance(self.fisher, self.taylor)
        while self._exceeds(left) and (self.index > self.floor).any():
            self._remove(step, importance)
        if len(self.removals) > before:
            self.fisher.clear()
            self.taylor.clear()
            self._zeros = list(self._removed_entries())

    def _exceeds(self, left: float) -> bool:
        """Whether more is over the limits than this part of what the whole network was."""
        costs = self.limits.costs(self.index[None])[:, 0]
        return bool((costs > self.limits.at_most + self.over * left).any())

    def _remove(self, step: int, importance: Sequence[Tensor]) -> None:
        orders = [
            _first_to_go(group, units, own)
            for group, units, own in zip(self.space.groups, self.units, importance, strict=True)
        ]
        chosen = self._cheapest([self._losses(n, order, importance[n]) for n, order in enumerate(orders)])
        number = int(np.flatnonzero(chosen != self.index)[0])
        group = self.space.groups[number]
        count = (group.choices[self.index[number]] - group.choices[chosen[number]]) // group.unit
        gone = orders[number][:count].sort().values
        self.units[number] = orders[number][count:].sort().values
        self.index = chosen
        self.removals.append(Removal(step, group.name, tuple(channels_of(group, gone).tolist())))

    def _losses(self, number: int, order: Tensor, importance: Tensor) -> np.ndarray:
        """The information that is lost at each choice of a group (choices,); without end below the floor."""
        group, now = self.space.groups[number], int(self.index[number])
        of_units = importance.double().reshape(-1, group.unit).sum(1)[order]
        lost = np.concatenate(([0.0], of_units.cumsum(0).numpy()))
        widths = np.array(group.choices)
        found = lost[np.maximum(widths[now] - widths, 0) // group.unit]
        found[: self.floor[number]] = np.inf
        return np.asarray(found)

    def _cheapest(self, losses: Sequence[np.ndarray]) -> np.ndarray:
        """The choice indices after the removal of the least information for what it saves.

        Where none saves anything, as on a stair of the latency: of the least information. The floor keeps the
        limits, so that there is one for as long as they are exceeded.
        """
        if self._cost is None:
            found = cheapest_step(self.limits, losses, self.index)
            if found is not None:
                return found
        options, lost = steps(losses, self.index, wider=False)
        rate = lost
        if self._cost is not None:
            networks = np.array([self.limits.widths(option) for option in (self.index, *options)])
            costs = self._cost.price_many(networks)
            rate = lost / np.maximum(costs[0] - costs[1:], 1e-300)
        return np.asarray(options[rate.argmin()])

    def _removed_entries(self) -> list[tuple[nn.Parameter, int, Tensor]]:
        """(parameter, axis, entries along it) of all removed channels, wherever these occur."""
        gone = [
            channels_of(group, torch.from_numpy(np.setdiff1d(np.arange(group.channels // group.unit), units)))
            for group, units in zip(self.space.groups, self.units, strict=True)
        ]
        found = []
        for name, parameter in self.model.named_parameters():
            for axis, dimension in self.space.dimensions.get(name, {}).items():
                places = [own for group, own in places_of(self.space, dimension, gone) if group is not None]
                if len(index := torch.cat(places)):
                    found.append((parameter, axis, index.to(parameter.device)))
        return found


def _first_to_go(group: WidthGroup, units: Tensor, importance: Tensor) -> Tensor:
    """The units that are left in the order of their removal."""
    if group.ordered:
        return units.flip(0)
    of_units = importance.reshape(-1, group.unit).sum(1)
    return units[of_units[units].argsort(stable=True)]


def _cost(model: nn.Module, space: WidthSpace, by: NormalisedBy) -> Cost | None:
    """What a removal saves as published: multiply-accumulates, or activations of the layers."""
    if by == "latency":
        return None
    if by == "macs":
        return multiply_accumulates(space)
    axes, made = made_along(model, space), []
    for layer in space.layers:
        dimension = space.dimensions.get(layer.weight, {}).get(axes.get(layer.weight, 0))
        if dimension is not None:
            made.append((layer.positions, [dimension, layer.each] if layer.each else [dimension]))
    return Cost(len(space.groups), made)
