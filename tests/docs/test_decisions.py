"""Decisions and the pages of benchmarks: numbered, listed, in one shape, short."""

import re

from tests.docs.pages import ROOT, text_of

DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
LONGEST = {"benchmarks": 150, "decisions": 40}  # lines


def test_decisions_are_numbered_and_listed_in_order() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    listed = re.findall(r"\[(\d+\. .*?)\]\((.*?)\)", text_of("docs/decisions/index.md"))
    assert [name for _, name in listed] == [page.name for page in DECISIONS]
    for page, (title, _) in zip(DECISIONS, listed, strict=True):
        assert re.match(rf"# {re.escape(title)}\n\n\d{{4}}-\d\d-\d\d", text_of(page)), page.name
        parts = re.findall(r"^\*\*(\w+)\.\*\*", text_of(page), flags=re.MULTILINE)
        assert parts == ["Question", "Setup", "Result", "Decision"], page.name


def test_decisions_and_benchmarks_are_short() -> None:
    for folder, longest in LONGEST.items():
        for page in (ROOT / "docs" / folder).glob("*.md"):
            if page.name != "index.md":  # it has a line for each of them
                assert len(text_of(page).splitlines()) <= longest, page.name


def test_code_cites_decisions_that_exist() -> None:
    sources = [path for folder in ("bcnet", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    cited = {int(number) for path in sources for number in re.findall(r"\bdecision (\d+)", text_of(path))}
    assert cited
    assert cited <= {int(page.name[:4]) for page in DECISIONS}
