"""PyTorch's ONNX exporter without what it does again at every export.

In: nothing. Out: a context in which exports are quicker and their graphs the same.
"""

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
    """Keep the exporter's registry of operators, and collect no garbage meanwhile.

    The exporter parses the source of all its five hundred operators for every export, which takes longer
    than to export a small network; and it makes so many objects that a third of its time goes into going
    through all that live, again and again. Where its internals are not those that are known, nothing is kept.
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
        # Only operators that exist when it is made are in it: torchvision's do once it is imported.
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
