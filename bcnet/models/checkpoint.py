"""Read a file of trained weights, without unpickling anything; `weights.py` loads them into a network.

In: a .safetensors file or one saved by `torch.save`. Out: `Checkpoint`: tensors by the file's own names.
Any other file (a Git LFS pointer, a web page, a truncated file) is refused with what it is.
"""

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bcnet.errors import ModelError, one_line
from bcnet.nearest import near_path

# Averaged weights come first: a training that averages weights is evaluated with them.
AVERAGED = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema")
PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "module")
HEAD_BYTES = 512
DEEPEST = 8  # levels of nested dictionaries
DAMAGED = "it is cut short or damaged: fetch it again"
OTHER = "it is not a file of torch.save or safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file; `entry` is the path of the dictionary that they were in, as "ema.state_dict"."""

    tensors: dict[str, Tensor]
    entry: str = ""


def read_checkpoint(path: Path) -> Checkpoint:
    """The first of `read_checkpoints`, which is a network's where the file has no other dictionaries."""
    return read_checkpoints(path)[0]


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """The dictionaries of tensors in a file that can be a network's, the likeliest first.

    Raises ModelError: no such file, not a checkpoint, more than tensors in it.
    """
    try:
        if not path.is_file():
            if path.exists():
                raise ModelError(f"model.weights: {path} is not a regular file")
            hint = near_path(path, "give the path of a file, as seen from the working folder")
            raise ModelError(f"model.weights: {path} does not exist; {hint}")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as cause:
        raise ModelError(f"model.weights: {path} cannot be read: {one_line(cause)}") from None
    _refuse_other_kinds(path, head)
    content = _safetensors(path) if _is_safetensors(head) else _pytorch(path, head)
    found = list(_state_dicts(content))
    if not found:
        raise ModelError(f"{path} is not a state_dict (names and tensors); save model.state_dict()")
    # Beside the network's dictionary there may be some with a few tensors, such as counters.
    most = max(len(own.tensors) for own in found)
    return sorted((own for own in found if 2 * len(own.tensors) >= most), key=_preference, reverse=True)


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise ModelError(f"{path} is empty; fetch it again")
    if not head.strip(b"\0"):
        raise ModelError(f"{path} holds zeros, not weights; {DAMAGED}")
    if start.startswith(b"version https://git-lfs.github.com/spec"):
        raise ModelError(
            f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs install`, `git lfs pull`"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError(
            f"{path} is a web page, not weights; open the address in a browser and fetch the file itself"
        )
    if start.startswith(b"\x89hdf"):
        raise ModelError(f"{path} is an HDF5 file (Keras), not PyTorch's; convert it to a state_dict")


def _is_safetensors(head: bytes) -> bool:
    """Whether it begins with eight bytes of a length and a JSON header."""
    return head[8:].lstrip(b" ").startswith(b"{") and not head.startswith((b"PK", b"\x80"))


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as cause:
        raise ModelError(f"{path} cannot be read as weights ({one_line(cause)}); {DAMAGED}") from None


def _pytorch(path: Path, head: bytes) -> Any:
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception:  # a damaged directory raises errors of many kinds
            raise ModelError(f"{path} cannot be read as weights: {DAMAGED}") from None
        if any(name.endswith("/constants.pkl") for name in names):
            raise ModelError(f"{path} is a TorchScript program; save its state_dict() with torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        if head[:1] not in (b"P", b"\x80"):
            raise ModelError(f"{path} cannot be read as weights: {OTHER}") from None
        found = re.search(r"GLOBAL ([\w.]+)", str(cause))
        what = f" ({found[1]})" if found else ""
        raise ModelError(
            f"{path} holds more than tensors{what}, and unpickling would run its code; save "
            "model.state_dict() instead, preferably with safetensors.torch.save_file"
        ) from None
    except EOFError:
        raise ModelError(f"{path} cannot be read as weights: {DAMAGED}") from None
    except Exception as cause:
        what = one_line(cause) if head[:1] in (b"P", b"\x80") else OTHER
        raise ModelError(f"{path} cannot be read as weights: {what}") from None


def _state_dicts(content: Any, entry: tuple[str, ...] = ()) -> Iterator[Checkpoint]:
    """Every dictionary of tensors by name, nested ones too. An optimiser's state is keyed by number."""
    if not isinstance(content, Mapping) or len(entry) > DEEPEST:
        return
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }
    if tensors:
        yield Checkpoint(tensors, ".".join(entry))
    for name, value in content.items():
        if isinstance(name, str):
            yield from _state_dicts(value, (*entry, name))


def _preference(found: Checkpoint) -> tuple[int, int]:
    """The rank of a dictionary in the search for the network's: a known name, averaged weights first; then
    the largest."""
    names = found.entry.split(".")
    rank = next((2 - kind for kind, known in enumerate((AVERAGED, PLAIN)) if {*names} & {*known}), 0)
    return rank, len(found.tensors)
