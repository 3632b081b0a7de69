"""Code, commands and configurations of the pages are what this version reads."""

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import bcnet
from bcnet.cli import app
from bcnet.commands.options import BY_DEVICE, by_device
from bcnet.config import assigned, load_config, settings
from bcnet.errors import BcnetError
from bcnet.hw_profiles import load_profile
from tests.docs.pages import Block, all_blocks, blocks, name, pages, text_of, without_code

PROFILE = 'description = "any"\nruntime = "onnxruntime"\n'
# Its settings are those of the page's own method, with which tests/methods/test_outside_methods.py searches.
OWN_METHOD = "docs/contributing/add-a-method.md"


def commands() -> list[tuple[str, str, bool]]:
    """Every `bcnet` command: its page, the line, and whether it is a line of a block, not code in a text."""
    found = set()
    for page in pages():
        lines = [line for block in blocks(page, "", "bash", "sh") for line in lines_of(block.text)]
        inline = re.findall(r"`(bcnet [^`(]+)[^`]*`", without_code(text_of(page)))
        found |= {(name(page), " ".join(code.split()), False) for code in inline}
        found |= {(name(page), line.strip(), True) for line in lines}
    return sorted(command for command in found if command[1].startswith("bcnet "))


def lines_of(text: str) -> Iterator[str]:
    """The lines of a shell's block, with the first value of each loop's variable."""
    variables = dict(re.findall(r"for (\w+) in (\w+)", text))
    for line in text.replace("\\\n", "").splitlines():
        yield re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line)


def typed_in(line: str, whole: bool) -> dict[str, Any]:
    """The values of a command line's options. They are parsed, and nothing is run. Raises TyperException.

    What is not `whole` may leave out what the command requires.
    """
    words = [word for word in shlex.split(line, comments=True) if word != "..."]
    command: Any = get_command(app)
    while len(words) > 1 and words[1] in getattr(command, "commands", {}):
        command = command.commands[words.pop(1)]
    acting = {name for option in command.params if option.callback for name in option.opts}
    if not {"--help", *acting}.isdisjoint(words):
        return {}  # such as --install-completion: to parse it is to run it
    try:
        context = command.make_context(words[0], words[1:])
    except typer.TyperException as error:
        if whole or not error.format_message().startswith("Missing "):
            raise
        return {}
    return {key: value for key, value in context.params.items() if value}


@pytest.mark.parametrize(("page", "line", "whole"), commands(), ids=str)
def test_commands_have_options_and_values_that_exist(page: str, line: str, whole: bool) -> None:
    if line.split()[1].isupper():  # `bcnet COMMAND --help`
        return
    typed = typed_in(line, whole)
    load_config(None, assigned=assigned(typed.get("assignments") or ()))
    for key, value in typed.items():
        meant = [known for known in settings() if known.rpartition(".")[2] == key]
        if meant and key not in ("freeze", "tie", "batch", "model", "preset"):
            assert any(is_valid(known, value) for known in meant), (key, value)


def is_valid(key: str, value: Any) -> bool:
    section, _, own = key.rpartition(".")
    try:
        if key in BY_DEVICE and isinstance(value, list):
            value = by_device(key, value)
        load_config(None, {section: {own: value}})
    except BcnetError:
        return False
    return True


@pytest.mark.parametrize("block", all_blocks("toml"), ids=str)
@pytest.mark.usefixtures("folder")
def test_configurations_and_profiles_are_read(block: Block) -> None:
    if block.page == OWN_METHOD or block.text.startswith("[project."):  # of a package's pyproject.toml
        tomllib.loads(block.text)
        return
    Path("bcnet.toml").write_text(block.text, encoding="utf-8")
    Path("hw_profiles").mkdir()
    missing = "" if "runtime =" in block.text else PROFILE
    Path("hw_profiles/own.toml").write_text(missing + block.text, encoding="utf-8")
    errors = []
    for read in (lambda: load_config(None), lambda: load_profile("own")):
        try:
            read()
        except BcnetError as error:
            errors.append(str(error))
    assert len(errors) < 2, errors


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_is_valid_and_names_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "bcnet":
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Call) and is_public(node.func):
            called = inspect.signature(getattr(bcnet, node.func.attr))
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            called.bind_partial(*node.args, **keywords)
        elif is_public(node):
            assert hasattr(bcnet, node.attr)


def is_public(node: ast.AST) -> Any:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bcnet"
