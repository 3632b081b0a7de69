"""Budgets of files that pre-process their images: what is left for the network alone."""

import pytest

from bcnet.errors import BudgetError
from bcnet.width_search.budget import Budget


def test_pre_processing_is_taken_off_a_budget_in_milliseconds() -> None:
    alone = Budget(5.0, margin=0.25).with_added(1.0)
    assert alone.target_ms == 4.0
    assert alone.limit_ms(100.0) == pytest.approx(3.2)
    assert alone.delivered == Budget(5.0, margin=0.25)


def test_a_share_is_of_both_networks_with_pre_processing() -> None:
    """The original takes 10 ms, or 12 with it: half of that is 6 ms, of which 4 are left for the network."""
    alone = Budget(0.5 * 10, 0.5).with_added(2.0)
    assert alone.target_ms == 4.0
    assert alone.asked_ms(10.0) == 4.0
    assert alone.asked_ms(20.0) == 0.5 * 22 - 2
    assert alone.delivered.target_ms == 6.0
    assert alone.delivered.asked_ms(12.0) == 6.0


def test_the_original_fits_a_budget_of_all_its_latency_whatever_is_added() -> None:
    alone = Budget(10.0, 1.0, margin=0.25).with_added(3.0)
    assert alone.limit_ms(10.0) == 10.0
    assert alone.within_margin == 1.0


def test_a_budget_that_pre_processing_uses_up_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"budget of 2\.000 ms leaves nothing .* takes 2\.500 ms"):
        Budget(2.0).with_added(2.5)
    share = Budget(5.0, 0.5).with_added(2.0)
    with pytest.raises(BudgetError, match="leaves nothing for the network"):
        share.asked_ms(1.0)


def test_without_a_latency_budget_nothing_is_taken_off() -> None:
    assert Budget().with_added(2.0) == Budget(added_ms=2.0)
    assert Budget(5.0).with_added(0.0) == Budget(5.0)


def test_a_budget_of_one_of_several_devices_names_it() -> None:
    with pytest.raises(BudgetError, match=r"^the budget of 2\.000 ms on desk leaves nothing for the network"):
        Budget(2.0, on_device=" on desk").with_added(2.5)
