"""Import a custom `package.module:function` from an installed package or the working folder."""

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcnet.errors import FOREIGN, BcnetError, one_line, user_line
from bcnet.nearest import did_you_mean


def import_function(reference: str, error: type[BcnetError]) -> Callable[..., Any]:
    """The callable `module:function`; raises `error` with the reason if there is none.

    The working folder stays importable, like the folder of a script, so that the function can import modules
    from it when it is called, in any thread.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise error(f"'{reference}' is not of the form package.module:function")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ImportError as cause:
        raise error(f"'{reference}': {cause}; install it, or run bcnet in its folder") from cause
    except FOREIGN as cause:
        reason = f"{one_line(cause)}{user_line(cause)}"
        raise error(f"'{reference}': importing '{module_name}' failed: {reason}") from cause
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = did_you_mean(function_name, known, f"define it in {module_name}, or name another")
        raise error(f"'{reference}': module '{module_name}' has no function '{function_name}'; {hint}")
    return function  # type: ignore[no-any-return]


@dataclass(frozen=True)
class UserFunction:
    """A custom function with its name in bcnet.toml; exceptions become errors of one line.

    `contract` is a sentence about its arguments and result, with which each error ends.
    """

    name: str
    function: Callable[..., Any]
    error: type[BcnetError]
    contract: str

    def __call__(self, *arguments: Any) -> Any:
        """Call it. Raises `error` with the name of the function and its exception."""
        try:
            return self.function(*arguments)
        except BcnetError:
            raise
        except FOREIGN as cause:
            raise self.complaint(f"failed ({one_line(cause)}){user_line(cause)}") from cause

    def complaint(self, what: str) -> BcnetError:
        """The error for a fault of the function."""
        return self.error(f"'{self.name}' {what}; {self.contract}")


def code_of(thing: object) -> str:
    """The code of a class or function, without comments and layout; empty if its source is not available."""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(thing))))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return ""
