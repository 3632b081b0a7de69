"""The notebook of the documentation was executed as a whole, and still runs."""

import ast
import importlib
import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from conftest import PROFILE, measure_briefly

import bcnet
from bcnet.cli import main
from bcnet.config import toml
from docs.hooks import notebook
from tests.docs.pages import ROOT
from tests.docs.test_blocks import is_public, typed_in

CELLS = json.loads((ROOT / "docs/getting-started/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
BRIEF = {
    "data": {"train_limit": 120, "test_limit": 60},
    "space": {"bins": 3},
    "search": {"method": "uniform", "measured": 1, "recalibration_images": 32},
    "slice": {"epochs": 1, "inherit": "l1"},
    "export": {"latency_tolerance": 5.0},
}


def source(cell: Any) -> str:
    return "".join(cell["source"])


def printed(cell: Any) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_every_cell_was_executed_in_order_without_an_error() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert [output for cell in CODE for output in cell["outputs"] if output["output_type"] == "error"] == []
    assert sum("image/png" in output.get("data", {}) for cell in CODE for output in cell["outputs"]) == 4
    said = " ".join(map(printed, CODE))
    assert "verified: runs/default/export/model.onnx" in said
    assert "the machine is busy" not in said
    assert "Traceback" not in said


def test_the_notebook_stays_small_enough_for_a_page() -> None:
    assert (ROOT / "docs/getting-started/notebook.ipynb").stat().st_size < 300_000


def test_the_page_has_every_cell_and_what_it_printed() -> None:
    page = notebook()
    assert [source(cell) for cell in CELLS[1:] if source(cell) not in page] == []
    texts = ["".join(own["text"]).rstrip() for cell in CODE for own in cell["outputs"] if "text" in own]
    assert [text for text in texts if text not in page] == []
    assert page.count("data:image/png;base64,") == 4
    assert not page.startswith("#")


def test_commands_and_names_of_the_cells_exist() -> None:
    for cell in CODE:
        first, _, rest = source(cell).partition("\n")
        if first == "%%bash":
            assert all(typed_in(line, True) is not None for line in rest.splitlines())
        elif not first.startswith("%%"):
            for node in ast.walk(ast.parse(source(cell))):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module or "")
                    assert all(hasattr(module, alias.name) for alias in node.names)
                elif is_public(node):
                    assert hasattr(bcnet, node.attr)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_the_cells_run_on_a_few_images(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process and by shorter settings; commands are those of the cells, word for word."""
    import matplotlib.pyplot as plt

    measure_briefly(monkeypatch)
    monkeypatch.setattr("bcnet.pipeline.open_problem.open_problem", opened)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
    names: dict[str, Any] = {}
    with matplotlib.rc_context({"backend": "agg"}):
        for cell in CODE:
            first, _, rest = source(cell).partition("\n")
            if first.startswith("%%writefile "):
                Path(first.split()[1]).write_text(briefly(rest), encoding="utf-8")
            elif first == "%%bash":
                for line in rest.splitlines():
                    program, *arguments = shlex.split(line)
                    assert program == "bcnet"
                    assert main(arguments) == 0, capfd.readouterr().err
            else:
                exec(compile(source(cell), "cell", "exec"), names)
    out = capfd.readouterr().out
    reached = names["verified"]["accuracy"]
    assert f"{reached:.4f} through ONNX Runtime, {reached:.4f} when it was verified" in out
    assert f"{reached:.4f} in PyTorch" in out


def briefly(config: str) -> str:
    """A configuration with the settings of `BRIEF` in it."""
    values = tomllib.loads(config)
    for name, section in BRIEF.items():
        values[name] = {**values.get(name, {}), **section}
    lines = []
    for name, section in values.items():
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in section.items())]
    return "\n".join(lines)
