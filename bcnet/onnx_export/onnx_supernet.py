"""The supernet as an ONNX graph: exported once, then sliced to any widths.

In: a network and its space. Out: ONNX files of any widths within milliseconds, with stable node names, and
the fused layers, which are the rows of a latency table.
"""

import contextlib
import copy
import io
import logging
import time
import warnings
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bcnet.errors import FOREIGN, ModelError, SpaceError, one_line
from bcnet.latency_tables.model import Terms
from bcnet.onnx_export.deployed import with_deployed_layers
from bcnet.onnx_export.int8 import Feed
from bcnet.onnx_export.onnx_constants import Constants
from bcnet.onnx_export.onnx_layers import Layers, group_sizes
from bcnet.onnx_export.onnx_matched import FixedGraph, Graph
from bcnet.onnx_export.onnx_slicing import Sizes, SlicedGraph, Slices
from bcnet.onnx_export.opset import NEWEST, at_opset
from bcnet.onnx_export.precision import converted
from bcnet.onnx_export.quick_export import quick_export
from bcnet.onnx_export.source_lines import source_line
from bcnet.progress import say
from bcnet.space.extract import tensors_of
from bcnet.space.inputs import arguments
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import cut
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.traits import PRECISIONS

OPSET = NEWEST
# Operators whose constants are axes, limits of values, or sizes that are handled: none depends on the widths
# in a network that does not compute with the number of its channels.
AXES_OR_LIMITS = frozenset(("Clip", "ReduceMean", "ReduceSum", "ReduceMax", "Squeeze", "Unsqueeze", "Resize"))
KEPT_BYTES = 500_000_000  # maximum memory for cached files of single widths
CALIBRATION = 8  # number of noise inputs that calibrate the ranges of activations


def to_onnx(model: nn.Module, example: Any) -> ModelProto:
    """Export a network in eval mode with PyTorch's current exporter, for inputs of exactly these shapes.

    `example` is the shape of an image batch, or the network's inputs: a tensor, a tuple of tensors, or a dict
    by name. A single input is called `input`, a single output `output`; those of a dict are named by their
    keys, others are numbered. Nodes are named after their first output, so that names survive the runtime's
    fusions. Raises ModelError with the exporter's reason, and the line of the forward that caused it.
    """
    model.eval()
    model = with_deployed_layers(model)
    args, kwargs = arguments(example_inputs(example))
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            with torch.no_grad():
                outputs = model(*args, **kwargs)
            export = partial(
                torch.onnx.export,
                model,
                args,
                kwargs=kwargs,
                input_names=tensor_names(kwargs or (args[0] if len(args) == 1 else args), "input"),
                output_names=tensor_names(outputs, "output"),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            try:
                with quick_export():
                    program = export()
            except FOREIGN:
                program = export()  # its error names the line of the operator that cannot be exported
    except FOREIGN as cause:
        reason, line = one_line(cause), source_line(cause)
        if "data-dependent" in reason:
            reason = (
                "its forward branches on the values of tensors, or has sizes that depend on them; use "
                "torch.where and fixed sizes"
            )
        at = f" (at {line})" if line else ""
        raise ModelError(f"PyTorch cannot export {type(model).__name__} to ONNX{at}: {reason}") from cause
    finally:
        logger.setLevel(level)
    assert program is not None
    proto: ModelProto = program.model_proto
    for node in proto.graph.node:
        node.name = node.output[0]
        del node.metadata_props[:]  # stack traces, with local paths
    del proto.graph.value_info[:]
    return proto


def example_inputs(example: Any) -> Any:
    """Zeros for the shape of an image batch; other inputs unchanged."""
    if isinstance(example, tuple) and all(isinstance(size, int) for size in example):
        return torch.zeros(example)
    return example


def tensor_names(tree: Any, word: str) -> list[str]:
    """A name for each tensor of inputs or outputs, in flattened order."""
    if isinstance(tree, dict) and all(value is None or isinstance(value, Tensor) for value in tree.values()):
        return [str(key) for key, value in tree.items() if value is not None]
    count = sum(isinstance(leaf, Tensor) for leaf in tree_leaves(tree))
    return [word] if count == 1 else [f"{word}{number}" for number in range(count)]


class OnnxSupernet:
    """A network's ONNX graph, with the space's dimensions attached to its initialisers."""

    def __init__(
        self,
        model: nn.Module,
        space: WidthSpace,
        example: Any,
        precision: str = "fp32",
        unsigned: bool = True,
        opset: int = OPSET,
    ) -> None:
        """`example` is (batch, channels, height, width), or inputs (see `to_onnx`). Weights are the model's.

        `precision` is one of `PRECISIONS`; for `unsigned` see `quantized`, for `opset` see `at_opset`.
        """
        self.precision, self.unsigned, self.opset = PRECISIONS[precision], unsigned, opset
        # The file has the network's own tensors, without a supernet's extra channels.
        self.space = space.without_extra()
        self.model, self.example = _with_statistics(model), example
        start = time.perf_counter()
        self.proto = at_opset(to_onnx(self.model, example), opset)
        self.export_seconds = time.perf_counter() - start
        self.arrays = _independent_of_channels(self.proto)
        sizes = group_sizes(self.space)
        self.grouped = {
            node.name: (node.input[1], sizes[node.input[1]])
            for node in self.proto.graph.node
            if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in sizes
        }
        self.dimensions = self._attach()
        self.sizes: dict[str, Sizes] = {}
        self.counts: dict[str, Terms] = {}
        self._exports: dict[Subnet, bytes] = {}
        self.not_sliced = self._find_constants() if self._may_follow() else None
        self._float = self._sliced_graph()
        if self.not_sliced:
            say(
                f"the ONNX file of {type(model).__name__} is exported again for each width, which takes "
                f"{self.export_seconds:.0f} s: {self.not_sliced}"
            )
        inferred = shape_inference.infer_shapes(self.proto, strict_mode=True, data_prop=True)
        self.shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        }
        grouped = self.grouped.keys() | self.counts.keys()
        self.slots = Layers(
            self.space, self.proto.graph, self.arrays, self.dimensions, self.shapes, grouped
        ).slots()

    def variant(self, widths: Widths | Subnet) -> bytes:
        """The ONNX file of a subnet of the network's own weights; of widths, that of their left path."""
        subnet = widths if isinstance(widths, Subnet) else Subnet.at(self.space, widths)
        if not self.sliceable:
            return self._exported_file(subnet)
        return self._file.at(self.space, subnet)

    def narrowest(self) -> bytes:
        """The ONNX file of the narrowest network, in float32 at any precision."""
        subnet = Subnet.at(self.space, self.space.smallest())
        if not self.sliceable:
            return bytes(self._exported(subnet).SerializeToString())
        return self._float.at(self.space, subnet)

    @property
    def sliceable(self) -> bool:
        """Whether files of other widths are sliced from this one; else each is exported (`not_sliced`)."""
        return self.not_sliced is None

    @property
    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Slices]]:
        """The full network's arrays as stored in its file, and on which groups their axes depend."""
        return self._file.arrays, self._file.dimensions

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For each value of the graph, the names of the nodes that read it."""
        found: dict[str, tuple[str, ...]] = {}
        for node in self.proto.graph.node:
            for value in node.input:
                found[value] = (*found.get(value, ()), node.output[0])
        return found

    @cached_property
    def _file(self) -> SlicedGraph:
        """The graph from which variants are sliced; created on first use (seconds)."""
        if self.precision.full:
            return self._float
        full = self._float.at(self.space, Subnet.at(self.space, self.space.largest()))
        return self._float.converted(self._at_precision(onnx.load_from_string(full)))

    def _at_precision(self, proto: ModelProto) -> ModelProto:
        """The file, in fp16, or quantised with noise, because its latency does not depend on values."""
        return converted(proto, self.precision, lambda: self._noise(proto), self.unsigned)

    def _noise(self, proto: ModelProto) -> Iterator[Feed]:
        rng = np.random.default_rng(0)
        for _ in range(CALIBRATION):
            feed = {}
            for entry in proto.graph.input:
                kind = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
                noise = rng.standard_normal(self.shapes[entry.name])
                feed[entry.name] = (noise if kind.kind == "f" else np.zeros_like(noise)).astype(kind)
            yield feed

    def _exported_file(self, subnet: Subnet) -> bytes:
        """The exported file of a graph that cannot be sliced; cached, as a table uses each several times."""
        content = self._exports.get(subnet)
        if content is None:
            content = bytes(self._at_precision(self._exported(subnet)).SerializeToString())
            self._exports[subnet] = content
            while len(self._exports) > 1 and sum(map(len, self._exports.values())) > KEPT_BYTES:
                del self._exports[next(iter(self._exports))]
        return content

    def _exported(self, subnet: Subnet) -> ModelProto:
        return at_opset(to_onnx(cut(self.model, self.space, subnet), self.example), self.opset)

    def _may_follow(self) -> bool:
        """Whether more than the network's own tensors may depend on the widths, which needs further exports.

        An export of a large network takes a minute. It is not needed if masking channels gives the same
        outputs as removing them, and no constant can be a size: other differences then have no effect.
        """
        if any(group.mixed or group.ordered for group in self.space.groups):
            return True  # attributes, limits, scales: anything may be computed with the number of channels
        own = self.space.shapes.keys() | self.dimensions.keys()
        fixed = set(self.arrays)
        for node in self.proto.graph.node:
            if node.op_type.startswith("Random") or node.op_type == "Bernoulli":
                return True  # masks were not tested, because random outputs cannot be compared
            if all(name in fixed for name in node.input if name):
                return True  # computed only from constants
            for name in () if node.op_type in AXES_OR_LIMITS else node.input:
                array = self.arrays.get(name)
                if array is None or name in own:
                    continue
                if node.op_type != "Reshape" or not self._keeps_batch(array):
                    return True
        return False

    def _keeps_batch(self, shape: np.ndarray) -> bool:
        """Whether this shape of a Reshape is (batch, features) or flat, and so the same at all widths."""
        sizes = {
            dim.dim_value for entry in self.proto.graph.input for dim in entry.type.tensor_type.shape.dim[:1]
        }
        sizes -= {
            group.channels for group in self.space.groups
        }  # a batch, or channels: cannot be distinguished
        return shape.size <= 2 and all(entry in (-1, 0, 1) or entry in sizes for entry in shape.tolist())

    def _sliced_graph(self) -> SlicedGraph:
        return SlicedGraph.of(self.proto, self.arrays, self.dimensions, self.grouped, self.sizes, self.counts)

    def _find_constants(self) -> str | None:
        """Compare with exports at other widths; return why slicing does not reproduce them, or None."""
        constants = Constants(self.space, Graph(self.proto, self.arrays), self.dimensions, self.grouped)

        def exported(widths: Widths) -> ModelProto:
            proto = self._exported(Subnet.at(self.space, widths))
            arrays = _independent_of_channels(proto)
            del proto.graph.initializer[:]
            proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
            return proto

        try:
            constants.find(exported)
        except FixedGraph as reason:
            return str(reason)
        self.sizes = constants.sizes
        self.counts = constants.counts
        try:
            narrowest = onnx.load_from_string(
                self._sliced_graph().at(self.space, Subnet.at(self.space, self.space.smallest()))
            )
            shape_inference.infer_shapes(narrowest, strict_mode=True, data_prop=True)
        except shape_inference.InferenceError as cause:
            return f"narrow networks have inconsistent shapes ({one_line(cause)})"
        return None

    def _attach(self) -> dict[str, Slices]:
        """The groups of the initialisers' axes, as far as names and connections determine them."""
        dimensions = {}
        for name, axes in self.space.dimensions.items():
            if name in self.arrays:
                if self.arrays[name].shape != self.space.shapes[name]:
                    raise SpaceError(
                        f"the exporter changed the shape of '{name}'; its network cannot be sliced"
                    )
                dimensions[name] = axes
        for node in self.proto.graph.node:
            if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
                weight, bias = node.input[1], node.input[2]
                if 0 in dimensions.get(weight, {}) and bias not in dimensions:
                    dimensions[bias] = {0: dimensions[weight][0]}
            if node.op_type == "MatMul" and node.input[1] not in dimensions:
                self._attach_transposed(node.input[1], dimensions)
        return dimensions

    def _attach_transposed(self, name: str, dimensions: dict[str, Slices]) -> None:
        """Attach a transposed weight: the exporter transposes linear layers on more than two axes."""
        array = self.arrays.get(name)
        if array is None or array.ndim != 2:
            return
        for own, axes in self.space.dimensions.items():
            if self.space.shapes[own] == array.shape[::-1]:
                weight = self.model.get_parameter(own) if own in self.space.parameters else None
                if weight is not None and np.array_equal(weight.detach().numpy().T, array):
                    dimensions[name] = {1 - axis: dimension for axis, dimension in axes.items()}
                    return


def _independent_of_channels(proto: ModelProto) -> dict[str, np.ndarray]:
    """The graph's constants, without channel counts in Resize and in Reshape to (batch, features)."""
    graph = proto.graph
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in arrays:
            shape = arrays[node.input[1]]
            if len(shape) == 2 and shape[1] != -1:
                arrays[node.input[1]] = np.array([shape[0], -1], dtype=shape.dtype)
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in arrays:
            _resize_spatially(proto, arrays, node)
    return arrays


def _resize_spatially(proto: ModelProto, arrays: dict[str, np.ndarray], node: NodeProto) -> None:
    """Give a Resize explicit spatial axes, so that its sizes do not include the channels."""
    sizes = arrays[node.input[3]]
    if len(sizes) < 3 or any(entry.name == "axes" for entry in node.attribute):
        return
    name = f"{node.input[3]}_spatial"
    arrays[name] = sizes[2:]
    if name not in {entry.name for entry in proto.graph.initializer}:
        proto.graph.initializer.append(numpy_helper.from_array(sizes[2:], name))
    node.input[3] = name
    node.attribute.append(helper.make_attribute("axes", list(range(2, len(sizes)))))


def _with_statistics(model: nn.Module) -> nn.Module:
    """A copy without constant tensors, e.g. fresh batch-norm statistics.

    Otherwise folding zeros would leave no bias, unlike trained values, and the exporter would merge equal
    tensors of different groups.
    """
    copied = copy.deepcopy(model).cpu()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors_of(copied).values():
            if (
                tensor.is_floating_point()
                and tensor.numel() > 1
                and bool((tensor == tensor.flatten()[0]).all())
            ):
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.9 + 0.1)
    return copied
