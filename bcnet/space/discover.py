"""Find the width space of any nn.Module: groups of channels that are narrowed together.

In: a network and an example of its inputs. Out: a space whose groups were tested: narrowed networks run and
keep the output's shape. Other channels are frozen and listed with the reason. `trace.py` follows the
channels, `channel_groups.py` finds those that are narrowed together; this module makes groups of them.
"""

import difflib
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from bcnet.errors import SpaceError
from bcnet.plain import counted
from bcnet.registry import SUPERNETS
from bcnet.space.channel_groups import Chain, Seen
from bcnet.space.interchangeable import unlike
from bcnet.space.module_sizes import Kept, fewest, kept_sizes, touching
from bcnet.space.narrow_trial import trouble
from bcnet.space.unsupported import probe_of
from bcnet.space.width_space import WidthGroup, WidthSpace


def discover_space(  # noqa: PLR0913 - the keywords are keys of bcnet.toml
    model: nn.Module,
    example_input: Any,
    *,
    bins: int = 8,
    channel_multiple: int = 8,
    min_width: float = 0.125,
    method: str = "bcnet",
    freeze: Sequence[str] = (),
    tie: Sequence[tuple[str, str]] = (),
) -> WidthSpace:
    """The width space of a network.

    `example_input` is one image or more, (N, C, H, W); a tuple of several inputs; or a dict of inputs by
    name. `bins` is the number of width choices per group. They are at least `min_width` (a fraction) of the
    channels, and multiples of `channel_multiple` if the group's channels are; layers with an attribute of
    this name require multiples of that, too, where these leave more than one choice. `method` (a rule of
    `bcnet.methods.supernets`) determines the choices and extra channels of a group. `freeze` names layers or
    groups, e.g. `layer1.*`, that keep their width; `tie` names pairs of groups that always have the same
    width. Raises SpaceError if the network cannot be traced, or nothing in it can be searched, ConfigError
    for an unknown method.
    """
    rule = SUPERNETS[method]
    probe = probe_of(model)
    seen = Seen.of(probe, example_input)
    chains = _tied(seen, tie)
    frozen_by = _frozen_by(chains, freeze)

    kept: list[Chain] = []
    choices: list[tuple[int, ...]] = []
    reasons: dict[str, str] = {}
    for chain in chains:
        # What the layers ask for is faster, but no reason to leave a group as it is.
        for multiple in (_multiple(probe, chain, channel_multiple), channel_multiple):
            multiple //= math.gcd(multiple, chain.repeat)
            own = rule.choices(chain.channels, bins, multiple, round(chain.channels * min_width), chain.unit)
            if len(own) > 1:
                break
        if chain.name in frozen_by:
            reasons[chain.name] = frozen_by[chain.name]
        elif len(own) < 2:
            whole = f" in whole groups of {chain.unit}" if chain.unit > 1 else ""
            reasons[chain.name] = (
                f"{counted(chain.channels, 'channel leaves', 'channels leave')} no choice with {bins} bins, "
                f"at multiples of {channel_multiple}{whole} and at least {min_width:g} of the full width"
            )
        else:
            kept.append(chain)
            choices.append(own)

    followed: Kept = {}

    def build(index: list[int], places: Kept | None = None) -> WidthSpace:
        groups = tuple(
            WidthGroup(
                name=kept[i].name,
                channels=kept[i].channels,
                choices=choices[i],
                layers=kept[i].layers,
                extra=rule.extra(choices[i]),
                unit=kept[i].unit,
                repeat=kept[i].repeat,
                mixed=kept[i].mixed,
                ordered=kept[i].ordered,
            )
            for i in index
        )
        dimensions = seen.dimensions([kept[i] for i in index])
        return WidthSpace(
            method=method,
            groups=groups,
            dimensions=dimensions,
            shapes={name: tuple(tensor.shape) for name, tensor in seen.trace.tensors.items()},
            parameters=tuple(name for name, _ in probe.named_parameters()),
            layers=seen.layers([kept[i] for i in index]),
            sized=seen.sized(dimensions, [kept[i] for i in index], followed if places is None else places),
            frozen=(),
        )

    good = list(range(len(kept)))
    space = build(good)
    if trouble(seen, space) is not None:
        # Find the groups that break the network if they are narrowed alone, or together with those before
        # them.
        alone = {i: trouble(seen, build([i]), quick=True) for i in good}
        # Adapting sizes that modules keep in attributes may make them work.
        places = kept_sizes(probe, seen.trace, seen.classes)
        for i in good if places else []:
            if alone[i] is None:
                continue

            def works(few: Kept, i: int = i, known: Kept = followed) -> bool:
                return trouble(seen, build([i], {**few, **known}), quick=True) is None

            found = fewest(probe, touching(places, seen.classes, kept[i].classes), works)
            if found is not None:
                followed = {**found, **followed}
                alone[i] = None
        good = [i for i in good if alone[i] is None]
        if good and trouble(seen, build(good)) is not None:
            candidates, good = good, []
            for i in candidates:
                alone[i] = trouble(seen, build([*good, i]))
                good += [i] if alone[i] is None else []
        reasons |= {
            kept[i].name: seen.because(kept[i], reason) for i, reason in alone.items() if reason is not None
        }
        space = build(good)
    findings = unlike(seen, space)
    reasons |= {space.groups[number].name: reason for number, reason in findings.frozen.items()}
    for number in findings.mixed:
        kept[good[number]] = replace(kept[good[number]], mixed=True)
    if findings.frozen or findings.mixed:
        good = [i for number, i in enumerate(good) if number not in findings.frozen]
        space = build(good)
    space = replace(space, frozen=seen.frozen([kept[i] for i in good], chains, reasons))
    if not space.groups:
        because = "; ".join(f"{entry.name}: {entry.reason}" for entry in space.frozen[:3])
        raise SpaceError(
            f"nothing in {type(model).__name__} can be searched ({because or 'it has no convolutions'})"
        )
    return space


def _multiple(probe: nn.Module, chain: Chain, channel_multiple: int) -> int:
    """What the widths of a chain are multiples of, with what the layers that produce it require."""
    modules = dict(probe.named_modules())
    own = (getattr(modules.get(name), "channel_multiple", 1) for name in chain.layers)
    return math.lcm(channel_multiple, *own)


def _tied(seen: Seen, tie: Sequence[tuple[str, str]]) -> list[Chain]:
    """The chains, with tied ones merged. Raises SpaceError for unknown names and different sizes."""
    chains = seen.chains()
    pairs = []
    for names in tie:
        first, second = (_named(chains, name) for name in names)
        if (first.channels, first.unit) != (second.channels, second.unit):
            raise SpaceError(
                f"'{names[0]}' and '{names[1]}' cannot be tied: they have {first.channels} and "
                f"{second.channels} channels; tie groups of the same size"
            )
        if first is not second:
            pairs.append((first, second))
    if not pairs:
        return chains
    seen.tie(pairs)
    return seen.chains()


def _named(chains: list[Chain], name: str) -> Chain:
    """The chain of that name, or with a layer of that name."""
    for chain in chains:
        if name == chain.name or name in chain.layers:
            return chain
    known = [layer for chain in chains for layer in dict.fromkeys((chain.name, *chain.layers))]
    near = difflib.get_close_matches(name, known, n=3)
    raise SpaceError(
        f"there is no group '{name}' to tie; similar names: {', '.join(near or known[:3])} "
        "(`bcnet inspect` lists them)"
    )


def _frozen_by(chains: list[Chain], freeze: Sequence[str]) -> dict[str, str]:
    """{name of a frozen chain: reason}. Raises SpaceError if a pattern matches none."""
    found: dict[str, str] = {}
    for pattern in freeze:
        hit = [
            chain.name
            for chain in chains
            if any(fnmatch.fnmatchcase(name, pattern) for name in (chain.name, *chain.layers))
        ]
        if not hit:
            known = [layer for chain in chains for layer in chain.layers]
            near = difflib.get_close_matches(pattern, known, n=3) or known[:3]
            raise SpaceError(
                f"no group matches the pattern '{pattern}' of freeze; there are: {', '.join(near)}, ... "
                "(`bcnet inspect` lists them)"
            )
        for name in hit:
            found.setdefault(name, f"frozen by '{pattern}'")
    return found
