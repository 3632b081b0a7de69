"""Networks built from hard layers at random: for any widths, path, cut and masked network are one."""

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet.space.discover import discover_space
from bcnet.space.subnet import Subnet
from bcnet.space.width_space import Widths
from tests.space.witnesses import anywhere, assert_agree, assert_same_gradients, scattered

KINDS = (
    *("plain", "residual", "branches", "concatenated", "grouped", "two groups", "depthwise", "gated"),
    *("group norm", "layer norm", "glu", "prelu", "scaled", "transposed", "shared", "dense", "halves"),
)


class Block(nn.Module):
    """One kind of layer, from `channels` to `out` channels."""

    def __init__(self, kind: str, channels: int, out: int) -> None:
        super().__init__()
        self.kind = kind
        same = kind in ("residual", "grouped", "two groups", "depthwise", "gated", "group norm", "layer norm")
        self.out = channels if same or kind in ("prelu", "scaled", "shared", "halves") else out
        a, b = channels, self.out
        if kind == "residual":
            self.a, self.b = nn.Conv2d(a, out, 1), nn.Conv2d(out, a, 3, padding=1)
            self.norm = nn.BatchNorm2d(out)
        elif kind == "branches":
            self.a, self.b = nn.Conv2d(a, b, 1), nn.Conv2d(a, b, 3, padding=1)
        elif kind == "concatenated":
            self.a, self.norm, self.b = (
                nn.Conv2d(a, out, 1),
                nn.BatchNorm2d(a + out),
                nn.Conv2d(a + out, b, 1),
            )
        elif kind == "dense":
            self.a, self.out = nn.Conv2d(a, out, 1), a + out
        elif kind in ("grouped", "two groups", "depthwise"):
            groups = {"grouped": a // 2, "two groups": 2, "depthwise": a}[kind]
            self.a = nn.Conv2d(a, a, 3, padding=1, groups=groups)
        elif kind == "gated":
            self.a, self.b = nn.Conv2d(a, out, 1), nn.Conv2d(out, a, 1)
        elif kind == "group norm":
            self.a = nn.GroupNorm(a // 2, a)
        elif kind == "layer norm":
            self.a = nn.LayerNorm(a)
        elif kind == "glu":
            self.a = nn.Conv2d(a, 2 * b, 1)
        elif kind == "prelu":
            self.a = nn.PReLU(a)
        elif kind == "scaled":
            self.a, self.scale = nn.Conv2d(a, a, 1), nn.Parameter(torch.rand(a, 1, 1))
        elif kind == "transposed":
            self.a = nn.ConvTranspose2d(a, b, 1)
        elif kind == "shared":
            self.a = nn.Conv2d(a, a, 1)
        elif kind == "halves":
            self.a = nn.Conv2d(a // 2, a // 2, 1)
        else:
            self.a = nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "residual":
            return x + self.b(self.norm(self.a(x)).relu())
        if self.kind == "branches":
            return self.a(x) + self.b(x).relu()
        if self.kind == "concatenated":
            return self.b(self.norm(torch.cat([x, self.a(x)], 1)))
        if self.kind == "dense":
            return torch.cat([x, self.a(x)], 1)
        if self.kind == "gated":
            return x * self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        if self.kind == "layer norm":
            return self.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.kind == "glu":
            return F.glu(self.a(x), 1)
        if self.kind == "scaled":
            return x + self.scale * self.a(x)
        if self.kind == "shared":
            return self.a(self.a(x).relu())
        if self.kind == "halves":
            first, second = x.chunk(2, 1)
            return torch.cat([first, self.a(second)], 1)
        return self.a(x)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_widths_of_any_network_give_one_result_three_times(data: st.DataObject) -> None:
    torch.manual_seed(0)
    channels = 8
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    for kind in data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5)):
        block = Block(kind, channels, data.draw(st.sampled_from((4, 6, 8))))
        channels = block.out
        layers.append(block)
    if data.draw(st.booleans()):
        layers += [nn.Conv2d(channels, 6, 1), nn.Flatten(), nn.Linear(6 * 16, 3)]
    else:
        layers += [nn.Conv2d(channels, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    model = scattered(nn.Sequential(*layers))
    x = torch.randn(2, 3, 4, 4)
    space = discover_space(model, x, bins=3, channel_multiple=1)
    widths = Widths(
        group.unit * data.draw(st.integers(1, group.channels // group.unit)) for group in space.groups
    )
    assert_agree(model, space, x, widths)
    if not any(group.mixed for group in space.groups):
        for subnet in (Subnet.at(space, widths), anywhere(space, widths)):
            assert_same_gradients(model.train(), space, (x, torch.tensor([0, 2])), subnet)
