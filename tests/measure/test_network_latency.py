"""What counts as a network's latency on a machine that does other work, and when that is reported."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.latency_tables.rows import LatencyStat
from bcnet.measure import network_latency
from bcnet.measure.network_latency import measure_network

QUIET = [2.0, 2.02, 2.04, 2.02, 2.0]
BUSY = [2.0, 7.2, 7.4, 2.02, 7.2]  # a core that is shared: most inferences wait for other work
SLOW = [7.2, 7.3, 7.4]  # longer than the core's time slice: every inference waits


class Played:
    """A runtime that takes the times of each window from a list."""

    def __init__(self, windows: Sequence[Sequence[float]]) -> None:
        self.windows = list(windows)

    def time_network(self, model: bytes, warmup_ms: float, seconds: float, iterations: int) -> np.ndarray:
        return np.array(self.windows.pop(0))


Measure = Callable[..., LatencyStat]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """What is measured where the windows show these times; all of them are needed."""
    profile: HwProfile = load_profile("cpu")

    def measure(*windows: Sequence[float], quiet: bool = False) -> LatencyStat:
        played = Played(windows)
        monkeypatch.setattr(network_latency, "runtime_of", lambda _: played)
        found = measure_network(b"", profile, quiet=quiet)
        assert not played.windows
        return found

    return measure


def test_the_fastest_of_three_windows_that_agree_counts(
    measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = [own * 1.02 for own in QUIET]
    assert measured(slower, QUIET, slower) == LatencyStat.of(np.array(QUIET))
    assert capsys.readouterr().err == ""


def test_interrupted_inferences_do_not_move_the_median_and_are_reported(
    measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(BUSY, BUSY, BUSY)
    assert np.median(BUSY) == 7.2
    assert found.median_ms == 2.01
    assert (found.p90_ms, found.samples) == (LatencyStat.of(np.array(BUSY)).p90_ms, 5)
    assert capsys.readouterr().err.startswith(
        "the machine is busy: 60% of a network's inferences took over 1.25 times the fastest, and the two "
        "fastest of 3 windows differ by 0.0%; stop other work on the machine"
    )


def test_a_few_interrupted_inferences_are_not_reported(
    measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*QUIET, 7.2]
    assert measured(own, own, own).median_ms == 2.02
    assert capsys.readouterr().err == ""


def test_windows_that_disagree_are_followed_by_three_more_and_reported_once(
    measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = [[own * slower for own in QUIET] for slower in (1.4, 1.3, 1.2, 1.1, 1.0, 1.05)]
    assert measured(*windows).median_ms == 2.02
    (shown,) = capsys.readouterr().err.splitlines()
    assert "the two fastest of 6 windows differ by 5.0%; stop other work on the machine" in shown


def test_one_inference_that_was_not_interrupted_shows_that_all_others_were(
    measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(SLOW, [*SLOW, 2.0], SLOW, SLOW, SLOW, SLOW).median_ms == 2.0
    assert "95% of a network's inferences took over 1.25 times the fastest" in capsys.readouterr().err


def test_a_caller_that_compares_measurements_hears_nothing(
    measured: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(BUSY, BUSY, BUSY, quiet=True).median_ms == 2.01
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "advised"), [("jetson", True), ("cpu-openvino", False)])
def test_an_estimate_is_advised_only_where_the_profile_has_peaks(
    name: str, advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_latency, "why_not_here", lambda profile: "it is missing")
    profile = load_profile(name)
    with pytest.raises(DeviceError, match="it is missing; measure on the device itself") as refused:
        network_latency.runtime_of(profile)
    assert ("--estimate" in str(refused.value)) is advised is (profile.roofline is not None)
