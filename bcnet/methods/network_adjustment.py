"""Channels move from groups that use their cost badly to groups that use it well: Network Adjustment.

In: widths, losses of networks that differ from them a little, limits. Out: widths within the limits that lose
less. Chen et al., "Network adjustment: channel search guided by FLOPs utilization ratio" (CVPR 2020, section
3), on a trained network: published, it is trained again in each round. With latency in place of FLOPs, a
group's ratio is the loss of one choice more or less per millisecond.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import LossOf
from bcnet.allocation.problem import AllocationProblem
from bcnet.config import Section
from bcnet.methods.uniform import allocate_uniformly, widest_scaled
from bcnet.registry import method
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.constraints import multiply_accumulates

MOST = 6  # groups that grow in one step, as published
FEWER = 0.5  # groups less in each round, as published
ROUNDS = 10  # as published
HIGHEST_RATE = 0.5  # of channels: beyond it a loss is no slope any more


@dataclass(frozen=True)
class Neighbours:
    """For each group (groups,): what is lost at its next narrower choice, and gained at its next wider one.

    In comparison with the network's own loss. Where there is no such choice, an infinite loss and no gain.
    """

    lost: np.ndarray
    gained: np.ndarray

    @classmethod
    def of(cls, limits: Limits, widths: Widths, loss_of: LossOf) -> "Neighbours":
        """Two losses a group."""
        index, here = limits.index(widths), float(loss_of(widths))
        lost, gained = np.full(len(index), np.inf), np.zeros(len(index))
        for group, own in enumerate(limits.choices):
            step = np.zeros_like(index)
            step[group] = 1
            if index[group] > 0:
                lost[group] = float(loss_of(limits.widths(index - step))) - here
            if index[group] + 1 < len(own):
                gained[group] = here - float(loss_of(limits.widths(index + step)))
        return cls(lost, gained)


def latency_utilisation(limits: Limits, widths: Widths, near: Neighbours) -> tuple[np.ndarray, np.ndarray]:
    """Loss per millisecond of each group's next narrower choice, and of its next wider one, (groups,) each.

    Infinite for a narrower choice that saves nothing, or a wider one that costs nothing and gains.
    """
    index = limits.index(widths)
    steps = np.eye(len(index), dtype=np.int64)
    last = np.array([len(own) - 1 for own in limits.choices])
    here = float(limits.latencies(index[None])[0])
    saved = here - limits.latencies(np.maximum(index - steps, 0))
    added = limits.latencies(np.minimum(index + steps, last)) - here
    narrower = np.where(saved > 0, near.lost / np.where(saved > 0, saved, 1.0), np.inf)
    free = np.where(near.gained > 0, np.inf, near.gained)
    wider = np.where(added > 0, near.gained / np.where(added > 0, added, 1.0), free)
    return narrower, wider


def exchanged(limits: Limits, widths: Widths, near: Neighbours, most: int = 1) -> Widths:
    """Widths within the limits after up to `most` exchanges: the same where none promises a lower loss.

    In each, the group of the largest ratio grows by one choice, and those of the least ratios shrink by one,
    until the limits hold again. No group moves twice: the losses hold for one step. A choice that costs no
    latency is taken without a return. The sum of losses decides whether an exchange is worth it.
    """
    narrower, wider = latency_utilisation(limits, widths, near)
    result = limits.index(widths)
    moved: set[int] = set()
    growing = [int(group) for group in np.argsort(-wider, kind="stable") if near.gained[group] > 0]
    shrinking = [int(group) for group in np.argsort(narrower, kind="stable") if np.isfinite(narrower[group])]
    for grown in growing:
        if most == 0:
            break
        if grown in moved:
            continue
        option, gain, own = result.copy(), float(near.gained[grown]), {grown}
        option[grown] += 1
        for group in shrinking:
            if gain <= 0 or limits.fit(option[None])[0]:
                break
            if group not in moved | own:
                option[group] -= 1
                gain -= float(near.lost[group])
                own.add(group)
        # What others made needless comes back.
        for group in sorted(own - {grown}, key=lambda group: -near.lost[group]):
            option[group] += 1
            if limits.fit(option[None])[0]:
                gain += float(near.lost[group])
                own.remove(group)
            else:
                option[group] -= 1
        if gain > 0 and limits.fit(option[None])[0]:
            result, moved, most = option, moved | own, most - 1
    return limits.widths(result)


class AdjustmentSettings(Section):
    """What groups are compared by; see `search.adjust_by`."""

    adjust_by: Literal["latency", "macs"] = "latency"


@method(
    "network-adjustment",
    "from the uniform one, in up to ten rounds: channels move from groups whose next choice loses least "
    "per millisecond to those that gain most",
    paper="Network Adjustment (CVPR 2020)",
    settings=AdjustmentSettings,
)
def propose(problem: AllocationProblem) -> list[Widths]:
    """The networks that rounds of adjustment come to, from the uniform one, the best first."""
    limits = problem.limits
    start = allocate_uniformly(limits.space, (), limits.latency_of, limits.limit_ms, limits.bounds)
    settings: AdjustmentSettings = problem.settings
    if settings.adjust_by == "latency":
        return [adjust_widths(limits, start, problem.loss_of, ROUNDS)]
    found = {start: float(problem.loss_of(start))}
    widths = start
    for number in range(ROUNDS):
        ratios = problem.dropped(widths, drop_rates(limits.space, widths))
        widths = shifted(limits, widths, ratios, max(round(MOST - FEWER * number), 1))
        if widths in found:
            break
        found[widths] = float(problem.loss_of(widths))
    return sorted(found, key=lambda own: found[own])


def adjust_widths(
    limits: Limits,
    start: Widths,
    loss_of: LossOf,
    rounds: int = ROUNDS,
    known: Mapping[Widths, float] | None = None,
    on_score: Callable[[Widths, float], None] | None = None,
) -> Widths:
    """Exchanges from `start`, which is within the limits, for as long as the loss falls.

    A round scores two networks a group. Fewer groups move at a time where a step did not lower the loss.
    `known` holds losses that are not asked for again, `on_score` gets every new one.
    """
    losses = dict(known or {})

    def loss(widths: Widths) -> float:
        if widths not in losses:
            losses[widths] = float(loss_of(widths))
            if on_score is not None:
                on_score(widths, losses[widths])
        return losses[widths]

    best, most = start, MOST
    for _ in range(rounds):
        near = Neighbours.of(limits, best, loss)
        while most and not loss(option := exchanged(limits, best, near, most)) < loss(best):
            most //= 2
        if not most:
            break
        best = option
    return best


def drop_rates(space: WidthSpace, widths: Widths, rate: float = 0.05) -> np.ndarray:
    """Each group's share of channels to drop (groups,), so that all save the same multiply-accumulates.

    The published ratio of a group is the rise of the loss when channels are dropped at this rate in it alone;
    `rate` is that of a group of mean cost. At most a half.
    """
    cost = multiply_accumulates(space)
    steps, networks = np.eye(len(widths)), np.array(widths, dtype=float)
    # Exact for a polynomial of degree two in each width, as these are.
    slopes = (cost.price_many(networks + steps) - cost.price_many(networks - steps)) / 2
    weights = slopes * networks
    return np.asarray(np.minimum(rate * weights.mean() / np.maximum(weights, 1e-300), HIGHEST_RATE))


def shifted(
    limits: Limits,
    widths: Widths,
    ratios: np.ndarray,
    most: int = MOST,
    share: float = 0.15,
    decay: float = 0.01,
) -> Widths:
    """The published step: the `most` groups of the largest ratios (groups,) grow, as many others shrink.

    By `share` of their channels, `decay` less for each rank; then all are scaled alike to the largest network
    within the limits. Raises BudgetError where there is none.
    """
    proportions = np.array(widths, dtype=float)
    channels = np.array([group.channels for group in limits.space.groups], dtype=float)
    for sign, order in ((1, np.argsort(-ratios, kind="stable")), (-1, np.argsort(ratios, kind="stable"))):
        for rank, group in enumerate(order[: min(most, len(order) // 2)]):
            proportions[group] += sign * max(share - decay * rank, 0.0) * channels[group]
    least = np.array([group.choices[0] for group in limits.space.groups], dtype=float)
    return widest_scaled(limits, np.maximum(proportions, least) / channels, "network of these proportions")
