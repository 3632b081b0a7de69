"""Expected scores: luck is taken out, what is no luck stays."""

import numpy as np
import pytest

from bcnet.supernet.smooth import FEWEST, expected_scores


def places(count: int, groups: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (count, groups)) / 3


def truth(at: np.ndarray) -> np.ndarray:
    return np.asarray(0.7 + 0.02 * np.sqrt(at).sum(axis=1) + 0.01 * at[:, 0] * at[:, 1])


@pytest.mark.parametrize("seed", range(5))
def test_noisy_scores_come_nearer_to_the_truth(seed: int) -> None:
    at = places(100, seed=seed)
    noisy = truth(at) + np.random.default_rng(seed).normal(0, 0.01, len(at))
    before, after = np.abs(noisy - truth(at)), np.abs(expected_scores(at, noisy) - truth(at))
    assert after.mean() < 0.7 * before.mean()


def test_scores_without_luck_stay_as_they_are() -> None:
    at = places(60)
    np.testing.assert_allclose(expected_scores(at, truth(at)), truth(at), atol=2e-4)


def test_scores_of_luck_alone_are_drawn_to_their_mean() -> None:
    at = np.random.default_rng(0).integers(0, 4, (80, 20)) / 3
    luck = np.random.default_rng(1).normal(0.5, 0.01, len(at))
    assert expected_scores(at, luck).std() < 0.7 * luck.std()


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
def test_too_few_scores_stay_as_they_are(count: int) -> None:
    scores = np.linspace(0, 1, count)
    assert expected_scores(places(count), scores).tolist() == scores.tolist()


def test_equal_scores_stay_equal() -> None:
    assert expected_scores(places(20), np.full(20, 0.3)).tolist() == [0.3] * 20


def test_beyond_the_best_thousand_scores_are_expected_too() -> None:
    at = places(1200)
    found = expected_scores(at, truth(at))
    assert found.shape == (1200,)
    assert np.corrcoef(found, truth(at))[0, 1] > 0.99


def test_a_score_that_is_not_finite_does_not_spoil_the_others() -> None:
    scores = np.r_[np.linspace(0, 1, 20), np.nan]
    assert np.isfinite(expected_scores(places(21), scores)[:20]).all()
