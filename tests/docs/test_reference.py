"""The reference names what there is: commands, settings, public names, packages, messages, exit codes."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import bcnet
from bcnet import errors
from bcnet.cli import COMMANDS, GROUPS, INTERRUPTED
from bcnet.commands.options import BUDGET
from bcnet.config import settings
from tests.docs.pages import ROOT, text_of

PACKAGE = Path(bcnet.__file__).parent


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py, which makes the generated pages."""
    pytest.importorskip("mkdocs", reason="needs what builds the pages: pip install '.[docs]'")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_described_with_its_options(hooks: ModuleType) -> None:
    page = hooks.command_line()
    headings = re.findall(r"^## `bcnet (\S+)`$", page, flags=re.MULTILINE)
    assert headings == [*COMMANDS, *GROUPS]
    search = page.split("## `bcnet search`")[1].split("\n## ")[0]
    assert all(f"`--{key.rpartition('.')[2].replace('_', '-')} " in search for key in BUDGET)
    assert "## `bcnet lut accept-edit`" in page


def test_every_setting_is_described_with_its_default(hooks: ModuleType) -> None:
    page = hooks.configuration()
    sections = dict(re.findall(r"^## \[(\w+)\]\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    for name, field in settings().items():
        section, _, key = name.rpartition(".")
        rows = sections[section] if section else page.split("\n## [")[0]
        assert f"| `{key}` | " in rows, name
        assert (field.description or "").split("|")[0] in rows, name
    assert "| `epochs` | `5` | passes over the training images |" in sections["train"]
    assert "| `latency_ms` | e.g. `5.0` | latency budget in milliseconds;" in sections["search"]


def test_every_public_name_is_documented_once(hooks: ModuleType) -> None:
    found = re.findall(r"^::: \S+\.(\w+)$", hooks.python_api(), flags=re.MULTILINE)
    assert sorted(found) == bcnet.__all__


def test_names_that_a_method_of_ones_own_needs_are_imported_from_bcnet() -> None:
    page = text_of("docs/contributing/add-a-method.md")
    used = {name.lstrip("@") for name in re.findall(r"`(@[a-z]\w+|[A-Z][a-z]\w+)\b[^`]*`", page)}
    for path in ROOT.glob("docs/contributing/add-a-*.md"):
        used |= set(re.findall(r"`([A-Z]\w+Error)`", text_of(path)))
    assert {"AllocationProblem", "BudgetError", "DataError", "WidthGroup", "channel_rule"} <= used
    assert sorted(used - set(bcnet.__all__)) == []


def test_what_a_method_gets_has_the_attributes_that_the_table_names() -> None:
    table = text_of("docs/contributing/add-a-method.md").split("| of `problem` | |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)[1:]
    named = {name for row in rows for name in re.findall(r"\.(\w+)", row)}
    kinds = (bcnet.AllocationProblem, bcnet.Limits, bcnet.WidthSpace, bcnet.WidthGroup)
    known = {name for kind in kinds for name in (*dir(kind), *getattr(kind, "__annotations__", {}))}
    assert {"limits", "fastest", "fit", "latency"} <= named
    assert named <= known


def test_pages_with_generated_parts_say_which(hooks: ModuleType) -> None:
    marks = [re.findall(r"<!-- generated: (\S+) -->", text_of(path)) for path in ROOT.glob("docs/**/*.md")]
    assert sorted(mark for own in marks for mark in own) == sorted(hooks.GENERATED)


def test_the_architecture_names_every_package() -> None:
    page = text_of("docs/contributing/architecture.md")
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert [name for name in packages if f"`{name}/`" not in page] == []


def test_the_architecture_names_files_that_exist() -> None:
    page = text_of("docs/contributing/architecture.md")
    named = re.findall(r"`(?:bcnet/)?([\w/]+\.py)`", page)
    files = [PACKAGE.rglob(name) for name in named]
    assert len(named) > 80
    assert [name for name, found in zip(named, files, strict=True) if not any(found)] == []


@cache
def literals() -> str:
    """All texts of the code, with `...` where something is inserted."""
    texts = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value.replace("%s", "..."))
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("page", "least"), [("docs/reference/messages.md", 30), ("docs/guides/jetson.md", 6)]
)
def test_every_message_is_one_of_the_code(page: str, least: int) -> None:
    known = literals()
    messages = re.findall(r"^\| `([^`]+)` \| \S", text_of(page), flags=re.MULTILINE)
    assert len(messages) >= least
    missing = [
        message
        for message in messages
        if not all(part.strip("'`;, ") in known for part in message.split("...") if len(part) > 3)
    ]
    assert missing == []


def test_every_exit_code_is_in_the_table() -> None:
    page = text_of("docs/reference/exit-codes.md")
    codes = {own.exit_code for own in vars(errors).values() if hasattr(own, "exit_code")}
    assert codes == {1, 2, 3, 4}
    assert all(f"\n| {code} |" in page for code in codes)
    assert f"\n| {INTERRUPTED}, 143, 129 |" in page
