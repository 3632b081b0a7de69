"""A network as its INT8 file computes it, in PyTorch. In: a network, calibration images. Out: a module.

The file's own graph is executed, operator by operator: where it has integers, floats are rounded to the
values that these can represent, and its constants are computed from the network's parameters. So the outputs
are those of the file, up to the order of floating-point sums, and training the module trains the network
(quantisation-aware training; Jacob et al., CVPR 2018). Batch norm is folded, as in the file; its statistics
do not change.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bcnet.errors import ModelError, NetworkError
from bcnet.onnx_export.int8 import Feed, quantized
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.onnx_export.opset import at_opset
from bcnet.runtimes.onnx_batch import with_free_batch
from bcnet.runtimes.onnx_torch import TorchNetwork, channels_last, load_network
from bcnet.space.inputs import arguments
from bcnet.training.fake_quantisation import (
    quantising_operators,
    rounded_bias,
    rounded_weight,
    weight_scale,
)
from bcnet.training.tied_constants import named_tensors, tied_constants

QUANTISED = "_quantized"  # the end of an integer constant's name
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # their second input is a weight, the third a bias


@dataclass(frozen=True)
class Calibration:
    """How a network's INT8 file is made: as `quantized` has it, with these inputs for a float file."""

    feeds: Callable[[ModelProto], Iterable[Feed]]
    unsigned: bool
    opset: int


@dataclass(frozen=True)
class Weight:
    """A weight in integers: the node that reads it, the `axis` of its scales, and what its bias needs."""

    name: str
    output: str
    axis: int | None
    bias: str | None = None
    input_scale: str | None = None


@dataclass(frozen=True)
class Bias:
    """A bias in integers: the node that reads it, and the name of the weight beside it."""

    name: str
    output: str
    weight: Weight


class QuantisedNetwork(nn.Module):
    """The INT8 file of `network` as a module, with the network's parameters and structure of outputs.

    The buffer `ranges` has the ranges of activations from the last calibration; `calibrate` measures them
    again with the current weights, as the export does. In training mode this happens every `every` calls.
    """

    ranges: Tensor  # (scale or zero point, activation)
    calls: Tensor

    def __init__(
        self, network: nn.Module, example: Any, calibration: Calibration, *, every: int | None = None
    ) -> None:
        """`example` are inputs as the network takes them. A copy of the network is trained.

        Raises ModelError where PyTorch cannot execute the file, or the file's batch cannot be made larger.
        """
        super().__init__()
        self.network = copy.deepcopy(network).cpu().eval()
        self._calibration, self._every = calibration, every
        exported = at_opset(to_onnx(self.network, example), calibration.opset)
        self._sides = list(exported.graph.input)  # its batch has a fixed size
        self._tied = tied_constants(self.network, exported, example)
        try:
            self._float = _used(onnx.load_from_string(with_free_batch(exported.SerializeToString())))
            proto = self.file()
            self._find(proto)
            self.register_buffer("ranges", self._ranges_in(proto))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self._content = self._executable(proto)
            self._loaded: tuple[str, TorchNetwork] | None = None
            self._on("cpu")
        except NetworkError as reason:
            raise ModelError(f"the INT8 network cannot be executed in PyTorch: {reason}") from None
        args, kwargs = arguments(example)
        with torch.no_grad():
            self._leaves, self._structure = tree_flatten(self.network(*args, **kwargs))
        self._leaves = [isinstance(leaf, Tensor) or leaf for leaf in self._leaves]
        tensors = named_tensors(self.network)
        used = {id(tensors[name]) for own in self._made for name in self._tied[own].needs(tensors)}
        for parameter in self.network.parameters():
            parameter.requires_grad_(id(parameter) in used)

    def train(self, mode: bool = True) -> Self:
        """The network itself stays in eval mode, because only its tensors are used."""
        super().train(mode)
        self.network.eval()
        return self

    def calibrate(self) -> None:
        """Measure the ranges of activations with the calibration images and the current weights."""
        self.ranges.copy_(self._ranges_in(self.file()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the INT8 file; in training mode with gradients of the network's parameters."""
        if self.training:
            if self._every and int(self.calls) and int(self.calls) % self._every == 0:
                self.calibrate()
            self.calls += 1
        values = self._constants()
        images = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for entry, image in zip(self._sides, images, strict=True):
            values[entry.name] = channels_last(image)
        outputs = iter(self._on(str(self.ranges.device)).run(values))
        filled = [next(outputs) if leaf is True else leaf for leaf in self._leaves]
        return tree_unflatten(filled, self._structure)

    def file(self) -> ModelProto:
        """The INT8 file with the current weights, for any batch."""
        tensors, proto = named_tensors(self.network), ModelProto()
        proto.CopyFrom(self._float)
        with torch.no_grad():
            for entry in proto.graph.initializer:
                if entry.name in self._tied:
                    array = self._tied[entry.name].of(tensors).cpu().contiguous().numpy()
                    entry.CopyFrom(numpy_helper.from_array(array, entry.name))
        return quantized(proto, self._calibration.feeds(proto), self._calibration.unsigned)

    def _constants(self) -> dict[str, Tensor]:
        """The inputs of the executed graph besides images: scales, zero points, and trained constants."""
        tensors = named_tensors(self.network)
        made = {name: self._tied[name].of(tensors) for name in self._made}
        found = {name: made[name] for name in self._direct}
        for place, (scale, zero) in enumerate(self._activations.items()):
            found[scale], found[zero] = self.ranges[0, place], self.ranges[1, place]
        scales: dict[str, Tensor] = {}
        for own in self._weights:
            bias, by = None, None
            if own.bias is not None and own.input_scale is not None:
                bias, by = made[own.bias], found[own.input_scale]
            scales[own.name] = weight_scale(made[own.name], own.axis, bias, by)
            found[own.output] = rounded_weight(made[own.name], own.axis, scales[own.name])
        for each in self._biases:
            assert each.weight.input_scale is not None
            scale = found[each.weight.input_scale] * scales[each.weight.name]
            found[each.output] = rounded_bias(made[each.name], scale)
        return found

    def _find(self, proto: ModelProto) -> None:
        """Find the constants of an INT8 file that follow from the network's tensors."""
        arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
        constant, scale_of = {}, {}
        for node in proto.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
                constant[node.output[0]] = node
            elif node.op_type == "DequantizeLinear":
                scale_of[node.output[0]] = node.input[1]
        weights, biases = dict[str, Weight](), list[Bias]()
        for node in proto.graph.node:
            if node.op_type not in LAYERS or node.input[1] not in constant:
                continue
            own = constant[node.input[1]]
            name = own.input[0].removesuffix(QUANTISED)
            if name not in self._tied or arrays[own.input[0]].dtype != np.int8:
                continue
            axis = next((int(entry.i) for entry in own.attribute if entry.name == "axis"), 1)
            weight = Weight(name, own.output[0], axis if arrays[own.input[1]].ndim else None)
            source = scale_of.get(node.input[0])
            bias = node.input[2] if len(node.input) > 2 else ""
            integers = constant.get(bias)
            bias = integers.input[0].removesuffix(QUANTISED) if integers is not None else bias
            if bias in self._tied and source is not None:
                weight = replace(weight, bias=bias, input_scale=source)
                if integers is not None:
                    biases.append(Bias(bias, integers.output[0], weight))
            weights[name] = weight
        self._weights, self._biases = tuple(weights.values()), tuple(biases)
        self._direct = tuple(name for name in self._tied if name in arrays)
        self._made = {own.name for own in weights.values()} | {own.name for own in biases}
        self._made |= set(self._direct)
        rounding = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
        self._activations = {node.input[1]: node.input[2] for node in rounding}

    def _ranges_in(self, proto: ModelProto) -> Tensor:
        """The scales and zero points of activations in an INT8 file."""
        arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
        rows = [[float(arrays[name]) for name in own] for own in zip(*self._activations.items(), strict=True)]
        return torch.tensor(rows, dtype=torch.float32)

    def _executable(self, proto: ModelProto) -> bytes:
        """The graph with images, scales, zero points and the trained constants as inputs."""
        result = ModelProto()
        result.CopyFrom(proto)
        graph = result.graph
        arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
        given: dict[str, tuple[int, ...]] = {name: arrays[name].shape for name in self._direct}
        given |= {name: () for pair in self._activations.items() for name in pair}
        outputs = {own.output for own in self._weights} | {own.output for own in self._biases}
        for node in graph.node:
            if node.output[0] in outputs:
                given[node.output[0]] = arrays[node.input[0]].shape
        nodes = [node for node in graph.node if node.output[0] not in outputs]
        constants = [entry for entry in graph.initializer if entry.name not in given]
        for field, entries in (("node", nodes), ("initializer", constants)):
            graph.ClearField(field)
            getattr(graph, field).extend(entries)
        graph.ClearField("input")
        graph.input.extend(self._sides)
        graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()
        )
        return bytes(result.SerializeToString())

    def _on(self, device: str) -> TorchNetwork:
        if self._loaded is None or self._loaded[0] != device:
            operators = quantising_operators(self._calibration.unsigned)
            self._loaded = device, load_network(self._content, torch.device(device), operators)
        return self._loaded[1]


def _used(proto: ModelProto) -> ModelProto:
    """The file without constants that no node reads, since the runtime would warn about them each time."""
    read = {name for node in proto.graph.node for name in node.input}
    kept = [entry for entry in proto.graph.initializer if entry.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto
