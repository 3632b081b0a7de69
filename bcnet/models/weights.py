"""Load trained weights into a network. In: a checkpoint, whose names may have a prefix. Out: the network.

A head with another number of outputs keeps its initial weights; any other difference is refused.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bcnet.errors import ModelError, explaining
from bcnet.models.checkpoint import read_checkpoints
from bcnet.models.heads import layer_after
from bcnet.plain import counted
from bcnet.progress import say

# What wrappers put before names: torch.compile, DataParallel and DDP, Lightning, averaged models.
WRAPPERS = ("_orig_mod", "module", "model", "net", "network", "ema_model", "averaged_model")
PREFIX = re.compile(rf"(?:(?:{'|'.join(WRAPPERS)})\.)*")
COUNTED = ("n_averaged", "total_ops", "total_params")  # torch.optim.swa_utils, thop
LISTED = 5
Run = Callable[[nn.Module], Any]  # runs a network once on an example
FRESH = "_bcnet_fresh_heads"  # an attribute of loaded networks


class _OtherNetwork(ModelError):
    """Tensors whose names or shapes are not the network's."""


def load_weights(model: nn.Module, path: Path, run: Run | None = None, *, own: bool = False) -> None:
    """Load a file's tensors into the network, in place, and report it in one line.

    A file that is bcnet's `own` is only reported where a head is left out. Of several dictionaries in the
    file, the likeliest that fits is taken. With `run`, layers with another number of outputs are checked to
    be heads. Raises ModelError: no such file, not a checkpoint, another network's, values that are not finite
    or not real weights.
    """
    reasons = []
    for found in read_checkpoints(path):
        source = f"{path}, entry '{found.entry}'" if found.entry else str(path)
        try:
            loaded = load_tensors(model, found.tensors, source, run)
        except _OtherNetwork as reason:
            reasons.append(reason)
            continue
        if loaded[1] or not own:
            report_weights(model, source, *loaded)
        return
    raise reasons[0]


def report_weights(model: nn.Module, source: str, count: int, heads: list[str]) -> None:
    """Report where weights come from, and which heads get none from there: see `fresh_heads`."""
    setattr(model, FRESH, tuple(heads))
    rest = f"; start from their initial weights: {listed(heads)}" if heads else ""
    say(f"weights: {counted(count, 'tensor')} from {source}{rest}")


def fresh_heads(model: nn.Module) -> tuple[str, ...]:
    """The heads of a loaded network that had another number of outputs in its file: they are not trained."""
    heads: tuple[str, ...] = getattr(model, FRESH, ())
    return heads


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, run: Run | None = None
) -> tuple[int, list[str]]:
    """Load a state_dict into the network, in place; returns the number of tensors, and the heads left out.

    Raises ModelError, naming `source` and the first differences; the network is unchanged then.
    """
    with explaining(ModelError, f"{type(model).__name__}.state_dict() failed"):
        own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    if lazy := [name for name, tensor in own.items() if is_lazy(tensor)]:
        raise ModelError(
            f"'{lazy[0]}' has no shape before a first forward pass: run the network once in its "
            "function, so that weights can be loaded into it"
        )
    state = _named_as(own, tensors)
    buffers = {name for name, _ in model.named_buffers()}  # this version may not save all of them
    unknown = sorted(state.keys() - own.keys() - buffers)
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    if missing or unknown:
        found = [f"it lacks {listed(missing)}"] if missing else []
        found += [f"it has {listed(unknown)}, which the network lacks"] if unknown else []
        raise _OtherNetwork(
            f"{source} is not of this network: {' and '.join(found)} ({len(missing)} missing, {len(unknown)} "
            "unknown tensors); check model.name and model.args"
        )
    state = {name: _fitted(state[name], own[name]) for name in own if name in state}
    for name, tensor in state.items():
        if trouble := _no_weights(name, tensor, own[name]):
            raise ModelError(f"{source}: '{name}' {trouble}")
    heads = _heads(model, own, state, source)
    if heads and run is not None:
        after = layer_after(model, heads, run)
        if after is not None:
            head, following = after
            raise _OtherNetwork(
                f"{source} is not of this network: '{head}' has {heads[head][0]} outputs there and "
                f"{heads[head][1]} here, but is no head, since '{following}' follows; check model.name and "
                "model.args"
            )
    loaded = {name: tensor for name, tensor in state.items() if _layer(name) not in heads}
    broken = [name for name, tensor in loaded.items() if not _finite(tensor.to(own[name].dtype))]
    if broken:
        raise ModelError(
            f"{source} holds NaN or infinity in {listed(broken)}; take a checkpoint from before the training "
            "diverged"
        )
    with explaining(
        ModelError, f"{source} cannot be loaded: {type(model).__name__}.load_state_dict() failed"
    ):
        model.load_state_dict(loaded, strict=False)
    return len(loaded), [
        f"'{head}' ({there} outputs there, {here} here)" for head, (there, here) in heads.items()
    ]


def listed(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    shown = ", ".join(name if name.startswith("'") else f"'{name}'" for name in names[:LISTED])
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _named_as(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the network's names: of all ways to strip prefixes, the best match.

    Once every tensor of the network is found behind one prefix, tensors with another prefix belong to other
    parts of a training script, such as its loss.
    """
    plain = {
        name.replace("._orig_mod.", "."): tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in COUNTED or name in own
    }
    there, here = _prefixes(plain), _prefixes(own)
    best: dict[str, Tensor] = {}
    matched, aside = -1, 0
    for prefix in there:
        inside = {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
        for added in here:
            renamed = {added + name: tensor for name, tensor in inside.items()}
            count = len(renamed.keys() & own.keys())
            if count > matched:
                best, matched, aside = renamed, count, len(plain) - len(inside)
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    if aside and needed - best.keys():
        # Not this network: keep the names in the message as close to the file's as possible.
        common = max((p for p in there if all(name.startswith(p) for name in plain)), key=len)
        return {name.removeprefix(common): tensor for name, tensor in plain.items()}
    return best


def _prefixes(names: Iterable[str]) -> list[str]:
    """Every prefix of wrappers that occurs in a name, the empty one first."""
    found = {""}
    for name in names:
        parts = (PREFIX.match(name) or [""])[0].split(".")[:-1]
        found |= {"".join(f"{part}." for part in parts[: i + 1]) for i in range(len(parts))}
    return sorted(found, key=len)


def _fitted(tensor: Tensor, own: Tensor) -> Tensor:
    """A single value, whether it is saved with shape [] or [1]."""
    return tensor.reshape(own.shape) if tensor.numel() == own.numel() == 1 else tensor


def _heads(
    model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str
) -> dict[str, tuple[int, int]]:
    """Layers that differ only in their number of outputs: how many there, and how many here.

    A different number of channels inside a network also changes the next layer's input, and is refused.
    Embeddings and parameters of the network itself have no outputs.
    """
    other = [name for name, tensor in state.items() if tensor.shape != own[name].shape]
    axes = {name: _output_axis(model, name, own[name]) for name in other}
    weighted = {_layer(name) for name in other if own[name].ndim > 1 and _has_outputs(model, _layer(name))}
    if not all(
        _without(state[name], axes[name]) == _without(own[name], axes[name]) and _layer(name) in weighted
        for name in other
    ):
        first = other[0]
        raise _OtherNetwork(
            f"{source}: '{first}' has the shape {tuple(state[first].shape)}, in the network it is "
            f"{tuple(own[first].shape)} ({len(other)} tensors of other shapes); "
            "check model.name and model.args"
        )
    return {_layer(n): (state[n].shape[axes[n]], own[n].shape[axes[n]]) for n in other}


def _has_outputs(model: nn.Module, layer: str) -> bool:
    return layer != "" and not isinstance(model.get_submodule(layer), nn.Embedding | nn.EmbeddingBag)


def _no_weights(name: str, tensor: Tensor, own: Tensor) -> str | None:
    """Why a tensor holds no values for one of the network; None where it does."""
    if tensor.is_meta:
        return "has no values (it is on the meta device); save the state_dict of a network that has weights"
    if tensor.is_quantized or (_kind(tensor) != _kind(own) and not name.endswith("num_batches_tracked")):
        return (
            f"is of {tensor.dtype}, in the network it is of {own.dtype}; give weights in floating point, as "
            "they were before they were quantised or converted"
        )
    return None


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else "integer"


def _output_axis(model: nn.Module, name: str, tensor: Tensor) -> int:
    """The axis of a layer's outputs in one of its tensors."""
    transposed = isinstance(model.get_submodule(_layer(name)), nn.modules.conv._ConvTransposeNd)
    return 1 if transposed and tensor.ndim > 1 else 0


def _without(tensor: Tensor, axis: int) -> list[int] | None:
    """A shape without one axis; None where it has none."""
    shape = list(tensor.shape)
    return shape[:axis] + shape[axis + 1 :] if len(shape) > axis else None


def _layer(name: str) -> str:
    """The layer of a tensor, also where it is parametrised, such as by weight normalisation."""
    return name.split(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def _finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool((tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all())
