"""Run a network with random tensors, such that every operation affects the outputs.

In: a network. Out: its tensors with random parameters (`drawn_state`), runs with normalised outputs of layers
(`of_unit_size`), and the record of a run (`Watcher`, `Run`).
"""

import math
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from bcnet.errors import one_line
from bcnet.seeds import seeded
from bcnet.space.extract import tensors_of
from bcnet.space.subnet import State
from bcnet.space.supernet import NarrowNetwork
from bcnet.space.trace import running_modules
from bcnet.space.trace_layer_rules import LAYERS
from bcnet.space.trace_rules import RANDOM

POOL = 1_000_003  # size of the pool of random numbers for weights: a prime, so that rows differ
# Operators that depend on the memory layout of tensors, and change no values.
LAYOUT = frozenset(("clone", "contiguous", "view", "unsafe_view", "reshape_alias", "alias", "detach"))


def drawn_state(probe: nn.Module) -> State:
    """The network's tensors with random parameters and normalisation statistics; other buffers unchanged."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(POOL, generator=generator)
    own = {id(parameter) for parameter in probe.parameters()}
    state: State = {}
    for name, tensor in tensors_of(probe).items():
        statistic = name.endswith(("running_mean", "running_var"))
        if not tensor.is_floating_point() or not (id(tensor) in own or statistic):
            state[name] = tensor
        elif name.endswith(("bias", "running_mean")):
            state[name] = torch.empty_like(tensor).uniform_(-0.1, 0.1, generator=generator)
        elif tensor.numel() == max(tensor.shape, default=1):  # one value per channel: a scale, a slope
            state[name] = torch.empty_like(tensor).uniform_(0.5, 1.5, generator=generator)
        else:
            size = math.sqrt(max(1, tensor[0].numel()))
            first = int(torch.randint(POOL, (), generator=generator))
            values = normal.roll(first).repeat(-(-tensor.numel() // POOL))[: tensor.numel()]
            state[name] = values.reshape(tensor.shape).to(tensor.dtype) / size
    return state


@contextmanager
def of_unit_size(probe: nn.Module, sizes: list[Tensor] | None = None) -> Iterator[list[Tensor]]:
    """During a run, divide the outputs of layers by their RMS; yields the list of these values.

    Otherwise the first layers of a deep network would not affect its outputs (cf. LSUV; Mishkin and Matas,
    ICLR 2016). With `sizes`, the values of an earlier run are used, so that both compute the same function.
    """
    found: list[Tensor] = []

    def divided(module: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        if sizes is None:
            with _disable_current_modes():  # not recorded: these are not operators of the network
                size = output.square().mean().sqrt()
                found.append(size if bool(size.isfinite()) and float(size) > 0 else torch.ones_like(size))
        else:
            found.append(sizes[len(found)] if len(found) < len(sizes) else torch.ones(()))
        return output / found[-1]

    handles = [
        module.register_forward_hook(divided)
        for module in probe.modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Operator:
    """One operator of a run: its name, its module, and the shapes and moments of its results.

    `numbers` are the scalar arguments of a pointwise operator. Moments do not depend on positions. `certain`:
    no argument is a tensor whose shape depends on values.
    """

    name: str
    where: str
    numbers: tuple[float, ...]
    shapes: tuple[torch.Size, ...]
    moments: tuple[float, ...]
    certain: bool

    def apart(self, other: "Operator") -> float:
        """The largest relative difference of the moments; 0 if the shapes differ, e.g. of narrow layers."""
        if self.shapes != other.shapes:
            return 0.0
        worst = 0.0
        for a, b in zip(self.moments, other.moments, strict=True):
            if math.isfinite(a) and math.isfinite(b):
                worst = max(worst, abs(a - b) / max(abs(a), abs(b), 1e-6))
        return worst


@dataclass(frozen=True)
class Run:
    """The record of one run: its operators, its outputs, and the RMS of its layers' outputs.

    For a failed run, the operators before the failure, and the reason.
    """

    operators: list[Operator]
    outputs: list[Tensor]
    sizes: list[Tensor]
    failure: str | None = None

    @property
    def names(self) -> list[tuple[str, str]]:
        """(name, module) of the operators, without those that depend on the memory layout.

        They end at the first shape that depends on values, on which the forward may branch.
        """
        known = takewhile(lambda operator: operator.certain, self.operators)
        return [(o.name, o.where) for o in known if o.name not in LAYOUT]

    @property
    def numbers(self) -> list[tuple[float, ...]]:
        return [o.numbers for o in self.operators if o.numbers]

    @property
    def layers(self) -> list[Operator]:
        """The convolutions and matrix products; those that depend on a dynamic shape only if all do."""
        found = [o for o in self.operators if o.name in LAYERS]
        return [o for o in found if o.certain] or found


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records all operators, with moments of the layers' results, or with `values`, of all results.

    Random numbers are replaced by a constant, since a narrow network would draw others than the whole one.
    `dynamic`: shapes depend on values; operators are recorded until the forward reads a value.
    """

    def __init__(self, *, values: bool = False, dynamic: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = values
        self.dynamic = dynamic
        self.inside: list[tuple[str, nn.Module]] = []
        self.found: list[Operator] = []
        self._stopped = False
        self._varying: MutableMapping[Tensor, bool] = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2].strip("_")
        if name in RANDOM:
            named = dict(zip((entry.name for entry in func._schema.arguments), args, strict=False)) | kwargs
            result.fill_(_constant(name, named))
        if self._stopped:
            return result
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        certain = True
        if self.dynamic:
            self._stopped = torch.Tag.data_dependent_output in func.tags
            inputs = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            certain = not (
                torch.Tag.dynamic_output_shape in func.tags or any(leaf in self._varying for leaf in inputs)
            )
            for leaf in () if certain else outputs:
                self._varying[leaf] = True
        watched = outputs if self.values or name in LAYERS else []
        moments = [value for leaf in watched for value in _moments(leaf)]
        where = f"'{self.inside[-1][0]}'" if self.inside and self.inside[-1][0] else "the network's forward"
        shapes = tuple(leaf.shape for leaf in watched)
        numbers: tuple[float, ...] = ()
        if torch.Tag.pointwise in func.tags:
            numbers = tuple(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, int | float))
        self.found.append(Operator(name, where, numbers, shapes, tuple(moments), certain))
        return result


def watched(network: NarrowNetwork, inputs: Any, watcher: Watcher, sizes: list[Tensor] | None = None) -> Run:
    """One recorded run of a network; for `sizes` see `of_unit_size`."""
    outputs, failure, probe = None, None, network.model
    with (
        torch.no_grad(),
        seeded(0),
        running_modules(probe) as watcher.inside,
        of_unit_size(probe, sizes) as own,
    ):
        try:
            with watcher:
                outputs = network.run(inputs)
        except Exception as cause:  # the user's own forward may raise anything
            where = f" in '{watcher.inside[-1][0]}'" if watcher.inside and watcher.inside[-1][0] else ""
            failure = f"{where}: {one_line(cause)}"
    leaves = [] if watcher.dynamic else [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return Run(watcher.found, leaves, own, failure)


def _constant(name: str, named: dict[str, Any]) -> float:
    """A typical value, which replaces random numbers."""
    if name == "bernoulli":
        return 1.0
    if name == "uniform":
        return (float(named.get("from", 0.0)) + float(named.get("to", 1.0))) / 2
    if name == "normal":
        mean, std = named.get("mean", 0.0), named.get("std", 1.0)
        return mean + 0.7 * std if isinstance(mean, float) and isinstance(std, float) else 0.7
    return 0.7 if name.startswith("randn") else 0.5


def _moments(leaf: Tensor) -> list[float]:
    if leaf.is_complex():
        leaf = torch.view_as_real(leaf)
    if not leaf.numel():
        return []
    if not leaf.is_floating_point():
        leaf = leaf.double()
    finite = leaf.isfinite()
    if not bool(finite.all()):
        leaf = torch.where(finite, leaf, 0)
    sums = (leaf.abs().sum(dtype=torch.float64), leaf.square().sum(dtype=torch.float64), leaf.max())
    return [float(value) for value in sums]


def varied(leaf: Any) -> Any:
    """The input; random values from 0 to 1 instead of a constant one, e.g. a placeholder."""
    if not (isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 1):
        return leaf
    if bool((leaf != leaf.flatten()[0]).any()):
        return leaf
    return torch.empty_like(leaf).uniform_(generator=torch.Generator().manual_seed(2))


def doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
