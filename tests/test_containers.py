"""What containers are made of exists and fits together; no image is built: that takes a container engine."""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sshd import PYTHON, SSHD, Sshd

from bcnet.runtimes.ssh import SshDevice

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/containers"
FILES = sorted(FOLDER.glob("*/Dockerfile"))
KNOWN = {"FROM", "ARG", "RUN", "COPY", "WORKDIR", "USER", "ENV", "ENTRYPOINT", "CMD"}
BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"
# In Docker's place: it notes what it is called with, and executes what would run in the container.
STAND_IN = f"""#!/bin/sh
printf '%s\\n' "$@" > "$0.called"
while [ "$1" != bcnet-agent:jetpack6 ]; do shift; done
shift; shift
exec {PYTHON} "$@"
"""


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and their arguments, without comments and continued lines."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]  # type: ignore[misc]


def arguments(path: Path) -> dict[str, str]:
    """The default of each ARG."""
    return dict(value.split("=", 1) for kind, value in instructions(path) if kind == "ARG")


def project() -> dict[str, Any]:
    own: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return own


def copied() -> Iterator[tuple[Path, str]]:
    """Each file that the training image is made of, and its path in the image's folder."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for kind, value in instructions(FOLDER / "training/Dockerfile"):
        if kind != "COPY":
            continue
        *sources, target = value.split()
        for source in sources:
            assert source in kept, f".dockerignore leaves {source} out"
            path = ROOT / source
            assert path.exists()
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file() and "__pycache__" not in file.parts:
                    below = file.relative_to(path).as_posix() if path.is_dir() else path.name
                    yield file, f"{target}/{below}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_instruction_is_one_of_dockers_and_every_line_of_the_shell_is_parsed(path: Path) -> None:
    found = instructions(path)
    assert {kind for kind, _ in found} <= KNOWN
    (base,) = (value for kind, value in found if kind == "FROM")
    name, _, tag = base.partition(":")
    version = arguments(path).get(tag.removeprefix("$"), tag)
    assert re.fullmatch(r"r?\d[\w.]*(-\w+)?", version), f"{name} has no version"
    for kind, value in found:
        if kind == "RUN":
            assert subprocess.run(["sh", "-n", "-c", value], capture_output=True).returncode == 0
            if "apt-get install" in value:
                assert value.startswith("apt-get update ")
                assert value.endswith(" rm -rf /var/lib/apt/lists/*")
        if kind in ("ENTRYPOINT", "CMD"):
            words = json.loads(value)
            assert all(isinstance(word, str) for word in words)
            if words[0].startswith("python"):
                compile(words[2], "CMD", "exec")


def test_the_training_image_is_installed_from_what_is_copied_into_it(tmp_path: Path) -> None:
    for file, place in copied():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / place)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("bcnet/")}
    assert packed == {place.removeprefix("./") for _, place in copied() if place.startswith("bcnet/")}


def test_the_training_image_has_a_python_extras_and_a_command_that_the_package_has() -> None:
    path = FOLDER / "training/Dockerfile"
    found = dict(instructions(path))  # the last of each kind
    base = next(value for kind, value in instructions(path) if kind == "FROM")
    oldest = tuple(map(int, re.findall(r"\d+", project()["requires-python"])))
    assert tuple(map(int, re.findall(r"\d+", base)))[:2] >= oldest
    installs = [shlex.split(v) for k, v in instructions(path) if k == "RUN" and v.startswith("pip install")]
    assert installs == [["pip", "install", "--no-cache-dir", ".[$EXTRAS]"]]
    assert set(arguments(path)["EXTRAS"].split(",")) <= set(project()["optional-dependencies"])
    assert json.loads(found["ENTRYPOINT"]) == list(project()["scripts"])
    assert found["USER"] != "root"
    assert any(
        v.startswith("useradd ") and v.endswith(found["USER"]) for k, v in instructions(path) if k == "RUN"
    )


@pytest.mark.parametrize("page", ["docs/guides/containers.md", "examples/ci/containers.yml"])
def test_commands_that_build_name_files_and_arguments_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", "")
    builds = [shlex.split(line.strip()) for line in re.findall(r"docker build (.*)", text)]
    known = {
        name
        for path in FILES
        for kind, value in instructions(path)
        if kind == "ARG"
        for name in [value.split("=")[0]]
    }
    assert len(builds) == 2
    for words in builds:
        given = [words[n + 1].split("=")[0] for n, word in enumerate(words) if word == "--build-arg"]
        assert set(given) <= known
        folder = FOLDER if words[-1] == "jetpack6" else ROOT  # the guide's is copied to the board
        file = (
            ROOT / words[words.index("--file") + 1]
            if "--file" in words
            else folder / words[-1] / "Dockerfile"
        )
        assert file in FILES


def test_only_what_is_copied_into_the_image_is_sent_to_docker() -> None:
    first, *others = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    sources = {
        value
        for kind, values in instructions(FOLDER / "training/Dockerfile")
        if kind == "COPY"
        for value in values.split()[:-1]
    }
    assert {line[1:] for line in others if line.startswith("!")} == sources
    assert any(fnmatch.fnmatch("bcnet/space/__pycache__", line) for line in others)


@pytest.mark.skipif(SSHD is None, reason="needs an sshd")
def test_the_agent_runs_in_the_container_by_the_program_that_the_guide_names_as_its_python(
    sshd: Sshd, tmp_path: Path
) -> None:
    """A real sshd, the real program and the real agent; what stands in for Docker runs its command here."""
    program = FOLDER / "jetpack6/bcnet-python"
    docker, python, folder = tmp_path / "docker", tmp_path / "python", tmp_path / "of the agent"
    docker.write_text(STAND_IN, encoding="utf-8")
    python.write_text(f'#!/bin/sh\nPATH="{tmp_path}:$PATH" exec {program} "$@"\n', encoding="utf-8")
    for file in (docker, python):
        file.chmod(0o755)
    device = SshDevice("device", python=str(python), folder=str(folder))
    try:
        assert device.hello()["folder"] == str(folder)
        assert device.call({"do": "probe"}, 60.0)["probe"]
    finally:
        device.close()
    called = (tmp_path / "docker.called").read_text().splitlines()
    image = called.index("bcnet-agent:jetpack6")
    options, command = called[:image], called[image + 1 :]
    assert options[0] == "run"
    assert {"--rm", "--interactive"} <= set(options)
    assert options[options.index("--runtime") + 1] == "nvidia"
    assert options[options.index("--pid") + 1] == "host"
    assert f"{folder}:{folder}" in options
    assert command[0] == "python3"
    assert Path(command[1]).parent == folder
    assert command[2:] == [str(folder)]
