"""Layers of a network of which each may have one of two precisions, as functions of widths and precisions.

In: the fused layers of the same network in several assignments of a precision to each layer. Out: one list of
them for all assignments, in which the precision of a layer is a choice like the width of a group: its bits.

A fused layer depends on its own precision (the kernel), and on that of the layers that read its result: what
prepares their input, such as a sign, is fused into it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from bcnet.errors import TableError
from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.rows import LayerSpec

ONE_BIT, REAL = 1, 32  # real: at the precision of the file
BITS = (ONE_BIT, REAL)  # the choices of a layer
Bits = tuple[int, ...]  # of each layer


@dataclass(frozen=True)
class MixedSlot(LayerSlot):
    """A fused layer with a form for all bits of the groups `by`, which follow the groups of widths."""

    by: tuple[int, ...] = ()
    forms: Mapping[Bits, LayerSpec] = field(default_factory=dict, hash=False)

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups of widths and of bits that its latency depends on, ascending."""
        return tuple(sorted({*super().groups, *self.by}))

    def at(self, widths: Sequence[int]) -> LayerSpec:
        """The layer at these widths and bits."""
        form = self.forms[tuple(widths[group] for group in self.by)]
        return replace(self, template=form).of(*self.channels(widths))


def covering_bits(reads: Sequence[Sequence[int]], layers: int) -> list[Bits]:
    """Assignments that together contain all bits of the layers on which one fused layer depends.

    `reads` are these layers, for each fused layer. Layers of one colour, of which no fused layer depends on
    two, have the same bits: a chain needs four assignments, however long it is.
    """
    colours: list[int] = []
    for layer in range(layers):
        beside = {other for own in reads if layer in own for other in own if other < layer}
        taken = {colours[other] for other in beside}
        colours.append(next(colour for colour in range(layers) if colour not in taken))
    by_colour = product(BITS, repeat=max(colours, default=-1) + 1)
    return [tuple(bits[colour] for colour in colours) for bits in by_colour]


def mixed_slots(
    networks: Mapping[Bits, Sequence[LayerSlot]], reads: Sequence[Sequence[int]], first: int
) -> tuple[MixedSlot, ...]:
    """The fused layers of all assignments at once; the groups of bits begin at number `first`.

    `networks` has those of each of `covering_bits`, `reads` the layers on which each depends. Raises
    TableError where the networks do not consist of the same layers.
    """
    if any(_shapes(own) != _shapes(next(iter(networks.values()))) for own in networks.values()):
        raise TableError(
            "the network consists of other layers when some of them are binary, so that their latencies "
            "cannot be compared"
        )
    found = []
    for number, layers in enumerate(reads):
        forms = {
            tuple(bits[layer] for layer in layers): slots[number].template for bits, slots in networks.items()
        }
        slot = next(iter(networks.values()))[number]
        own = {name: getattr(slot, name) for name in ("name", "in_terms", "out_terms", "group_size", "nodes")}
        by = tuple(first + layer for layer in layers)
        found.append(MixedSlot(template=slot.template, **own, by=by, forms=forms))
    return tuple(found)


def _shapes(slots: Sequence[LayerSlot]) -> list[tuple[object, ...]]:
    return [(own.in_terms, own.out_terms, own.template.kernel, own.template.stride) for own in slots]
