"""Attention is narrowed by whole heads: queries, keys, values and what reads them, exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.space.test_hard_layers import IMAGES, Between, space_of
from tests.space.witnesses import assert_agree, scattered

HEADS, SIZE = 3, 5  # as many heads as there are queries, keys and values


class Attention(nn.Module):
    """Self-attention over an image's positions, written as `way` says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.heads, self.size, self.dim = way, HEADS, SIZE, HEADS * SIZE
        self.scale = SIZE**-0.5
        self.qkv = nn.Linear(16, 3 * HEADS * SIZE)
        self.bias = nn.Parameter(torch.rand(5, HEADS))
        self.register_buffer("index", torch.arange(64 * 64) % 5, persistent=False)
        self.out = nn.Linear(HEADS * SIZE, 12)

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(2).transpose(1, 2)
        batch, positions, _ = x.shape
        heads = -1 if self.way == "the number of heads from the size" else self.heads
        qkv = self.qkv(x).reshape(batch, positions, 3, heads, self.size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "scaled_dot_product_attention":
            y = F.scaled_dot_product_attention(query, key, value)
        elif self.way == "einsum":
            scores = torch.einsum("bhnd,bhmd->bhnm", query, key) * self.scale
            y = torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), value)
        else:
            scores = query * self.scale @ key.transpose(-2, -1)
            if self.way == "a bias of each head":
                scores = scores + self.bias[self.index].view(64, 64, -1).permute(2, 0, 1)
            y = scores.softmax(-1) @ value
        last = self.dim if self.way == "sizes from attributes" else -1
        y = self.out(y.transpose(1, 2).reshape(batch, positions, last))
        return y.transpose(1, 2).reshape(batch, -1, *image.shape[2:])


WAYS = (
    *("scaled_dot_product_attention", "products and softmax", "einsum", "a bias of each head"),
    *("sizes from attributes", "the number of heads from the size"),
)


@pytest.fixture(params=WAYS)
def attending(request: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Between(lambda self, x: self.a(x), out=12, a=Attention(request.param))
    return scattered(model)


def test_attention_is_narrowed_by_whole_heads(attending: nn.Module) -> None:
    space = space_of(attending)
    group = next(group for group in space.groups if group.name == "a.qkv")
    per_head = group.channels // HEADS
    assert [width // per_head for width in group.choices] == [1, 2, 3]
    assert not group.mixed
    assert {"stem", "a.out", "head"} <= {other.name for other in space.groups}
    for widths in (space.smallest(), space.random(1)):
        heads = widths[space.groups.index(group)] // per_head
        counted = 0 if attending.a.way == "scaled_dot_product_attention" else heads
        assert_agree(attending, space, IMAGES, widths, unweighted=2 * counted * 64 * 64 * SIZE)
