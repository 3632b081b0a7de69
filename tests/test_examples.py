"""The examples do what they say."""

import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import onnx
import pytest
from conftest import PROFILE, measure_briefly

from bcnet.cli import main
from bcnet.config import load_config

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_python(folder: Path, script: Path, *arguments: str) -> str:
    """What the script prints in a folder whose device is this machine, timed briefly."""
    (folder / "hw_profiles").mkdir()
    (folder / "hw_profiles" / "cpu.toml").write_text(PROFILE, encoding="utf-8")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        measure_briefly(patch)
        patch.setattr("sys.argv", [str(script), *arguments])
        patch.syspath_prepend(script.parent)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            assert not end.code  # noqa: PT017
    return out.getvalue()


# Numbers of the example that make it long, and those that are enough for a test.
SMALLER = (
    ('DataConfig(name="digits")', 'DataConfig(name="digits", image_size=16, train_limit=120, test_limit=60)'),
    ("bins=8", "bins=3"),
    ("epochs=4", "epochs=1"),
    ("images=128", "images=32"),
    ("population=12, generations=3", "population=4, generations=1"),
    ("epochs=3", "epochs=1"),
)


@pytest.mark.parametrize(
    "smaller", [pytest.param((), marks=pytest.mark.slow), SMALLER], ids=["whole", "small"]
)
def test_the_example_in_python_ends_with_a_verified_file(
    tmp_path: Path, smaller: tuple[tuple[str, str], ...]
) -> None:
    source = (EXAMPLES / "from_python.py").read_text(encoding="utf-8")
    for old, new in smaller:
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "from_python.py").write_text(source, encoding="utf-8")
    *_, widths, verdict = run_python(tmp_path, tmp_path / "from_python.py").splitlines()
    assert "accuracy" in widths
    # A busy machine may miss the budget, and the example says so; it never says anything else.
    assert verdict == "passed" or "measured latency" in verdict
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


def test_the_example_in_python_is_short() -> None:
    assert len((EXAMPLES / "from_python.py").read_text(encoding="utf-8").splitlines()) < 60


def test_the_cifar_example_is_a_valid_configuration() -> None:
    config = load_config(EXAMPLES / "cifar10.toml")
    assert config.model.name == "cbm-mobilenet"
    assert config.data.name == "imagefolder:.cache/cifar10"


def test_the_imagenet_example_searches_a_wider_efficientnet_at_the_originals_latency() -> None:
    config = load_config(EXAMPLES / "imagenet-efficientnet-b0.toml")
    assert config.model.name == "torchvision:efficientnet_b0"
    assert (config.space.expand, config.search.latency, config.search.method) == (1.5, "100%", "evolution")
    assert (config.data.augment, config.data.val_images, config.train.ema) == ("imagenet", 50_000, 0.9998)
    assert config.slice.from_scratch


def test_the_segmentation_example_is_a_valid_configuration() -> None:
    config = load_config(EXAMPLES / "segmentation.toml")
    assert config.task.metric == "mean-iou"
    assert config.data.flip


TINY = """
[model]
name = "NETWORK"
[data]
name = "segmentation:data"
train_limit = 40
test_limit = 10
[task]
metric = "mean-iou"
[space]
bins = 2
min_width = 0.5
[train]
epochs = 1
optimizer = "adamw"
learning_rate = 0.001
batch_size = 16
[search]
latency = "90%"
population = 2
generations = 0
measured = 1
recalibration_images = 16
[slice]
epochs = 1
[export]
latency_tolerance = 5.0
"""
# LR-ASPP itself is narrowed and exported among the networks that people have.
SMALL = """
from collections import OrderedDict

from torch import nn
from torch.nn.functional import interpolate


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.classes = nn.Conv2d(64, 4, 1)

    def forward(self, x):
        classes = self.classes(self.features(x))
        size = x.shape[-2:]
        return OrderedDict(out=interpolate(classes, size=size, mode="bilinear", align_corners=False))
"""


@pytest.mark.parametrize(
    "network", [pytest.param("segmentation:network", marks=pytest.mark.slow), "small:Network"]
)
def test_the_segmentation_example_searches_a_network_that_returns_a_dict(
    tmp_path: Path, network: str
) -> None:
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(TINY.replace("NETWORK", network), encoding="utf-8")
    result = json.loads(run_python(tmp_path, EXAMPLES / "segmentation.py", "--config", "tiny.toml", "--json"))
    assert result["metric"] == "mean-iou"
    assert [entry["name"] for entry in result["networks"]] == [
        "full (from scratch)",
        "uniform (from scratch)",
        "found (inherited)",
        "found (from scratch)",
    ]
    assert all(0 <= entry["accuracy"] <= 1 for entry in result["networks"])
    proto = onnx.load(tmp_path / "runs/default/export/model.onnx")
    assert [entry.name for entry in proto.graph.output] == ["out"]
    assert [dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim] == [1, 4, 64, 64]


@pytest.mark.parametrize(
    ("file", "command", "used"),
    [
        ("check-lut.yml", "check-lut", {"--against", "--junit"}),
        ("compare-runs.yml", "diff", {"--markdown", "--max-slowdown", "--max-loss"}),
    ],
)
def test_the_workflows_use_flags_that_their_commands_have(
    file: str, command: str, used: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    workflow = (EXAMPLES / "ci" / file).read_text(encoding="utf-8").replace("\\\n", "")
    typed = re.search(rf"bcnet\" {command} (.*) \|\|", workflow)
    assert typed is not None
    assert main([command, "--help"]) == 0
    shown = capfd.readouterr().out
    flags = re.findall(r"--[a-z-]+", typed[1])
    assert used <= set(flags)
    assert [flag for flag in flags if flag not in shown] == []
