"""The small network goes on without bcnet: the copied loader makes it from the user's own class, exactly.

Most families of networks are in tests/space/test_models.py, where their spaces are found once.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Refused
from result_examples import SLICE
from torch import nn

import bcnet
from bcnet.cli import main
from bcnet.config import ModelConfig, load_config
from bcnet.errors import ModelError
from bcnet.models import build_model, expression
from bcnet.pipeline.handover import SCRIPT, check_loader, handover_files
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.slice import network_files
from bcnet.runs import Run, json_bytes
from bcnet.space.widen import widened
from tests.space.test_attention import Attention
from tests.space.test_hard_layers import Between
from tests.space.test_models import network
from tests.space.witnesses import assert_loaded, drawn, scattered


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of a family, the same each time, and its inputs."""
    torch.manual_seed(0)
    if name == "vit":
        from timm.models.vision_transformer import VisionTransformer

        vit = VisionTransformer(img_size=32, patch_size=8, num_classes=7, embed_dim=48, depth=2, num_heads=3)
        return scattered(vit), torch.randn(2, 3, 32, 32)
    if name == "attention with sizes in attributes":
        attention = Attention("sizes from attributes")
        return scattered(Between(lambda self, x: self.a(x), out=12, a=attention)), torch.randn(2, 3, 8, 8)
    return network(name)


@pytest.mark.parametrize("name", ["vit", "attention with sizes in attributes"])
def test_the_loader_narrows_attention_in_the_users_class(name: str, tmp_path: Path) -> None:
    assert_loaded(lambda: made(name)[0], bcnet.discover_space(*made(name)), made(name)[1], tmp_path)


def test_a_network_that_became_wider_than_it_was_given_is_loaded() -> None:
    given, x = made("small repvgg")
    wide = widened(given, bcnet.discover_space(given, x), 1.5, channel_multiple=8)
    space = bcnet.discover_space(wide, x)
    small = bcnet.cut(wide, space, space.random(0))
    shapes = [{name: parameter.shape for name, parameter in own.named_parameters()} for own in (given, small)]
    assert any(shapes[1][name].numel() > shape.numel() for name, shape in shapes[0].items())
    check_loader(handover_files(given, small, {}, {}), lambda: made("small repvgg")[0], small, x)


def test_the_loader_is_short_and_needs_torch_and_safetensors_alone() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imports = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imports += [own.name for node in ast.walk(tree) if isinstance(node, ast.Import) for own in node.names]
    assert sorted(map(str, imports)) == ["json", "pathlib", "safetensors.torch", "torch"]
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert (function.end_lineno or 0) - function.body[1].lineno < 35


@pytest.mark.parametrize(
    ("config", "line", "code"),
    [
        (
            ModelConfig(name="torchvision:squeezenet1_1", args={"dropout": 0.1}),
            "import torchvision",
            "torchvision.models.get_model('squeezenet1_1', num_classes=4, weights=None, dropout=0.1)",
        ),
        (
            ModelConfig(name="timm:test_vit"),
            "import timm",
            "timm.create_model('test_vit', in_chans=3, num_classes=4)",
        ),
        (
            ModelConfig(name="digits"),
            "from bcnet.models import NETWORKS",
            "NETWORKS['digits'](in_channels=3, num_classes=4)",
        ),
        (
            ModelConfig(name="torch.nn:Conv2d", args={"in_channels": 3, "out_channels": 4, "kernel_size": 1}),
            "from torch.nn import Conv2d",
            "Conv2d(in_channels=3, out_channels=4, kernel_size=1)",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ModelConfig) else "",
)
def test_the_lines_make_the_network_that_is_configured(config: ModelConfig, line: str, code: str) -> None:
    assert expression(config, 3, 4) == (line, code)
    names: dict[str, object] = {}
    exec(line, names)
    network = eval(code, names)
    expected = build_model(config, 3, 4).state_dict()
    assert {key: own.shape for key, own in network.state_dict().items()} == {
        key: own.shape for key, own in expected.items()
    }


def test_what_cannot_be_made_again_is_refused_with_the_reason() -> None:
    given, x = made("squeezenet1_0")
    space = bcnet.discover_space(given, x)
    small = bcnet.cut(given, space, drawn(space))
    files = handover_files(given, small, {}, {})
    check_loader(files, lambda: made("squeezenet1_0")[0], small, x)
    with pytest.raises(ModelError, match=r"SqueezeNet cannot be narrowed .* alone \(ValueError: this"):
        check_loader(files, lambda: made("small regnet")[0], small, x)

    def other() -> nn.Module:
        network = made("squeezenet1_0")[0]
        network.features[1] = nn.Tanh()  # type: ignore[index]
        return network

    with pytest.raises(ModelError, match=r"alone: the network then gives other outputs; use bcnet\.load"):
        check_loader(files, other, small, x)


OWN = """
import torch
from torch import nn

class Own(nn.Module):
    \"\"\"Layers that share a weight, and a buffer of each channel that is not saved with the state.\"\"\"

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.c.weight = self.b.weight
        self.register_buffer("factors", torch.linspace(1, 2, 32), persistent=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.c(self.b(self.a(x).relu()).relu()) * self.factors[:, None, None]
        return self.head(x.relu().mean((2, 3)))
"""


@pytest.fixture
def sliced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network of the user's own, whose run holds its narrowest right side."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "own_network.py").write_text(OWN, encoding="utf-8")
    (folder / "bcnet.toml").write_text('[model]\nname = "own_network:Own"\n', encoding="utf-8")
    problem = open_problem(load_config(None))
    widths = problem.space.smallest()
    assert len(widths) == 1
    small = bcnet.cut(problem.model, problem.space, widths, "right")
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter)
    summary = SLICE.model_copy(update={"widths": widths})
    files = network_files(small, problem.data.example(2), {"bcnet.preprocessing": "{}"})
    Run.named("default").stage("slice").finish({}, {**files, summary.FILE: json_bytes(summary.to_json())})
    return folder


def test_a_network_with_shared_and_unsaved_tensors_is_loaded(sliced: Path) -> None:
    loaded = bcnet.load("default")
    x = torch.randn(5, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(x), torch.export.load("runs/default/slice/model.pt2").module()(x))
    assert loaded.c.weight is loaded.b.weight
    assert type(loaded).__name__ == "Own"
    assert loaded.factors[-1] == 2
    assert not loaded.training
    loaded.train()
    loaded(x).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_the_command_writes_files_and_lines_that_run_without_bcnet(
    sliced: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", "default", "--output", "small"]) == 0
    out = capfd.readouterr().out
    assert sorted(path.name for path in Path("small").iterdir()) == [
        *("load_network.py", "network.safetensors", "widths.json")
    ]
    about = json.loads(Path("small/widths.json").read_text())
    assert about["format"] == 1
    assert about["network"] == "own_network:Own"
    (group,) = about["groups"].values()
    assert group == {"original": 32, "width": 8, "layers": ["a", "b"]}
    assert about["tensors"]["b.weight"] == {"original": [32, 32, 1, 1], "shape": [8, 8, 1, 1]}
    assert about["attributes"]["a"] == {"out_channels": 8}
    assert "c.weight" not in about["tensors"]
    x = torch.randn(5, 1, 32, 32)
    torch.save(x, "x.pt")
    code, files = out.split("\n\n")
    assert files.startswith("files: small/network.safetensors, ")
    script = f"{code}\nimport torch\ntorch.save(network(torch.load('x.pt')).detach(), 'y.pt')\n"
    script += "assert not any(name.partition('.')[0] == 'bcnet' for name in sys.modules)\n"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(torch.load("y.pt"), bcnet.load()(x))
    assert main(["load", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["folder"] == "runs/default/network"
    assert found["widths"] == [8]
    assert all(Path(file).is_file() for file in found["files"])


def test_a_run_without_a_small_network_or_of_another_is_refused(sliced: Path, refused: Refused) -> None:
    assert "there is no run 'nigth'; available: default" in refused(2, "load", "nigth")
    Path("own_network.py").write_text(OWN.replace("(1, 32, 3)", "(1, 32, 5)"), encoding="utf-8")
    del sys.modules["own_network"]
    line = refused(1, "load")
    assert (
        "runs/default/slice holds another network than the configured one ('a.weight' is [8, 1, 3, 3], not"
        in line
    )
    assert line.endswith("restore its bcnet.toml, or run `bcnet slice` again")
    Path("own_network.py").write_text(OWN.replace("x.relu().mean", "x.mean"), encoding="utf-8")
    del sys.modules["own_network"]
    assert "another network than the configured one (its outputs differ): restore what it" in refused(
        1, "load"
    )
    Path("runs/default/slice/manifest.json").unlink()
    assert "runs/default has no finished slice; run `bcnet slice` first" in refused(1, "load")
