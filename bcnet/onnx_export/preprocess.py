"""Pre-processing inside an ONNX file. In: a network's file, and what is done to its images.

Out: a file that takes uint8 images as a camera or decoder gives them, (N, height, width, channels), and
scales, crops and normalises them itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bcnet.data.pictures import scaled_and_cropped
from bcnet.errors import FOREIGN, ModelError, one_line

INPUT = "pixels"
LAYOUT = "NHWC"
TO_NCHW = (0, 3, 1, 2)
# For Resize: its filter is renormalised at the borders, where ONNX otherwise repeats the outermost pixels.
AS_PILLOW: dict[str, Any] = {
    "axes": (1, 2),
    "mode": "linear",
    "coordinate_transformation_mode": "half_pixel",
    "antialias": 1,
    "exclude_outside": 1,
}
BATCH_ALONE = "images"  # name of the dynamic batch, where pre-processing is a file of its own


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 images of one `size` (height, width) to a network's input.

    Their shorter side is scaled to `side` pixels and the centre is cropped, as for the images of a folder;
    with None, they already have the network's size. `mean` and `std` are given for each channel, for pixels
    from 0 to 1. With `by_operator`, images are scaled by ONNX's Resize with antialiasing, which needs opset
    18; otherwise by two matrix products, which every opset and runtime has.
    """

    size: tuple[int, int]
    side: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    by_operator: bool = True

    @property
    def scales(self) -> bool:
        """Whether pixels are interpolated, and not only cropped and normalised."""
        if self.side is None:
            return False
        (width, height), _ = scaled_and_cropped(self.size[::-1], self.side)
        return (height, width) != self.size

    @property
    def how(self) -> str | None:
        """The operation that interpolates pixels; None if none does."""
        if not self.scales:
            return None
        return "Resize with antialias" if self.by_operator else "matrix products"

    def before(self, proto: ModelProto) -> ModelProto:
        """The same network for uint8 images; only the name of its input changes.

        Raises ModelError unless its only input is images.
        """
        result = ModelProto()
        result.CopyFrom(proto)
        graph = result.graph
        constants = {entry.name for entry in graph.initializer}
        inputs = [entry for entry in graph.input if entry.name not in constants]
        if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
            raise ModelError("export.preprocess needs a network with one input of images (N, C, H, W)")
        (taken,) = inputs
        steps = _Steps(self, taken.name)
        batch = taken.type.tensor_type.shape.dim[0]
        given = _value(INPUT, TensorProto.UINT8, self.shape(batch.dim_param or batch.dim_value))
        later = list(graph.node)
        del graph.node[:]
        graph.node.extend([*steps.nodes, *later])
        graph.initializer.extend(steps.constants)
        kept = [entry for entry in graph.input if entry.name != taken.name]
        del graph.input[:]
        graph.input.extend([given, *kept])
        return _checked(result)

    def alone(self, shape: tuple[int, ...]) -> bytes:
        """The pre-processing as a file of its own, for any number of images; a network's input is `shape`."""
        steps = _Steps(self, "output")
        graph = helper.make_graph(
            steps.nodes,
            "preprocessing",
            [_value(INPUT, TensorProto.UINT8, self.shape(BATCH_ALONE))],
            [_value("output", TensorProto.FLOAT, [BATCH_ALONE, *shape[1:]])],
            steps.constants,
        )
        opset = [helper.make_opsetid("", 18)]
        content: bytes = _checked(
            helper.make_model(graph, opset_imports=opset, ir_version=8)
        ).SerializeToString()
        return content

    def shape(self, batch: int | str) -> list[int | str]:
        """The shape of the input for a batch, or for one of that name."""
        return [batch, *self.size, len(self.mean)]


class _Steps:
    """The nodes from the image to the network's input `output`, and their constants."""

    def __init__(self, own: Preprocessing, output: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        at = INPUT
        if not own.by_operator:  # the only thing that TensorRT does with 8-bit integers
            at = self._add("Cast", at, to=TensorProto.FLOAT)
        at = self._squared(at, own, own.side) if own.side else self._add("Transpose", at, perm=TO_NCHW)
        if own.by_operator:
            at = self._add("Cast", at, to=TensorProto.FLOAT)
        for kind, values in (("Sub", own.mean), ("Div", own.std)):
            # In float32 throughout, as `ImageData.normalise`.
            channels = np.array(values, np.float32).reshape(1, -1, 1, 1) * np.float32(255)
            at = self._add(kind, at, self._constant(kind, channels))
        self.nodes[-1].output[0] = output

    def _squared(self, at: str, own: Preprocessing, side: int) -> str:
        """(N, C, side, side): the centre square, as `squared` makes it."""
        scaled, (left, top) = scaled_and_cropped(own.size[::-1], side)
        if own.scales and not own.by_operator:
            # Rows and columns outside the square are not scaled.
            columns = resampling(own.size[1], scaled[0], left, side)
            rows = resampling(own.size[0], scaled[1], top, side)
            (left, right), (top, bottom) = _used(columns), _used(rows)
            at = self._crop(at, own.size, (top, left), (bottom, right))
            at = self._add("Transpose", at, perm=TO_NCHW)
            at = self._add("MatMul", at, self._constant("columns", columns[:, left:right].T))
            return self._add("MatMul", self._constant("rows", rows[:, top:bottom]), at)
        if own.scales:
            sizes = self._constant("sizes", np.array(scaled[::-1], np.int64))
            at = self._add("Resize", at, "", "", sizes, **AS_PILLOW)
        at = self._crop(at, scaled[::-1], (top, left), (top + side, left + side))
        return self._add("Transpose", at, perm=TO_NCHW)

    def _crop(self, at: str, size: tuple[int, int], first: tuple[int, int], last: tuple[int, int]) -> str:
        if (last[0] - first[0], last[1] - first[1]) == size:
            return at
        named = {"first": first, "last": last, "axes": (1, 2)}
        places = [self._constant(name, np.array(own, np.int64)) for name, own in named.items()]
        return self._add("Slice", at, *places)

    def _add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"preprocess_{len(self.nodes)}_{kind.lower()}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        name = f"preprocess_{name.lower()}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def resampling(source: int, target: int, first: int, count: int) -> NDArray[np.float32]:
    """Pillow's weights (count, source), which make pixels from `first` on of `target` from `source` ones.

    Bilinear, with the triangle widened by the factor by which the image becomes smaller (antialiasing).
    """
    scale = source / target
    centres = (np.arange(first, first + count) + 0.5) * scale
    places = np.arange(source) + 0.5
    weights = np.maximum(1 - np.abs(places - centres[:, None]) / max(scale, 1.0), 0.0)
    found: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return found


def _used(weights: NDArray[np.float32]) -> tuple[int, int]:
    """The first column with weights, and the one after the last."""
    columns = np.flatnonzero(weights.any(0))
    return int(columns[0]), int(columns[-1]) + 1


def _value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _checked(proto: ModelProto) -> ModelProto:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except FOREIGN as cause:
        raise ModelError(f"pre-processing cannot be put into the file: {one_line(cause)}") from None
    return proto
