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
LIST = "_collect_all_valid_cia_ops_for_namespace"  # PyTorch does not modify the sets that it returns


@contextlib.contextmanager
def quick_export() -> Iterator[None]:
    """Within the block, skip work that every export repeats, and garbage collection.

    For every export, the exporter parses the source of all its five hundred operators, which takes longer
    than exporting a small network, looks through all of PyTorch's operators twice, and reads the lines of
    source that each operator and weight comes from. It creates so many objects that garbage collection takes
    a third of its time. If the exporter's internals are not as expected, they are left unchanged.
    """
    enabled = gc.isenabled()
    gc.disable()
    # Torchvision's operators exist only after its import.
    existing = tuple(torch._C._dispatch_get_all_op_names())
    try:
        with _kept_registry(existing), _kept_list_of_operators(existing), _no_lines_of_source():
            yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _kept_registry(existing: tuple[str, ...]) -> Iterator[None]:
    try:
        registry = importlib.import_module(REGISTRY).ONNXRegistry
        original = vars(registry)["from_torchlib"]
        make = functools.partial(_kept, original.__get__(None, registry), existing)
    except (ImportError, AttributeError, KeyError):
        yield
        return
    registry.from_torchlib = staticmethod(make)
    try:
        yield
    finally:
        registry.from_torchlib = original


@contextlib.contextmanager
def _kept_list_of_operators(existing: tuple[str, ...]) -> Iterator[None]:
    try:
        module = importlib.import_module(OPERATORS)
        original = vars(module)[LIST]
    except (ImportError, KeyError):
        yield
        return
    setattr(module, LIST, functools.partial(_kept_list, original, existing))
    try:
        yield
    finally:
        setattr(module, LIST, original)


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


@functools.lru_cache(maxsize=2)
def _kept(make: Any, existing: tuple[str, ...], /, *args: Any, **named: Any) -> Any:
    return make(*args, **named)


@functools.lru_cache(maxsize=128)
def _kept_list(make: Any, existing: tuple[str, ...], /, *args: Any) -> Any:
    return make(*args)
