"""Compare output that a page shows with what a command printed: the same lines, whatever their numbers."""

import re

from tests.docs.pages import blocks


def shown(page: str, beginning: str) -> str:
    """The block of a page that begins with this text."""
    (text,) = (own.text for own in blocks(page, "", "json") if own.text.startswith(beginning))
    return text


def shape(output: str) -> list[str]:
    """The lines of an output, with # for each word that has a digit, and each kind of line once."""
    found = []
    for line in output.splitlines():
        words = ["#" if re.search(r"\d", word) else re.sub("-{3,}", "---", word) for word in line.split()]
        found.append(" ".join(words))
    return [line for line in dict.fromkeys(found) if line]
