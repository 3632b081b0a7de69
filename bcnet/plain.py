"""Make text from outside safe for one line of a terminal or a report. In: any text. Out: printable, bounded.

Text from a device, a file or a library may contain escape codes or line breaks, or be arbitrarily long. Also
the common formats of latencies, losses, durations and counts.
"""

import re
import unicodedata

MOST = 500  # maximum number of characters of a text inside a message
LONGEST = 4000  # maximum number of characters of a whole message
# Control and format characters (including those that change the writing direction), surrogates, line
# separators.
UNFIT = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
COMMAND = re.compile(r"::(?=[A-Za-z-]+[ :])")


def plain(text: str, most: int = MOST) -> str:
    """`text` with unprintable characters escaped, e.g. \\x1b, truncated after `most` characters.

    Sequences that a CI service would parse as a command anywhere in a line (`##[`) are broken up.
    """
    cut = text if len(text) <= most else text[:most]
    if not cut.isprintable():
        cut = "".join(_escaped(character) for character in cut)
    cut = cut.replace("##[", "## [")
    return cut if len(text) <= most else f"{cut}... ({len(text)} characters)"


def cell(text: str, most: int = MOST) -> str:
    """The same for a table, where it may start a line: there, `::error ...` would be a CI command."""
    return COMMAND.sub(": :", plain(text, most))


def loss_text(loss: float) -> str:
    """A loss with four significant digits, so that losses of any size can be compared."""
    return f"{loss:#.4g}".rstrip(".")


def milliseconds(ms: float) -> str:
    """A latency in ms, without unit: three decimals, one decimal from 100 on, two digits below 0.01."""
    if 0 < abs(ms) < 0.01:
        return f"{ms:.2g}"
    return f"{ms:.3f}" if abs(ms) < 100 else f"{ms:.1f}"


def duration(seconds: float) -> str:
    """For people: "90 s", "12 min", "2.5 hours"."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def counted(count: int, noun: str, several: str = "") -> str:
    """ "1 network", "2 networks"; `several` is a plural that is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def shown(value: object, most: int = 80) -> str:
    """The repr of a value from outside, bounded, for use in a message."""
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
