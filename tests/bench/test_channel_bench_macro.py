"""The benchmark's table: its counts, its denoised truth, and what rankings of it are worth."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bcnet.bench.channel_bench_macro import MAXIMA, BenchTable, difference, ranking
from bcnet.errors import ArtifactError
from bcnet.models.channel_bench_macro import mobilenet, resnet
from bcnet.space.discover import discover_space
from bcnet.width_search.constraints import multiply_accumulates, parameters

REAL = Path(__file__).parents[3] / "shared/data/channel_bench_macro/Results_MobileNet.json"
needs_table = pytest.mark.skipif(not REAL.exists(), reason="the authors' table is not here")
KEYS = ["".join(map(str, digits)) for digits in itertools.product(range(1, 5), repeat=7)]


def rows(accuracy: dict[str, float]) -> dict[str, dict[str, float]]:
    return {
        key: {"mean": value, "std": 0.1, "flops": sum(map(int, key)), "params": 1.0}
        for key, value in accuracy.items()
    }


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> BenchTable:
    """Accuracy is the sum of the digits, but for a bonus of 3 where the first is 1; noise on top."""
    noise = np.random.default_rng(0).normal(0, 0.5, len(KEYS))
    truth = {key: sum(map(int, key)) + 3 * (key[0] == "1") + n for key, n in zip(KEYS, noise, strict=True)}
    path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(json.dumps(rows(truth)))
    return BenchTable.load(path, "mobilenet")


def test_the_denoised_truth_has_no_noise_left(synthetic: BenchTable) -> None:
    exact = synthetic.settings.sum(1) + 3 * (synthetic.settings[:, 0] == 1)
    assert np.abs(synthetic.accuracy - exact).max() > 1
    assert np.abs(synthetic.denoised - exact).max() < 0.25


def test_regret_is_what_choosing_by_score_inside_a_budget_loses(synthetic: BenchTable) -> None:
    everything = list(range(len(synthetic)))
    assert synthetic.regret(synthetic.denoised, everything) == [0, 0, 0, 0]
    worst = synthetic.regret(-synthetic.denoised, everything)
    inside = synthetic.macs <= synthetic.budgets()[0]
    assert worst[0] == pytest.approx(np.ptp(synthetic.denoised[inside]))


def test_a_sample_has_one_setting_of_each_size(synthetic: BenchTable) -> None:
    drawn = synthetic.sample(64, 0)
    ranks = np.argsort(np.argsort(synthetic.macs, kind="stable"), kind="stable")[drawn]
    assert sorted(ranks // (len(synthetic) // 64)) == list(range(64))
    assert synthetic.sample(64, 0) == drawn != synthetic.sample(64, 1)
    assert synthetic.sample(len(synthetic) + 1, 0) == list(range(len(synthetic)))
    others = synthetic.sample(64, 0, without=drawn)
    assert len(others) == 64
    assert not set(others) & set(drawn)


def test_ranking_tells_tau_and_an_interval_that_holds_it() -> None:
    truth = np.arange(50.0)
    swapped = truth.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    found = ranking(swapped, truth)
    assert found["kendall"] == pytest.approx(1 - 4 / (50 * 49), abs=1e-4)
    assert found["interval"][0] <= found["kendall"] <= found["interval"][1]


def test_scores_that_are_all_equal_rank_nothing() -> None:
    found = ranking(np.zeros(50), np.arange(50.0))
    assert found == {"kendall": 0, "interval": [0, 0], "spearman": 0, "pearson": 0}


def test_a_difference_of_two_scores_is_taken_on_the_same_settings() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    good, bad = truth + rng.normal(0, 0.3, 200), truth + rng.normal(0, 2, 200)
    found = difference(good, bad, truth)
    assert found["interval"][0] > 0.2
    assert difference(good, good, truth) == {"kendall": 0, "interval": [0, 0]}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"1111111": {"mean": 1, "std": 1, "flops": 1, "params": 1}}',
        '{"one": {}}',
        "{",
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"table\.json") as refused:
        BenchTable.load(path, "mobilenet")
    assert "\n" not in str(refused.value)


@needs_table
def test_counts_of_every_setting_equal_the_authors() -> None:
    """Parameters and multiply-accumulates of all 16,384 settings, as the width space counts them."""
    table = BenchTable.load(REAL, "mobilenet")
    model, maxima = mobilenet(), MAXIMA["mobilenet"]
    space = discover_space(model, torch.zeros(1, 3, 32, 32), bins=4, channel_multiple=1, min_width=0.25)
    assert tuple(group.channels for group in space.groups) == maxima
    quarters = [tuple(m * q // 4 for q in (1, 2, 3, 4)) for m in maxima]
    assert [group.choices for group in space.groups] == quarters
    widths = np.array([table.widths(i, maxima) for i in range(len(table))])
    assert np.array_equal(parameters(space).price_many(widths), table.params)
    assert np.array_equal(multiply_accumulates(space).price_many(widths), table.macs)


@needs_table
def test_figures_of_the_table_are_those_that_its_description_tells() -> None:
    table = BenchTable.load(REAL, "mobilenet")
    best = [table.denoised[table.macs <= budget].max() for budget in table.budgets()]
    assert best == pytest.approx([90.96, 91.19, 91.39, 91.52], abs=0.006)
    everything = list(range(len(table)))
    assert table.regret(table.macs, everything) == pytest.approx([0.77, 0.48, 0.87, 0.67], abs=0.006)
    assert np.std(table.accuracy - table.denoised) == pytest.approx(0.106, abs=0.002)


def test_the_resnet_space_has_the_seven_groups_in_their_order() -> None:
    space = discover_space(resnet(), torch.zeros(1, 3, 32, 32), bins=4, channel_multiple=1, min_width=0.25)
    assert tuple(group.channels for group in space.groups) == MAXIMA["resnet"]
    assert space.macs(space.smallest()) / 1e6 == pytest.approx(90.1, abs=0.05)
    assert space.macs(space.largest()) / 1e6 == pytest.approx(1436.2, abs=0.05)
