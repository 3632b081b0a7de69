"""What narrowing each group alone costs: the tables that an allocation adds up.

In: a space and a loss of widths, or the importance of channels. Out: one array a group, by its choices: what
is lost in comparison with the network that is narrowed; narrower is never better.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
from scipy.optimize import isotonic_regression
from torch import Tensor

from bcnet.errors import SpaceError
from bcnet.plain import counted, loss_text
from bcnet.progress import progress_bar
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace
from bcnet.training.shared_work import each

LossOf = Callable[[Widths], SupportsFloat]
UNUSABLE = 10.0  # a loss that is not finite counts as so many times the worst that is


@dataclass(frozen=True)
class LossTables:
    """Losses by group and choice, less the loss of the network of widths `around`, where each is 0.

    `losses` fall with the width: `measured`, fitted by isotonic regression. `loss` is that of `around`.
    """

    losses: tuple[np.ndarray, ...]
    measured: tuple[np.ndarray, ...]
    around: Widths
    loss: float


def narrowed_alone(space: WidthSpace, around: Widths) -> list[Widths]:
    """`around`, then widths that differ from it in one group, which takes each of its other choices."""
    others = [
        Widths((*around[:group], width, *around[group + 1 :]))
        for group, entry in enumerate(space.groups)
        for width in entry.choices
    ]
    return list(dict.fromkeys([around, *others]))


def loss_tables(
    space: WidthSpace,
    loss_of: LossOf,
    around: Widths | None = None,
    known: Mapping[Widths, float] | None = None,
    on_score: Callable[[Widths, float], None] | None = None,
) -> LossTables:
    """The loss with only one group at another width, for every group and choice.

    The score of a variant with one block replaced (Bercovich et al., "Puzzle", ICML 2025, section 3), of a
    width instead of a block. `around` are the widths that all others keep: the widest unless given. `known`
    holds losses of networks that are not asked for again; `on_score` gets every new one, so that a caller can
    save them and continue after an interruption. `loss_of` compares networks best on the same images.
    """
    around = space.largest() if around is None else around
    found = dict(known or {})
    missing = [widths for widths in narrowed_alone(space, around) if widths not in found]
    with progress_bar("measuring the loss of each width", len(missing)) as advance:
        for widths, loss in zip(missing, each(loss_of, missing), strict=True):
            found[widths] = float(loss)
            if on_score is not None:
                on_score(widths, found[widths])
            advance(f"{widths}: loss {loss_text(found[widths])}")
    base = found[around]
    if not np.isfinite(base):
        raise SpaceError(
            f"the network that is narrowed has a loss of {base}; train it first, at a lower rate"
        )
    measured = tuple(
        np.array(
            [found[Widths((*around[:group], width, *around[group + 1 :]))] - base for width in entry.choices]
        )
        for group, entry in enumerate(space.groups)
    )
    instead = unusable(np.concatenate(measured), base) if measured else 0.0
    losses = tuple(
        monotone(np.where(np.isfinite(own), own, instead), entry.choices.index(width))
        for own, entry, width in zip(measured, space.groups, around, strict=True)
    )
    return LossTables(losses, measured, around, base)


def unusable(rises: Sequence[float] | np.ndarray, base: float) -> float:
    """What a rise that is not finite counts as, in comparison with others and the loss before; never 0."""
    own = np.abs(np.asarray(rises, dtype=np.float64))
    return UNUSABLE * (max(float(own[np.isfinite(own)].max(initial=0.0)), abs(base)) or 1.0)


def monotone(losses: np.ndarray, zero: int) -> np.ndarray:
    """The closest losses, in squares, that never rise with the width and are 0 at the index `zero`.

    Pool adjacent violators (Barlow et al., 1972), on either side of it.
    """
    fitted = np.zeros(len(losses))
    for side, bounds in ((slice(None, zero), (0.0, None)), (slice(zero + 1, None), (None, 0.0))):
        if len(losses[side]):
            fitted[side] = isotonic_regression(losses[side], increasing=False).x.clip(*bounds)
    return fitted


def importance_tables(space: WidthSpace, importance: Sequence[Tensor | np.ndarray]) -> tuple[np.ndarray, ...]:
    """The importance of the channels that each choice drops, (choices,) a group: the least important first.

    The sums of HALP (Shen et al., NeurIPS 2022, section 3.2) and MDP (Sun et al., CVPR 2025). `importance`
    holds (channels,) a group, larger is more important; channels of one unit go together, and a group whose
    channels keep their order loses the last ones. Raises SpaceError where it does not fit the space.
    """
    if len(importance) != len(space.groups):
        given = counted(len(importance), "group")
        raise SpaceError(f"importances of {given} given, the space has {len(space.groups)}")
    return tuple(_dropped(group, _array(own)) for group, own in zip(space.groups, importance, strict=True))


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _dropped(group: WidthGroup, importance: np.ndarray) -> np.ndarray:
    if importance.shape != (group.channels,):
        raise SpaceError(
            f"the importance of group '{group.name}' has the shape {importance.shape}, "
            f"not ({group.channels},)"
        )
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise SpaceError(f"an importance of group '{group.name}' is negative or not finite")
    units = importance.reshape(-1, group.unit).sum(axis=1)
    ascending = units[::-1] if group.ordered else np.sort(units)
    sums = np.concatenate(([0.0], ascending.cumsum()))
    return np.array([sums[(group.channels - width) // group.unit] for width in group.choices])


def check_tables(space: WidthSpace, losses: Sequence[np.ndarray]) -> None:
    """Raises SpaceError where there is not a finite loss for every group and choice."""
    if len(losses) != len(space.groups):
        given = counted(len(losses), "group")
        raise SpaceError(f"tables of {given} given, the space has {len(space.groups)}")
    for group, own in zip(space.groups, losses, strict=True):
        if np.shape(own) != (len(group.choices),) or not np.isfinite(own).all():
            raise SpaceError(
                f"the table of group '{group.name}' needs {len(group.choices)} finite losses, one a choice; "
                "take LossTables.losses"
            )


def total(losses: Sequence[np.ndarray], index: Iterable[int]) -> float:
    """The sum of the tables at one network's choice indices."""
    return float(sum(own[i] for own, i in zip(losses, index, strict=True)))
