"""Speed up PyTorch's ONNX exporter. Out: a context in which exports are faster, with the same graphs."""

import contextlib
import functools
import gc
import importlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx.config

REGISTRY = "torch.onnx._internal.exporter._registration"
OPERATORS = "torch._export.utils"


@contextlib.contextmanager
def quick_export() -> Iterator[None]:
    """Leave out what every export repeats, and garbage collection.

    For every export, the exporter parses the source of all its five hundred operators, which takes longer
    than exporting a small network, looks up all of PyTorch's operators twice, and reads the line of source of
    every operator and weight. It creates so many objects that garbage collection takes a third of its time.
    If its internals are not as expected, they are left as they are.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _kept_registry(), _operators_looked_up_once(), _no_lines_of_source():
            yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _kept_registry() -> Iterator[None]:
    try:
        registry = importlib.import_module(REGISTRY).ONNXRegistry
        original = vars(registry)["from_torchlib"]
        # It has only operators that exist when it is created: torchvision's only after its import.
        make = functools.partial(_kept, original.__get__(None, registry), _operators())
    except (ImportError, AttributeError, KeyError):
        yield
        return
    registry.from_torchlib = staticmethod(make)
    try:
        yield
    finally:
        registry.from_torchlib = original


@contextlib.contextmanager
def _operators_looked_up_once() -> Iterator[None]:
    """Looking one up adds it to `torch.ops`, where it stays."""
    try:
        module = importlib.import_module(OPERATORS)
        original = vars(module)["_materialize_cpp_cia_ops"]
    except (ImportError, KeyError):
        yield
        return
    vars(module)["_materialize_cpp_cia_ops"] = lambda: _kept(original, _operators())
    try:
        yield
    finally:
        vars(module)["_materialize_cpp_cia_ops"] = original


@contextlib.contextmanager
def _no_lines_of_source() -> Iterator[None]:
    if not hasattr(torch.fx.config, "do_not_emit_stack_traces"):  # in older PyTorch
        yield
        return
    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


def _operators() -> tuple[str, ...]:
    return tuple(torch._C._dispatch_get_all_op_names())


@functools.lru_cache(maxsize=4)
def _kept(make: Any, existing: tuple[str, ...], /, *args: Any, **named: Any) -> Any:
    return make(*args, **named)
