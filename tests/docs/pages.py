"""The pages of the documentation, and the blocks of code in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every page: those at the top, of docs/ and of benchmarks/."""
    own = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"))
    return sorted(own)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A block of code: where it stands, its language ("" where none is named), its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str | Path, *languages: str) -> Iterator[Block]:
    """The blocks of a page in these languages, in order."""
    text = text_of(page)
    for found in FENCE.finditer(text):
        indent, language, code = found.groups()
        if language in languages:
            lines = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
            yield Block(name(ROOT / page), text[: found.start()].count("\n") + 1, language, lines)


def all_blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages."""
    return [block for page in pages() for block in blocks(page, *languages)]


def without_code(text: str) -> str:
    """A page's text without its blocks of code."""
    return FENCE.sub("", text)
