"""Foreign text made fit for one line of a terminal or a report. In: any text. Out: printable, bounded.

What a device, a file or a library says may hold escape codes, line breaks, or no end.
"""

import re
import unicodedata

MOST = 500  # characters of a foreign text inside a message
LONGEST = 4000  # characters of a whole message
# Control and format characters (those that turn the direction of writing, too), surrogates, line separators.
UNFIT = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
COMMAND = re.compile(r"::(?=[A-Za-z-]+[ :])")


def plain(text: str, most: int = MOST) -> str:
    """`text` with what cannot be printed as an escape, such as \\x1b, and cut after `most` characters.

    What a CI service would take for a command wherever it stands (`##[`) is taken apart.
    """
    cut = text if len(text) <= most else text[:most]
    if not cut.isprintable():
        cut = "".join(_escaped(character) for character in cut)
    cut = cut.replace("##[", "## [")
    return cut if len(text) <= most else f"{cut}... ({len(text)} characters)"


def cell(text: str, most: int = MOST) -> str:
    """The same inside a table, where it may begin a line: `::error ...` would be a CI command there."""
    return COMMAND.sub(": :", plain(text, most))


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
