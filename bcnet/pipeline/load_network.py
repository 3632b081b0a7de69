"""Narrow a network to the one that bcnet found, and load its weights. Needs torch and safetensors alone.

`load_network(YourNetwork(...), "FOLDER")`; the folder holds network.safetensors and widths.json.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import nn


def load_network(network: nn.Module, folder: str | Path) -> nn.Module:
    """Narrow `network` in place, and return it. It is made like the one that was searched, with any weights.

    Its tensors are on the CPU then, and need a gradient where they did before. Raises ValueError where it is
    another network than that of `folder`.
    """
    about = json.loads(Path(folder, "widths.json").read_text(encoding="utf-8"))
    places = [
        (held, key, f"{path}.{key}".removeprefix("."))
        for path, module in network.named_modules()
        for held in (module._parameters, module._buffers)
        for key in held
        if held[key] is not None
    ]
    names: dict[int, str] = {}  # a tensor that several modules share has its first name
    for held, key, name in places:
        names.setdefault(id(held[key]), name)
    found = {names[id(held[key])]: list(held[key].shape) for held, key, _ in places}
    expected = {name: tensor["original"] for name, tensor in about["tensors"].items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            what = f"'{name}' is {found.get(name, 'missing')}, not {expected.get(name, 'there')}"
            raise ValueError(f"this network is not the one of {folder}: {what}")
    # Copies, because kernels sum in another order where memory is not aligned, as in the file.
    tensors = {name: own.clone() for name, own in load_file(Path(folder, "network.safetensors")).items()}
    for held, key, _ in places:
        name, old = names[id(held[key])], held[key]
        if isinstance(old, nn.Parameter) and not isinstance(tensors[name], nn.Parameter):
            tensors[name] = nn.Parameter(tensors[name], requires_grad=old.requires_grad)
        held[key] = tensors[name]
    for path, sizes in about["attributes"].items():
        module = network.get_submodule(path)
        for name, size in sizes.items():
            kind = type(getattr(module, name))
            setattr(module, name, kind(size) if isinstance(size, list) else size)
    return network
