"""The next narrower and wider choice of each group, with milliseconds, and losses where they are known."""

import pytest

from bcnet.report.layers import Step
from bcnet.report.reasons import basis_of, reasons_of


def steps(group: str, width: int, *saved: tuple[int, int, float | None]) -> list[Step]:
    return [
        Step(group=group, wider=wide, narrower=narrow, saved_ms=ms, taken=narrow >= width)
        for wide, narrow, ms in saved
    ]


def test_a_sentence_has_milliseconds_and_losses_of_the_next_choices() -> None:
    own = steps("conv", 48, (64, 56, 0.02), (56, 48, 0.03), (48, 40, 0.01), (40, 32, 0.04))
    (found,) = reasons_of(own, {"conv": {64: 0.0, 56: 0.01, 48: 0.014, 40: 0.05, 32: 0.3}})
    assert (found.width, found.narrower, found.wider) == (48, 40, 56)
    assert (found.saves_ms, found.costs_ms) == (0.01, 0.03)
    assert found.loses == pytest.approx(0.036)
    assert found.gains == pytest.approx(0.004)
    assert found.sentence == (
        "40 would save 0.010 ms and lose 0.036 of the validation loss; "
        "56 would cost 0.030 ms and gain 0.004 of the validation loss"
    )
    assert basis_of([found]).endswith("with only that group narrowed, before fine-tuning")


def test_ends_cliffs_and_layers_that_do_not_run_are_stated_as_such() -> None:
    narrowest = steps("a", 8, (16, 8, -0.005))
    widest = steps("b", 16, (16, 8, None))
    first, second = reasons_of([*narrowest, *widest], {})
    assert first.sentence == "8 is the narrowest choice; 16 would save 0.005 ms"
    assert second.sentence == "8 would be of a layer that the runtime cannot run; 16 is the widest choice"
    assert (first.narrower, first.loses, second.wider, second.gains) == (None,) * 4
    assert "the search measured none of single widths" in basis_of([first, second])
