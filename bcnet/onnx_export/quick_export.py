"""Speed up PyTorch's ONNX exporter. Out: a context in which exports are faster, with the same graphs."""

import contextlib
import functools
import gc
import importlib
from collections.abc import Iterator
from typing import Any

import torch

REGISTRY = "torch.onnx._internal.exporter._registration"


@contextlib.contextmanager
def quick_export() -> Iterator[None]:
    """Cache the exporter's registry of operators, and disable garbage collection.

    For every export, the exporter parses the source of all its five hundred operators, which takes longer
    than exporting a small network, and creates so many objects that garbage collection takes a third of its
    time. If its internals are not as expected, nothing is cached.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _kept_registry():
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
        make = functools.partial(
            _kept, original.__get__(None, registry), tuple(torch._C._dispatch_get_all_op_names())
        )
    except (ImportError, AttributeError, KeyError):
        yield
        return
    registry.from_torchlib = staticmethod(make)
    try:
        yield
    finally:
        registry.from_torchlib = original


@functools.lru_cache(maxsize=2)
def _kept(make: Any, existing: tuple[str, ...], /, *args: Any, **named: Any) -> Any:
    return make(*args, **named)
