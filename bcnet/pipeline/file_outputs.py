"""Run an ONNX file on the test images. In: the file, a device, images. Out: its outputs and metric.

Files with their own pre-processing take raw images (`RawImages`), all others normalised ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bcnet.data.image_data import ImageData
from bcnet.hw_profiles import HwProfile
from bcnet.measure.network_latency import runtime_of
from bcnet.pipeline.differences import Differences
from bcnet.pipeline.raw_images import AgainstPillow, RawBatch, RawImages
from bcnet.progress import progress_bar
from bcnet.space.inputs import arguments
from bcnet.training.task import Task


@dataclass
class Compared:
    """How a file's outputs differ from those of PyTorch.

    `differences` are those for the same network inputs. For a file with pre-processing, `pillow` has the
    differences from PyTorch's outputs for images scaled by Pillow; `by_pillow` has those outputs and the
    targets.
    """

    pillow: AgainstPillow | None = None
    differences: Differences = field(default_factory=Differences)
    by_pillow: list[tuple[Any, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, tested: ImageData | RawImages) -> "Compared":
        """An empty comparison for these images."""
        return cls(AgainstPillow(tested) if isinstance(tested, RawImages) else None)

    def add(self, model: nn.Module, fed: "_Fed", outputs: list[Tensor], expected: Any) -> None:
        """Add a batch: the file's outputs, and PyTorch's for the same inputs."""
        self.differences.add(outputs, _tensors(expected))
        if self.pillow is None or fed.raw is None:
            return
        if not torch.equal(fed.raw.pillow, fed.inputs):
            with torch.no_grad():
                expected = model(fed.raw.pillow)
        self.pillow.add(fed.raw, outputs, _tensors(expected))
        self.by_pillow.append((expected, fed.targets))


@dataclass(frozen=True)
class _Fed:
    """A batch: the network's inputs and targets, and the `raw` images from which a file makes its inputs."""

    inputs: Any
    targets: Any
    raw: RawBatch | None = None

    @property
    def arrays(self) -> list[Any]:
        """What the file takes."""
        return [self.raw.pixels] if self.raw else [own.contiguous().numpy() for own in _tensors(self.inputs)]


def _batches(tested: ImageData | RawImages) -> Iterator[_Fed]:
    if isinstance(tested, RawImages):
        for own in tested.batches():
            yield _Fed(own.inputs, own.targets, own)
        return
    for inputs, targets in tested.batches(tested.test, tested.evaluated):
        yield _Fed(inputs, targets)


def file_metric(
    content: bytes, model: nn.Module, tested: ImageData | RawImages, profile: HwProfile, task: Task
) -> float:
    """The task's metric of an ONNX file on the whole test set, in the profile's runtime.

    `model` is the network in PyTorch, whose outputs have the same structure.
    """
    return task.measure(file_outputs(content, model, tested, profile))


def file_outputs(
    content: bytes,
    model: nn.Module,
    tested: ImageData | RawImages,
    profile: HwProfile,
    compared: Compared | None = None,
    kind: str = "test",
) -> Iterator[tuple[Any, Any]]:
    """(outputs, targets) of an ONNX file on the test images, in the profile's runtime.

    Outputs have the structure of those of `model`; `compared` receives them with PyTorch's. If other images
    are in the place of the test images, `kind` names them in the progress bar.
    """
    model.eval()
    predict = runtime_of(profile).predictor(content)
    data = tested.data if isinstance(tested, RawImages) else tested
    steps = math.ceil(len(data.test) / (tested.count if isinstance(tested, RawImages) else data.evaluated))
    with progress_bar(f"{kind} images in {profile.runtime}", steps) as advance:
        for number, fed in enumerate(_batches(tested)):
            if number == 0 or compared is not None:
                args, kwargs = arguments(fed.inputs)
                with torch.no_grad():
                    expected = model(*args, **kwargs)
                leaves, structure = tree_flatten(expected)
            outputs = [torch.from_numpy(array) for array in predict(*fed.arrays)]
            if compared is not None:
                compared.add(model, fed, outputs, expected)
            waiting = iter(outputs)
            filled = [next(waiting) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            yield tree_unflatten(filled, structure), fed.targets
            advance("")


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
