"""Networks that cannot be exported are refused before training, with the operator and its module."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import ModelError, TrainingError
from bcnet.onnx_export.exportable import not_deliverable
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.space.discover import discover_space
from bcnet.training.durations import seconds_to_fit
from bcnet.training.recipe import Recipe

IMAGES = torch.zeros(1, 1, 12, 12)


class Pooled(nn.Module):
    """An adaptive maximum whose bins are of two sizes: the exporter has no form of it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_max_pool2d(x, 4)


class Deformed(nn.Module):
    """The second deformable convolution is the one to name: the first only moves."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.conv = nn.Conv2d(16, 18, 3, padding=1), DeformConv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x, self.offsets(x))
        return y


class Counted(nn.Module):
    """The exporter knows histograms, but not of a range that is found from the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.histc(x, 4).sum()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x + 1
        return x - 1


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Counted(), "aten_histc with min == max"),
        (Branching(), "its forward branches on the values of tensors"),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused_with_the_line(part: nn.Module, reason: str) -> None:
    line = inspect.getsourcelines(type(part).forward)[1] + 1
    with pytest.raises(ModelError, match=rf"to ONNX \(at .*test_exportable\.py:{line}\): .*{reason}"):
        to_onnx(around(part), (1, 1, 12, 12))


def around(part: nn.Module) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3), part),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    ).eval()


def images() -> ImageData:
    part = Split(torch.zeros(8, 1, 12, 12, dtype=torch.uint8), torch.arange(8) % 3)
    return ImageData(part, part, part, ("a", "b", "c"), (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (nn.ReLU(), None),
        (
            Pooled(),
            "PyTorch's exporter does not support 'adaptive_max_pool2d' (in '2'); replace it with "
            "operators that it supports",
        ),
        (
            Deformed(),
            "ONNX Runtime does not support 'DeformConv' at the file's opset (in '2.conv'); replace it "
            "with operators that it supports",
        ),
    ],
)
def test_what_cannot_be_delivered_names_the_operator_and_the_module(
    part: nn.Module, reason: str | None
) -> None:
    model = around(part)
    space = discover_space(model, IMAGES)
    found = not_deliverable(lambda: OnnxSupernet(model, space, (1, 1, 12, 12)), model, (1, 1, 12, 12))
    assert found == reason


def test_a_step_that_has_no_bfloat16_is_explained_when_it_is_timed() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=4, amp=True)
    with pytest.raises(
        TrainingError, match=r"training step 0 on a batch of shape .* failed .*; set train\.amp = false"
    ):
        seconds_to_fit(around(Deformed()), images(), recipe)


class Picky(nn.Module):
    """Raises an exception that no library raises."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyError("stride")
        return x


def test_any_exception_of_a_step_is_explained() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=4)
    with pytest.raises(TrainingError, match=r"training step 0 .* failed \(KeyError: 'stride'\)"):
        seconds_to_fit(around(Picky()), images(), recipe)
