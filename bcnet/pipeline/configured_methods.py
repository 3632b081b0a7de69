"""The methods that `search.method` names. In: a configuration. Out: methods, and their settings."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from bcnet.allocation.limits import Limits
from bcnet.config import Config, SearchConfig, explained
from bcnet.errors import ConfigError
from bcnet.plain import milliseconds
from bcnet.registry import METHODS, Method
from bcnet.runs import digest
from bcnet.space.width_space import Widths
from bcnet.training.step_plan import StepPlan
from bcnet.user_code import UserFunction, code_of

CONTRACT = "docs/contributing/add-a-method.md describes what a method takes and returns"
ROUNDING = 1e-9  # relative: sums of the same latencies in another order


def check_method(config: Config) -> None:
    """Raise ConfigError, before any work, where a method cannot be loaded or does not take its settings."""
    StepPlan.of(config.train)
    search = config.search
    if search.method not in METHODS.reserved:
        settings_for(METHODS[search.method], search)
    elif search.settings:
        raise ConfigError(f"search.settings are those of one method, not of '{search.method}'")


def settings_for(method: Method, search: SearchConfig) -> Any:
    """A method's settings, of its own model: those that `[search]` has by the same names, and its own.

    None for a method without settings. Raises ConfigError for values that it does not take.
    """
    own = search.settings if search.method == method.name else {}
    if method.settings is None:
        if own:
            raise ConfigError(f"search.settings: the method '{method.name}' has no settings")
        return None
    _refuse_unknown(method.settings, own)
    keys = [key for key in method.settings.model_fields if key in type(search).model_fields]
    shared = {key: getattr(search, key) for key in keys}
    try:
        return method.settings.model_validate(shared | own)
    except ValidationError as cause:
        raise ConfigError(f"search.settings: {explained(cause, method.settings)}") from None


def _refuse_unknown(model: type[BaseModel], given: Iterable[str]) -> None:
    """Raise ConfigError for a key that is not a field: a model ignores these unless it says otherwise."""
    if model.model_config.get("extra") == "allow":
        return
    fields = model.model_fields
    known = [*fields, *(field.alias for field in fields.values() if field.alias)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(fields)}"
            raise ConfigError(f"search.settings: unknown key '{key}'; {hint}")


def called(method: Method, problem: Any, checked: Callable[[Any], Any]) -> Any:
    """What a method returns for its problem, `checked`.

    Raises BudgetError where no network is within the limits, and ConfigError, in one line, for any other
    exception of another package's method or of the check.
    """
    if method.name in METHODS.own():
        return method.function(problem)
    return UserFunction(method.name, lambda own: checked(method.function(own)), ConfigError, CONTRACT)(
        problem
    )


def wrong_result(method: Method, what: str) -> ConfigError:
    """The error for something that a method must not return."""
    return ConfigError(f"'{method.name}' returned {what}; {CONTRACT}")


def listed(method: Method, found: Any) -> list[Iterable[int]]:
    """The networks that a method returned. Raises ConfigError where these are no list of widths."""
    if isinstance(found, Widths) or not isinstance(found, Iterable):
        kind = type(found).__name__ if found is not None else None
        raise wrong_result(method, f"{kind}, where a list of Widths is expected")
    networks = list(found)
    for own in networks:
        if not isinstance(own, Iterable) or isinstance(own, str):
            raise wrong_result(method, f"a {type(found).__name__} of {type(own).__name__}, not of Widths")
    return networks


def check_within(method: Method, widths: Widths, limits: Limits) -> None:
    """Raise ConfigError where a network that a method returned is not predicted within the limits."""
    predicted = float(limits.latency_of(widths))
    if predicted > limits.limit_ms * (1 + ROUNDING):
        over = f"at {milliseconds(predicted)} ms, above the limit of {milliseconds(limits.limit_ms)} ms"
        raise wrong_result(method, f"a network predicted {over}")
    for bound in limits.bounds:
        if not bound.holds(widths):
            has, most = bound.shown(bound.cost(widths)), bound.shown(bound.limit)
            raise wrong_result(method, f"a network of {has} {bound.name}, above the limit of {most}")


def settings_recorded(method: Method, search: SearchConfig) -> list[Any]:
    """What the networks of a method depend on, beside what those of all methods do.

    Of another package's method that is its code, too, as of other functions of the user's.
    """
    settings = settings_for(method, search)
    values = [] if settings is None else list(settings.model_dump(mode="json").values())
    if method.name not in METHODS.own():
        values.append(digest(code_of(method.function)))
    return [search.prune_epochs, *values] if method.trains else values
