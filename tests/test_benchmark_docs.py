"""The pages of benchmarks and decisions can be read and followed: links, numbers, sizes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
PAGES = [*sorted((ROOT / "docs/benchmarks").glob("*.md")), *DECISIONS, ROOT / "docs/decisions/index.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_pages_stay_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert len(text.splitlines()) <= 150


def test_decisions_are_numbered_and_listed_in_order() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    index = (ROOT / "docs/decisions/index.md").read_text(encoding="utf-8")
    listed = re.findall(r"\[(\d+\. .*?)\]\((.*?)\)", index)
    assert [name for _, name in listed] == [page.name for page in DECISIONS]
    for page, (title, _) in zip(DECISIONS, listed, strict=True):
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {title}\n\n20"), page.name
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.MULTILINE) == [
            "Question",
            "Setup",
            "Result",
            "Decision",
        ]


def test_code_cites_decisions_that_exist() -> None:
    sources = [path for folder in ("bcnet", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    cited = {
        int(number)
        for path in sources
        for number in re.findall(r"\bdecision (\d+)", path.read_text(encoding="utf-8"))
    }
    assert cited
    assert cited <= {int(page.name[:4]) for page in DECISIONS}
