"""The rows of the arena: which method finds widths, where weights come from, whether it is distilled.

In: names, as the command line gives them. Out: `Row`s.
"""

import re
from dataclasses import dataclass, replace

from bcnet.bench.outside import COMPETITORS
from bcnet.errors import UsageError
from bcnet.methods.group_fisher import NormalisedBy
from bcnet.plain import counted
from bcnet.registry import AUTO, METHODS, SUPERNETS, Method, auto_methods, own_methods
from bcnet.space.importance import CRITERIA, Criterion

ORIGINAL = "original"
PLAIN = ", no distillation"
SUPERNET = re.compile(r"supernet, ([1-9]\d{0,3}) pass(es)?")


@dataclass(frozen=True)
class Row:
    """One way to make a network smaller.

    `method` finds the widths: `auto`, a method of `search.method`, one of `train.method` in a supernet of its
    own, or a competitor, which gives weights, too.
    Weights are those of the original by the best of `criteria`, or freshly initialised with `scratch`; a
    method that trains provides its own. `prune_by` is what group-fisher divides information by. With
    `supernet_passes`, they come from a supernet initialised with the original's weights and trained for that
    many passes.
    """

    name: str
    method: str
    criteria: tuple[Criterion, ...] = CRITERIA
    scratch: bool = False
    distilled: bool = True
    prune_by: NormalisedBy = "latency"
    supernet_passes: int = 0

    @property
    def weights(self) -> tuple[object, ...]:
        """What the weights of a network of given widths depend on besides the seed."""
        if self.outside or self.pruned:
            return (self.name,)
        return self.criteria, self.scratch, self.distilled, self.supernet_passes

    @property
    def pruned(self) -> bool:
        """Whether the method trains while it removes channels."""
        return not self.outside and any(own.trains for own in self.methods)

    @property
    def allocation(self) -> str:
        """What widths depend on besides the budget; rows of the same value share them."""
        if self.chosen_among:
            return f"{self.method} of {', '.join(self.chosen_among)}"
        if not self.pruned:
            return self.method
        return f"{self.method} {self.prune_by}" + ("" if self.distilled else PLAIN)

    @property
    def outside(self) -> bool:
        """Whether another library makes the network."""
        return self.method in COMPETITORS

    @property
    def searched(self) -> bool:
        """Whether widths are searched in a supernet."""
        return self.method in SUPERNETS.names()

    @property
    def chosen_among(self) -> tuple[str, ...]:
        """The names of the methods whose networks are compared, where there are several."""
        return () if self.outside or len(self.methods) < 2 else tuple(own.name for own in self.methods)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that propose widths; none where they are searched in a supernet."""
        if self.searched:
            return ()
        return auto_methods() if self.method == AUTO else (METHODS[self.method],)


def _of_supernet(passes: int) -> Row:
    return Row(f"supernet, {counted(passes, 'pass', 'passes')}", AUTO, supernet_passes=passes)


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(AUTO, AUTO),
        *(Row(method.name, method.name) for method in own_methods()),
        Row("group-fisher, macs", "group-fisher", prune_by="macs"),
        Row("group-fisher, memory", "group-fisher", prune_by="memory"),
        *(_of_supernet(passes) for passes in (2, 4, 8)),
        *(Row(name, name) for name in SUPERNETS.own()),
        Row("uniform, l1", "uniform", ("l1",)),
        Row("uniform (from scratch)", "uniform", scratch=True),
        *(Row(name, name) for name in COMPETITORS),
    )
}


def rows_of(names: tuple[str, ...], plain: bool = False) -> tuple[Row, ...]:
    """The rows of these names, or all rows without names; with `plain`, also each without distillation.

    A name may end in ", no distillation". Raises UsageError for an unknown one.
    """
    rows: dict[str, Row] = {}
    for name in names or ROWS:
        plainly = name.removesuffix(PLAIN)
        own = ROWS.get(plainly)
        if own is None and plainly in (*METHODS.names(), *SUPERNETS.names()):
            own = Row(plainly, plainly)  # of another package
        if own is None and (passes := SUPERNET.fullmatch(plainly)):
            own = _of_supernet(int(passes[1]))
        if own is None:
            raise UsageError(f"unknown row '{name}'; known: {'; '.join(ROWS)}; each may end in '{PLAIN}'")
        wanted = [own] if not name.endswith(PLAIN) else []
        if plain or name.endswith(PLAIN):
            wanted.append(replace(own, name=own.name + PLAIN, distilled=False))
        rows |= {row.name: row for row in wanted}
    return tuple(rows.values())


def outside(name: str) -> bool:
    """Whether a row of this name comes from another library."""
    return name.removesuffix(PLAIN) in COMPETITORS
