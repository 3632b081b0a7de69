"""Check that a network can be exported and run, before anything is trained.

In: a function that builds the network's ONNX graph. Out: why the narrowest network cannot be exported, or run
in ONNX Runtime, with the operator and the module that calls it.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bcnet.errors import FOREIGN, BcnetError, one_line
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, example_inputs, to_onnx
from bcnet.onnx_export.source_lines import source_line
from bcnet.runtimes import runtime_here
from bcnet.space.inputs import arguments
from bcnet.space.random_runs import Watcher
from bcnet.space.trace import running_modules

_NO_FORM = re.compile(r"No ONNX function found for .*?op='(?:\w+[.:]+)?(\w+)'")
_NO_KERNEL = re.compile(
    r"No Op registered for (?P<missing>\w+)|"
    r"implementation for (?P<unknown>\w+)\(\d+\) node with name '(?P<node>[^']*)'"
)
_NODE = re.compile(r'In Node, \("(?P<node>[^"]*)"')


def not_deliverable(build: Callable[[], OnnxSupernet], model: nn.Module, example: Any) -> str | None:
    """Why the narrowest network cannot be exported to ONNX or run in ONNX Runtime; None if both work.

    `build` creates the graph, `example` is as for `to_onnx`. It takes one export and one inference.
    """
    inputs, reason = example_inputs(example), None
    try:
        content = build().narrowest()
    except FOREIGN as cause:
        reason = str(cause) if isinstance(cause, BcnetError) else one_line(cause)
        if (found := _NO_FORM.search(reason)) is not None:
            operator = found.group(1)
            line = source_line(cause)
            place = _place(model, inputs, operator) or (f" (at {line})" if line else "")
            return (
                f"PyTorch's exporter does not support '{operator}'{place}; "
                "replace it with operators that it supports"
            )
        try:  # the runtime may name the operator that makes the graph invalid
            content = to_onnx(model, example).SerializeToString()
        except BcnetError:
            return reason
    return _not_run(content, model, inputs) or reason


def _not_run(content: bytes, model: nn.Module, inputs: Any) -> str | None:
    """Why ONNX Runtime does not run a file; None if it does."""
    arrays = [leaf.contiguous().numpy() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    try:
        runtime_here("onnxruntime", provider="cpu", threads=1).predictor(content)(*arrays)
    except BcnetError as cause:
        reason = str(cause)
        if (found := _NO_KERNEL.search(reason)) is None:
            return f"the exported network does not run: {reason}"
        operator = found.group("missing") or found.group("unknown")
        at = _NODE.search(reason)
        node = found.group("node") or (at.group("node") if at else "")
        return (
            f"ONNX Runtime does not support '{operator}' at the file's opset{_place(model, inputs, node)}; "
            "replace it with operators that it supports"
        )
    return None


def _place(model: nn.Module, inputs: Any, node: str) -> str:
    """The module that calls an operator, found by the exporter's names of nodes: relu, relu_1, ..."""
    operator, _, number = re.fullmatch(r"(.*?)(_(\d+))?", node).groups()  # type: ignore[union-attr]
    watcher = Watcher(values=False)
    args, kwargs = arguments(inputs)
    model.eval()
    with torch.no_grad(), running_modules(model) as watcher.inside, watcher:
        model(*args, **kwargs)
    calls = [call.where for call in watcher.found if call.name == operator.strip("_")]
    index = int(number or 0)
    return f" (in {calls[index]})" if index < len(calls) else ""
