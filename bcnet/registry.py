"""Methods by their names. In: a name as bcnet.toml gives it. Out: what is registered under that name.

bcnet's own methods are the files of a package, those of other packages are entry points in the group of the
same name. Listing names imports nothing; a file or a package is imported when its method is asked for.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from bcnet.errors import FOREIGN, BcnetError, ConfigError, one_line, user_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pydantic import BaseModel

    from bcnet.space.channel_rules import ChannelRule

AUTO = "auto"  # as search.method: the methods with a place in it, where weights are given, else an evolution
EVOLUTION = "evolution"  # as search.method: scores in a supernet


class Described(Protocol):
    """What the documentation says of a method: how it works, in half a sentence; where it was published."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def paper(self) -> str: ...


T = TypeVar("T", bound=Described)


class Registry(Generic[T]):
    """The methods that one setting of bcnet.toml chooses from."""

    def __init__(
        self, package: str, setting: str, reserved: tuple[str, ...] = (), *, noun: str = "method"
    ) -> None:
        """`package` is the package of bcnet's own methods, and the entry-point group of all others.

        `reserved` are values of the setting that are not methods; `noun` is what messages call a method.
        """
        self.package, self.setting, self.reserved, self.noun = package, setting, reserved, noun
        self._registered: dict[str, T] = {}

    def add(self, method: T) -> None:
        """Register a method under its name."""
        self._registered[method.name] = method

    def own(self) -> tuple[str, ...]:
        """The names of bcnet's own methods: those of the files, with hyphens."""
        found = importlib.util.find_spec(self.package)
        folders = found.submodule_search_locations if found else None
        files = (module.name for module in pkgutil.iter_modules(folders) if not module.ispkg)
        return tuple(sorted(name.replace("_", "-") for name in files))

    def names(self) -> tuple[str, ...]:
        """The names of all methods that are installed, bcnet's own first."""
        own = self.own()
        return (*own, *sorted({entry.name for entry in self._entries()} - {*own, *self.reserved}))

    def refusal(self, name: str) -> str | None:
        """What is wrong with a value of the setting, in one line; None where it is known."""
        if name in self.reserved or name in self.own() or name in (names := self.names()):
            return None
        known = (*self.reserved, *names)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        article = "an" if self.noun[0] in "aeiou" else "a"
        others = f"{article} {self.noun} of another package has to be installed in this Python"
        return f"unknown {self.noun} '{name}'; {hint}known: {', '.join(known)}; {others}"

    def checked(self, name: str) -> str:
        """A value of the setting. Raises ValueError with what is wrong."""
        refusal = self.refusal(name)
        if refusal is not None:
            raise ValueError(refusal)
        return name

    def __getitem__(self, name: str) -> T:
        """The method of this name. Raises ConfigError where there is none, or it cannot be loaded."""
        if name not in self._registered:
            self._load(name)
        return self._registered[name]

    def _load(self, name: str) -> None:
        if name in self.own():
            importlib.import_module(f"{self.package}.{name.replace('-', '_')}")
            return
        offered = [entry for entry in self._entries() if entry.name == name]
        if not offered:
            raise ConfigError(f"{self.setting}: {self.refusal(name) or f'{name!r} is not a method'}")
        places = " and ".join(f"{entry.value} of {_package(entry)}" for entry in offered)
        chosen = f"{self.setting} = '{name}'"
        if len(offered) > 1:
            raise ConfigError(f"{chosen}: {places} both have this name; remove one of the packages")
        remedy = "install what it needs, or choose another method"
        try:
            offered[0].load()
        except BcnetError:
            raise
        except FOREIGN as cause:
            reason = f"({one_line(cause)}){user_line(cause)}"
            raise ConfigError(f"{chosen}: {places} cannot be loaded {reason}; {remedy}") from cause
        if name not in self._registered:
            raise ConfigError(f"{chosen}: {places} registers no method of this name")

    def _entries(self) -> "tuple[EntryPoint, ...]":
        from importlib.metadata import entry_points  # not needed for bcnet's own, nor for `--help`

        return tuple(entry_points(group=self.package))


def _package(entry: "EntryPoint") -> str:
    return f"the package '{entry.dist.name}'" if entry.dist else "an installed package"


@dataclass(frozen=True)
class Method:
    """A way to find the widths of a trained network, as `method` registers it."""

    name: str
    function: Callable[[Any], Any]
    summary: str
    paper: str = ""
    auto: int | None = None
    trains: bool = False
    settings: "type[BaseModel] | None" = None


@dataclass(frozen=True)
class ObserverKind:
    """An observer of commands, as `observer` registers it: what makes one."""

    name: str
    function: Callable[[Any], Any]
    summary: str
    paper: str = ""


METHODS: Registry[Method] = Registry("bcnet.methods", "search.method", (AUTO, EVOLUTION))
OBSERVERS: Registry[ObserverKind] = Registry("bcnet.observers", "observers", noun="observer")
SUPERNETS: "Registry[ChannelRule]" = Registry("bcnet.methods.supernets", "train.method")


F = TypeVar("F", bound=Callable[[Any], Any])


def method(
    name: str,
    summary: str,
    *,
    paper: str = "",
    auto: int | None = None,
    trains: bool = False,
    settings: "type[BaseModel] | None" = None,
) -> Callable[[F], F]:
    """Register a function as the method of this name for `search.method`.

    It takes an `AllocationProblem` and returns the widths of the networks that it proposes, best first; with
    `trains` it takes a `PruningProblem` and returns a `TrainedNetwork`. Either raises BudgetError where no
    network is within the limits. `summary` and `paper` are its row in the documentation. `auto`, of bcnet's
    own methods, is the place in `search.method = "auto"`: a network that several propose counts for the
    first. `settings` describes what `[search.settings]` may hold; fields that `[search]` has, too, have its
    values.
    """

    def register(function: F) -> F:
        METHODS.add(Method(name, function, summary, paper, auto, trains, settings))
        return function

    return register


def own_methods() -> tuple[Method, ...]:
    """bcnet's own methods: those of `auto` in their order, then others, then those that train."""
    own = [METHODS[name] for name in METHODS.own()]
    return tuple(sorted(own, key=lambda one: (one.trains, one.auto or len(own) + 1)))


def auto_methods() -> tuple[Method, ...]:
    """The methods whose networks `search.method = "auto"` compares, in their order."""
    return tuple(one for one in own_methods() if one.auto is not None)
