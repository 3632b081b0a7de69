"""Trained weights for a network: a state_dict from a safetensors or a PyTorch file, never a pickled model."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.errors import ModelError, one_line
from bcnet.progress import say

WRAPPED = ("state_dict", "model", "model_state_dict", "net", "model_ema")  # where training scripts put it


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state_dict into the network, in place.

    Keys may be prefixed by `module.`, and the dictionary may be an entry of a checkpoint. Where only the
    output layer has another number of classes, it keeps its initial weights, and that is said.
    Raises ModelError: no such file, not a state_dict, tensors that are missing, unknown or of another shape.
    """
    state = _state(path)
    own = model.state_dict()
    missing = sorted(
        own.keys() - state.keys() - {name for name in own if name.endswith("num_batches_tracked")}
    )
    unknown = sorted(state.keys() - own.keys())
    if missing or unknown:
        what = f"it lacks '{missing[0]}'" if missing else f"it has '{unknown[0]}', which the network lacks"
        raise ModelError(
            f"{path} is not of this network: {what} ({len(missing)} missing, {len(unknown)} unknown "
            "tensors); check model.name and model.args"
        )
    other = [name for name, tensor in state.items() if tensor.shape != own[name].shape]
    heads = {name.rpartition(".")[0] for name in other}
    if other and (len(heads) > 1 or any(state[n].shape[1:] != own[n].shape[1:] for n in other)):
        raise ModelError(
            f"{path}: '{other[0]}' has the shape {tuple(state[other[0]].shape)}, in the network it is "
            f"{tuple(own[other[0]].shape)}; check model.args"
        )
    if other:
        say(
            f"{path}: '{heads.pop()}' has {len(state[other[0]])} outputs there and {len(own[other[0]])} "
            "here: it begins anew"
        )
    model.load_state_dict({name: t for name, t in state.items() if name not in other}, strict=False)


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"model.weights: there is no file {path}")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds more than tensors, and unpickling runs its code; save model.state_dict() instead, "
            "best with safetensors.torch.save_file"
        ) from None
    except Exception as cause:
        raise ModelError(f"{path} cannot be read as weights: {one_line(cause)}") from None
    for key in WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} is not a state_dict (names and tensors); save model.state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
