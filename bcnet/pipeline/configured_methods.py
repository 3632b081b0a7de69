"""The methods that `search.method` names. In: a configuration. Out: methods, and their settings."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from bcnet.config import Config, SearchConfig, explained
from bcnet.errors import ConfigError
from bcnet.registry import METHODS, Method
from bcnet.runs import digest
from bcnet.user_code import UserFunction, code_of


def check_method(config: Config) -> None:
    """Raise ConfigError, before any work, where the method cannot be loaded or does not take its settings."""
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
    keys = [key for key in method.settings.model_fields if key in type(search).model_fields]
    shared = {key: getattr(search, key) for key in keys}
    try:
        return method.settings.model_validate(shared | own)
    except ValidationError as cause:
        raise ConfigError(f"search.settings: {explained(cause, method.settings)}") from None


def called(method: Method, problem: Any, checked: Callable[[Any], Any]) -> Any:
    """What a method returns for its problem, `checked`.

    Raises BudgetError where no network is within the limits, and ConfigError, in one line, for any other
    exception of another package's method or of the check.
    """
    if method.name in METHODS.own():
        return method.function(problem)
    contract = "docs/contributing/add-a-method.md describes what a method takes and returns"
    return UserFunction(method.name, lambda own: checked(method.function(own)), ConfigError, contract)(
        problem
    )


def settings_recorded(method: Method, search: SearchConfig) -> list[Any]:
    """What the networks of a method depend on, beside what those of all methods do.

    Of another package's method that is its code, too, as of other functions of the user's.
    """
    settings = settings_for(method, search)
    values = [] if settings is None else list(settings.model_dump(mode="json").values())
    if method.name not in METHODS.own():
        values.append(digest(code_of(method.function)))
    return [search.prune_epochs, *values] if method.trains else values
