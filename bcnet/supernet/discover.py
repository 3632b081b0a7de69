"""Any nn.Module -> WidthSpace: coupled channel groups, found with Torch-Pruning's dependency graph.

In: a network and an example input. Out: a space whose every group was tried: a random cut runs and keeps the
output's shape. What cannot be searched is frozen and listed with the reason.
"""

import copy
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.errors import SpaceError, one_line
from bcnet.supernet.methods import method_named
from bcnet.supernet.paths import cut, supernet_state
from bcnet.supernet.space import Dimension, Frozen, Layer, Segment, WidthGroup, WidthSpace

Place = tuple[str, int]  # a tensor's name and one of its axes
Stretch = tuple[int, int, int]  # offset, channels, entries a channel


def discover_space(
    model: nn.Module,
    example_input: Tensor,
    *,
    bins: int = 8,
    channel_multiple: int = 8,
    min_width: float = 0.125,
    method: str = "bcnet",
) -> WidthSpace:
    """The width space of a network.

    `example_input` is one image or more, (N, C, H, W); `bins` the width choices a group; choices are
    multiples of `channel_multiple` where the group's channels are, and at least `min_width` (a part of them).
    `method` (unilateral, bcnet, bcnetv2) decides which choices and extra channels a group gets.
    Raises SpaceError where the network cannot be read or nothing in it can be searched.
    """
    rule = method_named(method)
    probe = copy.deepcopy(model).eval().requires_grad_(True)
    layers, order, full = _record(probe, example_input)
    found = _coupled_channels(probe, example_input, order)
    state = probe.state_dict()

    frozen = []
    kept: list[_Coupled] = []
    choices: list[tuple[int, ...]] = []
    for coupled in found:
        reason = coupled.reason
        own = rule.choices(coupled.channels, bins, channel_multiple, round(coupled.channels * min_width))
        if reason is None and len(own) < 2:
            reason = (
                f"{coupled.channels} channels leave no choice with {bins} bins, at multiples of "
                f"{channel_multiple} and at least {min_width:g} of the full width"
            )
        if reason is None:
            kept.append(coupled)
            choices.append(own)
        else:
            frozen.append(Frozen(coupled.name, coupled.channels, reason))

    def build(index: list[int], frozen: list[Frozen]) -> WidthSpace:
        groups = tuple(
            WidthGroup(
                kept[i].name, kept[i].channels, choices[i], tuple(kept[i].layers), rule.extra(choices[i])
            )
            for i in index
        )
        dimensions = _dimensions([kept[i].places for i in index], state)
        parameters = dict(probe.named_parameters())
        return WidthSpace(
            method=method,
            groups=groups,
            dimensions=dimensions,
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            parameters=tuple(parameters),
            layers=layers,
            depthwise=tuple(
                name
                for name, module in probe.named_modules()
                if _is_depthwise(module) and f"{name}.weight" in dimensions
            ),
            frozen=tuple(frozen),
        )

    everything = list(range(len(kept)))
    space = build(everything, frozen)
    if _trouble(probe, space, example_input, full) is not None:
        # Find the groups that break the network when they alone are narrowed.
        good = []
        for i in everything:
            trouble = _trouble(probe, build([i], []), example_input, full)
            if trouble is None:
                good.append(i)
            else:
                frozen.append(Frozen(kept[i].name, kept[i].channels, trouble))
        space = build(good, frozen)
        trouble = _trouble(probe, space, example_input, full)
        if trouble is not None:
            raise SpaceError(f"no valid space found in {type(model).__name__}: {trouble}")
    if not space.groups:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in frozen[:3])
        raise SpaceError(f"nothing in {type(model).__name__} can be searched ({reasons})")
    return space


@dataclass
class _Coupled:
    """A group as the dependency graph gives it, before choices."""

    channels: int
    name: str = ""
    layers: list[str] = field(default_factory=list)
    places: dict[Place, list[Stretch]] = field(default_factory=lambda: defaultdict(list))
    consumed: bool = False
    reason: str | None = None


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _record(probe: nn.Module, x: Tensor) -> tuple[tuple[Layer, ...], dict[nn.Module, int], torch.Size]:
    """Run once: layers with their output positions, the order of execution, the output's shape."""
    names = {module: name for name, module in probe.named_modules()}
    positions: dict[str, int] = {}
    order: dict[nn.Module, int] = {}

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        order.setdefault(module, len(order))
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            count = output.shape[2] * output.shape[3]
        elif isinstance(module, nn.Linear):
            count = output[0].numel() // output.shape[-1]
        else:
            return
        name = f"{names[module]}.weight"
        positions[name] = positions.get(name, 0) + count

    handles = [module.register_forward_hook(hook) for module in probe.modules()]
    try:
        with torch.no_grad():
            output = probe(x)
    except Exception as cause:
        raise SpaceError(
            f"{type(probe).__name__} does not run on an input of shape {tuple(x.shape)}: {one_line(cause)}"
        ) from cause
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        raise SpaceError(
            f"{type(probe).__name__} returns {type(output).__name__}; wrap it so that it returns one tensor"
        )
    return tuple(Layer(name, count) for name, count in positions.items()), order, output.shape


def _coupled_channels(probe: nn.Module, x: Tensor, order: dict[nn.Module, int]) -> list[_Coupled]:
    """Torch-Pruning's groups in order of execution, each with the tensor dimensions it indexes."""
    import torch_pruning

    names = {module: name for name, module in probe.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(probe, example_inputs=x, verbose=False)
            groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.ConvTranspose2d, nn.Linear]))
        except Exception as cause:
            raise SpaceError(
                f"the layers of {type(probe).__name__} cannot be traced: {one_line(cause)}"
            ) from cause
    found: list[_Coupled] = []
    for group in groups:
        coupled = _Coupled(channels=len(group[0].idxs))
        producers = []
        for item in group:
            module = item.dep.target.module
            if not isinstance(module, nn.Module):
                coupled.reason = coupled.reason or "a bare parameter follows its channels"
                continue
            if module not in names:
                continue  # an operator of the graph, without tensors
            outgoing = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
            places, why = _places(names[module], module, outgoing)
            coupled.reason = coupled.reason or why
            if not places:
                continue
            stretches = _stretches(list(item.idxs), list(item.root_idxs), coupled.channels)
            if stretches is None:
                coupled.reason = coupled.reason or f"channels are interleaved before '{names[module]}'"
                continue
            for place in places:
                coupled.places[place] += stretches
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                if outgoing and not _is_depthwise(module):
                    producers.append(module)
                elif not outgoing:
                    coupled.consumed = True
        producers.sort(key=lambda module: order.get(module, len(order)))
        coupled.layers = [names[module] for module in producers]
        coupled.name = coupled.layers[0] if coupled.layers else f"group{len(found)}"
        if coupled.reason is None and not coupled.consumed:
            coupled.reason = "it is the network's output"
        found.append(coupled)
    position = {names[module]: index for module, index in order.items()}
    return sorted(found, key=lambda coupled: position.get(coupled.name, len(position)))


def _places(name: str, module: nn.Module, outgoing: bool) -> tuple[list[Place], str | None]:
    """The tensor dimensions of a module that follow a group, or the reason why the group is frozen."""
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 and not _is_depthwise(module):
            return [], f"'{name}' is a grouped convolution ({module.groups} groups)"
        if not outgoing:
            return [(f"{name}.weight", 1)], None
        return _own(name, module, ("weight", "bias")), None
    if isinstance(module, nn.Linear):
        return ([(f"{name}.weight", 1)] if not outgoing else _own(name, module, ("weight", "bias"))), None
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        return _own(name, module, ("weight", "bias", "running_mean", "running_var")), None
    if isinstance(module, nn.PReLU):
        return ([] if module.num_parameters == 1 else [(f"{name}.weight", 0)]), None
    if not list(module.parameters()) and not list(module.buffers()):
        return [], None
    return [], f"'{name}' is a {type(module).__name__}, whose width is not searched"


def _own(name: str, module: nn.Module, attributes: tuple[str, ...]) -> list[Place]:
    return [(f"{name}.{key}", 0) for key in attributes if getattr(module, key, None) is not None]


def _stretches(positions: list[int], roots: list[int], channels: int) -> list[Stretch] | None:
    """Where all channels lie in a dimension: runs of equal length a channel, in order; None if not so."""
    ordered = sorted(zip(positions, roots, strict=True))
    stretches = []
    start = 0
    while start < len(ordered):
        run = 1
        while start + run < len(ordered) and ordered[start + run][1] == ordered[start][1]:
            run += 1
        length = run * channels
        offset = ordered[start][0]
        expected = [(offset + i, i // run) for i in range(length)]
        if ordered[start : start + length] != expected:
            return None
        stretches.append((offset, channels, run))
        start += length
    return stretches


def _dimensions(
    places: list[dict[Place, list[Stretch]]], state: dict[str, Tensor]
) -> dict[str, dict[int, Dimension]]:
    """Each tensor's searchable axes as segments; what no group claims is a fixed segment."""
    claims: dict[Place, list[tuple[int, int, int, int]]] = defaultdict(list)
    for group, claimed in enumerate(places):
        for place, stretches in claimed.items():
            for offset, channels, run in set(stretches):
                claims[place].append((offset, group, channels, run))
    dimensions: dict[str, dict[int, Dimension]] = defaultdict(dict)
    for (name, axis), parts in claims.items():
        segments, start = [], 0
        for offset, group, channels, run in sorted(parts):
            if offset < start:
                raise SpaceError(f"two groups claim the same channels of '{name}'")
            if offset > start:
                segments.append(Segment(None, offset - start))
            segments.append(Segment(group, run))
            start = offset + channels * run
        if start < state[name].shape[axis]:
            segments.append(Segment(None, state[name].shape[axis] - start))
        dimensions[name][axis] = tuple(segments)
    return dict(dimensions)


def _trouble(probe: nn.Module, space: WidthSpace, x: Tensor, full: torch.Size) -> str | None:
    """What goes wrong when the space's groups are narrowed; None when the cut runs and keeps its output."""
    if not space.groups:
        return None
    rng = np.random.default_rng(0)
    state = supernet_state(probe, space)
    for widths in (space.smallest(), space.random(rng)):
        try:
            with torch.no_grad():
                output = cut(probe, space, widths, "right", state)(x)
        except Exception as cause:
            return f"narrowing it breaks the network: {one_line(cause)}"
        if not isinstance(output, Tensor) or output.shape != full:
            return "it is part of the network's output"
    return None
