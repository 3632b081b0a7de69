"""The small network for PyTorch code without bcnet. In: the network as given, and narrowed. Out: files.

`network.safetensors` has its weights, `widths.json` what changed in its modules, and `load_network.py`, which
needs torch and safetensors alone, narrows an instance of the user's own class.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from bcnet.errors import FOREIGN, ModelError, one_line
from bcnet.pipeline.load_network import load_network
from bcnet.runs import json_bytes
from bcnet.seeds import seeded
from bcnet.space.extract import tensors_of
from bcnet.space.inputs import arguments
from bcnet.space.width_space import Widths, WidthSpace

WEIGHTS, CHANGES, LOADER = "network.safetensors", "widths.json", "load_network.py"
FORMAT = 1
SCRIPT = Path(__file__).with_name(LOADER)


def handover_files(
    given: nn.Module, small: nn.Module, about: Mapping[str, Any], metadata: Mapping[str, str]
) -> dict[str, bytes]:
    """The files that make `small` of a network like `given`; `about` are further entries of widths.json."""
    from safetensors.torch import save

    before, after = tensors_of(given), tensors_of(small)
    changes = {
        "format": FORMAT,
        **about,
        "tensors": {
            name: {"original": list(before[name].shape), "shape": list(tensor.shape)}
            for name, tensor in after.items()
        },
        "attributes": _changed(given, small),
    }
    return {
        WEIGHTS: save({name: tensor.detach().contiguous() for name, tensor in after.items()}, dict(metadata)),
        CHANGES: json_bytes(changes),
        LOADER: SCRIPT.read_bytes(),
    }


def _changed(given: nn.Module, small: nn.Module) -> dict[str, dict[str, Any]]:
    """{module: {attribute: size}} of all sizes in modules that differ."""
    found: dict[str, dict[str, Any]] = {}
    modules = dict(given.named_modules())
    for path, module in small.named_modules():
        own = vars(modules[path])
        sizes = {key: value for key, value in vars(module).items() if _is_size(value) and own[key] != value}
        if sizes:
            found[path] = sizes
    return found


def _is_size(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(type(own) is int for own in value)
    return type(value) is int


def groups_of(space: WidthSpace, widths: Widths) -> dict[str, Any]:
    """The groups as in widths.json: channels before and after, and the layers that produce them."""
    return {
        group.name: {"original": before, "width": after, "layers": list(group.layers)}
        for group, before, after in zip(space.groups, space.original(), widths, strict=True)
    }


def check_loader(
    files: Mapping[str, bytes], again: Callable[[], nn.Module], small: nn.Module, example: Any
) -> None:
    """Raise ModelError where load_network.py does not make `small` of the network that `again` makes."""
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        try:
            loaded = load_network(again(), folder).eval()
            same = difference(loaded, small, example) == 0
        except FOREIGN as cause:
            reason = one_line(cause).replace(f" of {folder}", "")
            raise ModelError(
                f"{type(small).__name__} cannot be narrowed by its tensors and sizes alone ({reason}); "
                "use bcnet.load, or slice/model.pt2"
            ) from cause
    if not same:
        raise ModelError(
            f"{type(small).__name__} cannot be narrowed by its tensors and sizes alone: the network then "
            "gives other outputs; use bcnet.load, or slice/model.pt2"
        )


def difference(first: nn.Module, second: nn.Module, example: Any) -> float:
    """The largest difference of two networks' outputs in evaluation mode, relative to the largest output.

    `example` gives the shapes of the inputs; those of real numbers are random. Infinite for other shapes.
    """
    with seeded(0), torch.no_grad():
        inputs = tree_map_only(Tensor, lambda t: torch.randn_like(t) if t.is_floating_point() else t, example)
    args, kwargs = arguments(inputs)
    outputs = []
    for network in (first, second):
        with seeded(0), torch.no_grad():
            leaves = tree_leaves(network(*args, **kwargs))
        outputs.append([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    if [leaf.shape for leaf in outputs[0]] != [leaf.shape for leaf in outputs[1]]:
        return float("inf")
    return max((_apart(one, other) for one, other in zip(*outputs, strict=True)), default=0.0)


def _apart(one: Tensor, other: Tensor) -> float:
    if torch.equal(one, other):
        return 0.0
    apart = (one.double() - other.double()).nan_to_num().abs().max()
    return float(apart / other.double().nan_to_num().abs().max().clamp_min(1e-12))
