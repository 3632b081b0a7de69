"""Networks on further devices, besides the first one.

In: limits, candidates, results. Out: each further device's part of a result, and what later stages need of
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bcnet.errors import ArtifactError
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import (
    FurtherSearched,
    FurtherSliced,
    OnDevice,
    ScoredNetwork,
    SearchSummary,
    SliceSummary,
)
from bcnet.pipeline.search_state import scored_network
from bcnet.runs import Stage
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import Bound
from bcnet.width_search.device_limit import device_limits, with_budgets
from bcnet.width_search.evolution import Candidate


@dataclass(frozen=True)
class Held:
    """A further device whose budget a network has to meet, and the network's predicted latency there."""

    device: str
    predicted_ms: float
    budget: Budget

    def sliced(self) -> FurtherSliced:
        """As part of the slice's result."""
        return FurtherSliced(
            device=self.device,
            predicted_ms=self.predicted_ms,
            budget=self.budget.stated(),
            preprocess_ms=self.budget.added_ms or None,
        )


def further_budgets(
    bounds: Sequence[Bound], widths: Widths, measured_ms: Sequence[float] = ()
) -> tuple[Held, ...]:
    """A network's budgets on further devices; `measured_ms` are these in ms, as measured."""
    limits = device_limits(bounds)
    budgets = [own.budget for own in limits]
    if measured_ms:
        budgets = [replace(own, target_ms=ms) for own, ms in zip(budgets, measured_ms, strict=True)]
    return tuple(
        Held(own.device, own.cost(widths), budget) for own, budget in zip(limits, budgets, strict=True)
    )


def with_devices(candidate: Candidate, bounds: Sequence[Bound]) -> ScoredNetwork:
    """A candidate in its stored form, with its latencies on further devices."""
    found = tuple(
        OnDevice(
            device=own.device,
            predicted_ms=own.cost(candidate.widths),
            measured=candidate.further.get(own.device),
        )
        for own in device_limits(bounds)
    )
    return scored_network(candidate).model_copy(update={"further": found or None})


def searched_devices(
    problem: Problem, bounds: Sequence[Bound], measured_ms: Sequence[float], searched: Sequence[Bound] = ()
) -> tuple[FurtherSearched, ...] | None:
    """Each further device's part of a search's result; None if there is no further device.

    `problem` is in the precision that won, `bounds` are those in the devices' own precision, because budgets
    refer to the original in that. If another precision won, `searched` are the bounds of its search.
    """
    found, margins = [], {own.device: own.budget.margin for own in device_limits(searched or bounds)}
    held = further_budgets(bounds, problem.space.original(), measured_ms)
    for own, device in zip(held, problem.further, strict=True):
        latency = device.table.latency_model()
        fit = latency.calibration
        found.append(
            FurtherSearched(
                device=own.device,
                budget=own.budget.stated(),
                preprocess_ms=own.budget.added_ms or None,
                margin=margins[own.device],
                noise=fit.noise if fit else None,
                table_error=fit.mean_error if fit else None,
                full_predicted_ms=round(own.predicted_ms, 5),
                estimate=latency.estimate,
                recorded=device.profile.recording,
            )
        )
    return tuple(found) or None


def with_held(
    problem: Problem, bounds: Sequence[Bound], found: SearchSummary, stage: Stage
) -> tuple[Bound, ...]:
    """The bounds with a search's budgets on further devices, which may differ from the current ones."""
    held = devices_of(problem, held_by_search(found), stage)
    return with_budgets(bounds, {device.profile.name: own.budget for device, own in held})


def held_by_search(found: SearchSummary) -> tuple[Held, ...]:
    """The winner's budgets on further devices."""
    predicted = {own.device: own.predicted_ms for own in found.best.further or ()}
    return tuple(
        Held(own.device, predicted.get(own.device, 0.0), _budget(own)) for own in found.further or ()
    )


def held_by_slice(found: SliceSummary) -> tuple[Held, ...]:
    """The small network's budgets on further devices."""
    return tuple(Held(own.device, own.predicted_ms, _budget(own)) for own in found.further or ())


def _budget(own: FurtherSearched | FurtherSliced) -> Budget:
    return replace(Budget.of(own.budget), added_ms=own.preprocess_ms or 0.0)


def devices_of(problem: Problem, held: Sequence[Held], stage: Stage) -> list[tuple[Problem, Held]]:
    """The problem of each further device, with the network's budget there.

    Raises ArtifactError if the stage was made for other devices.
    """
    devices = {own.profile.name: own for own in problem.further}
    if set(devices) != {own.device for own in held}:
        wanted, made = (", ".join(sorted(names)) or "none" for names in (devices, {h.device for h in held}))
        raise ArtifactError(
            f"{stage.folder} was made for the further devices {made}, but now they are {wanted}; run "
            f"`{stage.command}` again"
        )
    return [(devices[own.device], own) for own in held]
