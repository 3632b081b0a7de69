"""The name that was probably meant. In: a wrong name, those that exist. Out: the end of a message."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from bcnet.plain import shown


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """`did you mean 'NAME'?` with the nearest of the known names; `otherwise` where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {shown(near[0])}?" if near else otherwise


def near_path(path: Path, otherwise: str) -> str:
    """The same for a path that does not exist, with the nearest name in its folder."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.name != path.name)
    except OSError:  # the folder does not exist, either
        return otherwise
    return did_you_mean(path.name, names, otherwise)
