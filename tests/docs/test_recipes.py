"""The pages' Python is run, and the recipes for contributors lead to the end.

The method of `add-a-method.md` is searched with in tests/methods/test_outside_methods.py, the guide to YOLO
is run in tests/space/test_yolo.py, that to a task in tests/test_readme.py.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bcnet
from bcnet import runtimes
from bcnet.config import load_config
from bcnet.hw_profiles import load_profile
from bcnet.models import build_model
from bcnet.runtimes import Runtime, RuntimeTraits
from bcnet.space.trace_rules import RULES
from tests.docs.pages import ROOT, blocks, text_of

RECIPES = "docs/contributing"


@pytest.mark.usefixtures("project")
def test_the_deployed_file_is_read_with_onnx_runtime_and_with_pytorch_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for page in ("README.md", "docs/getting-started/deploying.md"):
        for block in blocks(page, "python"):
            exec(block.text, {})
    *digits, shape = capsys.readouterr().out.splitlines()
    assert len(digits) == 2
    assert all(digit in "0123456789" for digit in digits)
    assert shape == "torch.Size([8, 10])"


@pytest.mark.usefixtures("folder")
def test_your_own_network_is_built_as_the_page_configures_it() -> None:
    page = "docs/getting-started/own-network.md"
    (network,), (configuration,) = blocks(page, "python"), blocks(page, "toml")
    Path("own.py").write_text(network.text, encoding="utf-8")
    Path("bcnet.toml").write_text(configuration.text, encoding="utf-8")
    config = load_config(None)
    assert (config.search.latency, config.data.flip) == ("50%", True)
    assert config.data.mean == (0.485, 0.456, 0.406)
    model = build_model(config.model.model_copy(update={"weights": None}), 3, 5)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_a_network_is_cut_from_python() -> None:
    block = next(blocks("docs/reference/python-api.md", "python"))
    names = {"__name__": "page"}
    exec(block.text, names)
    small = names["small"]
    assert isinstance(small, nn.Module)
    assert small.conv1.out_channels == 8
    assert small(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.usefixtures("folder")
def test_the_recipe_for_a_data_source_gives_its_images() -> None:
    page = f"{RECIPES}/add-a-data-source.md"
    (source,), (configuration,) = blocks(page, "python"), blocks(page, "toml")
    Path("source.py").write_text(source.text, encoding="utf-8")
    Path("bcnet.toml").write_text(configuration.text, encoding="utf-8")
    data = bcnet.load_data(load_config(None))
    assert [len(part) for part in (data.train, data.val, data.test)] == [160, 40, 50]
    assert data.classes == ("left", "right")
    assert data.input_shape == (1, 16, 16)


@pytest.mark.usefixtures("folder")
def test_the_recipe_for_a_device_is_a_profile() -> None:
    (block,) = blocks(f"{RECIPES}/add-a-device.md", "toml")
    Path("hw_profiles").mkdir()
    Path("hw_profiles/gateway.toml").write_text(block.text, encoding="utf-8")
    profile = load_profile("gateway")
    assert profile.setting == ("onnxruntime", "fp32", 1, 2, "default")
    assert profile.host == ("me@gateway",)


def test_the_recipe_for_a_trace_rule_makes_its_operator_traceable() -> None:
    (block,) = blocks(f"{RECIPES}/add-a-trace-rule.md", "python")
    names = {"__name__": "page"}
    exec(block.text, names)

    class Negated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(names["negated"](self.stem(x))).mean((2, 3))

    try:
        space = bcnet.discover_space(Negated().eval(), torch.randn(2, 3, 8, 8), channel_multiple=1)
    finally:
        del RULES["negated"]
    assert [group.layers for group in space.groups] == [("stem",)]


def test_the_recipe_for_a_runtime_names_every_method_of_one() -> None:
    page = text_of(f"{RECIPES}/add-a-runtime.md")
    methods = [name for name in vars(Runtime) if not name.startswith("_")]
    assert re.findall(r"^ +\| `(\w+)` \|", page, flags=re.MULTILINE) == [
        "workers",
        *(name for name in methods if name != "workers"),
    ]
    assert "fused_profile" in RuntimeTraits.__dataclass_fields__
    names = set(re.findall(r"`([A-Z]\w+)`", page))
    assert {"DeviceError", "NetworkError", "RUNTIMES", "Runtime", "RuntimeName", "RuntimeTraits"} <= names
    assert names <= set(runtimes.__all__)
    for path in re.findall(r"`((?:bcnet|tests)/[\w/.]+)`", page):
        assert (ROOT / path).exists(), path
