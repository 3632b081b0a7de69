"""What an export leaves out changes no graph, and leaves the exporter as it was."""

import contextlib
import gc
import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.fx.config
from torch import nn

from bcnet.errors import ModelError
from bcnet.onnx_export import onnx_supernet, quick_export
from bcnet.onnx_export.onnx_supernet import to_onnx

SHAPE = (1, 3, 8, 8)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.sum() > 1) else -x


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)
    ).eval()


def test_the_graph_is_the_one_of_an_ordinary_export(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (to_onnx(network, SHAPE).SerializeToString(deterministic=True) for _ in range(2))
    monkeypatch.setattr(onnx_supernet, "quick_export", contextlib.nullcontext)
    assert first == second == to_onnx(network, SHAPE).SerializeToString(deterministic=True)


def test_the_operators_are_read_once_and_the_exporter_stays_as_it_was(network: nn.Module) -> None:
    registry = importlib.import_module(quick_export.REGISTRY).ONNXRegistry
    before = vars(registry)["from_torchlib"]
    with quick_export.quick_export():
        assert not gc.isenabled()
        kept = registry.from_torchlib(opset_version=20)
        assert registry.from_torchlib(opset_version=20) is kept
        assert registry.from_torchlib(opset_version=21) is not kept
    for model in (network, Branching()):
        with contextlib.suppress(ModelError):
            to_onnx(model, SHAPE)
        assert vars(registry)["from_torchlib"] is before
        assert gc.isenabled()
    assert registry.from_torchlib(opset_version=20) is not kept


def test_a_registry_is_not_kept_when_operators_have_been_registered_since() -> None:
    registry = importlib.import_module(quick_export.REGISTRY).ONNXRegistry
    library = torch.library.Library("bcnet_tests", "FRAGMENT")
    with quick_export.quick_export():
        kept = registry.from_torchlib(opset_version=20)
    library.define("later(Tensor x) -> Tensor")
    with quick_export.quick_export():
        assert registry.from_torchlib(opset_version=20) is not kept


@pytest.mark.slow
def test_operators_that_come_later_are_exported() -> None:
    """Torchvision's operators have an ONNX form from when it is imported on."""
    script = f"""
import sys, torch
from torch import nn
from bcnet.onnx_export.onnx_supernet import to_onnx
to_onnx(nn.Conv2d(3, 4, 3), {SHAPE})
assert "torchvision" not in sys.modules
from torchvision.ops import DeformConv2d
class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.offsets, self.conv = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 4, 3, padding=1)
    def forward(self, x):
        return self.conv(x, self.offsets(x))
print(*(node.op_type for node in to_onnx(Deformed(), {SHAPE}).graph.node))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Conv", "DeformConv"], done.stderr


def test_operators_are_listed_again_only_when_others_have_been_registered_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module(quick_export.OPERATORS)
    listed = list[object]()
    monkeypatch.setattr(module, quick_export.LIST, lambda namespace: set(listed.append(namespace) or ()))
    library = torch.library.Library("bcnet_tests", "FRAGMENT")
    for name in ("first", "second"):
        library.define(f"{name}(Tensor x) -> Tensor")
        for _ in range(2):
            with quick_export.quick_export():
                for namespace in (torch.ops.aten, torch.ops.prims):
                    assert getattr(module, quick_export.LIST)(namespace) == set()
    assert listed == [torch.ops.aten, torch.ops.prims] * 2


@pytest.mark.skipif(
    not hasattr(torch.fx.config, "do_not_emit_stack_traces"), reason="this PyTorch always reads them"
)
def test_lines_of_source_are_read_only_for_an_export_that_failed(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks = []
    export = torch.onnx.export

    def watched(*given: Any, **named: Any) -> Any:
        stacks.append(not torch.fx.config.do_not_emit_stack_traces)
        return export(*given, **named)

    monkeypatch.setattr(torch.onnx, "export", watched)
    to_onnx(network, SHAPE)
    assert stacks == [False]
    with pytest.raises(ModelError):
        to_onnx(Branching(), SHAPE)
    assert stacks == [False, False, True]


def test_an_exporter_with_other_internals_is_used_as_it_is(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = to_onnx(network, SHAPE)
    for name in ("torch.onnx._internal.moved", "torch.onnx"):
        monkeypatch.setattr(quick_export, "REGISTRY", name)
        monkeypatch.setattr(quick_export, "OPERATORS", name)
        assert to_onnx(network, SHAPE) == expected
