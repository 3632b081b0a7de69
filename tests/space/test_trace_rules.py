"""Rules for operators: each is one function, registered under its operators' names."""

import pytest
import torch
from torch import Tensor, nn

from bcnet.errors import SpaceError
from bcnet.space.discover import discover_space
from bcnet.space.trace_entry_rules import pointwise
from bcnet.space.trace_record import Call, Record
from bcnet.space.trace_rules import RULES, rule
from tests.space.witnesses import assert_agree, drawn

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("bcnet_tests::negated", mutates_args=())
def negated(x: Tensor) -> Tensor:
    return -x


class Negated(nn.Module):
    """Two convolutions with an operator between them that is not PyTorch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(negated(self.stem(x).relu())).mean((2, 3))


def test_channels_stay_where_an_operator_has_no_rule() -> None:
    model = Negated().eval()
    with pytest.raises(SpaceError, match=r"it is an input of 'negated' in the network's forward, through"):
        discover_space(model, IMAGES, channel_multiple=1)


def test_one_function_makes_an_operator_traceable() -> None:
    @rule("negated")
    def entry_by_entry(record: Record, call: Call) -> None:
        pointwise(record, call)

    model = Negated().eval()
    try:
        space = discover_space(model, IMAGES, channel_multiple=1)
    finally:
        del RULES["negated"]
    assert [group.layers for group in space.groups] == [("stem",)]
    assert_agree(model, space, IMAGES, drawn(space), training=False)


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(ValueError, match="operator 'cat' has a rule already: concatenate"):
        rule("cat")(pointwise)
