"""Taylor and Fisher importance: how important channels are to the loss, by its gradients at gates on them.

A gate is a factor of one on a channel. In: a network, its space, training images. Out: importance by any
criteria, those of `importance.py` included; one pass over the images serves all of them.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.data.image_data import ImageData
from bcnet.errors import TrainingError
from bcnet.models.weights import listed
from bcnet.progress import progress_bar, say
from bcnet.space.extract import tensors_of
from bcnet.space.importance import (
    BY_WEIGHTS,
    Criterion,
    batch_norm_scales,
    importances,
    made_along,
    rows_of,
    stretches,
    without_batch_norm,
)
from bcnet.space.inputs import entries
from bcnet.space.width_space import Dimension, WidthGroup, WidthSpace
from bcnet.training.loop import training_batches
from bcnet.training.recipe import Recipe
from bcnet.training.step_errors import explained

BATCHES = 24


def measured_importances(
    model: nn.Module,
    space: WidthSpace,
    data: ImageData,
    recipe: Recipe,
    by: Collection[Criterion],
    batches: int = BATCHES,
) -> dict[Criterion, tuple[Tensor, ...]]:
    """By each criterion, for each group the importance of the network's channels (channels,).

    `taylor` and `fisher` take so many augmented `batches` and the recipe's training loss, on its device, in
    float32. What a group lacks for a criterion is replaced, in one line to the person who waits: without
    batch norm `bn-scale` is `l1` and `taylor` has its gates at the layers; where no layer that reads the
    group can be observed `fisher` is `taylor`. Raises TrainingError where gradients are not finite.
    """
    space = space.without_extra()
    tensors = tensors_of(model)
    found = {own: importances(model, space, tensors, own) for own in by if own in BY_WEIGHTS}
    bare = without_batch_norm(model, space)
    if bare and {"bn-scale", "taylor"} & set(by):
        where = "the network" if len(bare) == len(space.groups) else listed(bare)
        say(f"without batch norm in {where}, l1 replaces bn-scale, and taylor has its gates at the layers")
    if {"taylor", "fisher"} & set(by):
        gates = gate_importances(model, space, data, recipe, batches)
        if gates.unseen and "fisher" in by:
            unseen = listed(gates.unseen)
            say(f"no layer that reads {unseen} can be observed: taylor replaces fisher there")
        found |= {"taylor": gates.taylor, "fisher": gates.fisher}
    return {own: found[own] for own in by}


@dataclass(frozen=True)
class GateImportances:
    """For each group (channels,) the importance by each criterion; the groups of which Fisher is not seen."""

    taylor: tuple[Tensor, ...]
    fisher: tuple[Tensor, ...]
    unseen: list[str]


def gate_importances(
    model: nn.Module, space: WidthSpace, data: ImageData, recipe: Recipe, count_: int
) -> GateImportances:
    """Importance by Taylor and by Fisher from so many batches; see `measured_importances`."""
    recipe = replace(recipe, amp=False)  # products of small gradients, squared
    probe = copy.deepcopy(model).to(recipe.device)
    for parameter in probe.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    # As in training, where some networks give other outputs; but with the statistics of a finished network,
    # so that an image's gradient is its own, and without dropout or stochastic depth: leaves with no tensors.
    probe.train()
    for module in probe.modules():
        leaf = not [*module.children(), *module.parameters()]
        if leaf or isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    taylor, fisher = Taylor(probe, space), Fisher(probe, space)

    def step(inputs: Any, targets: Any, _: int) -> Tensor:
        probe.zero_grad()
        with fisher.watching(probe, entries(inputs)):
            loss, _outputs = recipe.training_loss(probe, inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    with (
        training_batches(data, recipe) as source,
        torch.random.fork_rng(devices=[]),
        progress_bar("measuring importance", count_) as advance,
    ):
        torch.manual_seed(recipe.seed)
        epochs = chain.from_iterable(source.epoch(epoch) for epoch in count())
        for number, (inputs, targets) in enumerate(islice(epochs, count_)):
            explained(step, inputs, targets, number)
            taylor.add(dict(probe.named_parameters()))
            advance("")
    unseen = [group.name for group in fisher.unseen]
    return GateImportances(taylor.importance(), coupled_importance(fisher, taylor), unseen)


def coupled_importance(fisher: "Fisher", taylor: "Taylor") -> tuple[Tensor, ...]:
    """For each group (channels,) Fisher's importance, or Taylor's, in its size, where no reader was seen."""
    own, instead = fisher.importance(), taylor.importance()
    # Of another size: a batch's mean hides much of what its images say.
    sizes = [(own[n].sum(), instead[n].sum()) for n in fisher.seen]
    factor = float(sum(a for a, _ in sizes) / max(sum(b for _, b in sizes), 1e-30)) if sizes else 1.0
    return tuple(own[n] if n in fisher.seen else instead[n] * factor for n in range(len(own)))


class GateSums:
    """For each group the sum of squares of a unit's gradients: of all its channels together (`squared`)."""

    def __init__(self, space: WidthSpace) -> None:
        self.space = space
        self.clear()

    def clear(self) -> None:
        """Forget what was added."""
        groups = self.space.groups
        self.sums = [torch.zeros(group.channels // group.unit, dtype=torch.float64) for group in groups]

    def square(self, group: int, gates: Tensor) -> None:
        """Add gradients by channels' gates (..., channels): those of a unit are one gate."""
        units = gates.reshape(-1, len(self.sums[group]), self.space.groups[group].unit).sum(2)
        self.sums[group] += units.square().sum(0).cpu()

    def importance(self) -> tuple[Tensor, ...]:
        """For each group (channels,): a unit's channels share its importance evenly."""
        found = []
        for group, sums in zip(self.space.groups, self.sums, strict=True):
            if not bool(sums.isfinite().all()):
                raise TrainingError(
                    f"gradients in group '{group.name}' are not finite, so its channels have no importance; "
                    "train the network first, or use a criterion of its weights, such as l1"
                )
            found.append((sums / group.unit).repeat_interleave(group.unit).float())
        return tuple(found)


class Taylor(GateSums):
    """First-order Taylor importance (Molchanov et al., CVPR 2019, section 3; HALP, NeurIPS 2022, section 3).

    A gate lies behind each batch norm of a group: a scale times its gradient plus an offset times its own,
    summed over the group's batch norms. Where a group has none, it lies behind the layers that make it:
    weights and biases times their gradients. The sum of a batch is squared, and the squares are added: over
    the batches the signs would cancel, the more the better a network is trained.
    """

    def __init__(self, model: nn.Module, space: WidthSpace) -> None:
        super().__init__(space)
        bare = set(without_batch_norm(model, space))
        self._bare = [group.name in bare for group in space.groups]
        self._norms = _with_biases(dict.fromkeys(batch_norm_scales(model), 0))
        self._made = _with_biases(made_along(model, space))

    def add(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add one batch, whose gradients the parameters have."""
        products = {name: p.detach() * p.grad for name, p in parameters.items() if p.grad is not None}
        norms, made = (rows_of(self.space, products, axes) for axes in (self._norms, self._made))
        for number, bare in enumerate(self._bare):
            rows = (made if bare else norms)[number]
            if rows:
                self.square(number, torch.stack([own.double().sum(1) for own in rows]).sum(0))


def _with_biases(axes: Mapping[str, int]) -> dict[str, int]:
    return {**axes, **{f"{name.removesuffix('.weight')}.bias": 0 for name in axes}}


class Fisher(GateSums):
    """Coupled Fisher information (group Fisher: Liu et al., ICML 2021, sections 3.1 and 3.2).

    A gate lies on a group's channels at the input of every layer that reads them, depthwise and grouped
    convolutions included; all are one. For each image the gradients, inputs times the loss's gradients by
    them, are summed over positions and over all these layers, then squared; squares are added over images.
    """

    def __init__(self, model: nn.Module, space: WidthSpace) -> None:
        super().__init__(space)
        self.seen: set[int] = set()
        self._gates: dict[int, Tensor] = {}  # of this batch, (images, channels)
        self._reads = readers(model, space)

    @property
    def unseen(self) -> list[WidthGroup]:
        """The groups that no watched layer has read so far."""
        return [group for number, group in enumerate(self.space.groups) if number not in self.seen]

    @contextmanager
    def watching(self, model: nn.Module, images: int) -> Iterator[None]:
        """Add what a forward and a backward pass of a batch inside the block, of so many images, show."""
        self._gates = {}
        hooks = [
            module.register_forward_pre_hook(partial(self._enter, name, images))
            for name, module in _layers(model)
            if name in self._reads
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for group, gates in self._gates.items():
            self.seen.add(group)
            self.square(group, gates * images)  # of an image's own loss, not of the batch's mean

    def _enter(self, name: str, images: int, module: nn.Module, args: tuple[Any, ...]) -> Any:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not (x.requires_grad and torch.is_grad_enabled()):
            return None
        own = x.view_as(x)  # other layers may read x: theirs are other gradients
        values, at_end = x.detach(), isinstance(module, nn.Linear)

        def gradient(by_input: Tensor) -> None:
            products = values * by_input
            if not at_end:
                products = products.flatten(2).sum(2) if products.ndim > 2 else products
            rows = products.reshape(-1, products.shape[-1])
            if len(rows) % images == 0:  # else they are not those of images
                self._add(name, rows.reshape(images, -1, rows.shape[1]).sum(1).double())

        own.register_hook(gradient)  # type: ignore[no-untyped-call]
        return (own, *args[1:])

    def _add(self, name: str, rows: Tensor) -> None:
        groups, channels = (index.to(rows.device) for index in self._reads[name])
        for group in sorted(set(groups.tolist()) - {-1}):
            inside = groups == group
            if group not in self._gates:
                count = self.space.groups[group].channels
                self._gates[group] = rows.new_zeros(len(rows), count)
            self._gates[group].index_add_(1, channels[inside], rows[:, inside])


Read = tuple[Tensor, Tensor]  # of each of a layer's input channels the group (-1: none) and the channel


def readers(model: nn.Module, space: WidthSpace) -> dict[str, Read]:
    """What the convolutions and linear layers that read channels of groups read, by the layers' names."""
    return {name: read for name, module in _layers(model) if (read := _read(space, name, module))}


def _layers(model: nn.Module) -> list[tuple[str, nn.modules.conv._ConvNd | nn.Linear]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    ]


def _read(space: WidthSpace, name: str, module: nn.modules.conv._ConvNd | nn.Linear) -> Read | None:
    """What the layer reads; None where that is no channel of a group."""
    axes = space.dimensions.get(f"{name}.weight", {})
    count = 1 if isinstance(module, nn.Linear) else module.groups
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    inputs = axes.get(0 if transposed else 1)
    if inputs is not None and (count == 1 or not transposed):
        groups, channels = _entries(space, inputs)
        return groups.repeat(count), channels.repeat(count)  # narrowed inside each of the layer's groups
    if count == 1 or 0 not in axes:
        return None
    # Narrowed by whole groups of the layer: a group's inputs go with its first filter's channel.
    each = module.weight.shape[0] // count if transposed else module.weight.shape[1]
    groups, channels = (own.reshape(count, -1)[:, 0] for own in _entries(space, axes[0]))
    return groups.repeat_interleave(each), channels.repeat_interleave(each)


def _entries(space: WidthSpace, dimension: Dimension) -> Read:
    """Of each entry of a dimension the group (-1: none) and the channel."""
    groups, channels = [], []
    for group, start, stop in stretches(space, dimension):
        count = 1 if group is None else space.groups[group].channels
        groups.append(torch.full((stop - start,), -1 if group is None else group))
        channels.append(torch.arange(count).repeat_interleave((stop - start) // count))
    return torch.cat(groups), torch.cat(channels)
