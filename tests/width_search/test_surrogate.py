"""Expected scores: luck is taken out, and what only a supernet does; what networks have alone stays."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from bcnet.width_search.surrogate import FEWEST, Ridge, Surrogate, denoised_scores, places_of, with_losses


def places(count: int, groups: int = 6, seed: int = 0) -> np.ndarray:
    widths = np.random.default_rng(seed).integers(1, 5, (count, groups)) * 16
    return places_of(widths, [(16, 32, 48, 64)] * groups)


def truth(at: np.ndarray) -> np.ndarray:
    """Slopes of 0.02 to 0.07, and a rest of 1 % of their variance."""
    slopes = 0.01 * np.arange(2, 2 + at.shape[1])
    return np.asarray(0.7 + at @ slopes + 0.03 * (at[:, 0] - 0.5) * (at[:, 1] - 0.5))


def test_a_place_is_halfway_where_one_over_the_root_is() -> None:
    found = places_of(np.array([[16, 8], [64, 8], [36, 8]]), [(16, 36, 64), (8,)])
    assert found[:, 0].tolist() == pytest.approx([0, 1, 2 / 3])
    assert found[:, 1].tolist() == [0, 0, 0]  # a group of one choice


@pytest.mark.parametrize("seed", range(5))
def test_noisy_scores_come_nearer_to_the_truth(seed: int) -> None:
    at = places(100, seed=seed)
    noisy = truth(at) + np.random.default_rng(seed).normal(0, 0.01, len(at))
    before, after = np.abs(noisy - truth(at)), np.abs(denoised_scores(at, noisy) - truth(at))
    assert after.mean() < 0.7 * before.mean()


def test_scores_without_luck_stay_as_they_are() -> None:
    at = places(60)
    np.testing.assert_allclose(denoised_scores(at, truth(at)), truth(at), atol=2e-4)


def test_what_only_a_supernet_does_is_hardly_believed() -> None:
    at = places(200)
    scores = truth(at) - 0.03 * (at == 1).sum(1)  # the widest choices do worse than they would alone
    before, after = (kendalltau(s, truth(at)).statistic for s in (scores, denoised_scores(at, scores)))
    assert before < 0.7
    assert after > before + 0.1


def test_a_ridge_regression_finds_what_is_linear_and_shrinks_what_is_luck() -> None:
    rng = np.random.default_rng(0)
    known, others = rng.normal(size=(24, 8)), rng.normal(size=(500, 8))
    weights = np.arange(8.0)
    exact = Ridge.of(known, 3 + known @ weights, free=0).at(others)
    assert exact == pytest.approx(3 + others @ weights, abs=0.05)
    assert Ridge.of(known, rng.normal(size=24), free=0).at(others).std() < 0.3
    assert Ridge.of(np.ones((24, 2)), np.arange(24.0), free=1).at(others[:, :2]) == pytest.approx(11.5)


def test_a_tenth_of_what_no_trend_explains_is_believed_however_large_it_is() -> None:
    at = places(200)
    bumped = truth(at) - 0.3 * ((at[:, 0] > 0) & (at[:, 0] < 1))
    learned = Surrogate.of(at, bumped)
    assert learned is not None
    low, middle, high = (np.r_[end, np.full(5, 0.5)][None] for end in (0.0, 0.6, 1.0))

    def sag(shrunk: bool) -> float:
        """How far the middle is below the line between both ends."""
        ends = 0.4 * learned.at(low, shrunk) + 0.6 * learned.at(high, shrunk)
        return float((ends - learned.at(middle, shrunk))[0])

    assert sag(shrunk=False) == pytest.approx(0.3, abs=0.06)
    assert sag(shrunk=True) == pytest.approx(0.1 * sag(shrunk=False), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_denoised_scores_have_the_mean_of_the_scores(seed: int) -> None:
    at = places(60, seed=seed)
    scores = truth(at) + np.random.default_rng(seed).normal(0, 0.02, 60) - 0.1 * (at[:, 3] == 1)
    assert denoised_scores(at, scores).mean() == pytest.approx(scores.mean(), abs=1e-6)


def test_widths_that_were_not_scored_are_expected_by_those_that_were() -> None:
    at, others = places(100), places(50, seed=1)
    learned = Surrogate.of(at, truth(at))
    assert learned is not None
    assert learned.at(others) == pytest.approx(truth(others), abs=2e-3)
    assert Surrogate.of(at[:5], truth(at[:5])) is None


def test_scores_of_luck_alone_are_drawn_to_their_mean() -> None:
    at = places(80, 20)
    luck = np.random.default_rng(1).normal(0.5, 0.01, len(at))
    assert denoised_scores(at, luck).std() < 0.7 * luck.std()


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
def test_too_few_scores_stay_as_they_are(count: int) -> None:
    scores = np.linspace(0, 1, count)
    assert denoised_scores(places(count), scores).tolist() == scores.tolist()


def test_equal_scores_stay_equal() -> None:
    assert denoised_scores(places(20), np.full(20, 0.3)).tolist() == [0.3] * 20


def test_beyond_the_best_thousand_scores_are_expected_too() -> None:
    at = places(1200)
    found = denoised_scores(at, truth(at))
    assert found.shape == (1200,)
    assert np.corrcoef(found, truth(at))[0, 1] > 0.99


def test_a_score_that_is_not_finite_does_not_spoil_the_others() -> None:
    scores = np.r_[np.linspace(0, 1, 20), np.nan]
    assert np.isfinite(denoised_scores(places(21), scores)[:20]).all()


def test_accuracies_go_most_of_the_way_to_what_their_losses_rank_would_have() -> None:
    accuracies, losses = np.array([0.5, 0.7, 0.6, 0.9]), np.array([3.0, 2.0, 1.0, 0.5])
    # By loss, from best to worst: the fourth, the third, the second, the first.
    assert with_losses(accuracies, losses) == pytest.approx([0.5, 0.625, 0.675, 0.9])
    assert with_losses(accuracies, losses, 0.5) == pytest.approx([0.5, 0.65, 0.65, 0.9])


@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [1.0, np.nan, 2.0], [1.0, np.inf, 2.0]])
def test_losses_that_are_equal_or_not_finite_tell_nothing(losses: list[float]) -> None:
    accuracies = np.array([0.5, 0.7, 0.6])
    assert with_losses(accuracies, np.array(losses)).tolist() == accuracies.tolist()
