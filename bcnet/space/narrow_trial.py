"""Test narrow networks before anything is trained.

In: a traced network (`channel_groups.py`) and a space of its groups. Out: what fails if they are narrowed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bcnet.errors import FOREIGN, one_line
from bcnet.seeds import seeded
from bcnet.space.channel_groups import Seen, twice
from bcnet.space.inputs import arguments
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet, forward_path
from bcnet.space.trace import running_modules
from bcnet.space.widen import supernet_state
from bcnet.space.width_space import Widths, WidthSpace


def trouble(seen: Seen, space: WidthSpace, *, quick: bool = False) -> str | None:
    """What fails if the space's groups are narrowed; None if narrow networks run and keep the output's shape.

    `quick` runs only the narrowest path, on the network's own tensors, without copying them.
    """
    if not space.groups:
        return None
    inside: list[tuple[str, nn.Module]] = []
    probe, inputs = seen.probe, seen.inputs
    try:
        with torch.no_grad():
            if quick:
                with running_modules(probe) as inside:
                    output = forward_path(probe, space, space.smallest(), inputs)
                return _other_shape(seen, output)
            # Alternating extremes reveal widths that the forward assumes to be equal.
            low, high = space.smallest(), space.largest()
            drawn = [
                low,
                *(Widths((low, high)[(i + odd) % 2][i] for i in range(len(low))) for odd in (0, 1)),
            ]
            supernet = Supernet(probe, space, supernet_state(probe, space))
            args, kwargs = arguments(inputs)
            for widths in drawn:
                subnet = Subnet.at(space, widths, "right")
                small = supernet.extract(subnet)
                with seeded(0):
                    output = small(*args, **kwargs)
                if (reason := _other_shape(seen, output)) is not None:
                    return reason
                if seen.trace.dynamic:
                    continue
                with seeded(0):
                    path = supernet.run(subnet, inputs)
                if not all(
                    _same(one, other)
                    for one, other in zip(tree_leaves(output), tree_leaves(path), strict=True)
                ):
                    return "a narrow path of it gives another result than the network that is cut from it"
                if seen.trains is None:
                    args_twice, kwargs_twice = arguments(twice(inputs))
                    small.train()
                    small(*args_twice, **kwargs_twice)
    except FOREIGN as cause:
        where = f", in '{inside[-1][0]}'" if inside and inside[-1][0] else ""
        return f"narrowing it breaks the network{where}: {one_line(cause)}"
    return None


def _other_shape(seen: Seen, output: Any) -> str | None:
    if seen.full and [leaf.shape for leaf in tree_leaves(output)] != seen.full:
        return "it is part of the network's output"
    return None


def _same(one: Any, other: Any) -> bool:
    # Not bit-identical: a matrix product's kernel may depend on the memory alignment of a slice.
    if not isinstance(one, Tensor) or not one.is_floating_point():
        return not isinstance(one, Tensor) or torch.equal(one, other)
    one, other = one.nan_to_num(), other.nan_to_num()
    return (
        bool((one - other).abs().max() <= 1e-5 * other.abs().max().clamp_min(1e-12)) if one.numel() else True
    )
