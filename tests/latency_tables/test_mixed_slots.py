"""Layers of two precisions: which networks show all forms, and the form of a layer at any precisions."""

from dataclasses import replace

import pytest

from bcnet.errors import TableError
from bcnet.latency_tables.mixed_slots import Bits, covering_bits, mixed_slots
from bcnet.latency_tables.model import LayerSlot
from tests.latency_tables.test_table import CONV

CHAIN = [(0,), (0, 1), (1, 2), (2, 3), (3,)]  # a first layer, four layers that may be binary


def network(bits: Bits) -> list[LayerSlot]:
    """The chain in these precisions: a sign is fused into the layer before the one that it belongs to."""
    slots = []
    for place in range(5):
        op = "BinaryConv" if place and bits[place - 1] == 1 else "Conv"
        activation = "Greater+Where" if place < 4 and bits[place] == 1 else ""
        template = replace(CONV, op=op, activation=activation, in_height=place + 1)
        slots.append(LayerSlot(f"l{place}", template, ((0, 1),), ((1, 1),), None, (f"l{place}",)))
    return slots


def test_four_networks_show_all_forms_of_a_chain() -> None:
    found = covering_bits(CHAIN, 4)
    assert found == [(1, 1, 1, 1), (1, 32, 1, 32), (32, 1, 32, 1), (32, 32, 32, 32)]
    for layers in CHAIN:
        assert len({tuple(bits[layer] for layer in layers) for bits in found}) == 2 ** len(layers)


def test_layers_on_which_one_fused_layer_depends_never_share_a_colour() -> None:
    found = covering_bits([(0, 1, 2), (1, 3)], 4)
    assert len(found) == 8
    assert {bits[:3] for bits in found} == {(a, b, c) for a in (1, 32) for b in (1, 32) for c in (1, 32)}
    assert covering_bits([(), ()], 0) == [()]


def test_a_network_of_any_precisions_has_the_layers_that_it_would_have_by_itself() -> None:
    slots = mixed_slots({bits: network(bits) for bits in covering_bits(CHAIN, 4)}, CHAIN, first=2)
    assert [own.groups for own in slots] == [(0, 1, *(2 + n for n in layers)) for layers in CHAIN]
    bits = (32, 1, 1, 32)  # in none of the four
    widths = (16, 8)
    assert [own.at((*widths, *bits)) for own in slots] == [own.at(widths) for own in network(bits)]


def test_networks_of_other_layers_are_refused() -> None:
    networks = {bits: network(bits) for bits in covering_bits(CHAIN, 4)}
    networks[1, 1, 1, 1] = networks[1, 1, 1, 1][:-1]
    with pytest.raises(TableError, match=r"^the network consists of other layers when some of them are"):
        mixed_slots(networks, CHAIN, first=2)
