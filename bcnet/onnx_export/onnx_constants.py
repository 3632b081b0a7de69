"""Find the constants of an exported graph that depend on the widths, by comparing exports of narrow networks.

In: the full network's graph, and a function that exports the network at other widths. Out: for each constant
the axes that are slices of groups, or the entries that are sizes; FixedGraph if anything else differs.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from onnx import ModelProto

from bcnet.latency_tables.model import Terms
from bcnet.onnx_export.onnx_matched import FixedGraph, Graph, Matched, Use, initializer
from bcnet.onnx_export.onnx_slicing import Sizes, Slices, resized, sliced
from bcnet.space.subnet import Subnet
from bcnet.space.width_space import Dimension, Widths, WidthSpace

EXPORTS = 5  # maximum number of exports of narrow networks
DRAWS = 64  # number of random widths from which the best is chosen for each further export
GROUPS = -1  # the index of a convolution's number of groups, beside those of its inputs
COMBINATIONS = 512  # maximum number of combinations for the axes of one constant
UNCLEAR = "it is unclear on which groups some of its constants depend"
CLOSE = 1e-5  # tolerance relative to the largest value: kernels of other shapes round differently

Key = tuple[tuple[int, Terms], ...]


@dataclass(frozen=True)
class Guess:
    """A hypothesis about one use of a constant: axes that are sliced, or entries that are channel counts."""

    slices: tuple[tuple[int, Dimension], ...] = ()
    sizes: tuple[tuple[int, Terms], ...] = ()

    def at(self, array: np.ndarray, space: WidthSpace, widths: Widths) -> np.ndarray:
        """The constant at these widths."""
        subnet = Subnet.at(space, widths)
        return resized(sliced(array, dict(self.slices), space, subnet), dict(self.sizes), subnet)

    @property
    def key(self) -> Key:
        """Guesses with the same key give the same shape and sizes at all widths."""
        return (
            *((axis, _combined((s.group, s.size) for s in dimension)) for axis, dimension in self.slices),
            *((-1 - index, _combined(terms)) for index, terms in self.sizes),
        )


@dataclass
class Constants:
    """On which groups a graph's constants and its convolutions' numbers of groups depend.

    At first those that are known, after `find` all of them.
    """

    space: WidthSpace
    full: Graph
    slices: dict[str, Slices]
    grouped: Iterable[str]
    sizes: dict[str, Sizes] = field(default_factory=dict)
    counts: dict[str, Terms] = field(default_factory=dict)  # groups of convolutions, by node

    def find(self, exported: Callable[[Widths], ModelProto]) -> None:
        """Complete `slices` and `sizes`; a constant with different dependencies is copied for each of them.

        Raises FixedGraph if slicing cannot reproduce the exporter's graphs.
        """
        exported = cache(exported)
        # The exporter folds computations on small constants. If narrow networks have fewer nodes for that
        # reason, networks almost as wide as the full one have the same nodes.
        for whole, nearly in ((True, False), (False, False), (True, True)):
            try:
                self._find(exported, whole, nearly)
                break
            except FixedGraph:
                continue
        else:
            self._fold(Graph(exported(self.space.smallest())))
            self._find(exported, False, False)
        wrong = self._wrong(Graph(exported(self.space.smallest())))
        if wrong:
            raise FixedGraph(f"'{min(wrong)}' does not only depend on constants that are sliced")

    def _find(self, exported: Callable[[Widths], ModelProto], whole: bool, nearly: bool) -> None:
        guesses: dict[Use, list[Guess]] = {}
        full = Graph(self.full.proto, self.full.arrays, whole)
        widths = self.space.smallest()
        if nearly:
            widths = Widths(group.choices[-2] for group in self.space.groups)
        for _ in range(EXPORTS):
            narrow = Graph(exported(widths), whole=whole)
            self._narrow_down(guesses, full, narrow, widths)
            unclear = [kinds for kinds in guesses.values() if len({guess.key for guess in kinds}) > 1]
            if not unclear:
                if not whole and self._wrong(narrow):
                    raise FixedGraph("values that it computes from constants depend on the widths")
                self._settle(guesses, full)
                return
            widths = self._distinguishing(unclear, nearly)
        raise FixedGraph(UNCLEAR)

    def _wrong(self, narrow: Graph) -> set[str]:
        """Values computed only from constants that would differ from those of the narrowest network."""
        constants = Matched.of(self.full, narrow, self.grouped).constants
        pairs = [(a, b) for a, b in constants.values() if a in self.full.fixed]
        subnet = Subnet.at(self.space, self.space.smallest())
        arrays = {
            name: resized(
                sliced(array, self.slices.get(name, {}), self.space, subnet), self.sizes.get(name, {}), subnet
            )
            for name, array in self.full.arrays.items()
        }
        there = narrow.values(narrow.arrays, (b for _, b in pairs))
        try:
            here = self.full.values(arrays, (a for a, _ in pairs))
        except FixedGraph:
            here = {}
        return {a for a, b in pairs if a not in here or not _same(here[a], there[b])}

    def _fold(self, narrow: Graph) -> None:
        """Fold values that are computed from constants, but do not follow from slices of these."""
        wrong = self._wrong(narrow)
        made = self.full.values(self.full.arrays, wrong)
        graph = self.full.proto.graph
        kept = [node for node in graph.node if not wrong & set(node.output)]
        del graph.node[:]
        graph.node.extend(kept)
        self.full.arrays.update(made)
        graph.initializer.extend(initializer(array, name) for name, array in made.items())
        self.full = Graph(self.full.proto, self.full.arrays)

    def _narrow_down(
        self, guesses: dict[Use, list[Guess]], full: Graph, narrow: Graph, widths: Widths
    ) -> None:
        """Keep the guesses that reproduce this narrow graph's constants; the first time, create them."""
        matched = Matched.of(full, narrow, self.grouped)
        there = narrow.values(narrow.arrays, (name for _, name in matched.constants.values()))
        for number, pair in matched.groups.items():
            own, wanted = (np.array([count]) for count in pair)
            use, where = (number, GROUPS), f"'group' of '{full.nodes[number].name}'"
            self._keep_fitting(guesses, use, ("", own, wanted), widths, where)
        for use, (first, second) in matched.constants.items():
            if first in full.fixed or not first:
                continue
            where = f"the constant '{first}'"
            if second not in there:
                raise FixedGraph(f"{where} is missing in narrow networks")
            number, place = use
            shape = place == 1 and number < len(full.nodes) and full.nodes[number].op_type == "Reshape"
            pair_of = (first, full.arrays[first], there[second])
            self._keep_fitting(guesses, use, pair_of, widths, where, shape)

    def _keep_fitting(
        self,
        guesses: dict[Use, list[Guess]],
        use: Use,
        constant: tuple[str, np.ndarray, np.ndarray],
        widths: Widths,
        where: str,
        shape: bool = False,
    ) -> None:
        """Keep the guesses that fit a constant (name, full, narrow). Raises FixedGraph if none is left."""
        _, array, wanted = constant
        known = guesses.get(use)
        if known is None:
            known = list(self._guesses(*constant, widths, shape))
        guesses[use] = [guess for guess in known if self._fits(guess, array, wanted, widths, shape)]
        if not guesses[use]:
            raise FixedGraph(f"{where} depends on the widths by more than its size")

    def _fits(self, guess: Guess, array: np.ndarray, wanted: np.ndarray, widths: Widths, shape: bool) -> bool:
        found = guess.at(array, self.space, widths)
        if shape and found.shape == wanted.shape:
            found = np.where(found == -1, wanted, found)  # inferred by the reader of the file
        return _same(found, wanted)

    def _guesses(
        self, name: str, array: np.ndarray, wanted: np.ndarray, widths: Widths, shape: bool
    ) -> Iterable[Guess]:
        """All guesses for this use of a constant; only the known dependency, or none, if that fits."""
        for simple in (
            Guess(tuple(self.slices.get(name, {}).items()), tuple(self.sizes.get(name, {}).items())),
            Guess(),
        ):
            if self._fits(simple, array, wanted, widths, shape):
                return [simple]
        if array.ndim != wanted.ndim:
            return []
        if array.shape == wanted.shape and (array.dtype.kind in "iu" or array.size == 1):
            return self._sizes_of(array, wanted, widths, shape)
        axes = [
            [(axis, d) for d in self._dimensions(full, size, widths)] if full != size else [None]
            for axis, (full, size) in enumerate(zip(array.shape, wanted.shape, strict=True))
        ]
        products = itertools.islice(itertools.product(*axes), COMBINATIONS)
        return [Guess(tuple(entry for entry in chosen if entry is not None)) for chosen in products]

    def _sizes_of(
        self, array: np.ndarray, wanted: np.ndarray, widths: Widths, shape: bool
    ) -> Iterator[Guess]:
        differs = np.flatnonzero(array != wanted).tolist()
        if shape and len(differs) == 1 and -1 not in array:
            # The reader of the file can infer one entry, so its dependency need not be known.
            yield Guess(sizes=((differs[0], ((None, -1),)),))
            return
        entries = [
            [(index, terms) for terms in self._terms(array.flat[index], wanted.flat[index], widths)]
            for index in differs
        ]
        for chosen in itertools.islice(itertools.product(*entries), COMBINATIONS):
            yield Guess(sizes=tuple(chosen))

    def _dimensions(self, full: int, size: int, widths: Widths) -> Iterator[Dimension]:
        """The space's dimensions with these sizes, possibly with each entry, or all of them, repeated."""
        for dimension in self.space.distinct[1]:
            whole, part = (_size(dimension, at) for at in (self.space.largest(), widths))
            if full % whole == 0 and size == part * (full // whole):
                times = full // whole
                yield tuple(replace(segment, size=segment.size * times) for segment in dimension)
                if times > 1:
                    yield dimension * times

    def _terms(self, full: float, size: float, widths: Widths) -> Iterator[Terms]:
        """Multiples of one group's width plus a constant, or dimensions of the space, with these values."""
        if full % 1 or size % 1:
            return  # a scale
        full, size = int(full), int(size)
        largest = self.space.largest()
        for group, (whole, part) in enumerate(zip(largest, widths, strict=True)):
            if whole != part and (full - size) % (whole - part) == 0:
                times = (full - size) // (whole - part)
                yield ((group, times), (None, full - times * whole))
        for dimension in self._dimensions(full, size, widths):
            yield tuple((segment.group, segment.size) for segment in dimension)

    def _distinguishing(self, unclear: list[list[Guess]], nearly: bool) -> Widths:
        """Widths at which the guesses differ most, in the upper half of the choices if `nearly`."""
        rng = np.random.default_rng(0)
        keys = list(dict.fromkeys(guess.key for kinds in unclear for guess in kinds))

        def distinct(widths: Widths) -> int:
            at = {key: _value(key, widths) for key in keys}
            return sum(len({at[guess.key] for guess in kinds}) for kinds in unclear)

        choices = [g.choices[len(g.choices) // 2 :] if nearly else g.choices for g in self.space.groups]
        drawn = [Widths(own[rng.integers(len(own))] for own in choices) for _ in range(DRAWS)]
        best = max(drawn, key=distinct)
        if distinct(best) == len(unclear):
            raise FixedGraph(UNCLEAR)
        return best

    def _settle(self, guesses: dict[Use, list[Guess]], full: Graph) -> None:
        """Record the dependency of each constant; uses with another dependency get a copy."""
        graph = self.full.proto.graph
        names: dict[str, dict[Guess, str]] = {}
        for (number, place), kinds in guesses.items():
            guess = kinds[0]
            if number == len(full.nodes):
                if guess != Guess():
                    raise FixedGraph("an output is a constant that depends on the widths")
                continue
            node = full.nodes[number]
            if place == GROUPS:
                if guess.sizes:
                    self.counts[node.name] = guess.sizes[0][1]
                continue
            name = node.input[place]
            copies = names.setdefault(name, {})
            if guess not in copies:
                copies[guess] = f"{name}_{len(copies)}" if copies else name
                own = copies[guess]
                if own != name:
                    self.full.arrays[own] = self.full.arrays[name]
                    graph.initializer.append(initializer(self.full.arrays[name], own))
                self.slices.pop(own, None)
                if guess.slices:
                    self.slices[own] = dict(guess.slices)
                if guess.sizes:
                    self.sizes[own] = dict(guess.sizes)
            node.input[place] = copies[guess]
        self.full = Graph(self.full.proto, self.full.arrays)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f" or not one.size:
        return bool(np.array_equal(one, other))
    limit = CLOSE * float(np.abs(np.nan_to_num(other)).max())
    return bool(np.allclose(one, other, rtol=0.0, atol=limit, equal_nan=True))


def _size(dimension: Dimension, widths: Widths) -> int:
    return sum(s.size if s.group is None else s.size * widths[s.group] for s in dimension)


def _combined(terms: Iterable[tuple[int | None, int]]) -> Terms:
    total: dict[int | None, int] = {}
    for group, size in terms:
        total[group] = total.get(group, 0) + size
    return tuple(
        sorted(
            filter(lambda term: term[1] != 0, total.items()),
            key=lambda term: -1 if term[0] is None else term[0],
        )
    )


def _value(key: Key, widths: Widths) -> tuple[int, ...]:
    return tuple(
        sum(size if group is None else size * widths[group] for group, size in terms) for _, terms in key
    )
