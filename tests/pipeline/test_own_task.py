"""A task of the user's own through every stage, and files whose outputs are a dict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import CONFIG, PROFILE, Refused, measure_briefly
from torch import Tensor, nn

from bcnet.cli import main
from bcnet.config import ExportConfig
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import CheckFailed
from bcnet.hw_profiles import HwProfile
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.differences import Differences
from bcnet.pipeline.export import export
from bcnet.pipeline.slice import program_bytes
from bcnet.pipeline.verify import Artifact, Expected, verify
from bcnet.runtimes import runtime_here
from bcnet.space.discover import discover_space
from bcnet.space.supernet import cut
from bcnet.training.task import Task, mean_iou

QUICK = HwProfile(name="cpu", description="", runtime="onnxruntime", warmup_ms=1, seconds=0.02, iterations=6)


class Segmenter(nn.Module):
    """Masks at a quarter of the resolution, scaled up; as torchvision does it, in a dict when asked."""

    def __init__(self, as_dict: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.gate = nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(16, 3, 1)
        self.aux = nn.Conv2d(16, 3, 1)
        self.as_dict = as_dict

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        y = nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        out = nn.functional.interpolate(self.head(y), size=x.shape[2:], mode="bilinear", align_corners=False)
        return {"out": out, "aux": self.aux(y)} if self.as_dict else out + self.aux(y)


def masks() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 8, 8), generator=generator).to(torch.uint8)
    part = Split(images, images.argmax(1).to(torch.uint8))
    return ImageData(part, part, part, ("red", "green", "blue"), (0.5,) * 3, (0.3,) * 3)


torch.manual_seed(0)
MODEL = Segmenter().eval()
# The two differ in nothing but what they return.
SPACE = discover_space(Segmenter(as_dict=False), torch.zeros(1, 3, 8, 8), bins=4, channel_multiple=4)
SMALL = cut(MODEL, SPACE, SPACE.smallest()).eval()


def test_outputs_in_a_dict_are_named_after_its_keys() -> None:
    proto = export(SMALL, (1, 3, 8, 8), {})
    assert [entry.name for entry in proto.graph.input] == ["input"]
    assert [entry.name for entry in proto.graph.output] == ["out", "aux"]


def test_several_inputs_and_outputs_have_names_of_their_own() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
            return image * 2, image.mean((2, 3)) + size

    image, size = torch.rand(2, 3, 4, 4), torch.rand(2, 3)
    for example, names in (
        ((image, size), ["input0", "input1"]),
        ({"image": image, "size": size}, ["image", "size"]),
    ):
        proto = export(Two(), example, {})
        assert [entry.name for entry in proto.graph.input] == names
        assert [entry.name for entry in proto.graph.output] == ["output0", "output1"]
    predict = runtime_here("onnxruntime").predictor(proto.SerializeToString())
    five, sizes = np.random.default_rng(0).random((5, 3, 4, 4), np.float32), np.zeros((5, 3), np.float32)
    doubled, means = predict(five, sizes)
    np.testing.assert_allclose(doubled, five * 2)
    np.testing.assert_allclose(means, five.mean((2, 3)), rtol=1e-5)


def test_a_file_with_a_dict_of_outputs_is_verified_by_the_tasks_metric() -> None:
    data, task = masks(), Task(metric=mean_iou)
    proto = export(SMALL, (4, 3, 8, 8), {})
    expected = Expected(SMALL, SPACE, SPACE.smallest(), data, ExportConfig(), 1.0, task=task)
    found = verify(Artifact(proto, proto.SerializeToString()), expected, QUICK)
    assert found.passed
    assert found.output_error < 1e-4
    assert found.top1_agreement == pytest.approx(1.0, abs=0.01)
    with torch.no_grad():
        inputs, targets = data.batch(data.test)
        assert found.accuracy_torch == pytest.approx(mean_iou([(SMALL(inputs), targets)]))


def test_a_metric_that_stops_early_does_not_stop_the_comparison() -> None:
    data = masks()
    proto, other = (
        export(SMALL, (4, 3, 8, 8), {}),
        export(cut(MODEL, SPACE, SPACE.largest()), (4, 3, 8, 8), {}),
    )
    task = Task(metric=lambda batches: 0.5)
    expected = Expected(SMALL, SPACE, SPACE.smallest(), data, ExportConfig(), 1.0, task=task)
    found = verify(Artifact(other, proto.SerializeToString()), expected, QUICK)
    assert found.output_error > 0.01
    assert len(found.failures) == 2


def test_every_output_of_a_file_is_compared() -> None:
    found = Differences()
    found.add([torch.ones(2, 3), torch.tensor([2.0, 4.0])], [torch.ones(2, 3), torch.tensor([2.0, 3.0])])
    assert found.relative == pytest.approx(1 / 3)
    assert found.agreement == 1.0
    assert found.finite
    found.add([torch.full((1, 3), torch.inf), torch.ones(1)], [torch.ones(1, 3), torch.ones(1)])
    assert not found.finite
    with pytest.raises(
        CheckFailed, match=r"the exported file gives outputs of \[\(2,\)\], PyTorch of \[\(3,\)\]"
    ):
        found.add([torch.ones(2)], [torch.ones(3)])


@pytest.mark.parametrize("widths", [SPACE.smallest(), SPACE.largest(), SPACE.uniform(0.5, 4)])
def test_resized_channels_follow_the_widths_in_a_sliced_graph(widths: Any) -> None:
    graph = OnnxSupernet(MODEL, SPACE, (2, 3, 8, 8))
    content = graph.variant(widths)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    outputs = runtime_here("onnxruntime").predictor(content)(np.ones((3, 3, 8, 8), np.float32))
    assert [output.shape for output in outputs] == [(3, 3, 8, 8), (3, 3, 8, 8)]
    assert "Resize" in {slot.template.op for slot in graph.slots}


def test_a_program_of_several_inputs_takes_any_batch_size() -> None:
    import io

    class Two(nn.Module):
        def forward(self, image: Tensor, size: Tensor) -> dict[str, Tensor]:
            return {"sum": image.mean((2, 3)) + size}

    image, size = torch.rand(2, 3, 4, 4), torch.rand(2, 3)
    for example in ((image, size), {"image": image, "size": size}):
        program = torch.export.load(io.BytesIO(program_bytes(Two(), example)))
        args = example if isinstance(example, tuple) else ()
        kwargs = example if isinstance(example, dict) else {}
        assert torch.equal(program.module()(*args, **kwargs)["sum"], image.mean((2, 3)) + size)
        one = [tensor[:1] for tensor in (image, size)]
        given = dict(zip(kwargs, one, strict=True)) if kwargs else {}
        assert program.module()(*(() if kwargs else one), **given)["sum"].shape == (1, 3)


# Finds a bright row: its position, 0 to 1, is a value and no class. The network computes its own loss.
OWN = """
import torch
from torch import nn
from torch.utils.data import Dataset

class Rows(Dataset):
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        image = torch.zeros(1, 32, 32)
        image[0, index * 7 % 32] = 1.0
        return image, {"position": index * 7 % 32 / 31}

def data():
    return Rows(96), Rows(40), []

class Finder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(768, 1)
    def forward(self, image, targets=None):
        found = self.head(self.body(image).flatten(1))
        if not self.training:
            return found
        positions = torch.stack([target["position"] for target in targets])
        return {"position": (found[:, 0] - positions).square().mean()}

def collate(items):
    inputs, targets = zip(*items)
    return torch.stack(inputs), [{"position": torch.tensor(t["position"])} for t in targets]

def noisy(image, target):
    return image + 0.01 * torch.randn(image.shape), target

def step(model, inputs, targets):
    return model(inputs, targets=targets)["position"]

def closeness(batches):
    pairs = [pair for found, targets in batches for pair in zip(found, targets)]
    errors = [abs(float(found) - float(target["position"])) for found, target in pairs]
    return 100 - 100 * sum(errors) / len(errors)
"""
OWN_CONFIG = """
[model]
name = "own_task:Finder"
[data]
name = "own_task:data"
collate = "own_task:collate"
transforms = "own_task:noisy"
[task]
metric = "own_task:closeness"
train_step = "own_task:step"
""" + CONFIG[CONFIG.index("[space]") :]


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a Dataset, a network, a training step and a metric of the user's own."""
    measure_briefly(monkeypatch)
    (folder / "own_task.py").write_text(OWN, encoding="utf-8")
    (folder / "bcnet.toml").write_text(OWN_CONFIG, encoding="utf-8")
    (folder / "hw_profiles").mkdir()
    (folder / "hw_profiles" / "cpu.toml").write_text(PROFILE, encoding="utf-8")
    return folder


def test_a_task_of_the_users_own_goes_through_every_stage(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run"]) == 0, capfd.readouterr().err
    shown = capfd.readouterr().out
    assert "own_task:closeness on 40 test images" in shown
    compared = json.loads(Path("runs/default/compare/result.json").read_text(encoding="utf-8"))
    assert [entry["accuracy_low"] for entry in compared["networks"]] == [None] * 4
    assert all(entry["accuracy"] < 100 for entry in compared["networks"])
    searched = json.loads(Path("runs/default/search/result.json").read_text(encoding="utf-8"))
    assert searched["best"]["loss"] == 0
    verified = json.loads(Path("runs/default/export/verify.json").read_text(encoding="utf-8"))
    assert verified["accuracy"] == pytest.approx(verified["accuracy_torch"], abs=0.01)
    metadata = {entry.key for entry in onnx.load("runs/default/export/model.onnx").metadata_props}
    assert "input" in metadata
    assert "preprocessing" not in metadata
    assert main(["run"]) == 0
    assert capfd.readouterr().err.count("already done") == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("own_task:step", "own_task:steps", "'own_task:steps': module 'own_task' has no function 'steps'"),
        ("own_task:closeness", "own_task:step", "'own_task:step' failed (TypeError"),
        ("own_task:noisy", "own_task:step", "'own_task:step' failed (TypeError"),
        (
            "own_task:closeness",
            "closeness",
            "unknown task.metric 'closeness'; known: accuracy, mean-iou, pa",
        ),
        (
            'train_step = "own_task:step"',
            "",
            "runs, but not in training mode (TypeError: 'NoneType' object is not iterable); where it takes",
        ),
    ],
)
def test_a_function_that_does_not_fit_stops_the_training_before_it_begins(
    own: Path, refused: Refused, old: str, new: str, message: str
) -> None:
    Path("bcnet.toml").write_text(OWN_CONFIG.replace(old, new), encoding="utf-8")
    assert message in refused(1, "train")


def test_an_accuracy_of_another_scale_can_be_demanded_of_a_metric_of_the_users_own(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text(
        OWN_CONFIG.replace('latency = "75%"', "min_accuracy = 101.0"), encoding="utf-8"
    )
    assert main(["train"]) == main(["build-lut"]) == 0
    assert main(["search"]) == 1
    assert "no candidate reaches an accuracy of 101 in the supernet" in capfd.readouterr().err
