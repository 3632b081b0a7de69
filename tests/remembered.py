"""Exports, and searches for channels, of a network that was exported or searched before: taken from memory.

Tests of the pipeline repeat them for the same few networks. Only those are remembered that consist of
PyTorch's own and the package's modules, whose text and tensors determine everything.
"""

import hashlib
import os
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_structure

MOST = 32  # results of each kind; the largest take eight megabytes

_known: defaultdict[str, dict[str, Any]] = defaultdict(dict)
_folders: list[Path] = []


@contextmanager
def remembered(folder: Path | None = None) -> Iterator[None]:
    """In this context, what has the same result as before is not computed again.

    The processes that are forked in it share what they compute by files in `folder`.
    """
    from bcnet.pipeline import networks, slice

    _folders[:] = [folder] if folder else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "discover_space", partial(_once, "space", networks.discover_space))
        patch.setattr(slice, "program_bytes", partial(_once, "program", slice.program_bytes))
        patch.setattr(torch.onnx, "export", partial(_exported, torch.onnx.export))
        yield


def _once(kind: str, make: Callable[..., Any], model: nn.Module, *rest: Any, **named: Any) -> Any:
    modules = {type(module).__module__ for module in model.modules()}
    known = all(name.startswith(("torch.nn.", "bcnet.models.")) for name in modules)
    if not known or any(map(is_lazy, model.parameters())):
        return make(model, *rest, **named)
    results, key = _known[kind], _digest(model, rest, named)
    files = [folder / f"{kind}-{key}" for folder in _folders]
    for file in files:
        if key not in results and file.exists():
            results[key] = pickle.loads(file.read_bytes())
    if key not in results:
        results[key] = make(model, *rest, **named)
        for file in files:
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(pickle.dumps(results[key]))
            unfinished.rename(file)
        if len(results) > MOST:
            del results[next(iter(results))]
    return results[key]


def _exported(export: Callable[..., Any], model: nn.Module, *rest: Any, **named: Any) -> SimpleNamespace:
    """What `to_onnx` uses of the exporter's program: a file of its own, which it changes."""

    def content(*given: Any, **named: Any) -> bytes:
        return bytes(export(*given, **named).model_proto.SerializeToString())

    return SimpleNamespace(model_proto=onnx.load_from_string(_once("file", content, model, *rest, **named)))


def _digest(model: nn.Module, *given: Any) -> str:
    """A digest of a network's text and tensors, and of the other arguments."""
    state = model.state_dict()
    parts = [str(model), model.training, *state, *state.values(), tree_structure(given), *tree_leaves(given)]
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(repr((part.dtype, part.shape)).encode())
            found.update(part.detach().contiguous().flatten().view(torch.uint8).numpy())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()
