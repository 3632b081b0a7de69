"""Counts of thousands of networks at once are those of each network, and of the file that is written."""

import random

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from bcnet.models.reactnet import reactnet_small
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.runtimes.onnx_binary import packed_bytes
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Segment, WidthSpace
from bcnet.width_search.constraints import Bound, Cost, multiply_accumulates, parameters, weight_bytes
from tests.space.test_hard_layers import SEARCHED
from tests.space.test_models import network
from tests.space.witnesses import scattered


def stored_bytes(file: bytes) -> int:
    return sum(numpy_helper.to_array(entry).nbytes for entry in onnx.load_from_string(file).graph.initializer)


def assert_counts(space: WidthSpace) -> None:
    rng = np.random.default_rng(0)
    networks = [space.smallest(), space.largest(), *(space.random(rng) for _ in range(20))]
    for cost, one in ((parameters(space), space.params), (multiply_accumulates(space), space.macs)):
        assert cost.price_many(np.array(networks)).tolist() == [one(widths) for widths in networks]
        assert [cost(widths) for widths in networks] == [one(widths) for widths in networks]


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "regnet_y_400mf", "digits"]
)
def test_counts_are_those_of_the_space(name: str) -> None:
    model, x = network(name)
    assert_counts(discover_space(model, x))


def test_random_widths_follow_a_seed_or_either_kind_of_generator() -> None:
    model, x = network("digits")
    space = discover_space(model, x)
    assert space.random(3) == space.random(3) == space.random(np.random.default_rng(3))
    assert space.random(np.int64(3)) == space.random(3)
    assert space.random(random.Random(3)) == space.random(random.Random(3))
    drawn, other = random.Random(0), np.random.default_rng(0)
    assert len({space.random(drawn) for _ in range(9)}) > 5  # a generator moves on
    assert len({space.random(other) for _ in range(9)}) > 5
    for widths in (space.random(0), space.random(drawn)):
        assert all(width in group.choices for width, group in zip(widths, space.groups, strict=True))


@pytest.mark.parametrize("name", SEARCHED)
def test_counts_of_hard_layers_are_those_of_the_space(name: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    assert_counts(discover_space(scattered(SEARCHED[name]()), images, bins=4, channel_multiple=1))


@pytest.mark.parametrize("method", ["unilateral", "bcnetv2"])
def test_counts_do_not_hold_channels_that_only_the_supernet_has(method: str) -> None:
    model, x = network("digits")
    assert_counts(discover_space(model, x, method=method))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_bytes_are_those_of_the_file_at_its_precision(precision: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16, bias=False),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    space = discover_space(scattered(model), torch.randn(1, 3, 8, 8), bins=4, channel_multiple=1)
    graph = OnnxSupernet(model, space, (1, 3, 8, 8), precision)
    rng, cost = np.random.default_rng(0), weight_bytes(graph)
    for widths in (space.smallest(), space.largest(), space.random(rng), space.random(rng)):
        assert cost(widths) == stored_bytes(graph.variant(widths))


@pytest.fixture(scope="module")
def binary() -> WidthSpace:
    return discover_space(binary_network(), torch.zeros(1, 3, 16, 16))


def binary_network() -> nn.Module:
    torch.manual_seed(0)
    return scattered(reactnet_small(widths=(64, 96), depths=(1, 1)))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_binary_weights_count_one_bit_where_they_are_packed(binary: WidthSpace, precision: str) -> None:
    graph = OnnxSupernet(binary_network(), binary, (1, 3, 16, 16), precision)
    packed, floats = weight_bytes(graph, one_bit=True), weight_bytes(graph)
    networks = [binary.smallest(), binary.largest(), binary.random(0), binary.random(1)]
    for widths in networks:
        file = graph.variant(widths)
        assert packed(widths) == packed_bytes(onnx.load_from_string(file))
        assert floats(widths) == stored_bytes(file)
        # Of four binary 3x3 convolutions, with scales of four bytes for each output channel.
        layers = [(widths[a], widths[b]) for a, b in ((0, 1), (1, 0), (0, 2), (2, 3))]
        weights = sum(9 * a * b for a, b in layers)
        channels = sum(b for _, b in layers)
        assert floats(widths) - packed(widths) == 4 * weights - weights // 8 - 4 * channels
    assert packed.price_many(np.array(networks)).tolist() == [packed(widths) for widths in networks]


def test_a_part_of_a_byte_counts_as_one() -> None:
    assert Cost(1, [(1 / 8, ((Segment(0, 1),),))])([9]) == 2


def test_pairs_and_single_groups_add_up_to_the_count() -> None:
    """Also where three groups meet in one tensor, and where one meets itself."""

    def axis(group: int, size: int = 1, fixed: int = 0) -> tuple[Segment, ...]:
        return (Segment(group, size), *([Segment(None, fixed)] if fixed else []))

    cost = Cost(
        3, [(2, (axis(0, 3, 5), axis(1))), (1, (axis(0), axis(1), axis(2, 1, 1))), (4, (axis(2), axis(2)))]
    )
    choices = ((1, 2), (3, 4, 5), (6, 7))
    offset, arrays = cost.pairwise(choices)
    index = (1, 2, 0)
    widths = [own[i] for own, i in zip(choices, index, strict=True)]
    summed = offset + sum(float(array[tuple(index[g] for g in groups)]) for groups, array in arrays)
    assert cost(widths) == summed == 2 * (3 * 2 + 5) * 5 + 2 * 5 * (6 + 1) + 4 * 6 * 6


def test_what_is_shown_of_megabytes_suffices_as_a_bound() -> None:
    bound = Bound("max_size_mb", "megabytes", Cost(1, []), 1.0, 1_000_000)
    assert [bound.shown(count) for count in (1_000, 1_001, 12_345_678)] == ["0.001", "0.002", "12.346"]
    assert Bound("max_params", "parameters", Cost(1, []), 1.0).shown(1_234_567) == "1,234,567"


class Tokens(nn.Module):
    """A layer of another kind between convolutions and a linear layer, at 16 tokens of 32 channels."""

    def __init__(self, layer: nn.Module, out: int) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 32, 4, 4), layer, nn.Linear(out, 10)
        self.widened = nn.Conv2d(32, 32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.widened(self.stem(x).relu()).flatten(2).transpose(1, 2)
        attention = isinstance(self.layer, nn.MultiheadAttention)
        y = self.layer(y, y, y, need_weights=False) if attention else self.layer(y)
        y = self.head((y[0] if isinstance(y, tuple) else y).mean(1))
        return y


@pytest.mark.parametrize(
    ("layer", "out", "weights"),
    [
        (nn.MultiheadAttention(32, 4, batch_first=True), 32, 4 * 32 * 32),
        (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 32, 4 * 32 * 32 + 2 * 32 * 64),
        (nn.LSTM(32, 24, batch_first=True, bidirectional=True), 48, 2 * 4 * 24 * (32 + 24)),
        (nn.GRU(32, 24, batch_first=True, bidirectional=True), 48, 2 * 3 * 24 * (32 + 24)),
        (nn.RNN(32, 24, batch_first=True, bidirectional=True), 48, 2 * 24 * (32 + 24)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_attention_and_recurrent_layers_are_counted_at_every_token(
    layer: nn.Module, out: int, weights: int
) -> None:
    model = Tokens(layer, out).eval()
    space = discover_space(model, torch.zeros(2, 3, 16, 16))
    around = 16 * (32 * 48 + 32 * 32) + out * 10
    assert space.macs(space.largest()) == around + 16 * weights
    assert not any("only in training" in entry.reason for entry in space.frozen)
