"""Read an ONNX file of any origin so that a runtime can time it. In: a path, and shapes for its inputs.

Out: the file with fixed input shapes and its external data in it, and what its inputs are. An engine of
TensorRT stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto, ValueInfoProto, helper
from onnx.external_data_helper import load_external_data_for_model

from bcnet.agent.onnxruntime_jobs import TYPES
from bcnet.errors import NetworkError, UsageError, one_line
from bcnet.nearest import near_path
from bcnet.plain import plain, shown
from bcnet.reading import read_bytes
from bcnet.runtimes.onnx_batch import with_free_batch
from bcnet.runtimes.onnx_binary import in_one_bit_form
from bcnet.runtimes.tensorrt import is_engine
from bcnet.traits import PrecisionName

LARGEST = 2**31 - 1  # bytes of one protobuf message
QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class NetworkInput:
    """One input: its name, its type as numpy calls it, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NetworkFile:
    """A file as the runtime gets it; `content` with fixed shapes.

    An engine has no `graph`, and its inputs are not known here.
    """

    name: str
    content: bytes = field(repr=False)
    inputs: tuple[NetworkInput, ...] = ()
    precision: PrecisionName = "fp32"
    graph: GraphProto | None = field(default=None, repr=False)

    @property
    def batch(self) -> int | None:
        """The first size of the first input; None if it has none, or is not known."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None


@dataclass(frozen=True)
class Shapes:
    """What dynamic inputs get: shapes by name, and the batch of all others.

    With `change_batch`, a file whose batch is another fixed size gets this one, too.
    """

    batch: int = 1
    change_batch: bool = False
    by_name: Mapping[str, Sequence[int]] = field(default_factory=dict)


def read_network(path: Path, shapes: Shapes) -> NetworkFile:
    """The network of a file, ready to be timed.

    Raises UsageError if there is no such file or the shapes do not fit its inputs, NetworkError if it is no
    ONNX file, or has inputs that cannot be generated.
    """
    try:
        content = read_bytes(path, LARGEST)
    except OSError as cause:
        missing = "; " + near_path(path, "give the path of an ONNX file")
        hint = missing if isinstance(cause, FileNotFoundError) else ""
        raise UsageError(f"{path} cannot be read: {cause.strerror or cause}{hint}") from None
    except ValueError as cause:
        raise UsageError(f"{path} cannot be read: it is {cause}") from None
    if is_engine(content):
        if shapes.by_name:
            raise UsageError(f"--input is for ONNX files; {path} is an engine, whose shapes are fixed")
        return NetworkFile(path.name, content)
    proto = _parsed(path, content)
    inputs = inputs_of(proto.graph)
    if shapes.change_batch and _first_size(inputs) not in (0, shapes.batch):
        if in_one_bit_form(proto.graph):
            raise UsageError(
                f"--batch: {path} is in the form for OpenVINO's 1-bit kernels, whose batch stays as it is; "
                "give the model.onnx beside it, which is brought into this form with any batch"
            )
        proto = onnx.load_from_string(with_free_batch(proto.SerializeToString()))
        inputs = inputs_of(proto.graph)
    try:
        sizes = _sizes(inputs, shapes)
    except UsageError as reason:
        raise UsageError(f"{path.name}: {reason}") from None
    for entry, shape in zip(inputs, sizes.shapes, strict=True):
        _set_shape(entry, shape)
    for value in (*proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes.named:
                dim.dim_value = sizes.named[dim.dim_param]
    return NetworkFile(
        path.name,
        proto.SerializeToString(),
        tuple(
            NetworkInput(entry.name, _dtype(entry), shape)
            for entry, shape in zip(inputs, sizes.shapes, strict=True)
        ),
        precision_of(proto.graph),
        proto.graph,
    )


def check_names(files: Sequence[NetworkFile], shapes: Shapes) -> None:
    """Raises UsageError if a shape was given for an input that none of the files has."""
    known = dict.fromkeys(entry.name for own in files for entry in own.inputs)
    for name in shapes.by_name:
        if name not in known:
            has = ", ".join(map(plain, known)) or "none"
            raise UsageError(f"--input: there is no input {shown(name)}; the network's inputs: {has}")


def inputs_of(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs of a graph without its weights, which old files list as inputs, too."""
    weights = {entry.name for entry in (*graph.initializer, *graph.sparse_initializer)}
    return [entry for entry in graph.input if entry.name not in weights]


def precision_of(graph: GraphProto) -> PrecisionName:
    """What a network mainly computes with: int8 with quantised operators, fp16 with weights of that type."""
    if any(node.op_type in QUANTIZED for node in graph.node):
        return "int8"
    half = any(entry.data_type == TensorProto.FLOAT16 for entry in graph.initializer)
    return "fp16" if half else "fp32"


def _parsed(path: Path, content: bytes) -> ModelProto:
    try:
        proto: ModelProto = onnx.load_from_string(content)
    except Exception:
        proto = ModelProto()
    if not proto.graph.output:
        raise NetworkError(
            f"{path} is not an ONNX file; export the network to one first, e.g. with torch.onnx.export"
        )
    try:
        load_external_data_for_model(proto, str(path.parent))
    except Exception as cause:
        raise NetworkError(f"the external data of {path} cannot be read ({one_line(cause)})") from None
    if proto.ByteSize() > LARGEST:
        raise NetworkError(f"{path} is larger than 2 GB with its external data, which cannot be timed")
    return proto


def _first_size(inputs: Sequence[ValueInfoProto]) -> int:
    """The fixed batch of a network; 0 if it is dynamic, or there is none."""
    dims = inputs[0].type.tensor_type.shape.dim if inputs else ()
    return _fixed(dims[0]) if dims else 0


def _fixed(dim: TensorShapeProto.Dimension) -> int:
    """A dimension's size; 0 if it is dynamic, for which some exporters write -1."""
    return max(int(dim.dim_value), 0)


@dataclass(frozen=True)
class _Sizes:
    """The shapes of all inputs, in order, and the values of named dimensions."""

    shapes: list[tuple[int, ...]]
    named: dict[str, int]


def _sizes(inputs: Sequence[ValueInfoProto], shapes: Shapes) -> _Sizes:
    """The shapes of all inputs. Raises UsageError if one does not fit, or is missing."""
    named: dict[str, int] = {}
    for entry in inputs:
        if entry.name in shapes.by_name:
            _check_fits(entry, shapes.by_name[entry.name], named)
    for entry in inputs:
        dims = entry.type.tensor_type.shape.dim
        if entry.name not in shapes.by_name and dims and not _fixed(dims[0]) and dims[0].dim_param:
            named.setdefault(dims[0].dim_param, shapes.batch)
    return _Sizes([_shape(entry, shapes, named) for entry in inputs], named)


def _check_fits(entry: ValueInfoProto, shape: Sequence[int], named: dict[str, int]) -> None:
    """Raises UsageError if a given shape contradicts the file; notes the sizes of named dimensions."""
    where = f"--input {plain(entry.name)}={'x'.join(map(str, shape))}"
    _dtype(entry)
    if not entry.type.tensor_type.HasField("shape"):
        return
    dims = entry.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        raise UsageError(f"{where}: this input has {len(dims)} dimensions: {_described(entry)}")
    for number, (dim, size) in enumerate(zip(dims, shape, strict=True)):
        fixed = _fixed(dim) or named.get(dim.dim_param, size)
        if fixed != size:
            hint = "; --batch changes the batch of a network" if number == 0 and _fixed(dim) else ""
            raise UsageError(f"{where}: dimension {number} is {fixed} in the network{hint}")
        if dim.dim_param:
            named[dim.dim_param] = size


def _shape(entry: ValueInfoProto, shapes: Shapes, named: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input. Raises UsageError if the file does not have it, and nobody has given it."""
    _dtype(entry)
    if entry.name in shapes.by_name:
        return tuple(shapes.by_name[entry.name])
    dims = entry.type.tensor_type.shape.dim
    sizes = [_fixed(dim) or named.get(dim.dim_param, 0) for dim in dims]
    if sizes and not sizes[0]:
        sizes[0] = shapes.batch
    if 0 in sizes or not entry.type.tensor_type.HasField("shape"):
        example = "x".join(str(size or 224) for size in sizes) or "1x3x224x224"
        raise UsageError(
            f"input '{plain(entry.name)}' has no fixed shape: {_described(entry)}; give it, e.g. --input "
            f"{plain(entry.name)}={example}"
        )
    return tuple(sizes)


def _described(entry: ValueInfoProto) -> str:
    """An input's shape as the file has it, e.g. batch x 3 x height x width."""
    dims = entry.type.tensor_type.shape.dim
    return " x ".join(str(_fixed(dim) or plain(dim.dim_param) or "?") for dim in dims) or "unknown"


def _dtype(entry: ValueInfoProto) -> str:
    """An input's type as numpy calls it. Raises NetworkError if such inputs cannot be generated."""
    kind = entry.type.WhichOneof("value")
    if kind != "tensor_type":
        what = kind.removesuffix("_type") if kind else "of no type"
        raise NetworkError(f"input '{plain(entry.name)}' is {what}, not a tensor: it cannot be timed")
    number = entry.type.tensor_type.elem_type
    try:
        found = np.dtype(helper.tensor_dtype_to_np_dtype(number)).name
    except (KeyError, TypeError, ValueError):
        found = "unknown"
    if number == TensorProto.BFLOAT16 or found not in _KNOWN:
        label = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else str(number)
        raise NetworkError(
            f"input '{plain(entry.name)}' is of type {label.lower()}, for which no values can be generated"
        )
    return found


_KNOWN = frozenset(TYPES.values())


def _set_shape(entry: ValueInfoProto, shape: Sequence[int]) -> None:
    dims = entry.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = size
    entry.type.tensor_type.shape.SetInParent()  # also without dimensions
