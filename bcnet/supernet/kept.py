"""Sizes that modules keep in their own attributes: `self.width`, `self.splits`, a number of heads.

In: the sizes that operators got while a network ran, and the channels that these count. Out: the attributes
that hold the same numbers, and the atoms that each of them follows. Numbers may be equal by chance, so a
trial decides.
"""

import numpy as np
from torch import nn

from bcnet.supernet.record import Trace

Place = tuple[str, str, int | None]  # module, attribute, and the place in it where it holds several sizes


def kept_sizes(probe: nn.Module, trace: Trace, classes: np.ndarray) -> dict[Place, np.ndarray]:
    """The atoms whose number each attribute holds.

    Of several attributes with one value the first follows the channels that occurred first, and so on.
    """
    found: dict[Place, np.ndarray] = {}
    single: dict[tuple[str, int], dict[bytes, np.ndarray]] = {}
    for path, sizes, vectors in trace.kept:
        atoms = [vector.numpy() for vector in vectors]
        for name, value in vars(probe.get_submodule(path)).items():
            if len(sizes) > 1 and isinstance(value, list | tuple) and list(value) == list(sizes):
                for item, own in enumerate(atoms):
                    found.setdefault((path, name, item), own)
        for size, own in zip(sizes, atoms, strict=True):
            if size > 1:
                kinds = np.where(own >= 0, classes[own], -1)
                single.setdefault((path, size), {}).setdefault(kinds.tobytes(), own)
    for (path, size), channels in single.items():
        names = [
            name
            for name, value in vars(probe.get_submodule(path)).items()
            if type(value) is int and value == size
        ]
        # Those that count parts of one channel, as the size of a head, come last.
        several = sorted(channels.values(), key=lambda own: len(np.unique(classes[own[own >= 0]])) < 2)
        for place, name in enumerate(names):
            found.setdefault((path, name, None), several[min(place, len(several) - 1)])
    return found
