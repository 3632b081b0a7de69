"""The wheel holds all that the package needs, and one place holds the version."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import bcnet

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what the repository holds of it."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "bcnet", folder / "bcnet", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("bcnet/")}
    own = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bcnet").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == own
    assert {"bcnet/py.typed", "bcnet/hw_profiles/cpu.toml", "bcnet/latency_tables/schema.json"} <= packed


def test_the_package_holds_the_version(wheel: Path) -> None:
    assert wheel.name == f"bcnet-{bcnet.__version__}-py3-none-any.whl"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]


def test_the_wheel_has_the_command_and_the_extras_that_the_documentation_names(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (about,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
    extras = [
        line.split()[1]
        for line in archive.read(about).decode().splitlines()
        if line.startswith("Provides-Extra: ")
    ]
    page = (ROOT / "docs/getting-started/install.md").read_text(encoding="utf-8")
    assert [name for name in extras if f"[{name}" not in page and f",{name}]" not in page] == []
    entries = archive.read(about.replace("METADATA", "entry_points.txt")).decode()
    assert "bcnet = bcnet.cli:main" in entries
