"""Group the channels of a traced network into chains, which are narrowed together.

In: a network and an example of its inputs. Out: `Seen`, which derives chains from the trace of operators
(`trace.py`): channels that are adjacent, in the same order, in every tensor; and channels that cannot be
narrowed, with the reason.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bcnet.errors import FOREIGN, SpaceError, one_line
from bcnet.space.extract import tensors_of
from bcnet.space.inputs import arguments
from bcnet.space.module_sizes import Kept
from bcnet.space.neighbours import only_neighbours
from bcnet.space.trace import LayerUse, Trace, Tracer
from bcnet.space.trace_rules import RANDOM
from bcnet.space.width_space import Dimension, Frozen, Layer, Segment, Sized, length, witnesses

# Attributes that the forward of PyTorch's layers reads, in addition to those found by the trace.
_READ: tuple[tuple[type[nn.Module], str, int], ...] = (
    (nn.modules.instancenorm._InstanceNorm, "num_features", 0),
    (nn.RMSNorm, "normalized_shape", 0),
)
# Attributes that a subclass with its own forward may read, too.
_READ_BY_SUBCLASSES: tuple[tuple[type[nn.Module], str, int], ...] = (
    (nn.Conv2d, "out_channels", 0),
    (nn.Conv2d, "in_channels", 1),
    (nn.Linear, "out_features", 0),
    (nn.Linear, "in_features", 1),
    (nn.BatchNorm2d, "num_features", 0),
)


@dataclass(frozen=True)
class Chain:
    """Adjacent channels: the classes of their atoms, in order. `unit` and `repeat`: see WidthGroup."""

    name: str
    classes: tuple[int, ...]
    unit: int
    repeat: int
    layers: tuple[str, ...]
    mixed: bool
    ordered: bool

    @property
    def channels(self) -> int:
        return len(self.classes) * self.unit


@dataclass
class Seen:
    """A traced network: the trace, the equivalence classes of atoms, and axes as runs of equal classes."""

    probe: nn.Module
    inputs: Any
    full: list[torch.Size]
    random: bool  # whether eval mode draws random numbers
    trains: str | None  # why it could not be run in training mode; None if it could
    only_training: set[str]  # weights of layers that run only in training mode
    trace: Trace
    classes: np.ndarray
    pinned: dict[int, str]

    @classmethod
    def of(cls, probe: nn.Module, inputs: Any) -> "Seen":
        """Trace the network in eval mode and, if these inputs suffice, in training mode."""
        args, kwargs = arguments(inputs)
        # Creates tensors that only the first forward creates, e.g. anchor boxes and tables of positions.
        with suppress(Exception), torch.no_grad():  # the traced run reports errors
            probe(*args, **kwargs)
        trace = Trace(tensors_of(probe))
        output = _run(probe, trace, inputs)
        if not tree_leaves(output) or not all(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            raise SpaceError(
                f"{type(probe).__name__} returns {type(output).__name__}; its forward must return a tensor, "
                "or tuples, lists and dicts of tensors"
            )
        if trace.reads_values is not None and not trace.dynamic:
            _check_branches(probe, trace, inputs)
        layers, trains = list(trace.layers), None
        random = not RANDOM.isdisjoint(trace.operators)
        buffers = {name: buffer.clone() for name, buffer in probe.named_buffers()}
        try:
            probe.train()
            _run(probe, trace, twice(inputs))
        except SpaceError as cause:
            trains = str(cause)
        finally:
            probe.eval()
            with torch.no_grad():
                for name, buffer in probe.named_buffers():
                    buffer.copy_(buffers[name])
        only_training = {use.weight for use in trace.layers} - {use.weight for use in layers}
        trace.layers[:] = layers  # without those of the training mode
        classes = trace.classes()
        full = [] if trace.dynamic else [leaf.shape for leaf in tree_leaves(output)]
        return cls(probe, inputs, full, random, trains, only_training, trace, classes, trace.pinned(classes))

    def tie(self, pairs: list[tuple[Chain, Chain]]) -> None:
        """Merge the chains of each pair."""
        for first, second in pairs:
            atoms = [
                np.array([int(np.argmax(self.classes == number)) for number in chain.classes])
                for chain in (first, second)
            ]
            self.trace.pairs.append(np.stack(atoms))
        self.classes = self.trace.classes()
        self.pinned = self.trace.pinned(self.classes)

    def uses(self) -> Iterator[LayerUse]:
        """All executed layers, each once, in order of execution."""
        first: dict[str, LayerUse] = {}
        for use in self.trace.layers:
            first.setdefault(use.weight, use)
        yield from first.values()

    def producers(self) -> Iterator[tuple[str, str, int]]:
        """(module, weight, axis) of all layers that produce several channels, in order of execution."""
        made: dict[str, LayerUse] = {}
        for use in self.trace.layers:
            if use.makes_channels and use.out_axis in self.trace.axes[use.weight]:
                made.setdefault(use.weight, use)
        for weight, use in made.items():
            yield _module_of(weight), weight, use.out_axis

    def stretches(self, name: str, axis: int, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An axis as (classes, run lengths); classes that cannot be narrowed are -1."""
        start, size = self.trace.axes[name][axis]
        return self._runs(np.arange(start, start + size), free)

    def _runs(self, atoms: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes = np.where(atoms >= 0, self.classes[atoms], -1)
        row = np.where((classes >= 0) & free[classes], classes, -1)
        heads = np.flatnonzero(np.diff(row, prepend=-2))
        return row[heads], np.diff(heads, append=len(row))

    def free(self) -> np.ndarray:
        """Whether each class may be narrowed: a layer produces it, and nothing pins it."""
        free = np.zeros(int(self.classes.max(initial=-1)) + 1, dtype=bool)
        for _, weight, axis in self.producers():
            start, size = self.trace.axes[weight][axis]
            free[self.classes[start : start + size]] = True
        free[list(self.pinned)] = False
        return free

    def chains(self) -> list[Chain]:
        """Maximal sequences of classes that are adjacent, with equal run lengths, wherever they occur."""
        free = self.free()
        count = len(free)
        rows = [
            (*self.stretches(name, axis, free), name)
            for name, axes in self.trace.axes.items()
            for axis in axes
        ]
        weights = {use.weight for use in self.trace.layers}
        after, before = only_neighbours(rows, count)
        units = np.zeros(count, dtype=np.int64)
        for row, runs, _ in rows:
            np.gcd.at(units, row[row >= 0], runs[row >= 0])
        repeats = np.full(count, np.iinfo(np.int64).max)
        for row, _, name in rows:
            if name in weights:
                numbers, times = np.unique(row[row >= 0], return_counts=True)
                np.minimum.at(repeats, numbers, times)
        mixed, ordered = np.zeros((2, count), dtype=bool)
        for found, marked in ((mixed, self.trace.across), (ordered, self.trace.ordered)):
            for atoms in marked:
                found[self.classes[atoms]] = True
        chains: list[Chain] = []
        taken: set[int] = set()
        for module, weight, axis in self.producers():
            row, _ = self.stretches(weight, axis, free)
            for head in dict.fromkeys(row[row >= 0].tolist()):
                if head in taken:
                    continue
                first = head
                while before[first] >= 0 and after[before[first]] == first and before[first] not in taken:
                    first = int(before[first])
                    if first == head:
                        break  # a cycle
                members = [first]
                while True:
                    following = int(after[members[-1]])
                    if following < 0 or before[following] != members[-1] or following == first:
                        break
                    members.append(following)
                taken.update(members)
                if len(members) == 1:
                    continue
                same = sum(chain.name.partition("#")[0] == module for chain in chains)
                name = f"{module}#{same + 1}" if same else module
                unit = int(np.gcd.reduce(units[members]))
                marks = bool(mixed[members].any()), bool(ordered[members].any())
                chains.append(Chain(name, tuple(members), unit, int(repeats[first]), (), *marks))
        owner = {number: i for i, chain in enumerate(chains) for number in chain.classes}
        layers: list[dict[str, None]] = [{} for _ in chains]
        for module, weight, axis in self.producers():
            for number in self.stretches(weight, axis, free)[0].tolist():
                if number in owner:
                    layers[owner[number]][module] = None
        return [replace(chain, layers=tuple(found)) for chain, found in zip(chains, layers, strict=True)]

    def dimensions(self, chains: list[Chain]) -> dict[str, dict[int, Dimension]]:
        """Each tensor's searchable axes as segments of these chains and of fixed entries."""
        count = int(self.classes.max(initial=-1)) + 1
        owner = np.full(count, -1)
        heads = {chain.classes[0]: group for group, chain in enumerate(chains)}
        for group, chain in enumerate(chains):
            owner[list(chain.classes)] = group
        dimensions: dict[str, dict[int, Dimension]] = {}
        for name, axes in self.trace.axes.items():
            for axis in axes:
                row, runs = self.stretches(name, axis, owner >= 0)
                if (row < 0).all():
                    continue
                dimensions.setdefault(name, {})[axis] = _segments(row, runs, heads, chains)
        return dimensions

    def layers(self, chains: list[Chain]) -> tuple[Layer, ...]:
        """Convolutions and linear layers with their numbers of output positions, in order of execution."""
        owned, heads = self._owned(chains)
        positions: dict[tuple[str, Dimension], int] = {}
        for use in self.trace.layers:
            count = use.positions
            each: Dimension = ()
            if use.each:
                row, runs = self._runs(np.array(use.each), owned)
                if (row >= 0).any():
                    each = _segments(row, runs, heads, chains)
                else:
                    count *= len(use.each)
            positions[use.weight, each] = positions.get((use.weight, each), 0) + count
        return tuple(Layer(name, count, each) for (name, each), count in positions.items())

    def sized(
        self, dimensions: dict[str, dict[int, Dimension]], chains: list[Chain], kept: Kept
    ) -> tuple[Sized, ...]:
        """Modules with an attribute, read by their forward, that holds a size of a searched tensor.

        `kept`: attributes for which a trial has shown that they count these channels.
        """
        found = [
            Sized(module, attribute, tensor, 0, each)
            for (module, attribute), (tensor, each) in self.trace.sized.items()
            if 0 in dimensions.get(tensor, {})
            and not (attribute == "groups" and 1 in dimensions.get(tensor, {}))
        ]
        for name, module in self.probe.named_modules():
            own = type(module).__module__.startswith("torch.nn.")
            for kind, attribute, axis in _READ if own else (*_READ, *_READ_BY_SUBCLASSES):
                if isinstance(module, kind) and axis in dimensions.get(f"{name}.weight", {}):
                    each = 0 if attribute == "normalized_shape" else 1
                    found.append(Sized(name, attribute, f"{name}.weight", axis, each))
        known = {(sized.module, sized.attribute) for sized in found}
        if kept:
            owned, heads = self._owned(chains)
            known_by_shape = {group for group, _, _ in witnesses(dimensions)}
            for (module, attribute, item), vector in kept.items():
                row, runs = self._runs(vector, owned)
                present = {heads[number] for number in row.tolist() if number in heads}
                each = math.lcm(*(chains[group].unit for group in present))
                follows = tuple(
                    Segment(None, run * each)
                    if number < 0
                    else Segment(heads[number], run * each // chains[heads[number]].unit)
                    for number, run in zip(row.tolist(), runs.tolist(), strict=True)
                    if number < 0 or number in heads
                )
                if not present <= known_by_shape:
                    continue
                full = [chain.channels for chain in chains]
                if (
                    present
                    and length(follows, full) == each * len(vector)
                    and (module, attribute) not in known
                ):
                    found.append(Sized(module, attribute, "", 0, each, follows, item))
        return tuple(found)

    def _owned(self, chains: list[Chain]) -> tuple[np.ndarray, dict[int, int]]:
        """Whether each class is in a chain, and {first class of a chain: chain}."""
        owned = np.zeros(int(self.classes.max(initial=-1)) + 1, dtype=bool)
        for chain in chains:
            owned[list(chain.classes)] = True
        return owned, {chain.classes[0]: group for group, chain in enumerate(chains)}

    def frozen(self, kept: list[Chain], chains: list[Chain], reasons: dict[str, str]) -> tuple[Frozen, ...]:
        """All channels of layers that are in no kept chain, with the reason."""
        kept_classes = {number for chain in kept for number in chain.classes}
        chain_of = {number: chain for chain in chains for number in chain.classes}
        apart = self._apart(set(chain_of))
        found: list[Frozen] = []
        for use in self.uses():
            weight, axis, module = use.weight, use.out_axis, _module_of(use.weight)
            if axis not in self.trace.axes[weight]:
                if use.makes_channels:
                    found.append(Frozen(module, 1, "it has only one channel"))
                continue
            start, size = self.trace.axes[weight][axis]
            row = self.classes[start : start + size].tolist()
            interleaved = next((apart[number] for number in row if number in apart), None)
            stays: dict[str, int] = {}
            for number in row:
                if number in kept_classes:
                    continue
                reason = self.pinned.get(number)
                if reason is None and number in chain_of:
                    reason = reasons[chain_of[number].name]
                elif reason is None and interleaved is not None:
                    reason = f"its channels are interleaved with others: '{interleaved}' has another order"
                reason = reason or "its channels can only be kept or removed all at once"
                stays[reason] = stays.get(reason, 0) + 1
            found += [Frozen(module, count, reason) for reason, count in stays.items()]
        ran = {use.weight for use in self.trace.layers}
        for name, module in self.probe.named_modules():
            weight_name = f"{name}.weight"
            if (
                isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
                and weight_name in self.trace.tensors
                and weight_name not in ran
            ):
                reason = "it runs only in training mode, so its width does not affect the latency"
                if weight_name not in self.only_training:
                    reason = "it does not run"
                    if self.trains is not None:
                        reason += f" in eval mode, and in training mode: {self.trains}"
                found.append(Frozen(name, module.weight.shape[0], reason))
        return tuple(found)

    def _apart(self, chained: set[int]) -> dict[int, str]:
        """For classes in no chain, a layer in which their neighbours differ from where they are produced."""
        free = self.free()
        followers: dict[int, int] = {}
        found: dict[int, str] = {}
        for use in self.trace.layers:
            for axis in self.trace.axes[use.weight]:
                row, _ = self.stretches(use.weight, axis, free)
                for number, following in zip(row.tolist(), [*row[1:].tolist(), -1], strict=True):
                    if number < 0 or number in chained:
                        continue
                    if followers.setdefault(number, following) != following:
                        found.setdefault(number, _module_of(use.weight))
        return found

    def because(self, chain: Chain, trouble: str) -> str:
        """Why a chain is frozen: preferably a tensor that the forward creates with a fixed size."""
        if not trouble.startswith("narrowing it breaks"):
            return trouble
        doubtful = self.trace.doubtful(self.classes)
        return next((doubtful[number] for number in chain.classes if number in doubtful), trouble)


def _run(probe: nn.Module, trace: Trace, inputs: Any) -> Any:
    """Trace one forward. Raises SpaceError if the network does not run."""
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    tracer = Tracer(trace, probe, _images(inputs))
    args, kwargs = arguments(inputs)
    try:
        with tracer.watching():
            output = probe(*args, **kwargs)
            tracer.finish(output)
    except FOREIGN as cause:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise SpaceError(
            f"{type(probe).__name__} does not run on an input of shape {shapes}: {one_line(cause)}"
        ) from cause
    return output


def _images(inputs: Any) -> int:
    """The batch size of inputs, which may be a list of images (for detectors)."""
    args, kwargs = arguments(inputs)
    first = next(iter((*args, *kwargs.values())), None)
    if isinstance(first, list):
        return max(1, len(first))
    return int(first.shape[0]) if isinstance(first, Tensor) and first.ndim else 1


def twice(inputs: Any) -> Any:
    """The inputs with every image twice, because batch statistics need two."""
    images = _images(inputs)

    def doubled(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == images:
            return torch.cat([leaf, leaf])
        return leaf

    args, kwargs = arguments(inputs)
    if any(isinstance(value, list) for value in (*args, *kwargs.values())):
        return inputs
    return tree_map(doubled, inputs)


def _check_branches(probe: nn.Module, trace: Trace, inputs: Any) -> None:
    """Check that a forward that reads values executes the same operators for others. Raises SpaceError."""
    generator = torch.Generator().manual_seed(0)

    def between(low: float, high: float) -> Any:
        def drawn(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                return torch.rand(leaf.shape, generator=generator) * (high - low) + low
            return leaf

        return drawn

    for change in (between(0, 1), between(-1, 0), between(-1, 1), between(-3, 3)):
        again = Trace(trace.tensors)
        _run(probe, again, tree_map(change, inputs))
        if again.operators != trace.operators:
            raise SpaceError(
                f"the forward of {type(probe).__name__} branches on the values of its inputs (in "
                f"{trace.reads_values}): the other branch is not traced, and missing in the export; use "
                "torch.where, or make the branch depend on shapes"
            )


def _segments(
    row: np.ndarray, runs: np.ndarray, heads: dict[int, int], chains: list[Chain]
) -> tuple[Segment, ...]:
    """Runs of classes as segments: a chain is one segment, at the position of its first class."""
    segments: list[Segment] = []
    for number, run in zip(row.tolist(), runs.tolist(), strict=True):
        if number < 0:
            segments.append(Segment(None, run))
        elif number in heads:
            segments.append(Segment(heads[number], run // chains[heads[number]].unit))
    return tuple(segments)


def _module_of(weight: str) -> str:
    """The module of a weight, also if the weight is parametrised."""
    return weight.partition(".parametrizations.")[0].removesuffix(".weight")
