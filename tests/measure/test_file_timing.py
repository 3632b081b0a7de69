"""The statistics of a file's timing, and the order in which two files are timed."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bcnet.errors import DeviceError, NetworkError
from bcnet.hw_profiles import HwProfile
from bcnet.measure import file_timing
from bcnet.measure.file_timing import FLOOR, Speedup, TimedRuns, TimingSettings, rounds_differ_by, time_file

PROFILE = HwProfile(
    name="there", description="", runtime="onnxruntime", seconds=1.0, iterations=30, warmup_ms=0
)


def saved(path: Path, op: str = "Relu") -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], name=op)], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


class Device:
    """A runtime of fixed times: the square root takes twice as long, an application a quarter more."""

    def __init__(self, rounds_ms: list[float] | None = None) -> None:
        self.asked: list[tuple[str, bool, float, int]] = []
        self.rounds_ms = rounds_ms or [1.0]
        self.profiled: list[int] = []

    def fingerprint(self) -> dict[str, str]:
        return {"runtime_version": "9", "processor": "a board"}

    def time_network(
        self, model: bytes, warmup_ms: float, seconds: float, iterations: int, *, application: bool = False
    ) -> np.ndarray:
        op = onnx.load_from_string(model).graph.node[0].op_type
        turn = sum(entry[:2] == (op, application) for entry in self.asked)
        self.asked.append((op, application, seconds, iterations))
        ms = self.rounds_ms[turn % len(self.rounds_ms)] * (2 if op == "Sqrt" else 1)
        return np.full(50, ms + 0.25 * application)

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        self.profiled.append(runs)
        return [("copy", np.array([0.25, 0.2, 0.25])), ("Relu", np.array([0.5, 9.0, 0.75]))]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(file_timing, "runtime_of", lambda profile: found)
    return found


def test_a_round_counts_what_was_not_interrupted_and_percentiles_count_everything() -> None:
    disturbed = np.full(400, 5.0)
    disturbed[100:300] = 12.0
    runs = TimedRuns.of([np.full(400, 5.0), disturbed])
    assert (runs.rounds_ms, runs.typical_ms, runs.noise) == ((5.0, 5.0), 5.0, 0.0)
    assert (runs.p50_ms, runs.p90_ms, runs.interrupted) == (5.0, 12.0, 0.25)


def test_percentiles_are_those_of_single_inferences() -> None:
    runs = TimedRuns.of([np.full(50, 1.0), np.concatenate([np.full(48, 1.0), [2.0, 3.0]]), np.full(50, 1.0)])
    assert (runs.p50_ms, runs.p90_ms, runs.runs) == (1.0, 1.0, 150)
    assert runs.p99_ms == pytest.approx(1.51)
    assert (runs.typical_ms, runs.noise) == (1.0, 0.0)


def test_rounds_that_agree_leave_the_narrowest_interval() -> None:
    runs = TimedRuns.of([np.full(5, 4.0)] * 10)
    assert (runs.low_ms, runs.high_ms) == (4 * (1 - FLOOR), 4 * (1 + FLOOR))


def test_further_independent_rounds_lie_inside_their_difference_in_19_of_20_cases() -> None:
    rng = np.random.default_rng(0)
    calls = rng.normal(5.0, 0.2, (500, 2, 10))
    inside = [np.abs(two - np.median(one)) <= rounds_differ_by(one) for one, two in calls]
    assert 0.935 < np.mean(inside) < 0.965


def test_calls_of_a_drifting_machine_agree_in_19_of_20_cases() -> None:
    """Latencies that stay correlated for half a minute, as those that were recorded on a virtual machine."""
    rng = np.random.default_rng(0)
    steps = rng.normal(0.0, 1.0, 20_000)
    drift = np.zeros(len(steps))
    for at in range(1, len(steps)):
        drift[at] = 0.93 * drift[at - 1] + steps[at]
    ms = 5 * (1 + 0.03 * drift / drift.std())
    calls = [TimedRuns.of(list(ms[at : at + 10, None])) for at in range(0, len(ms) - 10, 40)]
    agree = [one.low_ms <= two.typical_ms <= one.high_ms for one, two in pairwise(calls)]
    assert 0.93 < np.mean(agree) < 0.99


def test_a_ratio_has_an_interval_over_rounds_and_its_direction() -> None:
    found = Speedup.of([4.0, 4.4, 3.6], [2.0, 2.0, 2.0])
    assert found.ratio == pytest.approx((4 * 4.4 * 3.6 / 8) ** (1 / 3), abs=1e-4)
    deviation = np.std(np.log([2.0, 2.2, 1.8]), ddof=1)
    assert np.log(found.high / found.ratio) == pytest.approx(4.3027 * deviation / 3**0.5, rel=1e-3)
    assert found.separable
    same = Speedup.of([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert (same.ratio, same.separable) == (1.0, False)
    assert same.high == pytest.approx(np.exp(FLOOR), abs=1e-5)
    assert not Speedup.of([1.0, 1.2, 0.9], [1.0, 1.0, 1.0]).separable


def test_the_same_network_is_separable_from_itself_in_at_most_one_of_20_cases() -> None:
    rng = np.random.default_rng(1)
    found = [Speedup.of(*rng.normal(5.0, 0.2, (2, 10))).separable for _ in range(500)]
    assert np.mean(found) < 0.07


def test_files_alternate_and_every_second_round_is_reversed(device: Device, tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a.onnx", "Sqrt"), saved(tmp_path / "b.onnx")
    settings = TimingSettings(rounds=3, seconds=6.0)
    report = time_file(first, PROFILE, against=second, settings=settings)
    there = [("Sqrt", False), ("Sqrt", True), ("Relu", False), ("Relu", True)]
    assert [entry[:2] for entry in device.asked] == [*there, *reversed(there), *there]
    assert {entry[2:] for entry in device.asked} == {(2.0, 10), (1.0, 10)}
    assert report.speedup is not None
    assert report.speedup.ratio == pytest.approx(2.0)
    typical = [(own.file, own.device_time.typical_ms, own.application.typical_ms) for own in report.files]
    assert typical == [("a.onnx", 2.0, 2.25), ("b.onnx", 1.0, 1.25)]
    assert report.runtime == {"runtime": "onnxruntime", "runtime_version": "9", "processor": "a board"}
    assert report.not_quiet is None


def test_layers_are_medians_of_the_first_file_the_longest_first(device: Device, tmp_path: Path) -> None:
    report = time_file(saved(tmp_path / "a.onnx"), PROFILE)
    (file,) = report.files
    assert [(layer.name, layer.kind, layer.ms, layer.share) for layer in file.layers] == [
        ("Relu", "Relu", 0.75, 0.75),
        ("copy", "", 0.25, 0.25),
    ]
    assert file.layers_ms == 1.0
    assert device.profiled == [200]
    without = time_file(saved(tmp_path / "a.onnx"), PROFILE, settings=TimingSettings(layers=False))
    assert (without.files[0].layers, without.files[0].no_layers) == ((), None)


def test_a_runtime_without_a_profile_still_times_the_network(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(model: bytes, runs: int) -> Any:
        raise DeviceError("a single block")

    monkeypatch.setattr(device, "profile_nodes", refuses)
    (file,) = time_file(saved(tmp_path / "a.onnx"), PROFILE).files
    assert (file.layers, file.layers_ms, file.no_layers) == ((), None, "a single block")
    assert file.device_time.typical_ms == 1.0


def test_rounds_that_disagree_are_a_warning(device: Device, tmp_path: Path) -> None:
    device.rounds_ms = [1.0, 1.0, 1.5]
    report = time_file(saved(tmp_path / "a.onnx"), PROFILE, settings=TimingSettings(rounds=3))
    assert report.not_quiet == (
        "the machine is not quiet: rounds of a.onnx disagree by 50% (1.000 to 1.500 ms), 33% of inferences "
        "took over 1.25 times the fastest; stop other work on it, or keep bcnet on its own cores (taskset)"
    )
    assert report.files[0].device_time.typical_ms == 1.0


def test_an_engine_is_refused_by_a_runtime_that_has_none(device: Device, tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"ftrt and more")
    with pytest.raises(NetworkError, match=r"a.engine is an engine of TensorRT, which 'there' does not run"):
        time_file(tmp_path / "a.engine", PROFILE)
    assert device.asked == []


def test_of_several_hosts_the_first_is_timed_as_rounds_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles: list[HwProfile] = []
    monkeypatch.setattr(file_timing, "runtime_of", lambda profile: (profiles.append(profile), Device())[1])
    several = PROFILE.model_copy(update={"host": ("one", "two"), "batch": 4})
    report = time_file(saved(tmp_path / "a.onnx"), several, settings=TimingSettings(rounds=3))
    assert [profile.host for profile in profiles] == [("one",)]
    assert report.notes == ("of several hosts, only one was timed",)
