"""A network's own forward with other tensors in place of its own, and an ordinary network of them.

In: a network, its space, narrower tensors. Out: outputs (`run_with`), or a small network (`with_state`),
which gives the same outputs to the last bit. `supernet.py` takes the tensors of a subnet.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.space.inputs import arguments
from bcnet.space.subnet import State
from bcnet.space.width_space import WidthSpace, length

KEPT = 2  # number of networks whose `_Places` are cached


def tensors_of(model: nn.Module) -> State:
    """A network's parameters and buffers by name; a tensor that several modules share has one name."""
    return {name: holder[key] for holder, key, name in _places_of(model).tensors}


@dataclass(frozen=True)
class _Places:
    """Where a network stores its tensors: (dictionary, key, name); shared tensors have their first name.

    Each call of a subnet needs this, and walking the modules took a tenth of a small network's forward, so it
    is cached until modules or tensors are added or removed.
    """

    tensors: tuple[tuple[dict[str, Any], str, str], ...]
    shared: tuple[tuple[dict[str, Any], str, dict[str, Any], str], ...]
    modules: dict[str, nn.Module]
    children: tuple[tuple[dict[str, Any], str, nn.Module], ...]
    sizes: tuple[tuple[dict[str, Any], int], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "_Places":
        tensors, shared, children, sizes = [], [], [], []
        modules = dict(model.named_modules())
        first: dict[int, tuple[dict[str, Any], str, str]] = {}
        for path, module in modules.items():
            prefix = f"{path}." if path else ""
            for holder in (module._parameters, module._buffers):
                for key, tensor in holder.items():
                    if tensor is None:
                        continue
                    origin = first.setdefault(id(tensor), (holder, key, prefix + key))
                    tensors.append((holder, key, origin[2]))
                    if origin[2] != prefix + key:
                        shared.append((holder, key, *origin[:2]))
            held = module._modules
            children += [(held, key, child) for key, child in held.items() if child is not None]
            sizes += [(each, len(each)) for each in (module._parameters, module._buffers, held)]
        return cls(tuple(tensors), tuple(shared), modules, tuple(children), tuple(sizes))

    def current(self) -> bool:
        """Whether the network still has these modules, and shares these tensors."""
        return (
            all(held.get(key) is child for held, key, child in self.children)
            and all(len(held) == size for held, size in self.sizes)
            and all(holder[key] is other[name] for holder, key, other, name in self.shared)
        )


_known: dict[int, tuple[nn.Module, _Places]] = {}  # cache for the last few networks


def _places_of(model: nn.Module) -> _Places:
    own, places = _known.get(id(model), (None, None))
    if own is not model or places is None or not places.current():
        places = _Places.of(model)
        _known.pop(id(model), None)
        while len(_known) >= KEPT:
            _known.pop(next(iter(_known)))
        _known[id(model)] = model, places
    return places


def _sizes(
    space: WidthSpace, state: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> Iterator[tuple[nn.Module, str, Any]]:
    """(module, attribute, value) of every size that a module keeps in an attribute, for these tensors."""
    widths: list[int] = []
    for sized in space.sized:
        module = modules[sized.module]
        value: Any
        if sized.follows:
            widths = widths or space.widths_of({name: state[name].shape for name in space.dimensions})
            value = length(sized.follows, widths) // sized.each
        else:
            shape = state[sized.tensor].shape
            value = shape[sized.axis] // sized.each if sized.each else tuple(shape)
        if sized.item is not None:
            several = getattr(module, sized.attribute)
            value = type(several)([*several[: sized.item], value, *several[sized.item + 1 :]])
        yield module, sized.attribute, value


@contextmanager
def _sizes_of(model: nn.Module, space: WidthSpace, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Set the sizes in modules to those of the subnet's tensors during a call."""
    modules = _places_of(model).modules
    before = []
    try:
        for module, attribute, value in _sizes(space, state, modules):
            before.append((module, attribute, getattr(module, attribute)))
            setattr(module, attribute, value)
        yield
    finally:
        for module, attribute, value in reversed(before):
            setattr(module, attribute, value)


def run_with(model: nn.Module, space: WidthSpace, state: Mapping[str, Tensor], inputs: Any) -> Any:
    """The network's own forward on `inputs` (see `inputs.py`), with a subnet's tensors instead of its own."""
    args, kwargs = arguments(inputs)
    with _sizes_of(model, space, state), _tensors_in_place(model, state):
        return model(*args, **kwargs)


@contextmanager
def _tensors_in_place(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the network's own tensors by these during a call.

    Like torch.func.functional_call, which walks the modules four times.
    """
    own: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for holder, key, name in _places_of(model).tensors:
            new = state.get(name)
            if new is not None:
                own.append((holder, key, holder[key]))
                holder[key] = new
        yield
    finally:
        for holder, key, tensor in own:
            holder[key] = tensor


def with_state(model: nn.Module, space: WidthSpace, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network that holds clones of these tensors, its modules' attributes set to match."""
    small = _copy_without_tensors(model)
    for names, holders in (
        (dict(model.named_parameters()), "_parameters"),
        (dict(model.named_buffers()), "_buffers"),
    ):
        own = {id(tensor): name for name, tensor in names.items()}
        new: dict[int, Tensor] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            for attribute, tensor in getattr(module, holders).items():
                # A tensor that several modules share stays one.
                if tensor is None or own[id(tensor)] not in state:
                    continue
                if id(tensor) not in new:
                    new[id(tensor)] = (
                        state[own[id(tensor)]].detach().clone(memory_format=torch.contiguous_format)
                    )
                    if holders == "_parameters":
                        new[id(tensor)] = nn.Parameter(new[id(tensor)], requires_grad=tensor.requires_grad)
                getattr(small.get_submodule(path), holders)[attribute] = new[id(tensor)]
    for module, attribute, value in _sizes(space, state, dict(small.named_modules())):
        setattr(module, attribute, value)
    for module in small.modules():
        _describe(module)
    return small


def _describe(module: nn.Module) -> None:
    """Set the sizes in a module's attributes, for its repr and for other code."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(weight)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)


def _copy_without_tensors(model: nn.Module) -> nn.Module:
    """A deep copy of the modules that shares all tensors, which are replaced afterwards."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
