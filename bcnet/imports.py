"""Loads a user's own `package.module:function`, from an installed package or the working folder."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bcnet.errors import BcnetError, one_line


def import_function(reference: str, error: type[BcnetError]) -> Callable[..., Any]:
    """The callable that `module:function` names; `error` is raised with the reason when there is none."""
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise error(f"'{reference}' is not of the form package.module:function")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ImportError as cause:
        raise error(f"'{reference}': {cause}; install it, or run bcnet in its folder") from cause
    except (Exception, SystemExit) as cause:
        raise error(f"'{reference}': importing '{module_name}' failed: {one_line(cause)}") from cause
    finally:
        sys.path.remove(folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise error(f"'{reference}': module '{module_name}' has no function '{function_name}'")
    return function  # type: ignore[no-any-return]
