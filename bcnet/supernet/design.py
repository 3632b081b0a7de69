"""Which networks are measured. In: a network's space and what a table lacks. Out: widths.

A few dozen networks show every layer at every pair of widths that can meet in it; others, from narrow to
wide, calibrate the sums of their layers.
"""

from itertools import product

import numpy as np

from bcnet.errors import TableError
from bcnet.latency_tables.model import specs_of
from bcnet.latency_tables.rows import LayerSpec, Setting
from bcnet.latency_tables.table import LatencyTable
from bcnet.supernet.onnx_graph import OnnxSupernet
from bcnet.supernet.space import Widths, WidthSpace, shares

SUBNETS = 24  # whole subnets that the sums of layers are fitted to
SAMPLED = 32  # random networks that show layers behind a concatenation


def design(space: WidthSpace) -> list[Widths]:
    """Networks that together show every pair of choices of every two groups that meet in a layer.

    Network (i, j) gives a group of colour a the symbol (i + a * j) mod K. Groups that meet have colours
    whose difference is coprime to K, so each pair of symbols occurs exactly once in K * K networks. Symbols
    are folded onto a group's own choices, evenly.
    """
    colours = _colours(shares(space))
    most = max(len(group.choices) for group in space.groups)
    size = _smallest_modulus(max(most, 2), max(colours) + 1)
    networks = []
    for i, j in product(range(size), repeat=2):
        symbols = [(i + colour * j) % size for colour in colours]
        networks.append(
            Widths(
                group.choices[symbol * len(group.choices) // size]
                for group, symbol in zip(space.groups, symbols, strict=True)
            )
        )
    return list(dict.fromkeys(networks))


def plan(graph: OnnxSupernet, table: LatencyTable, setting: Setting) -> tuple[list[Widths], set[LayerSpec]]:
    """Networks that show all layers that the table lacks at this setting, and those layers."""
    missing = {spec for spec in needed_layers(graph) if not table.has(spec, setting)}
    chosen, unseen = [], set(missing)
    for widths in _networks(graph) if missing else ():
        shown = {slot.at(widths) for slot in graph.slots} & unseen
        if shown:
            chosen.append(widths)
            unseen -= shown
    if unseen:
        raise TableError(f"no network of the design shows {len(unseen)} layers, such as {min(unseen)}")
    return chosen, missing


def needed_layers(graph: OnnxSupernet) -> set[LayerSpec]:
    """Every layer that a table holds once it is complete for this space."""
    choices = [group.choices for group in graph.space.groups]
    networks = _networks(graph)
    needed: set[LayerSpec] = set()
    for slot in graph.slots:
        specs = None if slot.sampled else specs_of(slot, choices)
        needed |= set(specs.values()) if specs is not None else {slot.at(widths) for widths in networks}
    return needed


def _networks(graph: OnnxSupernet) -> list[Widths]:
    """Networks that show every layer that is needed."""
    space, networks = graph.space, design(graph.space)
    if any(slot.sampled for slot in graph.slots):
        # Behind a concatenation, the whole range and what lies between.
        rng = np.random.default_rng(0)
        drawn = [space.random(rng) for _ in range(SAMPLED)]
        networks = list(dict.fromkeys([*networks, space.smallest(), space.largest(), *drawn]))
    return networks


def showing(graph: OnnxSupernet, spec: LayerSpec) -> list[Widths]:
    """Networks that show one layer, with all other groups at their widest, and at their narrowest."""
    choices = [group.choices for group in graph.space.groups]
    found = []
    for slot in graph.slots:
        specs = specs_of(slot, choices) or {}
        for index in (index for index, shown in specs.items() if shown == spec):
            for base in (graph.space.largest(), graph.space.smallest()):
                widths = list(base)
                for group, i in zip(slot.groups, index, strict=True):
                    widths[group] = choices[group][i]
                found.append(Widths(widths))
    return found or [graph.space.largest()]


def spread_widths(space: WidthSpace, rng: np.random.Generator, count: int) -> list[Widths]:
    """Subnets from narrow to wide: independent draws would all land in the middle."""
    subnets = []
    for number in range(count):
        centre = (number + 0.5) / count
        subnets.append(
            Widths(
                group.choices[
                    int(
                        np.clip(
                            round((centre + rng.normal(0, 0.25)) * (len(group.choices) - 1)),
                            0,
                            len(group.choices) - 1,
                        )
                    )
                ]
                for group in space.groups
            )
        )
    return subnets


def calibration_subnets(space: WidthSpace, seed: int) -> list[Widths]:
    """The whole subnets that are measured: narrowest, widest, and from narrow to wide between them."""
    between = spread_widths(space, np.random.default_rng(seed + 1), SUBNETS - 2)
    return list(dict.fromkeys([space.smallest(), *between, space.largest()]))


def _colours(meets: dict[int, set[int]]) -> list[int]:
    """A greedy colouring: groups that meet in a layer get different colours; most neighbours first."""
    colours: dict[int, int] = {}
    for group in sorted(meets, key=lambda group: -len(meets[group])):
        taken = {colours[other] for other in meets[group] if other in colours}
        colours[group] = next(colour for colour in range(len(meets)) if colour not in taken)
    return [colours[group] for group in range(len(meets))]


def _smallest_modulus(at_least: int, colours: int) -> int:
    """The smallest K whose every prime factor is at least the number of colours: differences are coprime."""
    size = at_least
    while any(size % factor == 0 for factor in range(2, colours)):
        size += 1
    return size
