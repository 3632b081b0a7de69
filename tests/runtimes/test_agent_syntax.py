"""The agent runs on devices whose Python is 3.6."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

import bcnet.agent

FOLDER = Path(bcnet.agent.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))


def old_python() -> str | None:
    """A python3.6 that runs: what stands under that name may only say that there is none."""
    found = shutil.which("python3.6")
    works = found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
    return found if works else None


OLD = old_python()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_of_the_agent_is_python_3_6(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.skipif(OLD is None, reason="needs a python3.6")
def test_python_3_6_itself_imports_all_of_it(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "agent")
    names = ", ".join(f"agent.{path.stem}" for path in FILES)
    command = [str(OLD), "-c", f"import sys; sys.path.insert(0, '.'); import {names}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
