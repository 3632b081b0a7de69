"""Trace the channels of a network through its forward: which entries of which tensors belong together.

In: a network, which is run operator by operator on real inputs. Out: a `Trace`: for every axis of every
parameter and buffer, which of its entries must be kept or removed together (`Trace.classes`), which must
stay, with the reason (`Trace.pinned`), and the layers that produce and use channels. `trace_record.py` has
the data structures, `trace_rules.py` the registry of the rules for operators.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bcnet.space import trace_view_rules  # noqa: F401, its rules register themselves
from bcnet.space.trace_entry_rules import pointwise
from bcnet.space.trace_layer_rules import LAYERS
from bcnet.space.trace_record import Call, LayerUse, Record, Trace
from bcnet.space.trace_rules import ALWAYS, RANDOM, RULES, unknown

__all__ = ["LayerUse", "Trace", "Tracer", "running_modules"]

OUTPUT = "it is the network's output"
READ_OUTPUT = (
    "the network returns it, and other layers use it; to narrow it, wrap the network in a module that does "
    "not return it"
)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills a Trace while a network runs inside `with tracer:`; use `torch.no_grad()` around it."""

    def __init__(self, trace: Trace, model: nn.Module, images: int) -> None:
        """`images` is the batch size of the inputs, because positions are counted per image."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.record = Record(trace, images)
        self.read: set[int] = set()  # the tensors that layers take as inputs

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Trace the operators in the block, with the modules that run them."""
        with running_modules(self.model) as self.record.inside, torch.no_grad(), self:
            yield

    def finish(self, outputs: Any) -> None:
        """Pin the channels of the outputs."""
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self.record.pin(leaf, READ_OUTPUT if id(leaf) in self.read else OUTPUT)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:  # outside of inference mode, PyTorch decomposes it itself
                return func.decompose(*args, **kwargs)
        record, trace = self.record, self.record.trace
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name.endswith("_") and not name.startswith("__"):
            name = name[:-1]  # in place
        trace.operators.append(name)
        if torch.Tag.data_dependent_output in func.tags:
            trace.reads_values = trace.reads_values or record.where
        if torch.Tag.dynamic_output_shape in func.tags and not _by_numbers(name, args):
            trace.dynamic = True
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in RANDOM or (tensors and all(id(t) in record.noise or t.numel() == 1 for t in tensors)):
            record.noise.update(id(t) for t in outputs)
            record.alive += outputs
        record.because = next((record.lost[id(t)] for t in tensors if id(t) in record.lost), None)
        if record.because is not None:
            record.lose(outputs, record.because)
        if name in LAYERS:
            self.read.update(id(t) for t in tensors if id(t) in record.planes)
        if name in ALWAYS or any(id(tensor) in record.planes for tensor in tensors):
            default = pointwise if torch.Tag.pointwise in func.tags else unknown
            RULES.get(name, default)(record, Call(name, func, args, kwargs, tensors, outputs))
            record.inherit(tensors, outputs)
        return result


def _by_numbers(name: str, args: Any) -> bool:
    """Whether this selects entries by integer indices, so that their number is fixed, unlike with a mask."""
    if name != "index":
        return False
    indices = (leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor))
    return all(index.dtype not in (torch.bool, torch.uint8) for index in indices)


@contextmanager
def running_modules(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The names and modules that are running, the innermost last; after an error, those at the error."""
    inside: list[tuple[str, nn.Module]] = []

    def enter(name: str) -> Any:
        return lambda module, _: inside.append((name, module))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()
