"""Channels move from one group to another at equal latency: Network Adjustment's step, as a mutation.

In: widths, the expected scores and the latencies of their neighbours. Out: widths of no higher latency. Chen
et al., "Network adjustment: channel search guided by FLOPs utilization ratio" (CVPR 2020, section 3), with
latency in place of FLOPs: a group's ratio is what one choice more or less is worth per millisecond.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bcnet.space.width_space import Widths

ValueOf = Callable[[Sequence[Widths]], np.ndarray]  # expected scores (N,) of N networks, more is better


def exchanged_at_random(
    choices: Sequence[Sequence[int]],
    widths: Widths,
    latency_of: Callable[[Widths], float],
    value_of: ValueOf,
    rng: np.random.Generator,
) -> Widths | None:
    """One group at its next wider choice, others at narrower ones until the latency is what it was.

    Which group grows is drawn by what a millisecond is worth there, those that shrink by how little it is
    worth: probabilities rise by e with each standard deviation of the ratios. None where nothing can move.
    """
    index = np.array([own.index(width) for own, width in zip(choices, widths, strict=True)])
    most = np.array([len(own) - 1 for own in choices])
    growing, shrinking = np.flatnonzero(index < most), np.flatnonzero(index > 0)
    if not len(growing) or not len(shrinking):
        return None

    def at(places: np.ndarray) -> Widths:
        return Widths(own[place] for own, place in zip(choices, places, strict=True))

    step = np.eye(len(index), dtype=np.int64)
    near = [
        *(at(index + step[group]) for group in growing),
        *(at(index - step[group]) for group in shrinking),
    ]
    values, here = value_of([widths, *near]), latency_of(widths)
    worth = np.abs(np.array([latency_of(own) for own in near]) - here)
    ratios = np.split((values[1:] - values[0]) / np.maximum(worth, 1e-6 * here), [len(growing)])
    grown = int(_drawn(growing, ratios[0], rng)[0])
    option = index + step[grown]
    for group in _drawn(shrinking, ratios[1], rng):  # what is lost is below zero: the least loss is likeliest
        if latency_of(at(option)) <= here:
            break
        if group != grown:
            option = option - step[group]
    return at(option) if latency_of(at(option)) <= here else None


def _drawn(groups: np.ndarray, ratios: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The groups in an order that is drawn without replacement, likeliest first (Gumbel's trick)."""
    scaled = (ratios - ratios.mean()) / max(float(ratios.std()), 1e-12)
    return np.asarray(groups[np.argsort(-(scaled + rng.gumbel(size=len(groups))), kind="stable")])
