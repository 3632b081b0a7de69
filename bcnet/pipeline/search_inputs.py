"""What a search is made from. In: a problem, a trained supernet. Out: settings, bounds, priors, and functions
that score and measure widths.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from bcnet.config import SearchConfig, latency_share
from bcnet.errors import BudgetError
from bcnet.latency_tables.failed import FAILED_MS, runs
from bcnet.latency_tables.model import LatencyModel
from bcnet.measure.network_latency import measure_network
from bcnet.pipeline.alternating import MeasureOf
from bcnet.pipeline.finished import training_records
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import NOISY
from bcnet.runs import Run
from bcnet.space.channel_rules import Side
from bcnet.space.inputs import to_device
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.recipe import Recipe
from bcnet.width_search.assigned_scorer import AssignedScorer
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import MEGABYTE, Bound, multiply_accumulates, parameters, weight_bytes
from bcnet.width_search.device_limit import DeviceLimit
from bcnet.width_search.evolution import Prior, SearchSettings, fastest
from bcnet.width_search.initial_population import Limit, potential_losses
from bcnet.width_search.initial_population import prior as prior_population
from bcnet.width_search.scorer import Scorer
from bcnet.width_search.surrogate import FITTED
from bcnet.width_search.temperature import are_classes

DEFAULT_SHARE = "60%"  # of the full network's latency, where no budget is given
SHARE_MARGIN = 0.01  # of a budget that is a share: what alternating measurements differ by
SHARE_OF_SEARCH = 0.5  # of the profile's duration, for each whole network that a search measures
BUDGETS = 4  # that the first generation of a front is drawn for


def settings_of(problem: Problem) -> SearchSettings:
    """The configured search, its budget in ms (60 % of the full network where nothing else is given).

    A budget that is a share of the original's latency is in ms as the table predicts that; on the device, it
    is that of the measured one. Its margin is smaller: a machine that slows down slows both.
    """
    config = problem.config.search
    wider = problem.space.original() != problem.space.largest()
    return SearchSettings(
        budget=replace(latency_budget(problem), bounds=bounds_of(problem), wider=wider),
        min_accuracy=config.min_accuracy,
        population=config.population,
        generations=config.generations,
        mutation=config.mutation,
        measured=config.measured,
        seed=problem.config.seed,
        fitness=config.fitness,
        latency_exponent=config.latency_exponent,
        inside_exponent=config.inside_exponent,
        over_budget=config.over_budget,
        pareto=config.pareto,
        by_loss=by_loss_of(problem),
        exchange=config.exchange,
        prior_mutation=problem.space.rule.prior_mutation
        if config.mutate_from is None
        else config.mutate_from == "prior",
    )


def latency_budget(problem: Problem) -> Budget:
    """The configured latency budget of the problem's own device, with its margin."""
    config, latency = problem.config.search, problem.table.latency_model()
    share, target_ms = share_of(config), None
    unlimited = config.min_accuracy is not None or (config.bounded and config.fitness == "hard")
    if config.within_latency or not unlimited:
        own_ms = config.given_ms(problem.profile.batch)
        target_ms = budget_ms(problem, latency, own_ms, config.share or DEFAULT_SHARE)
    fps = config.fps if isinstance(config.fps, float) else None
    margin = margin_of(problem, latency, share)
    p90, where = config.p90_ms is not None, problem.on_device
    return Budget(target_ms, share, margin, p90=p90, fps=fps, on_device=where)


def margin_of(problem: Problem, latency: LatencyModel, share: float | None) -> float:
    """The configured margin, or the noise of the device's table; less for a share of the original.

    A share is held beside the original, so that a machine that slows down slows both. The same budget in ms,
    as for a further precision, is not, and so it has the whole margin.
    """
    margin = problem.config.search.margin
    return min(latency.noise, NOISY if share is None else SHARE_MARGIN) if margin is None else margin


def budget_of(problem: Problem, target_ms: float | None, share: float | None) -> Budget:
    """A budget in ms, or as a share of the original's latency, with the configured margin and bounds."""
    margin = margin_of(problem, problem.table.latency_model(), share)
    wider = problem.space.original() != problem.space.largest()
    where = problem.on_device
    return Budget(target_ms, share, margin, bounds_of(problem), wider, on_device=where)


def with_margins(problem: Problem, bounds: Sequence[Bound]) -> tuple[Bound, ...]:
    """The bounds with each further device's margin, chosen as the first one's (see `margin_of`)."""
    devices, found = {own.profile.name: own for own in problem.further}, list[Bound]()
    for bound in bounds:
        if isinstance(bound, DeviceLimit):
            own = devices[bound.device]
            margin = margin_of(own, own.table.latency_model(), bound.budget.share)
            bound = replace(bound, budget=replace(bound.budget, margin=margin))
        found.append(bound)
    return tuple(found)


def by_loss_of(problem: Problem) -> float:
    """The part of a loss in a score: less where it is not calibrated, or the metric is not accuracy."""
    task, data = problem.task, problem.data
    _, targets = data.batch(data.val.take(torch.arange(1)))
    calibrated = task.by_cross_entropy and are_classes(targets)
    return FITTED.by_loss if calibrated and task.metric is None else FITTED.by_other


def budget_ms(problem: Problem, latency: LatencyModel, own_ms: float | None, share: str) -> float:
    """A budget in ms: `own_ms`, or where that is None the share of the full network's latency, as "60%"."""
    if own_ms is not None:
        return own_ms
    full = latency(problem.space.original())
    if not runs(full):
        raise BudgetError(
            f"the full network holds a layer that the runtime cannot run{problem.on_device}, so there is no "
            "share of its latency; give --latency-ms"
        )
    return latency_share(share) * full


def share_of(search: SearchConfig) -> float | None:
    """The budget as a share of the original's latency; None where it is given in ms, or there is none."""
    if search.share is None and (search.within_latency or search.min_accuracy is not None):
        return None
    if search.share is None and search.bounded and search.fitness == "hard":
        return None
    return latency_share(search.share or DEFAULT_SHARE)


def bounds_of(problem: Problem) -> tuple[Bound, ...]:
    """The configured bounds besides the budget, and the latency limits on further devices."""
    config, space, found = problem.config.search, problem.space, []
    if config.max_params is not None:
        found.append(Bound("max_params", "parameters", parameters(space), config.max_params))
    if config.max_macs is not None:
        found.append(Bound("max_macs", "multiply-accumulates", multiply_accumulates(space), config.max_macs))
    if config.max_size_mb is not None:
        name = f"megabytes of weights at {problem.profile.precision}"
        limit = config.max_size_mb * MEGABYTE
        size = weight_bytes(problem.graph, problem.profile.traits.one_bit)
        found.append(Bound("max_size_mb", name, size, limit, MEGABYTE))
    for own in problem.further:
        latency = own.table.latency_model()
        found.append(DeviceLimit.on(own.profile.name, latency, latency_budget(own)))
    return tuple(found)


def measured_bounds(
    problem: Problem, bounds: Sequence[Bound], kept: Callable[[str, MeasureOf], MeasureOf]
) -> tuple[Bound, ...]:
    """The bounds, with functions that measure networks on those further devices that can be measured.

    On others the table's prediction counts, and a share refers to the predicted latency. `kept` gives the
    store of a device's latencies.
    """
    devices, found = {own.profile.name: own for own in problem.further}, list[Bound]()
    for bound in bounds:
        if isinstance(bound, DeviceLimit):
            own = devices[bound.device]
            if own.table.not_measured(own.table.latency_model()):
                bound = replace(bound, budget=replace(bound.budget, share=None))
            else:
                bound = replace(bound, measure_of=kept(bound.device, measuring(own)))
        found.append(bound)
    return tuple(found)


def not_measured_on(problem: Problem) -> str:
    """The further devices on which nothing is measured, and why; empty if there are none."""
    why = [(own.profile.name, own.table.not_measured(own.table.latency_model())) for own in problem.further]
    return "; ".join(f"on {name}: {reason}" for name, reason in why if reason)


def priors_of(problem: Problem, run: Run, settings: SearchSettings) -> tuple[Prior, ...]:
    """What the first generation is drawn from: for a front, distributions for several budgets."""
    latency, choices, bounds = problem.table.latency_model(), problem.choices, settings.budget.bounds
    lowest = latency(fastest(problem.space, latency, bounds))
    budgets: list[float | None] = [settings.budget.target_ms]
    if settings.pareto:
        highest = max(lowest, min(latency(problem.space.largest()), FAILED_MS))
        budgets = [*np.geomspace(lowest, highest, BUDGETS + 1)[1:].tolist()]
    if (budgets == [None] and not bounds) or not runs(lowest):
        return ()
    others = [Limit(*bound.cost.pairwise(choices), bound.limit) for bound in bounds]
    losses = potential_losses(training_records(run), choices)
    return tuple(
        prior_population(losses, [*([] if ms is None else [Limit(*latency.pairwise(), ms)]), *others])
        for ms in budgets
    )


def scoring(problem: Problem, supernets: Sequence[Supernet], *, shared: bool = True) -> Scorer:
    """How widths are scored in trained supernets; where supernets are trained.

    With `shared`, the sides of one supernet share the images out.
    """
    config = problem.config
    recipe = Recipe.of(config, epochs=1, learning_rate=1.0)
    kind = AssignedScorer if supernets[0].assignments else Scorer
    return kind(
        [replace(own, state=to_device(own.state, recipe.device)) for own in supernets],
        problem.data,
        config.search.recalibration_images,
        problem.task,
        amp=recipe.bfloat16,
        shared=shared,
    )


def assigned_channels(
    problem: Problem, supernets: Sequence[Supernet], widths: Widths
) -> dict[tuple[int, Side], Subnet]:
    """The channels by which the widths were scored in each supernet (from 0), on each side.

    Empty if these are simply those of the side.
    """
    if not supernets or not supernets[0].assignments:
        return {}
    scorer = scoring(problem, supernets)
    count = len(problem.space.rule.sides)
    return {(n // count, side.name): scorer.subnet(side, widths) for n, side in enumerate(scorer.sides)}


def measuring(problem: Problem) -> MeasureOf:
    """How whole networks are measured on the device."""
    graph, profile = problem.graph, problem.profile
    return lambda widths: measure_network(graph.variant(widths), profile, SHARE_OF_SEARCH, quiet=True)
