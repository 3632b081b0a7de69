"""Why each group has its width. In: what each step saves, the losses that the search kept. Out: sentences."""

from collections.abc import Mapping, Sequence

from bcnet.pipeline.results import Figure, Values
from bcnet.plain import milliseconds
from bcnet.report.layers import Step

Losses = Mapping[str, Mapping[int, float]]  # by group and choice, less the loss of the whole network


class Reason(Values):
    """What the next narrower and the next wider choice of a group would change; None at its ends.

    Milliseconds are predicted, at the found widths of all other groups. Losses are of the trained network on
    validation images with only this group narrowed, before fine-tuning; None where the search kept none.
    """

    group: str
    width: int
    narrower: int | None
    saves_ms: Figure
    loses: Figure
    wider: int | None
    costs_ms: Figure
    gains: Figure
    sentence: str


def reasons_of(steps: Sequence[Step], losses: Losses) -> tuple[Reason, ...]:
    """One for each group of which the width is among its choices."""
    by_group: dict[str, list[Step]] = {}
    for step in steps:
        by_group.setdefault(step.group, []).append(step)
    return tuple(_reason(group, own, losses.get(group, {})) for group, own in by_group.items())


def basis_of(reasons: Sequence[Reason]) -> str:
    """What the figures in the sentences are."""
    if any(own.loses is not None or own.gains is not None for own in reasons):
        losses = "losses are of the trained network with only that group narrowed, before fine-tuning"
    else:
        losses = "losses are left out, since the search measured none of single widths"
    return f"milliseconds are predicted at the found widths of all other groups; {losses}"


def _reason(group: str, steps: Sequence[Step], losses: Mapping[int, float]) -> Reason:
    """From the steps of one group, the widest first; those that are taken lead down to its width."""
    taken = [step for step in steps if step.taken]
    left = [step for step in steps if not step.taken]
    up, down = taken[-1] if taken else None, left[0] if left else None
    width = up.narrower if up else steps[0].wider
    loses = _more(losses, width, down.narrower) if down else None
    gains = _more(losses, up.wider, width) if up else None
    return Reason(
        group=group,
        width=width,
        narrower=down.narrower if down else None,
        saves_ms=down.saved_ms if down else None,
        loses=loses,
        wider=up.wider if up else None,
        costs_ms=up.saved_ms if up else None,
        gains=gains,
        sentence=f"{_narrower(down, loses, width)}; {_wider(up, gains, width)}",
    )


def _more(losses: Mapping[int, float], wider: int, narrower: int) -> float | None:
    known = wider in losses and narrower in losses
    return losses[narrower] - losses[wider] if known else None


def _narrower(step: Step | None, loses: float | None, width: int) -> str:
    if step is None:
        return f"{width} is the narrowest choice"
    return f"{step.narrower} would {_time(step.saved_ms, 'save')}{_loss('lose', loses)}"


def _wider(step: Step | None, gains: float | None, width: int) -> str:
    if step is None:
        return f"{width} is the widest choice"
    return f"{step.wider} would {_time(step.saved_ms, 'cost')}{_loss('gain', gains)}"


def _time(ms: float | None, verb: str) -> str:
    if ms is None:
        return "be of a layer that the runtime cannot run"
    other = {"save": "cost", "cost": "save"}[verb]  # a narrower layer can be the slower one
    return f"{verb if ms >= 0 else other} {milliseconds(abs(ms))} ms"


def _loss(verb: str, loss: float | None) -> str:
    return "" if loss is None else f" and {verb} {loss:.3g} of the validation loss"
