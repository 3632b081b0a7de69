"""Results that a run already has are kept: verified exports that are replaced, shared supernets."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Refused, contents

from bcnet.built_in_example import require_configured
from bcnet.cli import main
from bcnet.commands.in_run import Command, chosen_run
from bcnet.commands.options import Given
from bcnet.config import Config, load_config
from bcnet.pipeline.kept import reuse_supernet, say_replaced_search
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import SearchSummary
from bcnet.runs import Run
from bcnet.sealed import seal_tensors

EXPORT, PREVIOUS = Path("runs/default/export"), Path("runs/default/export.previous")


def test_a_verified_export_that_is_replaced_is_kept_whole_and_announced(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(EXPORT)
    assert main(["slice", "--epochs", "0"]) == 0
    assert (
        "runs/default/export is verified, and based on the network that is replaced now: it stays, and the "
        "next export keeps it as runs/default/export.previous" in capfd.readouterr().err
    )
    assert contents(EXPORT) == before
    assert main(["export"]) == 0
    said = capfd.readouterr().err
    assert "it is kept as runs/default/export.previous if this export succeeds" in said
    assert "the earlier export is kept as runs/default/export.previous" in said
    assert contents(PREVIOUS) == before
    assert contents(EXPORT)["model.onnx"] != before["model.onnx"]
    # The same once more is the same delivery: what is kept stays the one before it.
    assert main(["export"]) == 0
    assert contents(PREVIOUS) == before
    assert sorted(path.name for path in EXPORT.parent.iterdir()) == sorted(
        [
            "train",
            "build-lut",
            "search",
            "slice",
            "export",
            "export.previous",
            "compare",
            "log.jsonl",
            "report",
        ]
    )
    assert main(["runs", "--json"]) == 0
    (run,) = json.loads(capfd.readouterr().out.splitlines()[-1])["runs"]
    assert (run["name"], run["verified"], run["target"]["device"]) == ("default", True, "cpu")
    assert run["latency_ms"] == json.loads((EXPORT / "verify.json").read_text())["measured"]["median_ms"]


def test_a_search_of_other_settings_says_which_one_it_replaces(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run.named("default")
    inputs = run.stage("search").inputs()
    say_replaced_search(run, inputs)
    say_replaced_search(Run.named("other"), inputs)
    assert capfd.readouterr().err == ""
    say_replaced_search(run, {**inputs, "search settings": "others"})
    budget = SearchSummary.read(run.stage("search")).budget
    assert capfd.readouterr().err == (
        f"runs/default/search: this replaces the search ({budget}, 75% of the original's latency); "
        "keep both with --run NAME\n"
    )


def test_a_run_without_a_supernet_uses_that_of_another_of_the_same_network_and_data(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own, origin = Run.named("board"), Run.named("default")
    reuse_supernet(own, lambda: open_problem(load_config(None)), origin)
    assert "runs/board uses the supernet of runs/default" in capfd.readouterr().err
    assert contents(own.stage("train").folder) == contents(origin.stage("train").folder)
    assert own.stage("train").outdated(origin.stage("train").manifest()["inputs"]) is None
    # One that it has, or has begun, is its own.
    own.stage("train").path("manifest.json").unlink()
    reuse_supernet(own, lambda: open_problem(load_config(None)), origin)
    assert not own.stage("train").path("manifest.json").exists()
    # That of other data is not taken.
    shutil.rmtree(own.folder)
    other = open_problem(load_config(None, {"data": {"train_limit": 100}}))
    reuse_supernet(own, lambda: other, origin)
    assert "the supernet of runs/default does not fit runs/board: " in capfd.readouterr().err
    assert not own.folder.exists()


def test_without_its_configuration_a_run_of_other_data_is_not_taken_for_the_example(
    project: Path, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").unlink()
    said = (
        "bcnet: there is no bcnet.toml here, and runs/default does not belong to the built-in example with "
        "seed 0: restore its bcnet.toml, name one with --config, or use another folder"
    )
    commands = ("train", "build-lut", "search", "slice", "export", "run")
    for command in commands:
        assert refused(1, command) == said
    assert refused(1, "train", "--run", "new") == said  # what would be begun is not configured
    shutil.rmtree("runs/default/train")  # the table alone
    assert refused(1, "build-lut") == said
    # A run of the defaults, which were the example's once, can go on without the example.
    train = Run.named("default").stage("train")
    train.finish(open_problem(Config()).inputs(), {})
    assert refused(1, "run") == (
        "bcnet: there is no bcnet.toml here, and runs/default is of an earlier version's built-in example: "
        "to continue it, write an empty bcnet.toml; for today's example, use another folder"
    )
    # What is really the example's goes on.
    example = load_config(None)
    train.finish(open_problem(example).inputs(), {})
    capfd.readouterr()
    for command in commands:
        require_configured(command, None, Run.named("default"), example)
        continues = "no bcnet.toml here: runs/default continues the built-in example, handwritten digits\n"
        assert capfd.readouterr().err == continues


def test_a_run_of_the_example_that_continues_is_opened_once(
    folder: Path, opened: Callable[[Config], Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, configs = opened(Config()), list[Config]()
    Run.named("default").stage("train").finish(problem.inputs(), {})
    monkeypatch.setattr(
        "bcnet.pipeline.open_problem.open_problem", lambda config: configs.append(config) or problem
    )
    with chosen_run(Command("run", Given(None, {}, {}), None, as_json=False)) as (_, config, open_it):
        assert open_it() is problem
    assert configs == [config]


def test_without_its_configuration_a_training_that_was_stopped_is_not_replaced(
    folder: Path, refused: Refused
) -> None:
    stopped = Run.named("default").stage("train").path("checkpoint.safetensors")
    stopped.parent.mkdir(parents=True)
    stopped.write_bytes(seal_tensors({}, {"inputs": {"model": "other", "data": "other"}}))
    for command in ("train", "run"):
        assert "runs/default does not belong to the built-in example with seed 0" in refused(1, command)


def test_a_host_that_is_not_reached_is_reported_before_anything_is_loaded(
    project: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded before the host was reached")

    monkeypatch.setattr("bcnet.pipeline.open_problem.open_problem", load)
    Path("bin").mkdir()
    Path("bin/ssh").write_text("#!/bin/sh\necho 'connect to host board port 22: refused' >&2\nexit 255\n")
    Path("bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{project / 'bin'}:/usr/bin:/bin")
    for command in ("build-lut", "run"):
        assert "user@board" in refused(1, command, "--device", "jetson", "--host", "user@board")
