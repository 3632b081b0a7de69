"""Execute ONNX files in PyTorch, operator by operator. In: a file with fixed shapes. Out: a function.

Types are those of the file: an fp16 file is executed in fp16.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch
from onnx import NodeProto, ValueInfoProto, helper
from torch import Tensor

from bcnet.errors import NetworkError, one_line
from bcnet.runtimes.torch_operators import LISTS, OPERATORS, dtype_of, tensor_of

Operators = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Step:
    """One node. `fixed` has its constant arguments by position, and None for each computed input."""

    name: str
    operator: str
    run: Callable[..., Any]
    fixed: tuple[Any, ...]
    inputs: tuple[tuple[int, str], ...]  # (position, value)
    outputs: tuple[str, ...]
    last_uses: tuple[str, ...]  # values that no later step needs

    def __call__(self, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The node's outputs. Raises NetworkError with PyTorch's reason."""
        arguments = list(self.fixed)
        for place, name in self.inputs:
            arguments[place] = values[name]
        try:
            outputs = self.run(*arguments)
        except NetworkError:
            raise
        except Exception as cause:
            raise NetworkError(
                f"PyTorch cannot run {self.operator} '{self.name}': {one_line(cause)}"
            ) from None
        return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True)
class TorchNetwork:
    """An ONNX file as PyTorch steps on a device; images and weights of convolutions are channels-last."""

    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]  # outputs that do not depend on any input

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """All outputs for all inputs, in the file's order."""
        return self.run(dict(zip(self.inputs, map(channels_last, inputs), strict=True)))

    def run(self, values: dict[str, Tensor]) -> list[Tensor]:
        """The same for inputs by name, as they are; what is not needed any more is removed from `values`."""
        for step in self.steps:
            values.update(zip(step.outputs, step(values), strict=False))
            for name in step.last_uses:
                del values[name]
        return [self.constants[name] if name in self.constants else values[name] for name in self.outputs]


def load_network(model: bytes, device: torch.device, operators: Operators | None = None) -> TorchNetwork:
    """The network of an ONNX file, with constants folded, by `operators` where they are not the usual ones.

    Raises NetworkError if it cannot be executed.
    """
    operators = OPERATORS if operators is None else operators
    try:
        graph = onnx.load_from_string(model).graph
    except Exception as cause:
        raise NetworkError(f"this is not an ONNX file: {one_line(cause)}") from None
    constants = {entry.name: tensor_of(entry) for entry in graph.initializer}
    inputs = {entry.name: _described(entry) for entry in graph.input if entry.name not in constants}
    outputs = tuple(entry.name for entry in graph.output)
    used = {name: number for number, node in enumerate(graph.node) for name in node.input}
    steps: list[Step] = []
    for number, node in enumerate(graph.node):
        names = [name for name in node.input if name and name not in constants]
        if names:
            ending = {name for name in (*names, *node.output) if used.get(name, number) <= number}
            unused = tuple(sorted(ending - {*outputs, ""}))
            steps.append(_step(node, constants, device, operators, unused))
        else:
            folded = _step(node, constants, torch.device("cpu"), operators, ())
            constants.update(zip(node.output, folded({}), strict=False))
    kept = {name: constants[name].to(device) for name in outputs if name in constants}
    return TorchNetwork(inputs, tuple(steps), outputs, kept)


def channels_last(tensor: Tensor) -> Tensor:
    """A batch of images in the channels-last format; other tensors unchanged."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _described(entry: ValueInfoProto) -> tuple[tuple[int, ...], torch.dtype]:
    kind = entry.type.tensor_type
    shape = tuple(size.dim_value for size in kind.shape.dim)
    if 0 in shape:
        raise NetworkError(f"input '{entry.name}' has no fixed shape; export the network with a fixed batch")
    return shape, dtype_of(kind.elem_type)


def _step(
    node: NodeProto,
    constants: Mapping[str, Tensor],
    device: torch.device,
    operators: Operators,
    last_uses: tuple[str, ...],
) -> Step:
    name = node.name or node.output[0]
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    execute = operators.get(domain + node.op_type)
    if execute is None:
        raise NetworkError(
            f"torch-cuda has no operator {domain}{node.op_type} (node '{name}'); use another runtime"
        )
    attributes = {entry.name: _attribute(entry) for entry in node.attribute}
    fixed: list[Any] = [None] * len(node.input)
    inputs = []
    computed = any(source and source not in constants for source in node.input)
    for place, source in enumerate(node.input):
        is_list = place in LISTS.get(node.op_type, ())
        if source in constants:
            constant = constants[source]
            if is_list or (computed and not constant.ndim):
                fixed[place] = constant.tolist()
            else:
                fixed[place] = channels_last(constant.to(device))
        elif source and is_list:
            raise NetworkError(
                f"input {place} of {node.op_type} '{name}' is computed while the network runs; torch-cuda "
                "runs networks of fixed shapes"
            )
        elif source:
            inputs.append((place, source))
    if len([output for output in node.output if output]) > 1 and node.op_type not in ("Split",):
        raise NetworkError(f"torch-cuda supports only the first output of {node.op_type} (node '{name}')")
    if node.op_type == "Split":
        attributes["outputs"] = len(node.output)
    run = partial(execute, attributes)
    return Step(name, node.op_type, run, tuple(fixed), tuple(inputs), tuple(node.output), last_uses)


def _attribute(entry: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(entry)
    return value.decode() if isinstance(value, bytes) else value
