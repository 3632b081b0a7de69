"""Score widths that can take several sets of channels by the best one, chosen on other images.

In: supernets with `assignments`, widths. Out: the mean of the supernets' scores. Of several assignments, the
one with the lowest loss on one half of the validation images is scored on the other half: the lowest of
several losses on the same images would be biased low, most of all for widths with many assignments.
"""

from functools import cached_property

from bcnet.data.kept_batches import KEPT_BYTES, KeptBatches
from bcnet.data.splits import Items, Split, shared_out
from bcnet.space.subnet import Subnet
from bcnet.space.width_space import Widths
from bcnet.width_search.scorer import Scorer, SupernetSide, best_first, score_of


class AssignedScorer(Scorer):
    """Scores widths by the best of `assignments.scored` assignments, always the same ones."""

    def scored_images(self) -> Split | Items:
        """One half of the validation images; the other half chooses."""
        _, scored = shared_out(self.data.val, 2)
        return scored

    @cached_property
    def _choosing(self) -> KeptBatches:
        choosing, _ = shared_out(self.data.val, 2)
        return KeptBatches(self.data, choosing, KEPT_BYTES // 2, str(self._device))

    def subnet(self, side: SupernetSide, widths: Widths) -> Subnet:
        """The best assignment of these widths; all sides choose among the same ones."""
        assignments = self.sides[0].supernet.assignments
        assert assignments is not None
        offered = assignments.of(self.space, widths, assignments.scored, *widths)
        if len(offered) == 1:
            return offered[0]
        scores = [
            score_of(self.predicted(self.recalibrated(side, own), self._choosing), self.task)
            for own in offered
        ]
        return offered[min(range(len(offered)), key=lambda place: best_first(scores[place]))]
