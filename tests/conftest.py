"""A tiny project whose whole pipeline is run once, for all tests that need a finished run."""

import contextlib
import fcntl
import gc
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from remembered import remembered
from sshd import PYTHON, Sshd

from bcnet.cli import main
from bcnet.progress import silence
from bcnet.run_log import LOG

# Read when torch is first imported, here and in child processes: on busy cores, threads that wait for each
# other make these tests several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CONFIG = """
[data]
image_size = 16
train_limit = 120
test_limit = 60
[space]
bins = 3
min_width = 0.3
[train]
epochs = 1
batch_size = 32
[search]
latency = "75%"
population = 4
generations = 1
measured = 2
recalibration_images = 64
[slice]
epochs = 1
[export]
latency_tolerance = 5.0
"""
# Runs of the pipeline, real servers and whole published networks: left out of `make test-fast`.
LONG_FIXTURES = {"commands", "finished", "training"}
LONG_FILES = {
    *("test_arena", "test_deployment", "test_distributed", "test_examples", "test_faults", "test_int8"),
    *("test_hostile_device", "test_int8_files", "test_interrupted", "test_models", "test_own_task"),
    "test_notebook",
    *("test_packaging", "test_pruned", "test_readme", "test_ssh", "test_supernet_ranking", "test_supernets"),
    *("test_quantisation", "test_search_precisions"),
    *("test_shared_work", "test_tensorrt", "test_trtexec", "test_wider_original"),
}
# Tests that export the same few networks many times; others test the exporter itself.
REPEATING = {
    *("bench", "faults", "latency_tables", "pipeline"),  # folders
    *("test_cli", "test_examples", "test_notebook", "test_readme", "project"),  # files, and a fixture
}
# The shipped profile times each network for a second; tests of behaviour need no such precision.
PROFILE = """
description = "this machine, timed briefly"
runtime = "onnxruntime"
warmup_ms = 1.0
seconds = 0.03
iterations = 6
table_noise = 20.0
"""


def measure_briefly(patch: pytest.MonkeyPatch) -> None:
    """Measure each layer and each network a few times, not until its times agree: other tests run meanwhile.

    Importance is measured on few images, and the duration of a training that is announced on few steps.
    """
    from bcnet.agent import probe
    from bcnet.measure import network_latency, table_build
    from bcnet.pipeline import alternating, repeated
    from bcnet.training import durations, gradient_importance, iterative

    any_noise = 10.0  # as a share
    patch.setattr(network_latency, "AGREE", any_noise)
    patch.setattr(table_build, "NOISY", any_noise)
    patch.setattr(alternating, "MOST", alternating.ALTERNATIONS)
    patch.setattr(repeated, "MOST", repeated.FEWEST)
    patch.setattr(probe, "REPEATS", 3)
    patch.setattr(iterative, "ROUNDS", 2)
    patch.setattr(iterative, "BATCHES", 1)
    patch.setattr(gradient_importance.measured_importances, "__defaults__", (4,))  # batches
    patch.setattr(durations, "TRIAL_S", 0.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long tests, put their files first, and skip those for a GPU where there is none.

    Files that are done within seconds come last, so that no core is idle for long at the end.
    """
    without = pytest.mark.skip(reason="needs a CUDA GPU")
    long = set()
    for item in items:
        if item.path.stem in LONG_FILES or LONG_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.long)
            long.add(item.path)
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(without)
    items.sort(key=lambda item: (item.path.parent.name != "faults", item.path not in long))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process for each file, and for all files that share a server of commands."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadfile":
        return None

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return str(super()._split_scope("faults" if nodeid.startswith("tests/faults/") else nodeid))

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Garbage is not looked for again and again among all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Export the same network once for all tests of pipelines, and for the fixtures that they share."""
    names = {item.path.parent.name, item.path.stem, *getattr(item, "fixturenames", ())}
    with remembered() if names & REPEATING else contextlib.nullcontext():
        return (yield)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Remove working folders that a test made importable from the import path after it, and their modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in sys.modules.keys() - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _nothing_silent_before() -> None:
    """Lines that are due after a silence do not count the time of other tests."""
    silence.end()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which `bcnet run --json` ended well, and what it printed. To change it, see `project`."""
    path = tmp_path_factory.mktemp("finished") / "folder"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return path, finished_run(path)
    # Each process has a copy of what the first one made.
    shared = tmp_path_factory.getbasetemp().parent / "finished"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        printed = shared / "printed.json"
        if not printed.exists():
            shutil.rmtree(shared / "folder", ignore_errors=True)
            printed.write_text(json.dumps(finished_run(shared / "folder")), encoding="utf-8")
    return shutil.copytree(shared / "folder", path), json.loads(printed.read_text(encoding="utf-8"))


def finished_run(path: Path) -> dict[str, Any]:
    """What `bcnet run --json` prints in a new folder."""
    path.mkdir()
    (path / "bcnet.toml").write_text(CONFIG, encoding="utf-8")
    (path / "hw_profiles").mkdir()
    (path / "hw_profiles" / "cpu.toml").write_text(PROFILE, encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    quiet = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with contextlib.chdir(path), quiet[0], quiet[1], pytest.MonkeyPatch.context() as patch:
        measure_briefly(patch)
        # On a busy machine no candidate may be inside the budget: the message says to search again.
        code = next((0 for _ in range(3) if main(["run", "--json"]) == 0), 1)
    assert code == 0, err.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@pytest.fixture(scope="session")
def trained_project(finished: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trained weights, and the finished run's profile and table; to be copied."""
    import torch

    from bcnet.config import load_config
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.training.loop import fit_network
    from bcnet.training.recipe import Recipe

    path = tmp_path_factory.mktemp("trained")
    for name in ("hw_profiles", "latency_tables"):
        shutil.copytree(finished[0] / name, path / name)
    with contextlib.chdir(finished[0]):
        config = load_config(None)
        problem = open_problem(config)
    fit_network(problem.model, problem.data, Recipe.of(config, 8, 0.1), "training")
    torch.save(problem.model.state_dict(), path / "trained.pt")
    return path


@pytest.fixture(scope="session")
def opened() -> Callable[..., Any]:
    """`open_problem`, but bcnet's own networks and data are opened once for each configuration and profile.

    Nothing of it lies in the working folder, so it is the same in all copies of the finished run.
    """
    from bcnet.config import EXAMPLE, Config, TaskConfig
    from bcnet.hw_profiles.target import target_profile
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.pipeline.problem import Problem

    examples = [Config(), Config.model_validate(EXAMPLE)]
    built_in = [(config.model, config.data.name) for config in examples]
    known = list[Problem]()

    def once(config: Config, *, pixels: bool = True) -> Problem:
        named = (config.model, config.data.name) in built_in
        if not (named and pixels and config.task == TaskConfig()):
            return open_problem(config, pixels=pixels)
        for problem in known:
            if problem.config == config and problem.profile == target_profile(config):
                return problem
        known.append(open_problem(config))
        del known[:-4]
        return known[-1]

    return once


@pytest.fixture
def project(
    finished: tuple[Path, dict[str, Any]],
    opened: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A working folder with a copy of the finished run, to do with as a test likes."""
    copy = tmp_path / "project"
    shutil.copytree(finished[0], copy)
    monkeypatch.chdir(copy)
    monkeypatch.setattr("bcnet.pipeline.open_problem.open_problem", opened)
    measure_briefly(monkeypatch)
    return copy


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A server that the `ssh` on PATH knows as host "device"."""
    server = Sshd(tmp_path / "sshd").start()
    monkeypatch.setenv("PATH", server.path)
    yield server
    server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The agent's folder as a file system without room for a network, until the device is closed."""
    from ssh_faults import mount_small_disk

    folder = tmp_path / "there"
    mount_small_disk(folder)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def there(project: Path, sshd: Sshd, tmp_path: Path) -> Iterator[Path]:
    """A finished run's folder with two more devices, both this machine over ssh; the folder of their agent.

    `far` has its host in its profile, `jetson` has none.
    """
    from bcnet.runtimes import runtime_on_hosts

    folder = tmp_path / "there"
    jetson = f'{PROFILE}host_python = "{PYTHON}"\nhost_folder = "{folder}"\n'
    Path("hw_profiles/jetson.toml").write_text(jetson, encoding="utf-8")
    Path("hw_profiles/far.toml").write_text(f'{jetson}host = "device"\n', encoding="utf-8")
    yield folder
    runtime_on_hosts.cache_clear()


LargestFile = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def largest_file() -> LargestFile:
    """`with largest_file(size_bytes)`: no file can grow beyond this, as on a disk that is full."""

    @contextlib.contextmanager
    def limit(size_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


Refused = Callable[..., str]
BEGUN = re.compile(r"(search|slice|export): runs/\S+, for ")


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """`refused(code, *arguments)`: the one line with which a command refuses; every file stays as it was.

    A stage that had begun has named its run and device before.
    """

    def run(code: int, *arguments: str) -> str:
        before = contents(Path.cwd())
        capfd.readouterr()
        assert main(arguments) == code
        out, err = capfd.readouterr()
        lines = [line for line in err.strip().splitlines() if not BEGUN.match(line)]
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("bcnet: ")
        assert "Traceback" not in err
        assert contents(Path.cwd()) == before
        return lines[0]

    return run


def contents(path: Path) -> dict[str, bytes | None]:
    """Every file under `path` with its bytes, every folder with None.

    Python's caches do not count, nor does the log of a run, which has a line for each command.
    """
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in sorted(path.rglob("*"))
        if "__pycache__" not in entry.parts and entry.name != LOG
    }
