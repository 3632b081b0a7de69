"""Regression check of a runtime's latency. In: layers' times and the reference microbenchmark, then and now.

Out: a verdict. Pure statistics on log ratios, without any measuring or reading of files;
`pipeline/check_lut.py` measures. The docstrings give every formula.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import norm

from bcnet.errors import TableError
from bcnet.latency_tables.machine import SENSITIVITY_ALL, Machine, Probed
from bcnet.latency_tables.observations import Observation, holm
from bcnet.latency_tables.row_changes import ALPHA, DRIFT, Change, Sample

Status = Literal["ok", "slower", "machine differs", "inconclusive"]
EXIT_CODES: dict[Status, int] = {"ok": 0, "slower": 3, "machine differs": 4, "inconclusive": 4}

MOVED = 0.05  # below this probability, the machine has changed
LIKELY = 0.2  # above this corrected probability, a slowdown is not reported
MOST_SECONDS = 3600


@dataclass(frozen=True)
class Verdict:
    """The result of a check. `slower` and `faster` list kinds of layers, then single layers, largest first.

    `everything` is the median change of all rows, `total` that of their total time, `probe` that of the
    reference microbenchmark, `detectable` the smallest slowdown of all rows that such a check detects in 95 %
    of cases, `relative` the kinds that changed relative to the other rows. `part` are rows that are slower
    together where neither all rows nor a kind is; None if there are no such rows. `seconds_needed` is None
    unless measuring longer would help.
    """

    status: Status
    reason: str
    max_slowdown: float
    everything: Change
    total: Change
    kinds: tuple[Change, ...]
    part: Change | None
    slower: tuple[Change, ...]
    faster: tuple[Change, ...]
    relative: tuple[Change, ...]
    probe: tuple[Change, ...]
    detectable: float
    seconds_needed: float | None

    @property
    def exit_code(self) -> int:
        """0: ok; 3: slower; 4: the machine differs, or inconclusive."""
        return EXIT_CODES[self.status]


def verdict_on(
    observations: Sequence[Observation],
    then: Probed,
    now: Probed,
    *,
    max_slowdown: float = 0.05,
    seconds: float | None = None,
    other_machine: str = "",
) -> Verdict:
    """The verdict on a sample of rows.

    The change of row i is d_i = log(now / then). A row's time now is the median, over pairs of rounds, of
    each pair's lower quartile: a table's row is the lower quartile of two passes, and a quartile over more
    passes would be lower on a busy machine, where other work only adds time. Its standard error combines the
    scatter of the rounds around the change that all rows share in a round, the row's own spread then, the
    resolution of whole microseconds, and a factor, common to all rows, by which the rows scatter around their
    kind and stride more than these account for. The changes of all rows and of each kind are weighted medians
    of d_i. Their errors also include what affects all rows alike: the common scatter of the rounds, the drift
    between sessions (`DRIFT`) and the error of the reference microbenchmark.

    A median does not see a slowdown of less than half of its rows. The total time, log(sum of now /
    sum of then), is therefore tested as well; its error is that of a ratio of sums,
    sqrt(sum of (share_i * max(error_i, |d_i - log ratio|))^2), with the same errors common to all rows.
    And so is a part of the rows: the numbers of rows that are beyond the allowed slowdown, and beyond as much
    in the other direction, by two standard errors; without a change, noise makes both equal.

    The test is whether d exceeds log(1 + max_slowdown) significantly, after the change that the machine
    explains is subtracted: clock + sensitivity * (memory - clock), with the log changes of the two parts of
    the reference microbenchmark; the three `SENSITIVITY_...` also give the sensitivity's uncertainty. Kinds
    are also tested against all other rows; the smaller of the two p-values counts, doubled
    (Bonferroni).
    Holm's correction is applied over kinds, and over rows; single rows use Student's t. The machine differs
    if a part's change, times the sensitivity of all rows, significantly exceeds max_slowdown, or if
    `other_machine` gives a reason. The check is inconclusive if it would miss a slowdown of four times
    max_slowdown in more than 5 % of cases, or if a slowdown is likely but not significant.

    `max_slowdown` is a fraction; `seconds` is the duration of the measurement. Raises TableError for times
    that are not positive numbers.
    """
    _check(observations, then, now, max_slowdown)
    sample = Sample.of(observations, Machine(then, now), math.log1p(max_slowdown))
    centre, uncertain, explained = sample.together
    p_all = float(norm.sf((centre - explained - sample.allowed) / uncertain))
    everything = sample.described("all rows", sample.every, centre, uncertain, p_all)
    ratio, error, _ = sample.summed(sample.every, SENSITIVITY_ALL)
    p_total = float(norm.sf((ratio - explained - sample.allowed) / error))
    total = sample.described("total time", sample.every, ratio, error, p_total)
    kinds = sample.kinds_tested(1)
    explains_all = everything.p < ALPHA or any(kind.p < ALPHA for kind in kinds)
    part = None if explains_all else sample.part_tested()
    slower = (*_worst_first(kinds), *_worst_first(sample.rows_tested(1)))
    faster = (*_worst_first(sample.kinds_tested(-1)), *_worst_first(sample.rows_tested(-1)))
    beyond = float(norm.isf(ALPHA)) + float(norm.isf(0.05))
    detectable = math.expm1(sample.allowed + explained + beyond * uncertain)
    parts = _probe_changes(sample.machine, sample.allowed)
    together = (everything, total) if part is None else (everything, part, total)
    status, reason = _decision(together, kinds, slower, parts, detectable, max_slowdown)
    if other_machine:
        status, reason = "machine differs", other_machine
    needed = None
    if status == "inconclusive":
        target = (math.log1p(4 * max_slowdown) - sample.allowed - explained) / beyond
        fixed = math.hypot(DRIFT, sample.machine.explains(SENSITIVITY_ALL)[1])
        needed = _seconds_needed(seconds, uncertain, fixed, target)
        if needed is not None:
            reason += f"; measure for {needed:.0f} s"
        elif seconds is None:
            reason += "; build both tables again on a quieter machine"
        else:
            reason += "; measuring longer does not help: use a quieter machine"
    return Verdict(
        status=status,
        reason=reason,
        max_slowdown=max_slowdown,
        everything=everything,
        total=total,
        kinds=kinds,
        part=part,
        slower=slower,
        faster=faster,
        relative=tuple(each for each in sample.kinds_against_others() if each.p < ALPHA),
        probe=parts,
        detectable=detectable,
        seconds_needed=needed,
    )


def _worst_first(changes: Sequence[Change]) -> list[Change]:
    """The significant changes, the largest first."""
    return sorted((each for each in changes if each.p < ALPHA), key=lambda each: -abs(each.change))


def _decision(
    together: tuple[Change, ...],
    kinds: tuple[Change, ...],
    slower: tuple[Change, ...],
    probe: tuple[Change, ...],
    detectable: float,
    max_slowdown: float,
) -> tuple[Status, str]:
    """The verdict and its reason; `together` are all rows, a part of them, and the total time."""
    *parts, total = together
    everything = parts[0]
    moved = [f"{part.name} {part.change:+.0%}" for part in probe if part.p < MOVED]
    if moved:
        return "machine differs", f"the reference microbenchmark changed: {', '.join(moved)}"
    clear = [each for each in (*parts, *slower, total) if each.p < ALPHA]
    if clear:
        verb = "are" if clear[0] in parts else "is"
        return "slower", (
            f"{clear[0].name} {verb} slower by {clear[0].change:.1%}; the maximum is {max_slowdown:.1%}"
        )
    likely = [each for each in (*together, *kinds) if each.p < LIKELY and each.change > max_slowdown]
    if likely:
        return "inconclusive", f"{likely[0].name}: {likely[0].change:+.1%}, which may be noise"
    if detectable > 4 * max_slowdown:
        return "inconclusive", f"too noisy: a slowdown below {detectable:.0%} may be missed"
    return "ok", f"all rows together {everything.change:+.1%}, no kind of layer is slower than allowed"


def _check(observations: Sequence[Observation], then: Probed, now: Probed, max_slowdown: float) -> None:
    """Raises TableError for what cannot be compared."""
    if not observations:
        raise TableError("no rows to compare; run `bcnet build-lut`")
    if not (math.isfinite(max_slowdown) and 0 < max_slowdown <= 1):
        raise TableError(
            f"{max_slowdown} is not a valid maximum slowdown; give more than 0 % and at most 100 %"
        )
    for o in observations:
        figures = [o.then_ms, *(value for network in o.now_ms for value in network)]
        if len(figures) < 2 or not all(math.isfinite(value) and 0 < value < 1e7 for value in figures):
            raise TableError(f"{o.name}: {figures} are not times in ms; measure that row again")
        if not all(math.isfinite(value) and value >= 0 for value in (o.then_spread, o.now_spread)):
            raise TableError(f"{o.name}: its spread is not a number; measure that row again")
    if Machine(then, now).clock is None:
        raise TableError(
            "the reference microbenchmark of the table has no part in common with today's; "
            "run `bcnet build-lut --again`"
        )
    for probed in (then, now):
        for value in probed.medians_ms.values():
            if not (math.isfinite(value) and value > 0):
                raise TableError(
                    f"the reference microbenchmark took {value} ms; run `bcnet build-lut --again`"
                )
        for value in probed.spreads.values():
            if not (math.isfinite(value) and value >= 0):
                raise TableError(
                    f"the reference microbenchmark has a spread of {value}; run `bcnet build-lut --again`"
                )


def _probe_changes(machine: Machine, allowed: float) -> tuple[Change, ...]:
    """The change of each part; p-value: that the layers are affected by no more than the allowed slowdown."""
    p = holm(
        [
            min(1.0, 2 * float(norm.sf((abs(machine.change(part)) - limit) / machine.error(part))))
            for part in machine.parts
            for limit in [allowed if part == machine.clock else allowed / SENSITIVITY_ALL[0]]
        ]
    )
    return tuple(
        Change(
            name=part,
            change=math.expm1(machine.change(part)),
            low=math.expm1(machine.change(part) - 1.96 * machine.error(part)),
            high=math.expm1(machine.change(part) + 1.96 * machine.error(part)),
            p=value,
            rows=machine.now.readings,
            then_ms=machine.then.medians_ms[part],
            now_ms=machine.now.medians_ms[part],
        )
        for part, value in zip(machine.parts, p, strict=True)
    )


def _seconds_needed(seconds: float | None, uncertain: float, fixed: float, target: float) -> float | None:
    """Seconds until the error is `target`: the part above `fixed` falls with the square root of the time.

    None if no time is long enough, or if it exceeds MOST_SECONDS.
    """
    above = uncertain**2 - fixed**2
    if seconds is None or target <= fixed or above <= 0:
        return None
    needed = max(2 * seconds, seconds * above / (target**2 - fixed**2))
    return needed if needed <= MOST_SECONDS else None
