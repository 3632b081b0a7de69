"""Sizes that modules keep in their attributes: `self.width`, `self.splits`, a number of heads.

In: the sizes that were passed to operators in a traced run, and the channels that they count. Out: the
attributes with the same numbers, and the atoms that each of them may count. Numbers may be equal by chance,
so a trial decides (`fewest`).
"""

from collections.abc import Callable, Iterable

import numpy as np
from torch import nn

from bcnet.space.trace_record import Trace

Place = tuple[str, str, int | None]  # module, attribute, and the index in an attribute with several sizes
Kept = dict[Place, np.ndarray]  # the atoms that each place counts


def kept_sizes(probe: nn.Module, trace: Trace, classes: np.ndarray) -> dict[Place, list[np.ndarray]]:
    """The atoms that each attribute may count, the most likely first.

    Of several attributes with the same value, the first probably counts the channels that occurred first.
    """
    found: dict[Place, list[np.ndarray]] = {}
    single: dict[tuple[str, int], dict[bytes, np.ndarray]] = {}
    for path, sizes, vectors in trace.kept:
        atoms = [vector.numpy() for vector in vectors]
        for name, value in vars(probe.get_submodule(path)).items():
            if len(sizes) > 1 and isinstance(value, list | tuple) and list(value) == list(sizes):
                for item, own in enumerate(atoms):
                    found.setdefault((path, name, item), []).append(own)
        for size, own in zip(sizes, atoms, strict=True):
            if size > 1 and (own >= 0).any():
                kinds = np.where(own >= 0, classes[own], -1)
                single.setdefault((path, size), {}).setdefault(kinds.tobytes(), own)
    for (path, size), channels in single.items():
        names = [
            name
            for name, value in vars(probe.get_submodule(path)).items()
            if type(value) is int and value == size
        ]
        # Those that count parts of one channel, e.g. the size of a head, come last.
        several = sorted(channels.values(), key=lambda own: len(np.unique(classes[own[own >= 0]])) < 2)
        for place, name in enumerate(names):
            first = min(place, len(several) - 1)
            found.setdefault((path, name, None), []).extend([*several[first:], *several[:first]])
    return found


def touching(places: dict[Place, list[np.ndarray]], classes: np.ndarray, chain: Iterable[int]) -> Kept:
    """The places that may count channels of this chain, each with the most likely atoms."""
    own = list(chain)
    found: Kept = {}
    for place, several in places.items():
        for atoms in several:
            if np.isin(classes[atoms[atoms >= 0]], own).any():
                found[place] = atoms
                break
    return found


def fewest(probe: nn.Module, places: Kept, works: Callable[[Kept], bool]) -> Kept | None:
    """The fewest of these places with which `works` is true, one attribute of a class at a time; else None.

    Single attributes are tried first, then all, from which unnecessary ones are removed.
    """
    kinds: dict[tuple[type[nn.Module], str], Kept] = {}
    for place, atoms in places.items():
        kinds.setdefault((type(probe.get_submodule(place[0])), place[1]), {})[place] = atoms
    for alone in kinds.values():
        if works(alone):
            return alone
    if len(kinds) < 2 or not works(places):
        return None
    for kind in kinds.values():
        fewer = {place: atoms for place, atoms in places.items() if place not in kind}
        if works(fewer):
            places = fewer
    return places
