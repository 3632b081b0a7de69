"""What mkdocs adds to the pages of this folder. In: pages as Markdown. Out: the pages of the site.

- `<!-- generated: NAME -->` is replaced by what is made from the code: the command line, bcnet.toml, Python.
- A folder in `nav` stands for its pages.
- A link to a file outside of this folder leads to a copy of it; one to a page or folder outside becomes text.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from typer.main import get_command

import bcnet
from bcnet.cli import app
from bcnet.config import Config, section_of, toml

DOCS = Path(__file__).parent
ROOT = DOCS.parent
COPIES = "files"  # the folder of the site that holds copies of linked files
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
# The packages of the public names, in the order of the pipeline.
PACKAGES = {
    "pipeline": "Stages",
    "handover": "The small network",
    "space": "Width space, supernet, channels",
    "data": "Data",
    "training": "Training",
    "width_search": "Scores and search",
    "allocation": "Allocation",
    "methods": "Methods",
    "registry": "Methods of your own",
    "latency_tables": "Latency tables",
    "hw_profiles": "Devices",
    "measure": "Measurement",
    "onnx_export": "ONNX",
    "errors": "Errors",
}


def on_config(config: Any) -> Any:
    """Replace each folder in `nav` by its pages; one without pages is left out."""
    config.nav = list(_with_pages(config.nav))
    return config


def _with_pages(entries: list[Any]) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, str):
            yield from _pages(entry) if entry.endswith("/") else [entry]
            continue
        ((title, target),) = entry.items()
        inner = list(_with_pages(target)) if isinstance(target, list) else _pages(target)
        if inner:
            yield {title: inner}


def _pages(target: str) -> Any:
    if not target.endswith("/"):
        return target
    found = sorted((DOCS / target).glob("*.md"), key=lambda path: (path.stem != "index", path.name))
    return [path.relative_to(DOCS).as_posix() for path in found]


def on_files(files: Any, config: Any) -> Any:
    """Add copies of the files outside of this folder that pages link to."""
    linked = {
        outside
        for page in list(files.documentation_pages())
        for *_, target, _ in LINK.findall(page.content_string)
        if (outside := _outside(page.src_uri, target)) is not None and _copied(outside)
    }
    for path in sorted(linked):
        name = f"{COPIES}/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert what is generated, and adapt links that lead out of this folder."""

    def generated(found: re.Match[str]) -> str:
        return GENERATED[found[1]]()

    def link(found: re.Match[str]) -> str:
        image, text, target, _ = found.groups()
        outside = _outside(page.file.src_uri, target)
        if outside is None:
            return found[0]
        if not _copied(outside):
            return text
        copy = f"{COPIES}/{outside.relative_to(ROOT).as_posix()}"
        return f"{image}[{text}]({posixpath.relpath(copy, posixpath.dirname(page.file.src_uri) or '.')})"

    return re.sub(r"<!-- generated: (\S+) -->", generated, LINK.sub(link, markdown))


def _outside(page: str, target: str) -> Path | None:
    """The file or folder outside of this one that a page's relative link leads to; None for other links."""
    path = Path(posixpath.normpath((DOCS / page).parent / target))
    return path if path.exists() and not path.is_relative_to(DOCS) else None


def _copied(outside: Path) -> bool:
    return outside.is_file() and outside.suffix != ".md"


def command_line() -> str:
    """Every command with its options, in the words of its help."""
    return "\n\n".join(_commands(get_command(app), "bcnet"))


def _commands(command: Any, name: str) -> Iterator[str]:
    yield f"## `{name}`\n\n{_one_line(command.help)}"
    context = command.make_context(name, [], resilient_parsing=True)
    records = [option.get_help_record(context) for option in command.params if option.name != "help"]
    rows = [f"| `{option}` | {_cell(text)} |" for option, text in filter(None, records)]
    if rows:
        yield "\n".join(["| option | |", "|---|---|", *rows])
    for own, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{name} {own}")


def _cell(text: str | None) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def configuration() -> str:
    """Every key of bcnet.toml with its type, its default and its description."""
    top = [f for f in Config.model_fields.items() if section_of(f[1]) is None]
    parts = ["## Above all sections", _keys(top)]
    for name, field in Config.model_fields.items():
        section = section_of(field)
        if section is not None:
            parts += [
                f"## [{name}]",
                (section.__doc__ or "").split("\n")[0],
                _keys(section.model_fields.items()),
            ]
    return "\n\n".join(parts)


def _keys(fields: Any) -> str:
    rows = [f"| `{key}` | {_value(field)} | {_cell(field.description)} |" for key, field in fields]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def _value(field: Any) -> str:
    """A key's default; an example where the default is to be absent."""
    if field.examples:
        return f"e.g. `{toml(field.examples[0])}`"
    return f"`{toml(field.get_default(call_default_factory=True))}`"


def python_api() -> str:
    """The directives of mkdocstrings for all public names, by subject."""
    parts = []
    for package, title in PACKAGES.items():
        names = [name for name in bcnet.__all__ if bcnet._HOME[name].split(".")[1] == package]
        parts += [f"## {title}", *(f"::: {bcnet._HOME[name]}.{name}" for name in names)]
    return "\n\n".join(parts)


def notebook() -> str:
    """The notebook's texts, cells and outputs, without its title."""
    cells = json.loads((DOCS / "getting-started/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell_parts(cell)).partition("\n\n")[2]


def _cell_parts(cell: Any) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        yield source
        return
    language = "bash" if source.startswith("%%bash") else "toml" if ".toml" in source else "python"
    yield f"```{language}\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![what the cell draws](data:image/png;base64,{''.join(data['image/png']).strip()})"
        else:
            text = "".join(output.get("text") or data["text/plain"])
            yield f"```text\n{text.rstrip()}\n```"


GENERATED = {
    "cli": command_line,
    "configuration": configuration,
    "python": python_api,
    "notebook": notebook,
}
