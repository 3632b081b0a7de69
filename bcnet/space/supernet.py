"""A supernet: a network, its width space, and the tensors whose parts its subnets are.

In: subnets, inputs. Out: a subnet's outputs, its tensors with batch-norm statistics of their own, or an
ordinary network. A subnet that runs and the network that is extracted from it agree to the last bit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.space.channel_rules import Side
from bcnet.space.extract import run_with, tensors_of, with_state
from bcnet.space.free_channels import Assignments
from bcnet.space.recalibration import Batch, recalibrate, tracking_norms
from bcnet.space.subnet import Subnet, subnet_state
from bcnet.space.widen import supernet_state
from bcnet.space.width_space import Widths, WidthSpace


@dataclass(frozen=True, eq=False)
class NarrowNetwork:
    """A network's own forward with narrower tensors in place of its own: `state`, by name."""

    model: nn.Module
    space: WidthSpace
    state: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.state.values())).device

    def run(self, inputs: Any) -> Any:
        """The outputs for a batch (N, C, H, W), or for several inputs (see `space/inputs.py`)."""
        return run_with(self.model, self.space, self.state, inputs)

    def extract(self) -> nn.Module:
        """An ordinary network: a copy of the model with clones of these tensors."""
        return with_state(self.model, self.space, self.state)

    def recalibrated(self, batches: Iterable[Batch]) -> "NarrowNetwork":
        """With contiguous tensors, and the mean of the batches' statistics in batch norms.

        Batches are (inputs, targets). The model is left in eval mode. Raises ModelError where it fails.
        """
        state = {name: tensor.detach().contiguous() for name, tensor in self.state.items()}
        fresh, norms = replace(self, state=state), tracking_norms(self.model)
        for name in norms:
            state[f"{name}.running_mean"] = torch.zeros_like(state[f"{name}.running_mean"])
            state[f"{name}.running_var"] = torch.ones_like(state[f"{name}.running_var"])
            # On the CPU: a plain mean reads it in every forward pass, for which a GPU would be waited for.
            state[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
        if norms:
            self.model.eval()
            recalibrate(norms.values(), fresh.run, batches, self.device)
        return fresh


@dataclass(frozen=True, eq=False)
class Supernet:
    """A network and its width space, with the tensors that its subnets take parts of: `state`, by name.

    They are the supernet's, with extra channels (`with_extra`), or the network's own (`of`). With
    `assignments`, a width can take several sets of channels.
    """

    model: nn.Module
    space: WidthSpace
    state: Mapping[str, Tensor]
    assignments: Assignments | None = None

    @classmethod
    def of(cls, model: nn.Module, space: WidthSpace) -> "Supernet":
        """A network's own tensors, which have no extra channels."""
        return cls(model, space.without_extra(), tensors_of(model))

    @classmethod
    def with_extra(cls, model: nn.Module, space: WidthSpace, seed: int = 0) -> "Supernet":
        """Copies of a network's tensors, with the extra channels of the space: see `supernet_state`."""
        return cls(model, space, supernet_state(model, space, seed))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.state.values())).device

    def narrow(self, subnet: Subnet) -> NarrowNetwork:
        """The network of the subnet's part of every tensor: views, or copies where channels lie apart."""
        return NarrowNetwork(self.model, self.space, subnet_state(self.state, self.space, subnet))

    def run(self, subnet: Subnet, inputs: Any) -> Any:
        """A subnet's outputs for a batch (N, C, H, W), or for several inputs (see `space/inputs.py`)."""
        taken = subnet_state(self.state, self.space, subnet)
        # A strided slice sums in another order than the contiguous weight of the extracted network.
        contiguous = {name: tensor.contiguous() for name, tensor in taken.items()}
        return run_with(self.model, self.space, contiguous, inputs)

    def extract(self, subnet: Subnet) -> nn.Module:
        """A subnet as an ordinary network: a copy of the model with cloned tensors."""
        return self.narrow(subnet).extract()

    def recalibrate(self, subnet: Subnet, batches: Iterable[Batch]) -> NarrowNetwork:
        """A subnet with batch-norm statistics of its own: the mean over the batches, (inputs, targets)."""
        return self.narrow(subnet).recalibrated(batches)


def forward_path(
    model: nn.Module,
    space: WidthSpace,
    widths: Widths | Subnet,
    x: Any,
    side: Side = "left",
    state: Mapping[str, Tensor] | None = None,
) -> Any:
    """The output of a subnet for a batch `x` (N, C, H, W), or for several inputs (see `space/inputs.py`).

    The subnet is the path of these widths on that side, or is given itself. `state` is the supernet's (see
    `supernet_state`); without one the network's own tensors are used, which have no extra channels. Raises
    SpaceError for invalid widths.
    """
    supernet = _supernet(model, space, state)
    return supernet.run(_subnet(supernet, widths, side), x)


def cut(
    model: nn.Module,
    space: WidthSpace,
    widths: Widths | Subnet,
    side: Side = "left",
    state: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A subnet (see `forward_path`) as an ordinary network: a copy of the model with cloned tensors."""
    supernet = _supernet(model, space, state)
    return supernet.extract(_subnet(supernet, widths, side))


def _supernet(model: nn.Module, space: WidthSpace, state: Mapping[str, Tensor] | None) -> Supernet:
    return Supernet.of(model, space) if state is None else Supernet(model, space, state)


def _subnet(supernet: Supernet, widths: Widths | Subnet, side: Side) -> Subnet:
    return widths if isinstance(widths, Subnet) else Subnet.at(supernet.space, widths, side)
