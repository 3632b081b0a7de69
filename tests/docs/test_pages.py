"""Pages lead somewhere, are short, and are checked as a whole."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, name, pages, text_of, without_code

LONGEST = 200  # lines of a page outside of the reference
WIDEST = 200  # characters of a table's row, links included; explanations stand below the table
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = pytest.mark.parametrize("page", pages(), ids=name)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(text_of(page)), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(slug)
    return found


@PAGES
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for link in LINK.findall(without_code(text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=name)
def test_pages_outside_of_the_reference_are_short(page: Path) -> None:
    if "reference" not in page.parts:
        assert len(text_of(page).splitlines()) <= LONGEST


@pytest.mark.parametrize("folder", ["getting-started", "guides", "contributing"])
def test_rows_of_tables_can_be_read_as_text(folder: str) -> None:
    lines = [
        f"{name(page)}: {line}"
        for page in sorted(ROOT.glob(f"docs/{folder}/*.md"))
        for line in without_code(text_of(page)).splitlines()
        if line.startswith("|") and len(line) > WIDEST
    ]
    assert lines == []


def test_make_targets_and_extras_that_pages_name_exist() -> None:
    texts = {name(page): text_of(page) for page in pages()}
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    extras = set(tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"])
    for page, text in texts.items():
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets, page
        named = re.findall(r"pip install ['\"](?:bcnet|\.)\[([\w,]+)\]", text)
        assert {extra for group in named for extra in group.split(",")} <= extras, page


def test_messages_of_the_code_name_pages_that_exist() -> None:
    named = {
        f"{path.relative_to(ROOT)}: {page}"
        for folder in ("bcnet", "benchmarks", "examples", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
        if not (ROOT / page).exists()
    }
    assert named == set()
