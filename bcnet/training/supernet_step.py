"""One training step of a supernet: its subnets, one after the other or all at once, and what they learn from.

In: the supernet's parameters, drawn widths, a batch. Out: losses; gradients added to the parameters.
`step_plan.py` says which paths a step has.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bcnet.space.channel_rules import Side, WidthSampler
from bcnet.space.subnet import State, Subnet, ranges, subnet_state
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.recipe import Objective, Recipe
from bcnet.training.step_plan import STEPS, StepPlan
from bcnet.training.task import bound_to, logits_of

# (drawn widths, inputs, targets, number of the step) -> a subnet of each of these widths
Assign = Callable[[Sequence[Widths], Any, Any, int], Sequence[Subnet]]


class Paths(Protocol):
    """Something that trains single paths of a supernet's `space`: see `SlicedPaths`."""

    space: WidthSpace

    def __call__(
        self, path: Subnet, inputs: Any, targets: Any, count: int = 1, teacher: Tensor | None = None
    ) -> tuple[Tensor, Any]: ...


class Parts(Protocol):
    """Something that trains several subnets of a supernet's `space`, each on its part of a batch."""

    space: WidthSpace

    def __call__(self, subnets: Sequence[Subnet], inputs: Any, targets: Any) -> list[Tensor]: ...


class SlicedPaths:
    """Trains a path on its slices of a supernet's tensors: as much work as the narrow network's.

    A path's slices are the leaves: the gradient of a narrow slice costs what the slice costs, not what the
    supernet costs.
    """

    def __init__(self, supernet: Supernet, recipe: Recipe, objective: Objective | None = None) -> None:
        """The supernet's nn.Parameters are trained (see `trainable`).

        With an `objective` all paths learn by that, and give no outputs for others to learn from.
        """
        self.supernet, self.recipe, self.objective = supernet, recipe, objective
        self.scaler = recipe.scaler()
        self.model, self.space = supernet.model, supernet.space
        tensors = supernet.state.items()
        self.parameters = {name: own for name, own in tensors if isinstance(own, nn.Parameter)}
        self.buffers = {name: own for name, own in tensors if name not in self.parameters}

    def __call__(
        self, path: Subnet, inputs: Any, targets: Any, count: int = 1, teacher: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Add the gradients of one path of `count` to the parameters', by the `scaler`; its loss and outputs.

        With a `teacher`'s logits the path learns from those in place of the targets.
        """
        space, parameters = self.space, self.parameters
        # All slices are local to this call: they are freed before the next path takes its own.
        with torch.no_grad():
            taken = subnet_state(parameters, space, path)
        leaves = {name: tensor.detach().contiguous().requires_grad_() for name, tensor in taken.items()}
        del taken  # what `contiguous` copied is not held twice
        for name, leaf in leaves.items():
            # Adding each gradient as soon as it is there frees it before the next one is made.
            leaf.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda leaf, name=name: _add(parameters[name], space, name, path, leaf)
            )
        state = {**leaves, **subnet_state(self.buffers, space, path)}
        loss, outputs = self._run(state, inputs, targets, teacher)
        self.scaler.scale(loss / count).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), outputs

    @torch.no_grad()
    def loss(self, path: Subnet, inputs: Any, targets: Any) -> Tensor:
        """The training loss of a path on a batch. Neither weights nor statistics change."""
        buffers = subnet_state(self.buffers, self.space, path)
        parameters = subnet_state(self.parameters, self.space, path)
        state = {name: tensor.contiguous() for name, tensor in parameters.items()}
        state |= {name: tensor.clone() for name, tensor in buffers.items()}
        return self._run(state, inputs, targets)[0]

    def _run(
        self, state: State, inputs: Any, targets: Any, teacher: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        called = bound_to(self.model.forward, NarrowNetwork(self.model, self.space, state).run)
        if self.objective is not None:
            return self.objective.loss(called, inputs, targets, self.recipe), None
        return self.recipe.training_loss(called, inputs, targets, teacher)


@dataclass(frozen=True)
class DrawnSteps:
    """The steps of a supernet's training: each draws its widths, and trains their paths as the plan says.

    If widths can take several sets of channels, `assign` chooses one. The paths of a `parallel` plan are
    trained by `parts`.
    """

    paths: Paths
    plan: StepPlan
    sampler: WidthSampler
    assign: Assign | None = None
    parts: Parts | None = None

    @classmethod
    def of(
        cls,
        paths: Paths,
        plan: StepPlan,
        seed: int,
        assign: Assign | None = None,
        parts: Parts | None = None,
    ) -> "DrawnSteps":
        """Those of this seed, in which every group goes through all its choices."""
        choices = tuple(group.choices for group in paths.space.groups)
        sampler = WidthSampler(paths.space.rule, choices, seed, plan.complementary)
        return cls(paths, plan, sampler, assign, parts)

    def __call__(self, inputs: Any, targets: Any, number: int) -> tuple[list[Widths], Tensor]:
        """The widths that step `number` draws, and the loss of each, (draws,); adds gradients.

        A step that draws none, as it trains the widest path alone, gives that path's loss, (1,).
        """
        plan, space = self.plan, self.paths.space
        own = plan.drawing(number)
        if own is None:
            sides = space.rule.sides
            whole = Subnet.at(space, space.largest(), sides[number // plan.cycle % len(sides)])
            return [], self.paths(whole, inputs, targets)[0].double().reshape(1)
        drawn = [Widths(self.sampler.at(own * plan.draws + place)) for place in range(plan.draws)]
        taken = drawn if self.assign is None else self.assign(drawn, inputs, targets, number)
        if self.parts is not None:
            losses = parallel_step(self.parts, taken, inputs, targets, plan=plan, number=own)
        else:
            losses = supernet_step(self.paths, taken, inputs, targets, plan=plan, number=own)
        return drawn, torch.stack(losses)


def trainable(supernet: Supernet, device: str) -> Supernet:
    """The supernet with tensors on the training device, those that are trained as nn.Parameters."""
    trained = {name for name, parameter in supernet.model.named_parameters() if parameter.requires_grad}
    placed = {name: tensor.to(device) for name, tensor in supernet.state.items()}
    state = {name: nn.Parameter(own) if name in trained else own for name, own in placed.items()}
    return replace(supernet, state=state)


@dataclass(frozen=True)
class _StepSubnets:
    """The subnets of a step: the widest, those of `sides` sides of each drawn width, the narrowest."""

    first: list[Subnet]
    drawn: list[Subnet]
    last: list[Subnet]
    sides: int

    @classmethod
    def of(
        cls, space: WidthSpace, drawn: Sequence[Widths | Subnet], plan: StepPlan, number: int
    ) -> "_StepSubnets":
        turn = space.rule.sides[number % len(space.rule.sides)]
        sides = (turn,) if plan.alternating else space.rule.sides

        def subnet(drawn: Widths | Subnet, side: Side) -> Subnet:
            return drawn if isinstance(drawn, Subnet) else Subnet.at(space, drawn, side)

        first = [subnet(space.largest(), turn)] if plan.widest else []
        last = [subnet(space.smallest(), turn)] if plan.narrowest else []
        return cls(first, [subnet(own, side) for own in drawn for side in sides], last, len(sides))

    @property
    def all(self) -> list[Subnet]:
        return [*self.first, *self.drawn, *self.last]

    def means(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """The mean loss over the sides of each drawn width, from the losses of all subnets."""
        own = losses[len(self.first) : len(self.first) + len(self.drawn)]
        each = [own[place : place + self.sides] for place in range(0, len(own), self.sides)]
        return [torch.stack(list(sides)).double().mean() for sides in each]


def supernet_step(
    paths: Paths,
    drawn: Sequence[Widths | Subnet],
    inputs: Any,
    targets: Any,
    *,
    plan: StepPlan = STEPS["plain"],
    number: int = 0,
) -> list[Tensor]:
    """Run every path of the step on the batch and add its gradients, at equal weight.

    `drawn` are widths, or the channels that they take, which are then the same on all sides. Returns the mean
    loss of the sides of each of the `drawn` widths, scalars that a GPU may have yet to compute. Paths run one
    after the other, so only one path's activations are held (BCNetV2). The plan's own paths change sides with
    the step's `number`.
    """
    subnets = _StepSubnets.of(paths.space, drawn, plan, number)
    losses, teacher = [], None
    for subnet in subnets.all:
        loss, outputs = paths(subnet, inputs, targets, len(subnets.all), teacher)
        if plan.distilled and teacher is None:  # the widest comes first
            teacher = logits_of(outputs).detach()
        losses.append(loss)
    return subnets.means(losses)


def parallel_step(
    parts: Parts,
    drawn: Sequence[Widths | Subnet],
    inputs: Any,
    targets: Any,
    *,
    plan: StepPlan,
    number: int = 0,
) -> list[Tensor]:
    """The same for a `parallel` plan: each path has its own part of the batch."""
    subnets = _StepSubnets.of(parts.space, drawn, plan, number)
    return subnets.means(parts(subnets.all, inputs, targets))


def _add(parameter: nn.Parameter, space: WidthSpace, name: str, path: Subnet, leaf: Tensor) -> None:
    """Add a slice's gradient into the gradient of the supernet's tensor, and free it."""
    assert leaf.grad is not None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    for part, gradient in _stretches(parameter.grad, leaf.grad, space, name, path):
        part.add_(gradient)
    leaf.grad = None


def _stretches(
    full: Tensor, part: Tensor, space: WidthSpace, name: str, path: Subnet
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of a supernet tensor and of its path's slice that correspond, one pair a stretch of channels."""
    pairs = [(full, part)]
    for axis, dimension in space.dimensions.get(name, {}).items():
        split = []
        for large, small in pairs:
            start = 0
            for low, high in ranges(space, dimension, path):
                split.append((large.narrow(axis, low, high - low), small.narrow(axis, start, high - low)))
                start += high - low
        pairs = split
    yield from pairs
