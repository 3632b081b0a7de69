"""CafeNet's scores: one half of the validation images chooses an assignment, the other half judges it."""

from dataclasses import replace

import pytest
from test_scorer import WIDTHS, images, network, supernet_of

from bcnet.data.splits import shared_out
from bcnet.space.free_channels import Assignments
from bcnet.width_search.assigned_scorer import AssignedScorer
from bcnet.width_search.scorer import Validation, best_first


def test_one_half_of_the_images_chooses_the_assignment_that_the_other_half_judges() -> None:
    model, space = network("cafenet")
    data, own = images(200), Assignments(offset=2, scored=5)
    supernet = replace(supernet_of(model, space), assignments=own)
    scorer = AssignedScorer([supernet], data, 64)
    choosing, judging = (Validation(replace(data, val=half), 64) for half in shared_out(data.val, 2))
    offered = own.of(space, WIDTHS, 5, *WIDTHS)
    networks = [choosing.recalibrated(supernet, subnet) for subnet in offered]
    by_choosing = [best_first(choosing.score(narrow)) for narrow in networks]
    best = by_choosing.index(min(by_choosing))
    (side,) = scorer.sides
    assert scorer.subnet(side, WIDTHS) == offered[best]
    found, wanted = scorer(WIDTHS), judging.score(networks[best])
    assert found.accuracy == pytest.approx(wanted.accuracy)
    assert found.loss == pytest.approx(wanted.loss)
    by_judging = [best_first(judging.score(narrow)) for narrow in networks]
    assert by_judging.index(min(by_judging)) != best  # else the test would not tell the halves apart
    assert scorer(space.largest()) != found
    assert scorer(WIDTHS) == found  # the same each time


def test_each_supernet_chooses_its_own_assignment() -> None:
    model, space = network("cafenet")
    own = Assignments(offset=2, scored=6)
    first = replace(supernet_of(model, space), assignments=own)
    turned = {name: tensor.flip(0) if tensor.ndim else tensor for name, tensor in first.state.items()}
    second = replace(first, state=turned)
    scorer = AssignedScorer([first, second], images(100), 64)
    alone = [AssignedScorer([supernet], images(100), 64)(WIDTHS) for supernet in (first, second)]
    assert scorer(WIDTHS).loss == pytest.approx((alone[0].loss + alone[1].loss) / 2)
    assert scorer.subnet(scorer.sides[0], WIDTHS) != scorer.subnet(scorer.sides[1], WIDTHS)
