"""Choose the networks that are measured. In: a network's space, and a table. Out: widths.

A covering design of a few dozen networks contains every layer at every pair of its input and output widths;
other networks, from narrow to wide, calibrate the sums of layers.
"""

from itertools import product

import numpy as np

from bcnet.errors import TableError
from bcnet.latency_tables.model import specs_of
from bcnet.latency_tables.rows import LayerSpec, Setting
from bcnet.latency_tables.table import LatencyTable
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.space.width_space import Widths, WidthSpace, shares

SUBNETS = 24  # number of whole subnets that calibrate the sums of layers
SAMPLED = 32  # number of random networks for layers that read a concatenation


def covering_design(space: WidthSpace) -> list[Widths]:
    """Networks that together contain every pair of choices of any two groups that share a layer.

    In network (i, j), a group of colour a has the symbol (i + a * j) mod K. The colours of groups that share
    a layer differ by a number coprime to K, so each pair of symbols occurs exactly once in K * K networks.
    Symbols are mapped evenly onto a group's choices.
    """
    colours = _colours(shares(space))
    largest = max(len(group.choices) for group in space.groups)
    size = _smallest_modulus(max(largest, 2), max(colours) + 1)
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
    """Networks that together contain all layers without a row at this setting, and these layers."""
    missing = {spec for spec in needed_layers(graph) if not table.has(spec, setting)}
    chosen, uncovered = [], set(missing)
    for widths in _networks(graph) if missing else ():
        covered = {slot.at(widths) for slot in graph.slots} & uncovered
        if covered:
            chosen.append(widths)
            uncovered -= covered
    if uncovered:
        raise TableError(
            f"no network of the covering design contains {len(uncovered)} layers, e.g. {min(uncovered)}"
        )
    return chosen, missing


def needed_layers(graph: OnnxSupernet) -> set[LayerSpec]:
    """All layers of a table that is complete for this space."""
    choices = [group.choices for group in graph.space.groups]
    networks = _networks(graph)
    needed: set[LayerSpec] = set()
    for slot in graph.slots:
        specs = None if slot.sampled else specs_of(slot, choices)
        needed |= set(specs.values()) if specs is not None else {slot.at(widths) for widths in networks}
    return needed


def _networks(graph: OnnxSupernet) -> list[Widths]:
    """Networks that together contain all needed layers."""
    space, networks = graph.space, covering_design(graph.space)
    if any(slot.sampled for slot in graph.slots):
        # For layers that read a concatenation: both ends of the range, and random points.
        rng = np.random.default_rng(0)
        drawn = [space.random(rng) for _ in range(SAMPLED)]
        networks = list(dict.fromkeys([*networks, space.smallest(), space.largest(), *drawn]))
    return networks


def networks_with(graph: OnnxSupernet, spec: LayerSpec) -> list[Widths]:
    """Networks that contain a layer, with all other groups at their widest, and at their narrowest."""
    choices = [group.choices for group in graph.space.groups]
    found = []
    for slot in graph.slots:
        specs = specs_of(slot, choices) or {}
        for index in (index for index, other in specs.items() if other == spec):
            for base in (graph.space.largest(), graph.space.smallest()):
                widths = list(base)
                for group, i in zip(slot.groups, index, strict=True):
                    widths[group] = choices[group][i]
                found.append(Widths(widths))
    return found or [graph.space.largest()]


def spread_widths(space: WidthSpace, rng: np.random.Generator, count: int) -> list[Widths]:
    """Random subnets from narrow to wide; with independent widths, all would be of medium size."""
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
    """The whole subnets that are measured: the narrowest, the widest, and random ones between them."""
    between = spread_widths(space, np.random.default_rng(seed + 1), SUBNETS - 2)
    return list(dict.fromkeys([space.smallest(), *between, space.largest()]))


def _colours(meets: dict[int, set[int]]) -> list[int]:
    """A greedy colouring: groups that share a layer get different colours; most neighbours first."""
    colours: dict[int, int] = {}
    for group in sorted(meets, key=lambda group: -len(meets[group])):
        taken = {colours[other] for other in meets[group] if other in colours}
        colours[group] = next(colour for colour in range(len(meets)) if colour not in taken)
    return [colours[group] for group in range(len(meets))]


def _smallest_modulus(at_least: int, colours: int) -> int:
    """The smallest K without prime factors below the number of colours, so that differences are coprime."""
    size = at_least
    while any(size % factor == 0 for factor in range(2, colours)):
        size += 1
    return size
