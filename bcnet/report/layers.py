"""Milliseconds by layer, and what each group's next narrower widths would save.

In: a latency model, the widths of two networks. Out: a row a layer, a row a step of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.model import LatencyModel
from bcnet.measure.layer_names import layer_names
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import Figure, Values


class LayerTime(Values):
    """A layer in the original and in the found network, with the table's milliseconds of each.

    These are rows of the table times the scale of its calibration, whose constant and memory term belong to
    no layer. None for a layer that the runtime could not run.
    """

    name: str
    before: str
    after: str
    before_ms: Figure
    after_ms: Figure


class Step(Values):
    """What a group saves from one of its choices to the next narrower one, at the others' found widths.

    `taken` is whether the found network is at the narrower one already, or below. `saved_ms` is negative
    where the narrower layer is the slower one.
    """

    group: str
    wider: int
    narrower: int
    saved_ms: Figure
    taken: bool


@dataclass(frozen=True)
class Prices:
    """What the networks of a space cost by layer; `names` are those of the latency model's layers."""

    latency: LatencyModel
    names: tuple[str, ...]

    @classmethod
    def of(cls, problem: Problem) -> "Prices":
        """The prices of a problem's networks. Raises TableError where its device has no table for them."""
        latency = problem.table.latency_model()
        named = layer_names(problem.graph.proto.graph, [slot.name for slot in latency.slots])
        return cls(latency, tuple(own.name for own in named))

    def layers(self, before: Sequence[int], after: Sequence[int]) -> tuple[LayerTime, ...]:
        """Every layer of the two networks, the slowest of the original first."""
        latency, found = self.latency, []
        scale = latency.calibration.scale if latency.calibration else 1.0
        each = latency.each_layer_ms(before), latency.each_layer_ms(after)
        for name, slot, first, second in zip(self.names, latency.slots, *each, strict=True):
            layer = LayerTime(
                name=name,
                before=str(slot.at(before)),
                after=str(slot.at(after)),
                before_ms=scale * first if runs(first) else None,
                after_ms=scale * second if runs(second) else None,
            )
            found.append(layer)
        return tuple(sorted(found, key=lambda layer: -(layer.before_ms or 0.0)))

    def steps(self, groups: Sequence[str], widths: Sequence[int]) -> tuple[Step, ...]:
        """All steps of all groups, from the widest choice of each downwards."""
        found = []
        for number, (name, choices) in enumerate(zip(groups, self.latency.choices, strict=True)):
            own = [[*widths[:number], choice, *widths[number + 1 :]] for choice in choices]
            priced = [(choice, self.latency(each)) for choice, each in zip(choices, own, strict=True)]
            for (narrow, low), (wide, high) in reversed(list(pairwise(priced))):
                saved = high - low if runs(low) and runs(high) else None
                taken = narrow >= widths[number]
                found.append(Step(group=name, wider=wide, narrower=narrow, saved_ms=saved, taken=taken))
        return tuple(found)
