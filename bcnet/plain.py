"""Foreign text made safe for one line of a terminal or a report. In: any text. Out: printable, bounded.

Also losses, so that they are written in one way everywhere.

Text from a device, a file or a library may hold escape codes or line breaks, or be arbitrarily long.
"""

import re
import unicodedata

MOST = 500  # characters of a foreign text inside a message
LONGEST = 4000  # characters of a whole message
# Control and format characters (those that turn the direction of writing, too), surrogates, line separators.
UNFIT = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
COMMAND = re.compile(r"::(?=[A-Za-z-]+[ :])")


def plain(text: str, most: int = MOST) -> str:
    """`text` with unprintable characters as escapes, such as \\x1b, cut after `most` characters.

    What a CI service would take for a command wherever it occurs (`##[`) is broken up.
    """
    cut = text if len(text) <= most else text[:most]
    if not cut.isprintable():
        cut = "".join(_escaped(character) for character in cut)
    cut = cut.replace("##[", "## [")
    return cut if len(text) <= most else f"{cut}... ({len(text)} characters)"


def cell(text: str, most: int = MOST) -> str:
    """The same inside a table, where it may begin a line: `::error ...` would be a CI command there."""
    return COMMAND.sub(": :", plain(text, most))


def loss_text(loss: float) -> str:
    """A loss with four significant digits: losses of one line are compared, whatever their size is."""
    return f"{loss:#.4g}".rstrip(".")


def shown(value: object, most: int = 80) -> str:
    """A foreign value inside a message: as Python writes it, bounded."""
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**most:
        return f"a whole number of more than {most} digits"
    if isinstance(value, str | bytes) and len(value) > most:
        return f"{plain(repr(value[:most]), 5 * most)}... ({len(value)} long)"
    return plain(repr(value), 5 * most)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in UNFIT:
        return character
    return repr(character)[1:-1]
