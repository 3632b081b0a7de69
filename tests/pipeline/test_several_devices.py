"""A run for two devices: ONNX Runtime with one image a call, and with two; and one that is not here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import PROFILE, Refused

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import ArtifactError, ConfigError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline import cost
from bcnet.pipeline.compare_networks import FULL, SCRATCH, SEARCHED, UNIFORM
from bcnet.pipeline.further_devices import devices_of, held_by_search
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.repeated import NOISY
from bcnet.pipeline.results import CompareSummary, SearchSummary
from bcnet.pipeline.search_inputs import SHARE_MARGIN
from bcnet.pipeline.trial import Trial
from bcnet.pipeline.verify import AT_LEAST
from bcnet.report.charts import devices
from bcnet.report.charts.networks import comparison
from bcnet.report.content import run_report
from bcnet.run_target import bound_to
from bcnet.runs import Run
from bcnet.show import show_summary
from bcnet.space.width_space import Widths
from bcnet.width_search.scorer import Score

RUN = Run.named("default")
BOTH = ("--device", "cpu", "--device", "pairs")
BUDGETS = ("--latency", "cpu=85%", "--latency", "pairs=90%")


def printed(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[Any, str]:
    capfd.readouterr()
    assert main([*words, "--json"]) == code
    out, err = capfd.readouterr()
    return json.loads(out), err


@pytest.fixture
def pairs(project: Path) -> Path:
    """A finished run for `cpu`, and a profile of the same processor that takes two images a call."""
    Path("hw_profiles/pairs.toml").write_text(f"{PROFILE}batch = 2\n", encoding="utf-8")
    return project


def steady(monkeypatch: pytest.MonkeyPatch, slow: bytes = b"") -> None:
    """Whole networks take a time by their size, on `pairs` twice as long; the file `slow` nine times that."""

    def measure(content: bytes, profile: HwProfile, *_: Any, **__: Any) -> LatencyStat:
        ms = len(content) * 1e-6 * profile.batch * (9 if content == slow else 1)
        return LatencyStat(ms, ms, 0.0, 10)

    for module in ("search_inputs", "verify", "compare_further", "compare_uniform", "trial"):
        monkeypatch.setattr(f"bcnet.pipeline.{module}.measure_network", measure)


def test_a_network_is_searched_sliced_and_verified_for_two_batch_sizes_of_one_processor(
    pairs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch)
    built, err = printed(capfd, "build-lut", *BOTH)
    assert built["target"]["device"] == ["cpu", "pairs"]
    assert "pairs: " in err
    assert "file latency_tables/pairs.json" in err
    assert str(bound_to(RUN)) == "cpu (fp32, batch 1, 1 thread) and pairs"
    assert sorted(path.name for path in Path("latency_tables").glob("*.json")) == ["cpu.json", "pairs.json"]
    assert json.loads(Path("runs/default/build-lut/report-pairs.json").read_text())["device"] == "pairs"

    found, err = printed(capfd, "search", *BUDGETS)  # for the devices of the run's table
    (own,) = found["further"]
    (there,) = found["best"]["further"]
    assert "% of the original's measured latency on cpu" in err
    assert "on pairs: budget " in err
    assert (own["device"], own["budget"]["share"], found["budget"]["share"]) == ("pairs", 0.9, 0.85)
    assert found["best"]["measured"]["median_ms"] <= found["budget"]["ms"]
    assert there["measured"]["median_ms"] <= own["budget"]["ms"]
    assert all(one["further"][0]["measured"] for one in found["measured"])
    assert not list(Path("runs/default/search").glob("latencies*"))

    sliced, _ = printed(capfd, "slice")
    assert sliced["further"] == [
        {"budget": own["budget"], "device": "pairs", "predicted_ms": there["predicted_ms"]}
    ]
    exported, _ = printed(capfd, "export")
    (verified,) = exported["further"]
    assert (exported["verified"], verified["verified"]) == (True, True)
    assert verified["measured"]["median_ms"] == pytest.approx(2 * exported["measured"]["median_ms"], rel=0.01)
    assert verified["budget"]["ms"] == pytest.approx(0.9 * verified["full"]["median_ms"])
    shapes = [
        onnx.load(one["file"]).graph.input[0].type.tensor_type.shape.dim[0].dim_value
        for one in (exported, verified)
    ]
    assert shapes == [1, 2]
    assert verified["accuracy"] == verified["accuracy_torch"] == exported["accuracy"]

    report = run_report(RUN, "not asked for", {})
    assert report.headline.count("budget ") == 2
    assert "; on pairs: budget " in report.headline
    assert [row[0] for row in devices(report).rows] == ["cpu", "pairs"]
    assert report.commands[0].startswith(
        "bcnet run --compare --device cpu --device pairs --batch 1 --threads 1 --precision fp32 "
        "--latency cpu=85% --latency pairs=90% "
    )
    assert printed(capfd, "runs")[0]["runs"][0]["further"] == ["pairs"]
    show_summary(SearchSummary.read(RUN.stage("search")))
    lines = capfd.readouterr().out.splitlines()
    assert any(line.strip().startswith("on pairs: ") and " measured, " in line for line in lines)

    compared, _ = printed(capfd, "run", "--compare", *BOTH, *BUDGETS)
    rows = {row["name"]: row for row in compared["networks"]}
    assert list(rows) == [FULL, UNIFORM, SEARCHED, SCRATCH]
    for row in rows.values():
        (timed,) = row["further"]
        assert timed["device"] == "pairs"
        assert timed["latency"]["median_ms"] == min(timed["rounds_ms"])
        assert timed["latency"]["median_ms"] == pytest.approx(2 * row["latency"]["median_ms"], rel=0.01)
    there_ms = {name: row["further"][0]["latency"]["median_ms"] for name, row in rows.items()}
    assert there_ms[SEARCHED] == verified["measured"]["median_ms"]
    assert there_ms[UNIFORM] <= there_ms[SEARCHED] * 1.01  # as fast on this device, too
    assert not any("timed on" in note for note in compared["notes"])
    show_summary(CompareSummary.read(RUN.stage("compare")))
    assert "ms on pairs" in capfd.readouterr().out
    table = comparison(run_report(RUN, "not asked for", {}))
    assert (table.headings[-1], [row[-1] for row in table.rows]) == ("on pairs (ms)", [*there_ms.values()])

    # A file that is too slow on the second device alone fails, and the export before it stays.
    before = Path(verified["file"]).read_bytes()
    steady(monkeypatch, before)
    failed, err = printed(capfd, "export", code=3)
    (reason,) = failed["failures"]
    assert reason.startswith("on pairs: measured latency is ")
    assert "over the budget " in reason
    assert reason in err
    assert Path(verified["file"]).read_bytes() == before


@pytest.mark.parametrize("won", [pytest.param("fp32", marks=pytest.mark.slow), "int8"])
def test_a_further_precision_is_tried_on_all_devices_inside_the_same_budgets_in_ms(
    pairs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, won: str
) -> None:
    steady(monkeypatch)
    # How the best of each precision is scored is not of interest here: it decides which one wins.
    monkeypatch.setattr(
        "bcnet.pipeline.search_precisions.delivered_score",
        lambda problem, *_, **__: Score(1.0 if problem.profile.precision == won else 0.5, -0.1),
    )
    printed(capfd, "build-lut", *BOTH, "--precisions", "int8")
    for name in ("cpu", "pairs"):
        table = json.loads(Path(f"latency_tables/{name}.json").read_text())
        assert {own["setting"]["precision"] for own in table["calibrations"]} == {"fp32", "int8"}
    found, err = printed(capfd, "search", *BUDGETS, "--precisions", "int8")
    assert "the same budget at int8" in err
    assert found["precision"] == won
    (there,) = found["further"]
    assert (found["budget"]["share"], there["budget"]["share"]) == (0.85, 0.9)
    problem = open_problem(load_config(None, {"": {"device": ["cpu", "pairs"]}}))
    whole = problem.space.original()
    own_ms = problem.further[0].table.latency_model()(whole)
    assert there["full_predicted_ms"] == pytest.approx(own_ms, rel=1e-3)  # of the own precision
    on_pairs = found["best"]["further"][0]
    latency = problem.at(won).further[0].table.latency_model()
    widths = Widths(found["best"]["widths"])
    assert on_pairs["predicted_ms"] == pytest.approx(latency(widths), rel=1e-3)
    assert on_pairs["measured"]["median_ms"] <= there["budget"]["ms"]
    assert all(own["best"]["further"][0]["measured"] for own in found["precisions"])
    assert not list(Path("runs/default/search").glob("latencies*"))
    # In a further precision the budget is one in ms, on all devices: nothing is measured beside its original.
    most = SHARE_MARGIN if won == problem.profile.precision else NOISY
    tables = [own.table.latency_model() for own in problem.at(won).devices]
    margins = [min(own.noise, most) for own in tables]
    assert [found["margin"], there["margin"]] == pytest.approx(margins, rel=1e-3)

    sliced, _ = printed(capfd, "slice")
    assert sliced["further"][0]["budget"] == there["budget"]
    exported, _ = printed(capfd, "export")
    (verified,) = exported["further"]
    assert (exported["precision"], verified["precision"]) == (won, won)
    assert (exported["verified"], verified["verified"]) == (True, True)
    # A share is of the original in the devices' own precision.
    full_ms = 2e-6 * len(problem.further[0].graph.variant(whole))
    assert verified["full"]["median_ms"] == pytest.approx(full_ms)
    assert verified["budget"]["ms"] == pytest.approx(0.9 * full_ms)


def test_a_plan_estimates_what_each_device_takes(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady(monkeypatch)
    far = f'{PROFILE}machine = "riscv64"\n'
    Path("hw_profiles/far.toml").write_text(far, encoding="utf-8")
    trial = Trial(open_problem(load_config(None, {"": {"device": ["cpu", "pairs", "far"]}})))
    assert [own.problem.profile.name for own in trial.devices] == ["cpu", "pairs", "far"]
    assert [own.on for own in trial.measured_on] == ["", " on pairs"]
    verified = cost.verification(trial)
    assert [part.split(" of ")[0] for part in verified.basis.split(", ") if "measurements" in part] == [
        f"{2 * AT_LEAST} measurements",
        f"{2 * AT_LEAST} measurements on pairs",
    ]
    assert "1 evaluation of the file on far" in verified.basis
    # The tables of all devices have to be measured, on each.
    needs = {name: unknown(trial) for name, (_, unknown) in cost.STAGES.items()}
    assert {name for name, reason in needs.items() if reason} == {"build-lut"}
    assert needs["build-lut"] == trial.devices[2].away


def test_an_arena_is_of_one_device(pairs: Path, refused: Refused) -> None:
    Path("bcnet.toml").write_text(
        'device = ["cpu", "pairs"]\n' + Path("bcnet.toml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    assert (
        "equal latency, which is possible on one device only: choose one of cpu, pairs with --device NAME"
        in refused(1, "bench", "arena")
    )


def test_a_device_that_is_not_here_limits_by_its_estimate_and_leaves_the_export_unverified(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peaks = '[roofline]\nfp32_tflops = 0.1\nbandwidth_gb_s = 10.0\nsource = "none"\n'
    profile = f'{PROFILE}machine = "riscv64"\n{peaks}'
    Path("hw_profiles/far.toml").write_text(profile, encoding="utf-8")
    printed(capfd, "build-lut", "--estimate", "--device", "far")
    found, err = printed(capfd, "search", "--device", "cpu", "--device", "far", "--latency", "90%")
    (own,) = found["further"]
    assert own["estimate"]
    assert found["best"]["measured"]
    assert found["best"]["further"][0]["measured"] is None
    assert found["best"]["further"][0]["predicted_ms"] <= 0.9 * own["full_predicted_ms"] * (1 + 1e-9)
    reason = "on far: latency_tables/far.json is an estimate, not measured"
    assert reason in found["note"]
    assert ", by its table alone" in err
    printed(capfd, "slice", "--run", "default")
    exported, err = printed(capfd, "export", "--run", "default", code=4)
    assert (exported["passed"], exported["verified"], exported["measured"] is None) == (True, False, False)
    assert exported["not_verified"] == reason
    assert exported["verify_with"].startswith("on far: measure on the device itself")
    assert Path("runs/default/export/model-far.onnx").exists()
    assert reason in err.splitlines()[-1]


def test_other_devices_than_those_of_the_search_are_refused_with_the_command(
    pairs: Path, refused: Refused, opened: Callable[..., Any]
) -> None:
    assert "runs/default/search was made with another device; run `bcnet search` again" in refused(
        1, "export", *BOTH
    )
    problem = open_problem(load_config(None, {"": {"device": ["cpu", "pairs"]}}))
    stage = RUN.stage("search")
    with pytest.raises(ArtifactError, match=r"for the further devices none, but now they are pairs"):
        devices_of(problem, held_by_search(SearchSummary.read(stage)), stage)
    # A table of the second device alone would begin a run for that device alone.
    command = "run `bcnet build-lut --device cpu --device pairs`"
    assert f"latency_tables/pairs.json is missing; {command}" in refused(1, "search", *BOTH)


def test_budgets_of_devices_are_checked_against_the_devices(pairs: Path, refused: Refused) -> None:
    other = "a budget is for 'jetson', which is not among the target devices (cpu, pairs)"
    lacking = "search: no latency budget for pairs, but for other devices: add one"
    assert other in refused(2, "search", *BOTH, *BUDGETS, "--p90-ms", "jetson=5")
    assert other in refused(2, "search", *BOTH, "--set", "search.fps.jetson=5")
    assert lacking in refused(2, "search", *BOTH, "--latency", "cpu=50%")
    assert "device: one device is named twice in cpu, cpu" in refused(
        2, "search", "--device", "cpu", "--device", "cpu"
    )
    # Budgets of the file are no wrong usage, unless it is the devices that are typed.
    settings = Path("bcnet.toml").read_text(encoding="utf-8")
    for budgets, message in (("cpu = 9.0, pairs = 9.0, jetson = 5.0", other), ("cpu = 9.0", lacking)):
        own = settings.replace('latency = "75%"', f"latency_ms = {{ {budgets} }}")
        Path("bcnet.toml").write_text(f'device = ["cpu", "pairs"]\n{own}', encoding="utf-8")
        assert message in refused(1, "search")
    assert lacking in refused(2, "search", *BOTH)


def test_each_device_has_its_own_graph_and_those_that_are_alike_share_it(pairs: Path) -> None:
    Path("hw_profiles/slow.toml").write_text(
        f"{PROFILE}threads = 2\nchannel_multiple = 12\n", encoding="utf-8"
    )
    settings = {"": {"device": ["cpu", "pairs", "slow"]}, "search": {"fps": {"cpu": 50.0, "pairs": 40.0}}}
    with pytest.raises(ConfigError, match="no latency budget for slow"):
        open_problem(load_config(None, settings))
    settings["search"]["fps"]["slow"] = 100.0
    problem = open_problem(load_config(None, settings))
    two, three = problem.further
    assert problem.channel_multiple == 24
    assert three.graph is problem.graph
    assert two.graph is not problem.graph
    assert [own.config.search.given_ms(own.profile.batch) for own in problem.devices] == [20.0, 50.0, 10.0]
    assert (two.config.device, three.profile.threads) == (("pairs",), 2)
    assert len({own.device_key for own in problem.devices}) == 3
